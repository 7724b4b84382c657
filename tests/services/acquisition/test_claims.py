"""Large images leave by claim, and a frame store that fails refuses frames and loses none."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import grpc
import pytest

from inspectbus.api.v1.acquisition_pb2 import (
    InspectRequest,
    PublishFramesRequest,
    Shot,
)
from inspectbus.api.v1.acquisition_pb2_grpc import AcquisitionServiceStub
from inspectbus.errors import StorageAway
from inspectbus.stores.frames import INLINE_MAX_BYTES, FrameStore, evidence_key
from tests.doubles.small_line import SmallLine
from tests.services.acquisition.conftest import OpenAcquisition

PATIENCE_S = 20.0
PUSH = {"name": "top", "source": {"kind": "push"}}
SMALL = os.urandom(INLINE_MAX_BYTES)
LARGE = b"\x89PNG\r\n\x1a\n" + SMALL


def inspect(stub: AcquisitionServiceStub, line: SmallLine, image: bytes) -> None:
    stub.Inspect(InspectRequest(shot=Shot(image=image)), timeout=PATIENCE_S)


def test_only_an_image_above_the_limit_is_claimed_under_the_key_of_its_evidence(
    acquisition: OpenAcquisition, line: SmallLine, tmp_path: Path
) -> None:
    stub = acquisition(PUSH, results_address=line.address)

    for image in (SMALL, LARGE):
        inspect(stub, line, image)

    small, large = line.frames
    assert small.image == SMALL
    assert not small.HasField("claim")
    assert large.image == b""
    assert large.claim.key == evidence_key(large.line, large.station, large.frame_id, "original", "png")
    assert FrameStore(f"file://{tmp_path}/state/frames").fetch(large.claim) == LARGE


def test_a_replayed_frame_waits_for_the_store_and_is_not_lost(
    acquisition: OpenAcquisition, line: SmallLine, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = FrameStore.put
    refused: list[str] = []

    def away_at_first(self: FrameStore, key: str, data: bytes) -> None:
        if len(refused) < 2:
            refused.append(key)
            raise StorageAway("the frame store does not answer: it is being moved")
        put(self, key, data)

    monkeypatch.setattr(FrameStore, "put", away_at_first)
    acquisition({"name": "top", "source": {"kind": "folder", "path": images}}, inline_max_bytes=1)

    line.wait_for_frames(12)

    assert len({frame.frame_id for frame in line.frames}) == 12
    assert all(frame.claim.size > 1 and not frame.image for frame in line.frames)
    store = FrameStore(f"file://{tmp_path}/state/frames")
    assert sorted(store.fetch(frame.claim) for frame in line.frames) == sorted(
        file.read_bytes() for file in images.iterdir()
    )
    assert len(refused) == 2


def test_a_pushed_frame_rests_on_the_stations_disk_while_the_store_is_away_and_goes_when_it_is_back(
    acquisition: OpenAcquisition, line: SmallLine, tmp_path: Path
) -> None:
    (tmp_path / "volume").write_text("no folder yet")
    stub = acquisition(PUSH, frame_store_url=f"file://{tmp_path}/volume/frames")
    shot = Shot(image=LARGE, frame_id=str(uuid.uuid4()))

    [taken] = stub.PublishFrames(
        iter([PublishFramesRequest(line="line-1", station="top", shot=shot)]), timeout=PATIENCE_S
    )
    assert not taken.HasField("refusal")
    assert line.frames == []

    (tmp_path / "volume").unlink()
    line.wait_for_frames(1)
    [frame] = line.frames
    assert frame.frame_id == shot.frame_id
    assert FrameStore(f"file://{tmp_path}/volume/frames").fetch(frame.claim) == LARGE


def test_an_inspection_is_told_that_the_store_is_away(
    acquisition: OpenAcquisition, line: SmallLine, tmp_path: Path
) -> None:
    (tmp_path / "volume").write_text("no folder")
    stub = acquisition(PUSH, frame_store_url=f"file://{tmp_path}/volume/frames", results_address=line.address)

    with pytest.raises(grpc.RpcError) as caught:
        inspect(stub, line, LARGE)

    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert line.frames == []
    inspect(stub, line, SMALL)
