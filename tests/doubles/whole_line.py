"""A whole line in this process, with a tiny model, for tests that come to all its doors."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inspectbus.channels import NO_ACCESS, Access
from inspectbus.line import SERVICES, open_line
from inspectbus.runtime.rpc_server import Door
from inspectbus_client import Client
from tests.doubles.tiny_model import tiny_version

PATIENCE_S = 60.0
HOSTS = {
    "AcquisitionService": "acquisition",
    "PreprocessingService": "preprocessing",
    "InferenceService": "inference",
    "GRPCInferenceService": "inference",
    "TrainingService": "training",
    "ModelService": "training",
    "ResultsService": "results",
    # Every server has these.
    "Health": "results",
    "ServerReflection": "results",
}
"""Which service answers a contract."""


@contextmanager
def whole_line(folder: Path, access: Access = NO_ACCESS, **everywhere: Any) -> Iterator[Mapping[str, Door]]:
    """All services, ready to judge. Training takes jobs and never begins one. `access` is for the line's own use."""
    stations = [{"name": "top", "source": {"kind": "push"}}]
    sections: dict[str, dict[str, Any]] = {
        "acquisition": {"lines": [{"name": "line-1", "stations": stations}]},
        "inference": {"model": "tiny", "model_dir": tiny_version(folder / "versions"), "threads": 1, "engine": "torch"},
        "training": {"role": "door", "data_root": folder},
    }
    bus_url = f"embedded://{uuid.uuid4()}"
    told = {"state_dir": folder / "state", "bus_url": bus_url, "port": 0, "metrics_port": 0, **everywhere}
    with open_line(SERVICES, sections, **told) as doors:
        addresses = {name: door.address for name, door in doors.items()}
        with Client.connect(addresses, access=access) as client:
            deadline = time.monotonic() + PATIENCE_S
            while not client.engine().ready:
                assert time.monotonic() < deadline, client.engine().detail
                threading.Event().wait(0.05)
        yield doors
