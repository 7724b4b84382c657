"""Random and broken requests at every method of every door: refused by the caller's fault, never by one of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inspectbus.runtime.rpc_server import Door
from tests.doubles.fuzzing import Fuzzer, methods
from tests.doubles.whole_line import HOSTS, whole_line

EXAMPLES = 5
"""Of each kind, for each of some forty methods; `make soak` makes many more."""
UNANSWERED = {"grpc.health.v1.Health.List"}
"""By the library that answers for all servers' health."""


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Door]]:
    with whole_line(tmp_path_factory.mktemp("line")) as doors:
        yield doors


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "method", list(methods()), ids=lambda method: method.full_name.removeprefix("inspectbus.api.v1.")
)
def test_no_request_causes_a_fault(doors: Mapping[str, Door], method: MethodDescriptor) -> None:
    door = doors[HOSTS[method.containing_service.name]]
    with grpc.insecure_channel(door.address) as channel:
        fuzzer = Fuzzer(channel)
        fuzzer.attack(method, EXAMPLES, same_each_time=True)

        assert fuzzer.codes.total() >= EXAMPLES
        assert (grpc.StatusCode.UNIMPLEMENTED in fuzzer.codes) == (method.full_name in UNANSWERED)
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (
            health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        )
