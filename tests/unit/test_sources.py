"""Sources give their images in a fixed order, from any position, as often as asked."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from inspectbus.acquisition.settings import DatasetSource, FolderSource, PushSource, VideoSource
from inspectbus.acquisition.sources import Capture, Source, Unreadable, open_source
from inspectbus.acquisition.sources.folder import ImageFolder
from inspectbus.api.v1 import frame_pb2
from inspectbus.errors import NotPossibleNow

LIMIT = 1_000_000


def names(source: Source, start: int = 0, count: int = 1000, *, again: bool = False) -> list[str]:
    return [item.item for item in islice(source.read(start, again=again), count)]


def folder(root: Path, *files: str) -> Source:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode())
    return open_source(FolderSource(kind="folder", path=root), LIMIT)


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    source = folder(tmp_path, "f10.png", "f2.png", "F1.PNG", "day-2/a.jpg", "day-10/a.tiff", "note.txt", ".f3.png")

    assert names(source) == ["day-2/a.jpg", "day-10/a.tiff", "F1.PNG", "f2.png", "f10.png"]


def test_a_folder_begins_anywhere_and_again(tmp_path: Path) -> None:
    source = folder(tmp_path, "1.png", "2.png", "3.png")

    assert names(source, 2) == ["3.png"]
    assert names(source, 3) == []
    assert names(source, 7, 4, again=True) == ["2.png", "3.png", "1.png", "2.png"]


def test_a_file_that_is_no_image_is_sent_as_it_is(tmp_path: Path) -> None:
    source = folder(tmp_path, "text.png")

    assert list(source.read(0, again=False)) == [Capture("text.png", b"text.png")]


def test_what_cannot_be_sent_is_named_with_its_reason(tmp_path: Path) -> None:
    source = folder(tmp_path, "1-empty.png", "2-gone.png", "3-large.png", "4-good.png")
    (tmp_path / "1-empty.png").write_bytes(b"")
    (tmp_path / "2-gone.png").unlink()
    (tmp_path / "3-large.png").write_bytes(bytes(LIMIT + 1))

    empty, gone, large, good = source.read(0, again=False)

    assert empty == Unreadable("1-empty.png", "the file is empty")
    assert gone == Unreadable("2-gone.png", "No such file or directory")
    assert large == Unreadable("3-large.png", f"the image is larger than {LIMIT} bytes")
    assert isinstance(good, Capture)


def test_a_new_file_makes_another_run(tmp_path: Path) -> None:
    before = folder(tmp_path, "1.png", "2.png").items

    assert folder(tmp_path, "1.png", "2.png").items == before
    assert folder(tmp_path, "1.png", "2.png", "3.png").items != before


@pytest.mark.parametrize("make", [lambda root: root / "missing", lambda root: root])
def test_a_folder_that_is_missing_or_without_images_is_refused_by_name(tmp_path: Path, make: object) -> None:
    path = make(tmp_path)  # type: ignore[operator]

    with pytest.raises(NotPossibleNow, match=str(path)):
        open_source(FolderSource(kind="folder", path=path), LIMIT)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """40 good and 40 defective parts."""
    for label in ("good", "defective"):
        (tmp_path / label).mkdir()
        for number in range(40):
            (tmp_path / label / f"{number}.png").write_bytes(f"{label} {number}".encode())
    return tmp_path


def dataset(root: Path, **chosen: object) -> Source:
    return open_source(DatasetSource.model_validate({"kind": "dataset", "data": str(root), **chosen}), LIMIT)


def test_a_data_set_carries_its_labels_as_truth(parts: Path) -> None:
    captures = list(dataset(parts, part="all").read(0, again=False))

    truths = {"good": frame_pb2.LABEL_GOOD, "defective": frame_pb2.LABEL_DEFECTIVE}
    assert len(captures) == 80
    for capture in captures:
        assert isinstance(capture, Capture)
        assert capture.truth == truths[capture.item.split("/")[0]]
        assert capture.image.decode().split()[0] == capture.item.split("/")[0]


def test_four_stations_share_the_held_out_part_and_no_image(parts: Path) -> None:
    whole = names(dataset(parts))
    shares = [names(dataset(parts, offset=number, stride=4)) for number in range(4)]

    assert len(whole) == 20
    assert sorted(name for share in shares for name in share) == sorted(whole)
    assert [len(share) for share in shares] == [5, 5, 5, 5]
    assert names(dataset(parts, offset=3, stride=4), 4, 3, again=True) == [shares[3][i] for i in (4, 0, 1)]


def test_named_items_are_replayed_in_their_order(parts: Path) -> None:
    assert names(dataset(parts, items=("good/7.png", "defective/3.png"))) == ["good/7.png", "defective/3.png"]
    with pytest.raises(NotPossibleNow, match=r"good/99\.png"):
        dataset(parts, items=("good/99.png",))


def test_images_without_labels_are_all_held_out(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png")

    captures = list(dataset(tmp_path).read(0, again=False))

    assert [(c.item, c.truth) for c in captures if isinstance(c, Capture)] == [("a.png", 0), ("b.png", 0)]


def test_a_share_beyond_the_data_set_is_refused(parts: Path) -> None:
    with pytest.raises(NotPossibleNow, match="from number 20 on"):
        dataset(parts, offset=20)


def test_a_data_set_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotPossibleNow, match="missing"):
        dataset(tmp_path / "missing")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures, each a little brighter."""
    path = tmp_path_factory.mktemp("video") / "belt.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    assert writer.isOpened()
    for number in range(5):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    return path


