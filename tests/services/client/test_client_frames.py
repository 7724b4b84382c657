"""Sending images: one at a time, many on a stream, pushed from a camera."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inspectbus.errors import (
    BadField,
    BusClosed,
    InspectBusError,
    ModelNotReady,
    NotFound,
    NotPossibleNow,
    TooLate,
    Unreachable,
    UnreadableImage,
)
from inspectbus.runtime.settings import ServiceSettings
from inspectbus_client import Client, HoldReason, Label, Shot, Verdict
from tests.doubles.plant import PNG, Plant, open_plant


def image(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(PNG)
    return path


def test_a_good_part_is_qualified_with_its_score_and_model(client: Client, tmp_path: Path) -> None:
    decision = client.inspect(image(tmp_path, "good.png"), part_id="4711", recipe="cells")

    assert decision.verdict is Verdict.QUALIFIED
    # A score of zero is a score; only a frame that met no network has none.
    assert (decision.score, decision.threshold) == (0.0, 0.5)
    assert (decision.part_id, decision.source_item, decision.recipe) == ("4711", "good.png", "cells")
    assert decision.hold is None
    assert decision.truth is None
    assert decision.latency_s == pytest.approx(0.012)


def test_a_held_part_says_why_and_has_no_score(client: Client, tmp_path: Path) -> None:
    decision = client.inspect(str(image(tmp_path, "dark.png")))

    assert decision.verdict is Verdict.HOLD
    assert decision.score is None
    assert decision.hold is not None
    assert (decision.hold.reason, decision.hold.measure) == (HoldReason.UNUSABLE_IMAGE, "brightness")


def test_everything_known_of_a_part_travels_with_its_shot(client: Client, plant: Plant) -> None:
    shot = Shot(PNG, "belt 7", "p", "lot", "cell", Label.DEFECTIVE, datetime(2026, 1, 2, tzinfo=UTC))

    decision = client.inspect(shot)

    assert decision.frame_id == shot.frame_id
    assert (decision.lot_id, decision.product, decision.truth) == ("lot", "cell", Label.DEFECTIVE)


def test_a_time_without_a_zone_is_refused(client: Client) -> None:
    with pytest.raises(BadField, match="time zone") as caught:
        client.inspect(Shot(PNG, captured_at=datetime(2026, 1, 2)))
    assert caught.value.field == "captured_at"


def test_a_call_that_met_an_absent_service_twice_is_tried_again_and_decided_once(client: Client, plant: Plant) -> None:
    plant.refuse("Inspect", ModelNotReady("warming up"), times=2)

    decision = client.inspect(PNG)

    assert plant.calls["Inspect"] == 3
    assert [record.decision.frame_id for record in plant.records] == [decision.frame_id]
    assert plant.records[0].duplicates == 2


def test_a_refusal_that_cannot_pass_is_not_tried_again(client: Client, plant: Plant) -> None:
    plant.refuse("Inspect", NotPossibleNow("no such recipe", field="recipe"))

    with pytest.raises(NotPossibleNow, match="no such recipe") as caught:
        client.inspect(PNG)

    assert caught.value.field == "recipe"
    assert plant.calls["Inspect"] == 1


def test_tries_end_with_the_callers_deadline_and_the_services_own_words(client: Client, plant: Plant) -> None:
    plant.refuse("Inspect", ModelNotReady("warming up"), times=1000)
    begun = time.monotonic()

    with pytest.raises(ModelNotReady, match="warming up"):
        client.inspect(PNG, timeout_s=1.0)

    assert time.monotonic() - begun <= 1.5
    assert plant.calls["Inspect"] >= 2


def test_no_answer_within_the_deadline_is_too_late(client: Client, plant: Plant) -> None:
    plant.hold_answers.set()

    with pytest.raises(TooLate, match="the acquisition service"):
        client.inspect(PNG, timeout_s=0.3)


def test_nobody_at_the_address_is_unreachable_and_the_message_names_it(plant: Plant) -> None:
    with open_plant() as gone:
        address = gone.addresses["acquisition"]
    with Client(acquisition=address) as client, pytest.raises(Unreachable, match=address):
        client.inspect(PNG, timeout_s=0.5)


def test_an_address_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(BadField, match="HOST:PORT") as caught:
        Client(results="http://plant/")
    assert caught.value.field == "results"


def test_a_service_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(BadField, match="no service 'result'"):
        Client.connect({"result": "127.0.0.1:50055"})


def test_a_closed_client_says_so(plant: Plant) -> None:
    client = Client.connect(plant.addresses)
    client.inspect(PNG)
    client.close()

    with pytest.raises(NotPossibleNow, match="closed"):
        client.inspect(PNG)
    with pytest.raises(NotPossibleNow, match="closed"):
        list(client.inspect_many([PNG]))


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (None, NotFound, "no such file"),
        (b"", UnreadableImage, "is empty"),
        (b"a shopping list", UnreadableImage, "not a PNG, JPEG, BMP or TIFF"),
        (PNG + bytes(200_000), UnreadableImage, "more than the"),
    ],
)
def test_a_file_that_cannot_be_sent_is_named(
    plant: Plant, tmp_path: Path, content: bytes | None, kind: type[InspectBusError], words: str
) -> None:
    path = tmp_path / "part.png"
    if content is not None:
        path.write_bytes(content)

    with (
        Client(acquisition=plant.addresses["acquisition"], max_message_bytes=100_000) as client,
        pytest.raises(kind, match=words) as caught,
    ):
        client.inspect(path)

    assert caught.value.field == str(path)
    assert plant.calls["Inspect"] == 0


def test_many_images_come_in_the_order_they_are_decided_and_none_ends_the_rest(
    client: Client, plant: Plant, tmp_path: Path
) -> None:
    plant.answers_at_once = 2
    paths = [
        image(tmp_path, "good.png"),
        image(tmp_path, "scratched.png"),
        image(tmp_path, "refused.png"),
        tmp_path / "missing.png",
        image(tmp_path, "dark.png"),
    ]

    results = list(client.inspect_many(paths))

    outcome = {Path(str(r.shot.image)).name: r.decision.verdict if r.decision else type(r.error) for r in results}
    assert outcome == {
        "good.png": Verdict.QUALIFIED,
        "scratched.png": Verdict.DEFECTIVE,
        "refused.png": UnreadableImage,
        "missing.png": NotFound,
        "dark.png": Verdict.HOLD,
    }
    decided = [r.shot.source_item or Path(str(r.shot.image)).name for r in results if r.decision]
    assert decided.index("scratched.png") < decided.index("good.png")


def test_a_broken_stream_is_opened_again_and_every_image_decided_once(client: Client, plant: Plant) -> None:
    plant.break_stream("InspectStream", after=3)
    shots = [Shot(PNG, f"{n}") for n in range(10)]

    results = list(client.inspect_many(shots, in_flight=4))

    assert plant.calls["InspectStream"] == 2
    assert sorted(r.shot.source_item for r in results) == sorted(s.source_item for s in shots)
    assert all(r.decision is not None and r.decision.frame_id == r.shot.frame_id for r in results)
    assert len(plant.records) == 10


def test_a_stream_the_service_keeps_refusing_for_good_ends_with_its_error(client: Client, plant: Plant) -> None:
    plant.refuse("InspectStream", NotPossibleNow("not today"))

    with pytest.raises(NotPossibleNow, match="not today"):
        list(client.inspect_many([PNG]))


def test_a_stream_to_nobody_ends_when_patience_does(client: Client, plant: Plant) -> None:
    plant.refuse("InspectStream", BusClosed("gone"), times=1000)

    with pytest.raises(BusClosed, match="gone"):
        list(client.inspect_many([PNG], patience_s=0.5))

    assert plant.calls["InspectStream"] >= 2


def test_no_more_images_are_read_ahead_than_may_be_in_flight(client: Client, plant: Plant) -> None:
    pulled = 0

    def camera() -> Iterator[bytes]:
        nonlocal pulled
        while True:
            pulled += 1
            yield PNG

    results = client.inspect_many(camera(), in_flight=3)
    for _ in range(5):
        next(results)

    # Five handed out, three under way at most.
    assert pulled <= 5 + 3
    assert plant.most_unanswered <= 3
    results.close()  # type: ignore[attr-defined] # it is a generator
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("inspectbus-")]


def test_what_the_callers_own_iterator_raises_comes_after_the_last_answer(client: Client) -> None:
    def camera() -> Iterator[bytes]:
        yield PNG
        raise RuntimeError("cable pulled")

    results = client.inspect_many(camera())

    assert next(results).decision is not None
    with pytest.raises(RuntimeError, match="cable pulled"):
        next(results)


def test_pushed_frames_are_accepted_or_refused_one_by_one(client: Client, plant: Plant) -> None:
    shots = [Shot(PNG, "a"), Shot(PNG, "refused"), Shot(PNG, "b")]

    results = {p.shot.source_item: p.error for p in client.publish_frames(shots, line="line-1", station="top")}

    assert results["a"] is None
    assert results["b"] is None
    assert isinstance(results["refused"], UnreadableImage)
    assert results["refused"].field == "shot.image"
    assert {record.decision.station for record in plant.records} == {"top"}


def test_pushing_to_an_unknown_station_names_the_field(client: Client) -> None:
    published = next(client.publish_frames([PNG], line="line-9", station="top"))

    assert isinstance(published.error, NotFound)
    assert published.error.field == "station"


def test_a_camera_that_never_ends_hears_of_each_frame_at_once(client: Client) -> None:
    next_part = threading.Semaphore(1)

    def camera() -> Iterator[bytes]:
        while next_part.acquire(timeout=10):
            yield PNG

    results = client.publish_frames(camera(), line="line-1", station="top")
    for _ in range(3):
        assert next(results).error is None
        next_part.release()
    results.close()  # type: ignore[attr-defined] # it is a generator


def test_an_id_that_is_no_uuid_is_refused_before_it_is_sent(client: Client, plant: Plant) -> None:
    with pytest.raises(BadField, match="UUID"):
        client.inspect(Shot(PNG, frame_id="part-1"))
    assert client.inspect(Shot(PNG, frame_id=str(uuid.uuid4()))).verdict is Verdict.QUALIFIED
    assert plant.calls["Inspect"] == 1


def test_a_server_that_takes_less_refuses_with_a_limit_and_not_a_crash(tmp_path: Path) -> None:
    with (
        open_plant(settings=ServiceSettings(drain_s=1.0, max_message_bytes=50_000)) as plant,
        Client.connect(plant.addresses) as client,
        pytest.raises(InspectBusError, match="larger than max") as caught,
    ):
        client.inspect(PNG + bytes(60_000))
    assert caught.value.code.name == "RESOURCE_EXHAUSTED"
