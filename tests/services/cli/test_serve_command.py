"""`inspectbus serve`, as whoever collects its log sees it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from inspectbus.stores.database import START_PATIENCE_S
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


@pytest.mark.parametrize("name", ["results", "training", "preprocessing"])
def test_a_service_that_waits_for_its_database_ends_at_once_when_it_is_told_to(tmp_path: Path, name: str) -> None:
    # given a port that is ours, and where nobody listens
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://plant:secret@127.0.0.1:{nobody.getsockname()[1]}/plant"
        told = {
            "INSPECTBUS_LOG_FORMAT": "json",
            "INSPECTBUS_STATE_DIR": str(tmp_path),
            "INSPECTBUS_DATABASE_URL": url,
        }
        clean = {key: value for key, value in os.environ.items() if not key.startswith("INSPECTBUS_")}
        service = start_child([sys.executable, "-m", "inspectbus", "serve", name], None, clean | told, tmp_path)
        lines: list[bytes] = []
        told_at = 0.0
        try:
            assert service.stdout is not None
            for line in service.stdout:
                lines.append(line)
                # when
                if b"waiting for the database" in line:
                    service.terminate()
                    told_at = time.monotonic()
            code = service.wait(PATIENCE_S)
            took_s = time.monotonic() - told_at
        finally:
            service.kill()
            service.wait(PATIENCE_S)

    # then long before it would have lost its patience, and as a service ends that was told to
    assert code == 0, lines
    assert told_at, lines
    assert took_s < START_PATIENCE_S / 2
    assert json.loads(lines[-1])["event"] == "told to stop before the database was there"
