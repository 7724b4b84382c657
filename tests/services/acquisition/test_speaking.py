"""Whose frames an identity may send: its own stations', by every call that makes frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from inspectbus.api.v1.acquisition_pb2 import InspectRequest, InspectStreamRequest, PublishFramesRequest, Shot
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.runtime.tokens import hash_of, new_token
from tests.doubles.small_line import SmallLine

PATIENCE_S = 15.0
STATIONS = tuple({"name": name, "source": {"kind": "push"}, "recipe": "bolt"} for name in ("top", "side"))
SHOT = Shot(image=b"picture")


@pytest.fixture
def stub(acquisition: Callable[..., AcquisitionServiceStub], line: SmallLine, tmp_path: Path) -> AcquisitionServiceStub:
    token = new_token()
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"camera: {{role: station, speaks_for: [line-1/top], sha256: {hash_of(token)}}}\n")
    stub = acquisition(*STATIONS, tokens=str(tokens))
    stub.shown = (("authorization", f"Bearer {token}"),)  # type: ignore[attr-defined]
    return stub


def sent(stub: Any, call: str, line: str, station: str) -> Any:
    told = {"timeout": PATIENCE_S, "metadata": stub.shown}
    if call == "Inspect":
        return stub.Inspect(InspectRequest(line=line, station=station, shot=SHOT), **told)
    kind = PublishFramesRequest if call == "PublishFrames" else InspectStreamRequest
    (answer,) = getattr(stub, call)(iter([kind(line=line, station=station, shot=SHOT)]), **told)
    return answer


@pytest.mark.parametrize("call", ["Inspect", "InspectStream", "PublishFrames"])
def test_frames_of_its_own_station_are_taken_and_of_no_other(stub: Any, call: str) -> None:
    answer = sent(stub, call, "line-1", "top")
    assert call == "Inspect" or not answer.HasField("refusal")

    for line, station, words in (
        ("line-1", "side", "camera may not speak for station line-1/side, only for line-1/top"),
        ("", "", "camera may not speak for the service's own station"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            sent(stub, call, line, station)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert words in str(caught.value.details())
