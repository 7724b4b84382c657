"""Reading and watching: decisions, scores, stations, recipes, models and jobs."""

from __future__ import annotations

import threading
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from inspectbus.api.v1 import acquisition_pb2
from inspectbus.errors import (
    AlreadyRunning,
    BadField,
    BusClosed,
    ModelNotReady,
    NotFound,
    NotPossibleNow,
    QueueFull,
    WorseModel,
)
from inspectbus.runtime.settings import ServiceSettings
from inspectbus_client import Client, JobState, Label, Pixels, StationState, Verdict
from tests.doubles.plant import PNG, Plant, open_plant


def decide(plant: Plant, name: str, line: str = "line-1", truth: int = 0) -> str:
    shot = acquisition_pb2.Shot(source_item=name, frame_id=str(uuid.uuid4()), truth=truth)  # type: ignore[arg-type]
    return plant.decide(shot, line, "top").frame_id


def test_pages_are_fetched_until_the_last(client: Client, plant: Plant) -> None:
    ids = [decide(plant, f"{n}") for n in range(7)]

    records = list(client.decisions(page_size=3))

    assert [record.decision.frame_id for record in records] == ids
    assert plant.calls["ListDecisions"] == 3


def test_a_filter_keeps_what_it_says(client: Client, plant: Plant) -> None:
    decide(plant, "good")
    wanted = decide(plant, "scratched")
    decide(plant, "scratched", line="line-2")

    records = client.decisions(line="line-1", verdicts=[Verdict.DEFECTIVE, "hold"])

    assert [record.decision.frame_id for record in records] == [wanted]
    assert list(client.decisions(since=datetime(2030, 1, 1, tzinfo=UTC))) == []


def test_a_word_that_is_no_verdict_is_refused_with_the_words_there_are(client: Client) -> None:
    with pytest.raises(BadField, match="QUALIFIED, DEFECTIVE, HOLD") as caught:
        list(client.decisions(verdicts=["fine"]))
    assert caught.value.field == "verdicts"


def test_an_unknown_frame_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        client.decision(str(uuid.uuid4()))
    assert caught.value.field == "frame_id"


def test_reads_are_tried_again_and_changes_are_not(client: Client, plant: Plant) -> None:
    plant.refuse("ListDecisions", BusClosed("restarting"), times=2)
    assert list(client.decisions()) == []
    assert plant.calls["ListDecisions"] == 3

    plant.refuse("StartTraining", ModelNotReady("restarting"))
    with pytest.raises(ModelNotReady):
        client.train("elpv")
    assert plant.calls["StartTraining"] == 1


def test_a_full_queue_that_says_when_to_come_again_is_obeyed(client: Client, plant: Plant) -> None:
    plant.refuse("Infer", QueueFull("8 are waiting"))
    prepared = client.prepare(PNG, recipe="cells")

    judgement = client.infer(prepared)

    assert judgement.verdict is Verdict.DEFECTIVE
    assert judgement.model_version == prepared.preparation_hash
    assert plant.calls["Infer"] == 2


def test_a_watch_gives_what_is_recorded_after_it_began(client: Client, plant: Plant) -> None:
    decide(plant, "before")

    with client.watch_decisions() as watch:
        plant.wait_for(lambda: plant.calls["WatchDecisions"] == 1)
        after = decide(plant, "after")
        assert next(watch).decision.frame_id == after


def test_a_watch_that_breaks_goes_on_after_its_cursor(client: Client, plant: Plant) -> None:
    ids = [decide(plant, f"{n}") for n in range(6)]
    plant.break_stream("WatchDecisions", after=2)

    with client.watch_decisions(after=0) as watch:
        seen = [next(watch).decision.frame_id for _ in range(6)]

    assert seen == ids
    assert plant.calls["WatchDecisions"] == 2


def test_a_watch_that_breaks_before_its_first_decision_misses_none(client: Client, plant: Plant) -> None:
    plant.break_stream("WatchDecisions", after=0)

    with client.watch_decisions() as watch:
        plant.wait_for(lambda: plant.calls["WatchDecisions"] == 1)
        missed = decide(plant, "recorded while the stream broke")
        assert next(watch).decision.frame_id == missed


