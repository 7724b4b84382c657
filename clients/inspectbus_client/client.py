"""The client: one door to all services of InspectBus.

with Client() as client:
    decision = client.inspect("part-4711.png", part_id="4711")
    print(decision.verdict, decision.score)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

from inspectbus.channels import NO_ACCESS, Access
from inspectbus.errors import BadField
from inspectbus_client.agreements import Agreements
from inspectbus_client.decisions import Decisions
from inspectbus_client.frames import Frames
from inspectbus_client.gates import Gates
from inspectbus_client.jobs import Jobs
from inspectbus_client.models import Models
from inspectbus_client.recipes import Recipes
from inspectbus_client.stations import Stations
from inspectbus_client.wire import SERVICES, Wire


class Client(Frames, Stations, Gates, Decisions, Agreements, Recipes, Models, Jobs):
    """Thread-safe. Quiet until the first call, which opens the channel to the service it needs.

    Every call has a deadline, raises one family of errors (`inspectbus.errors`), and is tried again within its
    deadline only where that is safe.
    """

    def __init__(
        self,
        *,
        acquisition: str = "127.0.0.1:50051",
        preprocessing: str = "127.0.0.1:50052",
        inference: str = "127.0.0.1:50053",
        training: str = "127.0.0.1:50054",
        results: str = "127.0.0.1:50055",
        timeout_s: float = 10.0,
        max_message_bytes: int = 32 * 1024 * 1024,
        access: Access = NO_ACCESS,
    ) -> None:
        """Addresses are HOST:PORT, or of several replicas dns:///NAME:PORT or ipv4:IP:PORT,IP:PORT; `timeout_s` is the
        deadline of calls that name none; `access` says whom to trust and what to show: Access(ca="plant-ca.pem",
        token_file="token").

        Raises BadField for an address that is none.
        """
        self._wire = Wire(
            {
                "acquisition": acquisition,
                "preprocessing": preprocessing,
                "inference": inference,
                "training": training,
                "results": results,
            },
            timeout_s=timeout_s,
            max_message_bytes=max_message_bytes,
            access=access,
        )

    @classmethod
    def connect(cls, addresses: Mapping[str, str], *, timeout_s: float = 10.0, access: Access = NO_ACCESS) -> Self:
        """From a mapping, such as a settings file's; services that are left out stay at their default address."""
        unknown = sorted(set(addresses) - set(SERVICES))
        if unknown:
            raise BadField(f"there is no service {unknown[0]!r}, only {', '.join(SERVICES)}", field=unknown[0])
        return cls(**cast("dict[str, Any]", addresses), timeout_s=timeout_s, access=access)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every call and watch that is under way."""
        self._wire.close()
