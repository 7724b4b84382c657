"""Every method of every contract that our servers answer has a role, and no role stands beside a method."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from inspectbus.runtime.roles import METHODS, Role, needed_for

ROOT = Path(__file__).parents[2]


def contracts() -> Iterator[Any]:
    """File descriptors of each .proto file, not of a list, and of the two libraries that every server adds."""
    files = sorted((ROOT / "protos").rglob("*.proto"))
    assert files
    for file in files:
        module = ".".join(file.relative_to(ROOT / "protos").with_suffix("").parts)
        yield import_module(f"{module}_pb2").DESCRIPTOR
    yield health_pb2.DESCRIPTOR
    yield reflection_pb2.DESCRIPTOR


def methods() -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for contract in contracts()
        for service in contract.services_by_name.values()
        for method in service.methods
    }


def test_every_method_has_a_role_and_every_role_a_method() -> None:
    assert set(METHODS) == methods()


def test_what_anybody_may_call_says_only_whether_a_service_is_well() -> None:
    open_to_all = {method.rpartition("/")[2] for method, role in METHODS.items() if role is Role.ANYBODY}
    assert open_to_all == {"Check", "List", "Watch", "ServerLive", "ServerReady"}


def test_what_is_in_no_row_admin_alone_may() -> None:
    assert needed_for("/inspectbus.api.v1.ResultsService/Forget") is Role.ADMIN


@pytest.mark.parametrize(
    ("role", "includes"),
    [
        (Role.VIEWER, {Role.VIEWER}),
        (Role.STATION, {Role.VIEWER, Role.STATION}),
        (Role.REVIEWER, {Role.VIEWER, Role.REVIEWER}),
        (Role.ENGINEER, {Role.VIEWER, Role.STATION, Role.REVIEWER, Role.ENGINEER}),
        (Role.ADMIN, {Role.VIEWER, Role.STATION, Role.REVIEWER, Role.ENGINEER, Role.ADMIN}),
    ],
)
def test_a_role_includes_those_below_it(role: Role, includes: set[Role]) -> None:
    assert {each for each in Role if each is not Role.ANYBODY and role.includes(each)} == includes
