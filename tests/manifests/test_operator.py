"""The doctor, in the pod that people make for their commands, asks the plant's own servers, each once."""

from __future__ import annotations

from typing import Any

import pytest

from inspectbus.cli.doors import access
from inspectbus.doctor.plan import checks_of
from inspectbus.line import SERVICES
from tests.manifests.conftest import Rendered
from tests.manifests.environments import clean_environment
from tests.manifests.kustomize import SECRET

LOGIN = f"{SECRET}:{SECRET}"
FILES = "/etc/inspectbus/tls"
ASKED = {
    "edge": {
        "broker": f"amqp://{LOGIN}@rabbitmq:5672/",
        "database": f"postgresql://{LOGIN}@postgres:5432/inspectbus",
        "frame store": "file:///var/lib/frames",
    },
    "plant": {
        "broker": f"amqps://{LOGIN}@rabbitmq:5671/?cacertfile={FILES}/ca.crt",
        "database": f"postgresql://{LOGIN}@postgres-rw:5432/inspectbus?sslmode=verify-full",
        "frame store": "s3://inspectbus-frames/frames",
    },
}


@pytest.mark.parametrize("overlay", ASKED)
def test_the_doctor_asks_the_plants_own_servers(rendered: Rendered, overlay: str) -> None:
    found = rendered(f"overlays/{overlay}")
    environ = found.environment(found.workload("operator").pod["containers"][0])
    with clean_environment(environ):
        checks: list[tuple[str, Any]] = [
            (each.about, getattr(each.look, "args", ())) for each in checks_of(SERVICES, {}, access())
        ]

    for about, url in ASKED[overlay].items():
        (asked,) = (args[0] for name, args in checks if name == about)
        assert asked.startswith(url)
    doors = {name.removesuffix(" service"): args[1] for name, args in checks if name.endswith(" service")}
    assert doors == {
        "acquisition": "acquisition:50051",
        "preprocessing": "preprocessing:50052",
        "inference": "inference:50053",
        "training": "training:50054",
        "results": "results:50055",
    }
    clocks = {args[1] for name, args in checks if name.startswith("clock of ")}
    assert clocks == set(SERVICES)