def pictures(source: Source, start: int, count: int, *, again: bool) -> list[tuple[str, float]]:
    found = []
    for capture in islice(source.read(start, again=again), count):
        assert isinstance(capture, Capture)
        pixels = cv2.imdecode(np.frombuffer(capture.image, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        assert pixels.shape == (48, 64, 3)
        found.append((capture.item, float(pixels.mean())))
    return found


def test_a_video_gives_its_pictures_as_png(video: Path) -> None:
    source = open_source(VideoSource(kind="video", path=video), LIMIT)

    found = pictures(source, 0, 100, again=False)

    assert [item for item, _ in found] == [f"belt.avi@{number}" for number in range(5)]
    assert [brightness for _, brightness in found] == pytest.approx([0, 40, 80, 120, 160], abs=3)


def test_a_video_goes_on_at_any_position_of_any_pass(video: Path) -> None:
    source = open_source(VideoSource(kind="video", path=video), LIMIT)

    from_the_start = pictures(source, 0, 30, again=True)

    assert pictures(source, 23, 7, again=True) == from_the_start[23:30]
    assert pictures(source, 3, 100, again=False) == from_the_start[3:5]


def test_a_picture_larger_than_the_limit_is_skipped_with_its_name(video: Path) -> None:
    source = open_source(VideoSource(kind="video", path=video), max_image_bytes=10)

    assert next(source.read(0, again=False)) == Unreadable("belt.avi@0", "the image is larger than 10 bytes")


def test_a_file_that_is_no_video_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("no video")
    for name in ("text.avi", "missing.avi"):
        with pytest.raises(NotPossibleNow, match=name):
            open_source(VideoSource(kind="video", path=tmp_path / name), LIMIT)


def test_a_push_station_has_no_source_to_open() -> None:
    with pytest.raises(NotPossibleNow, match="pushed frames"):
        open_source(PushSource(kind="push"), LIMIT)


def test_a_name_that_is_no_utf8_is_spelt_so_that_a_message_can_carry_it(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    (capture,) = ImageFolder(FolderSource(kind="folder", path=tmp_path), 100).read(0, again=False)
    assert isinstance(capture, Capture)
    assert frame_pb2.Frame(source_item=capture.item).source_item == r"caf\xe9.png"


def test_a_folder_that_vanishes_fails_at_once_and_costs_no_image(tmp_path: Path) -> None:
    folder = tmp_path / "camera"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"x")
    items = ImageFolder(FolderSource(kind="folder", path=folder), 100).read(0, again=False)
    next(items)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(NotPossibleNow, match="has gone"):
        next(items)
