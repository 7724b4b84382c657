"""A process to be killed: replays a folder and appends a line per recorded frame. Arguments: images, state, ledger.

Writes "finished" and ends when the station has finished.
"""

from __future__ import annotations

import os
import sys
import time

import grpc

from inspectbus.acquisition.service import open_service
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1 import acquisition_pb2, decision_pb2
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.bus import connect
from tests.doubles.small_line import SmallLine

FRAMES = 300


def main(images: str, state: str, ledger: str) -> None:
    rows = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def record(decision: decision_pb2.Decision) -> None:
        os.write(rows, f"{decision.run_id} {decision.sequence} {decision.source_item} {decision.frame_id}\n".encode())

    station = {"name": "top", "fps": 200, "frames": FRAMES, "source": {"kind": "folder", "path": images}}
    settings = AcquisitionSettings.model_validate(
        {"lines": [{"name": "line-1", "stations": [station]}], "state_dir": state, "port": 0, "metrics_port": 0}
    )
    with connect("embedded://replaying") as bus:
        SmallLine(bus, record).open()
        with open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
            stub = AcquisitionServiceStub(channel)
            request = acquisition_pb2.GetStationRequest(line="line-1", station="top")
            while stub.GetStation(request, timeout=5).station.state != acquisition_pb2.STATION_STATE_FINISHED:
                time.sleep(0.02)
    sys.stdout.write("finished\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