def test_a_watch_outlives_a_restart_of_its_service() -> None:
    plant = Plant()
    with ExitStack() as stack:
        with open_plant(plant, services=["results"]):
            client = stack.enter_context(Client.connect(plant.addresses))
            watch = stack.enter_context(client.watch_decisions(after=0))
            decide(plant, "first life")
            assert next(watch).cursor == 1
        decide(plant, "recorded while the door was shut")
        port = int(plant.addresses["results"].rpartition(":")[2])
        stack.enter_context(open_plant(plant, ServiceSettings(port=port, drain_s=1.0), services=["results"]))
        assert next(watch).cursor == 2


def test_a_watch_that_is_refused_says_why(client: Client, plant: Plant) -> None:
    plant.refuse("WatchDecisions", NotPossibleNow("not today"))

    with pytest.raises(NotPossibleNow, match="not today"):
        next(client.watch_decisions())


def test_a_watch_of_a_service_that_stays_away_ends_when_patience_does(client: Client, plant: Plant) -> None:
    plant.refuse("WatchDecisions", BusClosed("away"), times=1000)

    with pytest.raises(BusClosed, match="away"):
        next(client.watch_decisions(patience_s=0.5))


@pytest.mark.parametrize("ending", ["the watch is closed", "the client is closed"])
def test_a_watch_ends_quietly_when_closed_from_another_thread(client: Client, plant: Plant, ending: str) -> None:
    watch = client.watch_decisions()
    plant.wait_for(lambda: plant.calls["WatchDecisions"] == 1)
    closer = threading.Timer(0.1, watch.close if ending == "the watch is closed" else client.close)
    closer.start()

    assert list(watch) == []
    closer.join(5)


def test_labels_are_counted_and_scores_follow(client: Client, plant: Plant) -> None:
    part = decide(plant, "scratched")
    decide(plant, "good", line="line-2")

    assert client.submit_labels({part: Label.DEFECTIVE}, by="night shift") == 1

    table = client.scores(by="line")
    assert (table.overall.scores.f1, table.overall.decisions) == (1.0, 2)
    assert [row.group for row in table.rows] == ["line-1", "line-2"]
    assert table.rows[1].scores.precision is None
    assert client.decision(part).truth is Label.DEFECTIVE


def test_an_unknown_grouping_is_refused(client: Client) -> None:
    with pytest.raises(BadField, match="LINE, STATION, MODEL_VERSION"):
        client.scores(by="weather")


def test_stations_are_listed_started_and_stopped(client: Client) -> None:
    assert [(s.station, s.state) for s in client.stations()] == [
        ("top", StationState.STOPPED),
        ("side", StationState.RUNNING),
    ]
    top, side = client.stations()
    assert (top.spooled, top.spooled_bytes, top.behind, top.dropped) == (0, 0, None, 0)
    assert (side.spooled, side.spooled_bytes, side.behind, side.dropped) == (12, 34_567, timedelta(seconds=200.5), 3)
    assert client.start_station("line-1", "top").state is StationState.RUNNING
    assert client.stop_station("line-1", "top").state is StationState.STOPPED
    with pytest.raises(NotFound):
        client.station("line-1", "bottom")


def test_a_recipe_is_stored_once_however_often_it_is_put(client: Client) -> None:
    text = "name: cells\nmodel: elpv\n"

    assert client.put_recipe(text).created is True
    again = client.put_recipe(text)

    assert (again.created, again.recipe.version) == (False, 1)
    assert [recipe.name for recipe in client.recipes()] == ["cells"]
    assert client.recipe("cells").yaml.startswith("name: cells")


def test_a_recipe_with_a_fault_names_the_entry(client: Client) -> None:
    with pytest.raises(BadField) as caught:
        client.put_recipe("name: cells\nmodel: elpv\nthreshold: .nan\n")
    assert caught.value.field == "threshold"


