"""A process to be killed: pushes frames while its bus comes and goes. Arguments: state, accepted, ledger, push|drain.

Appends a line to `accepted` per answered frame and to `ledger` per recorded decision. `push` goes on until killed, with
a bus that changes every few milliseconds; `drain` pushes nothing and ends with "drained" once the disk is empty.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from inspectbus.acquisition.service import open_service
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1 import acquisition_pb2, decision_pb2
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.bus import connect
from tests.doubles.fickle_bus import FickleBus, Way
from tests.doubles.small_line import SmallLine

WAYS: tuple[Way, ...] = ("refuses", "is full", "loses", "swallows")


def main(state: str, accepted: str, ledger: str, task: str) -> None:
    accepted_rows, ledger_rows = (os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for file in (accepted, ledger))

    def record(decision: decision_pb2.Decision) -> None:
        os.write(ledger_rows, f"{decision.frame_id}\n".encode())

    station = {"name": "top", "source": {"kind": "push"}}
    settings = AcquisitionSettings.model_validate(
        {"lines": [{"name": "line-1", "stations": [station]}], "state_dir": Path(state), "port": 0, "metrics_port": 0}
    )
    with connect("embedded://spooling") as behind:
        bus = FickleBus(behind)
        SmallLine(bus, record).open()
        if task == "push":
            bus.go_away("refuses")
            threading.Thread(target=come_and_go, args=(bus,), daemon=True).start()
        with open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
            stub = AcquisitionServiceStub(channel)
            if task == "push":
                for answer in stub.PublishFrames(shots()):
                    if not answer.HasField("refusal"):
                        os.write(accepted_rows, f"{answer.frame_id}\n".encode())
            request = acquisition_pb2.GetStationRequest(line="line-1", station="top")
            while stub.GetStation(request, timeout=5).station.spooled:
                time.sleep(0.02)
    sys.stdout.write("drained\n")


def shots() -> Iterator[acquisition_pb2.PublishFramesRequest]:
    for number in itertools.count():
        shot = acquisition_pb2.Shot(image=b"picture" * 100, source_item=str(number))
        yield acquisition_pb2.PublishFramesRequest(line="line-1", station="top", shot=shot)


def come_and_go(bus: FickleBus) -> None:
    dice = random.Random(os.getpid())
    while True:
        time.sleep(dice.uniform(0.01, 0.1))
        bus.go_away(dice.choice(WAYS), trouble=dice.choice(("", "no connection to the broker")))
        time.sleep(dice.uniform(0.05, 0.3))
        bus.come_back()


if __name__ == "__main__":
    main(*sys.argv[1:])
