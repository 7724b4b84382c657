"""`inspectbus serve`, as whoever collects its log sees it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.doubles.children import start_child

PATIENCE_S = 60.0


def test_every_line_of_a_service_that_logs_json_is_json(tmp_path: Path) -> None:
    told = {
        "INSPECTBUS_LOG_FORMAT": "json",
        "INSPECTBUS_STATE_DIR": str(tmp_path),
        "INSPECTBUS_ACQUISITION_PORT": "0",
        "INSPECTBUS_ACQUISITION_METRICS_PORT": "0",
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INSPECTBUS_")}
    service = start_child([sys.executable, "-m", "inspectbus", "serve", "acquisition"], None, clean | told, tmp_path)
    lines: list[bytes] = []
    try:
        assert service.stdout is not None
        for line in service.stdout:
            lines.append(line)
            # All that a start has to say was said.
            if b"unreached" in line:
                service.terminate()
        code = service.wait(PATIENCE_S)
    finally:
        service.kill()
        service.wait(PATIENCE_S)

    assert code == 0, lines
    events = [json.loads(line)["event"] for line in lines]
    assert {"serving", "draining", "stopped"} <= set(events)