def test_models_are_listed_and_found_by_alias_or_version(client: Client) -> None:
    newest, older = client.models()

    assert newest.aliases == ("production",)
    assert newest.card["threshold"] == 0.41
    assert client.model("elpv") == newest
    assert client.model("elpv", version=older.version) == older


def test_an_alias_is_set_rolled_back_and_its_history_read_in_pages(client: Client) -> None:
    newest, older = client.models()

    change = client.set_alias("elpv", "production", older.version, reason="a trial")
    assert change is not None
    assert (change.version, change.previous, change.reason) == (older.version, newest.version, "a trial")
    assert client.set_alias("elpv", "production", older.version) is None
    assert client.model("elpv", at=datetime.now(UTC)).version == older.version
    back = client.rollback("elpv", reason="no good")
    assert (back.version, back.rollback) == (newest.version, True)
    assert list(client.alias_history("elpv", page_size=1)) == [back, change]
    assert list(client.alias_history("elpv", "canary")) == []


def test_a_version_that_is_worse_than_productions_is_an_error_of_its_own(client: Client, plant: Plant) -> None:
    plant.refuse("SetAlias", WorseModel("it is worse", field="version"))
    with pytest.raises(WorseModel, match="it is worse"):
        client.set_alias("elpv", "production", "0f3a0f3a0f3a0f3a")


def test_a_moment_without_a_zone_is_refused(client: Client) -> None:
    with pytest.raises(BadField, match="time zone"):
        client.model("elpv", at=datetime(2026, 1, 1))


def test_frames_on_which_a_shadow_differs_come_in_pages_and_a_filter_is_kept(client: Client, plant: Plant) -> None:
    for line in ("line-1", "line-2"):
        for number in range(3):
            shot = acquisition_pb2.Shot(source_item=f"{number}", part_id="differs")
            plant.decide(shot, line, "top")

    found = list(client.disagreements("elpv", page_size=2, line="line-1"))

    assert [each.frame_id for each in found] == [record.decision.frame_id for record in plant.records[:3]]
    assert plant.calls["GetAgreement"] == 2
    assert {(each.decided, each.shadow) for each in found} == {(Verdict.QUALIFIED, Verdict.DEFECTIVE)}
    rows = client.agreement("elpv", since=datetime(2020, 1, 1, tzinfo=UTC))
    assert [(row.line, row.frames, row.agreeing) for row in rows] == [("line-1", 3, 0), ("line-2", 3, 0)]
    with pytest.raises(BadField):
        client.agreement("elpv", until=datetime(2020, 1, 1))


def test_the_engine_tells_its_batches(client: Client) -> None:
    engine = client.engine()

    assert engine.ready
    assert engine.batches == {8: 3}
    assert engine.loaded_at is None
    assert [(each.name, each.images_per_s, each.deviation) for each in engine.candidates] == [("torch", 18.5, None)]


def test_pixels_come_from_any_buffer_of_the_right_shape() -> None:
    array = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)

    assert Pixels.of(array) == Pixels(2, 3, 3, bytes(range(18)))
    with pytest.raises(BadField, match="uint8"):
        Pixels.of(array.astype(np.float32))


def test_a_job_is_followed_to_its_end_through_a_broken_stream(client: Client, plant: Plant) -> None:
    job = client.train("elpv", seed=0)
    assert (job.state, job.plan.seed) == (JobState.QUEUED, 0)
    plant.break_stream("WatchJob", after=2)

    states = [seen.state for seen in client.watch_job(job.job_id)]

    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    assert plant.calls["WatchJob"] == 2


def test_a_second_training_on_the_same_data_is_refused(client: Client) -> None:
    client.train("elpv")
    with pytest.raises(AlreadyRunning):
        client.train("elpv")


def test_jobs_are_paged_and_cancelled(client: Client) -> None:
    for data in ("a", "b", "c"):
        client.train(data)

    assert [job.plan.data for job in client.jobs(page_size=2)] == ["c", "b", "a"]
    assert client.cancel_job("job-0").state is JobState.CANCELLED
