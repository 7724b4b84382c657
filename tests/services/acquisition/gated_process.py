"""A process to be killed: replays a folder and appends a line per recorded frame and per delivered outcome.

Arguments: images, state, ledger, outcomes, and what hangs: "nothing", "decisions" (no frame is judged) or "outcomes"
(each is written down and never confirmed). Writes "finished" and ends when the station has finished and every frame has
its outcome.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import grpc

from inspectbus.acquisition.service import open_service
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.v1 import acquisition_pb2, decision_pb2, gate_pb2
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.bus import connect
from tests.doubles.small_line import SmallLine

FRAMES = 200


def main(images: str, state: str, ledger: str, outcomes: str, hangs: str) -> None:
    rows = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    gate_rows = os.open(outcomes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def record(decision: decision_pb2.Decision) -> None:
        os.write(rows, f"{decision.frame_id}\n".encode())

    def deliver(outcome: gate_pb2.GateOutcome) -> None:
        reason = gate_pb2.GateReason.Name(outcome.reason)
        os.write(gate_rows, f"{outcome.frame_id} {reason} {outcome.at.ToNanoseconds()}\n".encode())
        if hangs == "outcomes":
            threading.Event().wait()

    source = {"kind": "folder", "path": images}
    station = {"name": "top", "fps": 200, "frames": FRAMES, "source": source, "gate": {"deadline_s": 60}}
    settings = AcquisitionSettings.model_validate(
        {"lines": [{"name": "line-1", "stations": [station]}], "state_dir": state, "port": 0, "metrics_port": 0}
    )
    with connect("embedded://gated") as bus:
        line = SmallLine(bus, record, deliver)
        if hangs == "decisions":
            line.hold()
        line.open()
        with open_service(settings, bus) as door, grpc.insecure_channel(door.address) as channel:
            stub = AcquisitionServiceStub(channel)
            request = acquisition_pb2.GetStationRequest(line="line-1", station="top")
            while True:
                status = stub.GetStation(request, timeout=5).station
                if status.state == acquisition_pb2.STATION_STATE_FINISHED and not status.pending:
                    break
                time.sleep(0.02)
    sys.stdout.write("finished\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
