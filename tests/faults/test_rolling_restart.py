"""Every service is replaced, one replica after the other, while parts arrive and others call: as in a rolling upgrade.

SIGTERM ─> drained, exit 0 ─> started again ─> serves, by its own health ─> the next
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.doubles.line_processes import SERVICES, LineProcesses
from tests.faults.callers import Callers
from tests.faults.scenario import Scenario

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.slow]

DRAIN_S = 5.0
GRACE_S = 30.0
"""From SIGTERM to the end: what Kubernetes waits for before it kills, unless told otherwise."""
PATIENCE_S = 60.0
ANSWERS = 8
"""Images others get decided between two restarts."""
LOOK_S = 0.1


@pytest.mark.parametrize(
    ("frames", "fps", "times"),
    [
        pytest.param(150, 4.0, 1, id="once"),
        pytest.param(2000, 12.0, 2, id="twice", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_every_replica_is_replaced_under_load(
    frames: int, fps: float, times: int, tmp_path: Path, bus_url: str, ledger_url: str
) -> None:
    with Scenario(
        "rolling restart",
        frames,
        tmp_path,
        bus_url,
        ledger_url,
        fps=fps,
        replicas=dict.fromkeys(SERVICES, 2),
        settings={service: {"drain_s": DRAIN_S} for service in SERVICES},
    ) as scenario:
        line = scenario.line
        with line.client_of_all() as client, Callers(client) as callers:
            for lap in range(1, times + 1):
                for service in SERVICES:
                    for number in range(2):
                        callers.await_more(ANSWERS)
                        replaced(line, f"{service}-{number}", lap)
            callers.await_more(ANSWERS)
        scenario.account_for(callers.decisions)
        figures = scenario.finish()
        records = scenario.records()
        assert [process.exits for process in line.of(*SERVICES)] == [(0,) * times] * 2 * len(SERVICES)
    assert callers.failures == []
    assert callers.misled(records) == []
    assert figures.recorded == frames + len(callers.decisions)


def replaced(line: LineProcesses, name: str, lap: int) -> None:
    """For the so many-th time: drained, and another in its place that serves."""
    process, service = line[name], name.rpartition("-")[0]
    process.terminate()
    assert process.await_exit(lap, GRACE_S) == 0
    process.await_start(lap + 1, "serving", PATIENCE_S)
    await_ready(line.address(name), f"inspectbus.api.v1.{service.capitalize()}Service")


def await_ready(address: str, contract: str) -> None:
    """As a readiness probe, which asks again and again."""
    request, serving = health_pb2.HealthCheckRequest(service=contract), health_pb2.HealthCheckResponse.SERVING
    until_s, pause = time.monotonic() + PATIENCE_S, threading.Event()
    with grpc.insecure_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        while health.Check(request, timeout=PATIENCE_S, wait_for_ready=True).status != serving:
            assert time.monotonic() < until_s, f"{contract} at {address} is not ready"
            pause.wait(LOOK_S)
