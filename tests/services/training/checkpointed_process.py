"""A training in a process of its own, with a checkpoint; told an epoch and a step, it waits there for its end."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import torch

from inspectbus.stores.datasets import open_dataset
from inspectbus.training.plan import Plan, Progress
from inspectbus.training.trainer import train

LONGER_THAN_ANY_TEST_S = 300.0


def main() -> None:
    plan, folder, version, epoch, step = sys.argv[1:]
    torch.set_num_threads(1)

    def on_progress(progress: Progress) -> None:
        if progress.stage == "training" and progress.steps:
            sys.stdout.write(f"{progress.done} {progress.step}\n")
            sys.stdout.flush()
            if (progress.done, progress.step) == (int(epoch), int(step)):
                threading.Event().wait(LONGER_THAN_ANY_TEST_S)

    train(
        Plan.model_validate_json(plan),
        open_dataset(str(Path(folder) / "plates")),
        Path(folder) / version,
        on_progress=on_progress,
        cancel=threading.Event(),
        cache_dir=Path(folder) / "cache",
        weights=Path(folder) / "weights",
        checkpoint_dir=Path(folder) / f"{version}-checkpoint",
    )


if __name__ == "__main__":
    main()
