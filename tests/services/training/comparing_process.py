"""A training worker in a process of its own, whose comparison says when it comes to a stage, and waits there."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from inspectbus.bus import connect
from inspectbus.runtime import logs
from inspectbus.training.comparison.terms import Terms
from inspectbus.training.plan import Progress
from inspectbus.training.service import compare_on_whole_set, open_service
from inspectbus.training.settings import TrainingSettings
from inspectbus.training.worker import OnProgress

LONGER_THAN_ANY_TEST_S = 300.0


def main() -> None:
    folder, weights, stage = sys.argv[1:]
    torch.set_num_threads(1)
    logs.configure("warning", "text")
    settings = TrainingSettings(
        state_dir=Path(folder) / "state",
        data_root=Path(folder) / "data",
        weights=Path(weights),
        port=0,
        metrics_port=0,
        lease_s=1.0,
        role="worker",
    )

    def compare(terms: Terms, out_dir: Path, on_progress: OnProgress, cancel: threading.Event) -> Mapping[str, Any]:
        def told(progress: Progress) -> None:
            on_progress(progress)
            if progress.stage == stage:
                sys.stdout.write(f"{stage}\n")
                sys.stdout.flush()
                threading.Event().wait(LONGER_THAN_ANY_TEST_S)

        return compare_on_whole_set(settings, terms, out_dir, told, cancel)

    with connect(f"embedded://{folder}") as bus, open_service(settings, bus, compare=compare):
        threading.Event().wait(LONGER_THAN_ANY_TEST_S)


if __name__ == "__main__":
    main()
