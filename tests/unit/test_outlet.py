"""Where a frame goes when the station's disk is full: journal and spool lie on the same."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from inspectbus.acquisition.claims import Claims
from inspectbus.acquisition.gate import Gate
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.outlet import Outlet
from inspectbus.acquisition.settings import AcquisitionSettings, StationSettings
from inspectbus.acquisition.spool import Spool
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.bus import connect
from inspectbus.errors import StorageFull
from tests.doubles.fickle_bus import FickleBus

PATIENCE_S = 10.0


class CrampedGate:
    """Its journal finds room only while no frame rests on the disk."""

    spool: Spool

    def expect(self, frame: Frame) -> None:
        if self.spool.frames:
            raise StorageFull("the disk of the journal is full")

    def forget(self, frame_id: str) -> None:
        pass


@contextmanager
def cramped_outlet(folder: Path, when_spool_full: str) -> Iterator[Outlet]:
    """Of a station whose bus is away."""
    words = {"name": "top", "source": {"kind": "push"}, "when_spool_full": when_spool_full}
    settings, metrics = AcquisitionSettings(state_dir=folder), AcquisitionMetrics(CollectorRegistry())
    gate = CrampedGate()
    with connect(f"embedded://outlet-{uuid.uuid4()}") as behind:
        bus = FickleBus(behind)
        bus.go_away("refuses")
        station, claims = StationSettings.model_validate(words), Claims(settings, metrics)
        with Outlet(bus, "line-1", station, settings, metrics, cast(Gate, gate), claims) as outlet:
            assert outlet.spool is not None
            gate.spool = outlet.spool
            yield outlet


def publish(outlet: Outlet) -> None:
    frame = Frame(frame_id=str(uuid.uuid4()), line="line-1", station="top", image=b"picture")
    outlet.publish(frame).result(PATIENCE_S)


def test_the_oldest_frames_make_room_for_the_journal_where_the_newest_count(tmp_path: Path) -> None:
    with cramped_outlet(tmp_path, "drop-oldest") as outlet:
        for _ in range(3):
            publish(outlet)
        assert outlet.spool is not None
        assert (outlet.accepted, outlet.spool.frames, outlet.spool.dropped) == (3, 1, 2)


def test_a_full_disk_costs_no_frame_where_none_may_be_lost(tmp_path: Path) -> None:
    with cramped_outlet(tmp_path, "stop") as outlet:
        publish(outlet)
        with pytest.raises(StorageFull, match="the disk of the journal is full"):
            publish(outlet)
        assert outlet.spool is not None
        assert (outlet.accepted, outlet.spool.frames, outlet.spool.dropped) == (1, 1, 0)
