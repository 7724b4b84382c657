"""Is every frame decided exactly once in the records, whatever comes twice, at once, or in pieces?"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from sqlalchemy import Engine, event, func, select

from inspectbus.api.v1.decision_pb2 import Decision, Evidence, Hold, HoldReason, Timings, Verdict
from inspectbus.api.v1.frame_pb2 import Label
from inspectbus.api.v1.prepared_frame_pb2 import QualityReport
from inspectbus.api.v1.results_pb2 import DecisionFilter, Record
from inspectbus.errors import NotFound, StorageFull
from inspectbus.results.first_wins import Fate
from inspectbus.results.ledger import Ledger
from inspectbus.results.selection import conditions
from inspectbus.results.tables import decisions, labels, metadata

Decide = Callable[..., Decision]

QUALIFIED, DEFECTIVE, HOLD = Verdict.VERDICT_QUALIFIED, Verdict.VERDICT_DEFECTIVE, Verdict.VERDICT_HOLD
GOOD, BAD = Label.LABEL_GOOD, Label.LABEL_DEFECTIVE
RECORDED, DUPLICATE, CONFLICT = Fate.RECORDED, Fate.DUPLICATE, Fate.CONFLICT


def changed(decision: Decision, **fields: Any) -> Decision:
    """A copy with these fields replaced."""
    copy = Decision()
    copy.CopyFrom(decision)
    for name in fields:
        copy.ClearField(name)  # type: ignore[arg-type]
    copy.MergeFrom(Decision(**fields))
    return copy


def counts(record: Record) -> tuple[int, int]:
    return record.duplicates, record.conflicts


# First wins


def test_a_decision_comes_back_whole(ledger: Ledger, decide: Decide) -> None:
    decision = decide(
        verdict=HOLD,
        hold=Hold(
            reason=HoldReason.HOLD_REASON_UNUSABLE_IMAGE, detail="too dark", measure="brightness", value=3, limit=10
        ),
        quality=QualityReport(brightness=3),
        evidence=Evidence(original_key="line-1/top/ab/x-original.png"),
        truth=BAD,
    )
    decision.timings.captured_at.FromMilliseconds(1_700_000_000_123)

    assert ledger.record([decision]) == [RECORDED]

    record = ledger.get(decision.frame_id)
    assert record.decision == decision
    assert record.truth == BAD
    assert counts(record) == (0, 0)
    assert record.cursor == ledger.last_cursor() == 1


def test_the_same_decision_again_is_a_duplicate(ledger: Ledger, decide: Decide) -> None:
    first = decide()
    ledger.record([first])

    assert ledger.record([first]) == [DUPLICATE]
    assert ledger.record([first, first]) == [DUPLICATE, DUPLICATE]

    record = ledger.get(first.frame_id)
    assert counts(record) == (3, 0)
    assert record.cursor == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"timings": Timings(decided_at={"seconds": 5})},  # type: ignore[arg-type]
        {"quality": QualityReport(sharpness=17)},
        {"evidence": Evidence(original_key="line-1/top/ab/x-original.png")},
        {"model_alias": "canary"},
        {"score": 0.2000004},
    ],
)
def test_a_second_judging_of_the_same_image_is_a_duplicate(
    ledger: Ledger, decide: Decide, fields: dict[str, Any]
) -> None:
    first = decide()
    ledger.record([first])

    assert ledger.record([changed(first, **fields)]) == [DUPLICATE]

    assert ledger.get(first.frame_id).decision == first


@pytest.mark.parametrize(
    "fields",
    [
        {"verdict": DEFECTIVE},
        {"score": 0.21},
        {"threshold": 0.4},
        {"qualified_below": 0.1},
        {"model": "wafer"},
        {"model_version": "ffffffffffffffff"},
        {"recipe_version": 4},
        {"preparation_hash": "2c2c2c2c2c2c2c2c"},
        {"station": "side"},
        {"part_id": "another"},
        {"truth": BAD},
        {"verdict": HOLD, "hold": Hold(reason=HoldReason.HOLD_REASON_ERROR)},
    ],
)
def test_a_differing_decision_is_a_conflict_and_changes_nothing(
    ledger: Ledger, decide: Decide, fields: dict[str, Any]
) -> None:
    first = decide()
    ledger.record([first])

    assert ledger.record([changed(first, **fields)]) == [CONFLICT]

    record = ledger.get(first.frame_id)
    assert record.decision == first
    assert record.truth == Label.LABEL_UNSPECIFIED
    assert counts(record) == (0, 1)


def test_a_hold_is_the_same_for_its_reason_and_measure_not_for_its_words(ledger: Ledger, decide: Decide) -> None:
    def held(**hold: Any) -> Decision:
        return changed(first, verdict=HOLD, hold=Hold(**hold))

    first = decide()
    unusable = HoldReason.HOLD_REASON_UNUSABLE_IMAGE
    ledger.record([held(reason=unusable, measure="glare", value=0.7, limit=0.5, detail="glare 0.7")])

    assert ledger.record(
        [
            held(reason=unusable, measure="glare", value=0.70001, limit=0.5, detail="glare 0.70001"),
            held(reason=unusable, measure="noise"),
            held(reason=HoldReason.HOLD_REASON_ERROR, measure="glare"),
        ]
    ) == [DUPLICATE, CONFLICT, CONFLICT]


def test_repeats_inside_one_batch_count_as_if_they_came_one_by_one(ledger: Ledger, decide: Decide) -> None:
    known = decide()
    ledger.record([known])
    new = decide()
    other_known, other_new = changed(known, verdict=DEFECTIVE), changed(new, verdict=DEFECTIVE)

    outcomes = ledger.record([other_known, new, known, other_new, new, other_known, other_new])

    assert outcomes == [CONFLICT, RECORDED, DUPLICATE, CONFLICT, DUPLICATE, CONFLICT, CONFLICT]
    assert counts(ledger.get(known.frame_id)) == (1, 2)
    assert counts(ledger.get(new.frame_id)) == (1, 2)
    assert ledger.get(new.frame_id).decision == new


def test_an_empty_batch_is_nothing(ledger: Ledger) -> None:
    assert ledger.record([]) == []
    assert ledger.last_cursor() == 0


VERDICTS = (QUALIFIED, DEFECTIVE, HOLD)
arrivals = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(VERDICTS), st.sampled_from([GOOD, BAD])), max_size=12),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals=arrivals)
def test_any_interleaving_and_repetition_gives_the_counts_of_a_plain_model(
    ledger: Ledger, decide: Decide, arrivals: list[list[tuple[int, int, int]]]
) -> None:
    frames = [str(uuid.uuid4()) for _ in range(5)]  # new to the ledger, which all examples share
    first: dict[str, Decision] = {}
    repeats: dict[str, list[int]] = {}
    for batch in arrivals:
        given_ = [decide(frame_id=frames[i], verdict=verdict, truth=truth) for i, verdict, truth in batch]
        expected = []
        for decision in given_:
            if decision.frame_id not in first:
                first[decision.frame_id] = decision
                repeats[decision.frame_id] = [0, 0]
                expected.append(RECORDED)
            else:
                conflict = first[decision.frame_id] != decision
                repeats[decision.frame_id][conflict] += 1
                expected.append(CONFLICT if conflict else DUPLICATE)

        assert ledger.record(given_) == expected

    for frame_id, decision in first.items():
        record = ledger.get(frame_id)
        assert (record.decision, record.truth) == (decision, decision.truth)
        assert [record.duplicates, record.conflicts] == repeats[frame_id]


def test_a_batch_takes_two_statements_and_a_third_for_replayed_truth(
    ledger: Ledger, engine: Engine, decide: Decide
) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2].split()[0]))
    batch = [decide() for _ in range(200)]

    ledger.record([*batch, *batch[:20]])
    assert [word for word in statements if word != "BEGIN"] == ["UPDATE", "INSERT"]

    statements.clear()
    ledger.record([decide(truth=GOOD) for _ in range(200)])
    assert [word for word in statements if word != "BEGIN"] == ["UPDATE", "INSERT", "INSERT"]


# At once


def test_two_replicas_given_the_same_frames_at_once_record_each_once(
    opened: Callable[[], Engine], decide: Decide
) -> None:
    replicas = [Ledger(opened()), Ledger(opened())]
    frames = [decide(truth=GOOD) for _ in range(120)]
    barrier = threading.Barrier(2, timeout=20)

    def record(replica: Ledger, seed: int) -> list[Fate]:
        mine = random.Random(seed).sample(frames, len(frames))
        barrier.wait()
        return [outcome for i in range(0, len(mine), 7) for outcome in replica.record(mine[i : i + 7])]

    with ThreadPoolExecutor(2) as pool:
        outcomes = [o for part in pool.map(record, replicas, (1, 2)) for o in part]

    assert outcomes.count(RECORDED) == outcomes.count(DUPLICATE) == len(frames)
    records = replicas[0].page([], 0, 1000)
    assert {record.decision.frame_id for record in records} == {frame.frame_id for frame in frames}
    assert {counts(record) for record in records} == {(1, 0)}
    with opened().connect() as connection:
        assert connection.scalar(select(func.count()).select_from(labels)) == len(frames)


def test_a_reader_after_a_cursor_misses_nothing_that_several_replicas_write(
    opened: Callable[[], Engine], decide: Decide
) -> None:
    reader = Ledger(opened())
    writers = [Ledger(opened()) for _ in range(3)]

    def write(writer: Ledger) -> list[str]:
        written = [decide() for _ in range(60)]
        for i in range(0, 60, 3):
            writer.record(written[i : i + 3])
        return [decision.frame_id for decision in written]

    seen: list[Record] = []
    cursor = 0
    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(write, writer) for writer in writers]
        finished = False
        while not finished:
            finished = all(future.done() for future in writing)  # before the reading, so the last one sees all
            page, cursor = reader.news([], cursor, 1000)
            seen += page
        written = [frame_id for future in writing for frame_id in future.result()]

    assert sorted(record.decision.frame_id for record in seen) == sorted(written)
    assert [record.cursor for record in seen] == list(range(1, len(written) + 1))


def test_a_filtered_reader_moves_past_what_it_did_not_want(ledger: Ledger, decide: Decide) -> None:
    ledger.record([decide(line="line-2"), decide(), decide(), decide()])
    where = conditions(DecisionFilter(line="line-2"))

    found, cursor = ledger.news(where, 0, 10)

    assert [record.cursor for record in found] == [1]
    assert cursor == 4
    assert ledger.news(where, 9, 10) == ([], 9)


# Labels


def test_the_newest_label_counts_and_all_are_kept(ledger: Ledger, engine: Engine, decide: Decide) -> None:
    replayed, silent = decide(truth=GOOD), decide()
    ledger.record([replayed, silent])
    assert ledger.get(replayed.frame_id).truth == GOOD
    assert ledger.get(silent.frame_id).truth == Label.LABEL_UNSPECIFIED

    ledger.label([(replayed.frame_id, BAD), (silent.frame_id, GOOD)], "ada")
    ledger.label([(silent.frame_id, BAD)], "grace")
    ledger.record([replayed])  # a repeat brings no newer truth

    assert ledger.get(replayed.frame_id).truth == BAD
    assert ledger.get(silent.frame_id).truth == BAD
    with engine.connect() as connection:
        history = connection.execute(select(labels.c.label, labels.c.by).order_by(labels.c.id)).all()
    assert [tuple(row) for row in history] == [(GOOD, "replay"), (BAD, "ada"), (GOOD, "ada"), (BAD, "grace")]


def test_labels_with_an_unknown_frame_are_refused_together(ledger: Ledger, decide: Decide) -> None:
    known = decide()
    ledger.record([known])
    unknown = [str(uuid.uuid4()) for _ in range(2)]

    with pytest.raises(NotFound, match=r"labels\[1\]\.frame_id, labels\[2\]\.frame_id") as refused:
        ledger.label([(known.frame_id, BAD), (unknown[0], BAD), (unknown[1], GOOD)], "ada")

    assert refused.value.field == "labels[1].frame_id"
    assert ledger.get(known.frame_id).truth == Label.LABEL_UNSPECIFIED


# Questions


def test_an_unknown_frame_is_not_found(ledger: Ledger) -> None:
    with pytest.raises(NotFound) as missing:
        ledger.get(str(uuid.uuid4()))
    assert missing.value.field == "frame_id"


def test_pages_hold_every_record_once_while_more_are_recorded(ledger: Ledger, decide: Decide) -> None:
    before = [decide() for _ in range(25)]
    ledger.record(before)
    meanwhile: list[Decision] = []
    pages: list[Record] = []
    while page := ledger.page([], pages[-1].cursor if pages else 0, 4):
        pages += page
        if len(meanwhile) < 12:
            meanwhile += (more := [decide(), decide()])
            ledger.record([*more, before[0]])

    assert [record.decision.frame_id for record in pages] == [d.frame_id for d in before + meanwhile]


@pytest.fixture
def mixed(ledger: Ledger, decide: Decide) -> Ledger:
    ledger.record(
        [
            decide(source_item="a", line="line-1", station="top", part_id="p1", lot_id="lot-1"),
            decide(source_item="b", line="line-1", station="side", part_id="p1", verdict=DEFECTIVE),
            decide(source_item="c", line="line-2", station="top", part_id="p2", run_id="run-2"),
            decide(source_item="d", line="line-2", station="top", model_version="ffff", verdict=HOLD),
            decide(source_item="e", line="line-2", station="top", model="wafer", model_version="ffff"),
        ]
    )
    return ledger


@pytest.mark.parametrize(
    ("wanted", "items"),
    [
        (DecisionFilter(), "abcde"),
        (DecisionFilter(line="line-1"), "ab"),
        (DecisionFilter(station="top"), "acde"),
        (DecisionFilter(line="line-1", station="top"), "a"),
        (DecisionFilter(run_id="run-2"), "c"),
        (DecisionFilter(verdicts=[DEFECTIVE, HOLD]), "bd"),
        (DecisionFilter(part_id="p1"), "ab"),
        (DecisionFilter(lot_id="lot-1"), "a"),
        (DecisionFilter(model_version="ffff"), "de"),
        (DecisionFilter(model_version="wafer/ffff"), "e"),
        (DecisionFilter(line="line-9"), ""),
    ],
)
def test_filters_hold_together(mixed: Ledger, wanted: DecisionFilter, items: str) -> None:
    found = mixed.page(conditions(wanted), 0, 100)
    assert "".join(record.decision.source_item for record in found) == items


def test_since_is_included_and_until_is_not(ledger: Ledger, decide: Decide) -> None:
    ledger.record([decide()])
    moment = ledger.page([], 0, 1)[0].recorded_at
    later = type(moment)()
    later.FromNanoseconds(moment.ToNanoseconds() + 1)

    def found(**times: Any) -> int:
        return len(ledger.page(conditions(DecisionFilter(**times)), 0, 10))

    assert found(since=moment) == 1
    assert found(since=later) == 0
    assert found(until=moment) == 0
    assert found(until=later) == 1


# Scores


def test_scores_are_those_of_scikit_learn(ledger: Ledger, decide: Decide) -> None:
    chance = random.Random(7)
    told = [
        decide(
            line=f"line-{chance.randint(1, 2)}",
            station=chance.choice(["top", "side"]),
            model_version=chance.choice(["aaaa", "bbbb"]),
            verdict=chance.choice([QUALIFIED, QUALIFIED, DEFECTIVE, HOLD]),
            truth=chance.choice([GOOD, BAD, Label.LABEL_UNSPECIFIED]),
        )
        for _ in range(600)
    ]
    ledger.record(told)
    corrected = [decision.frame_id for decision in told[:50]]
    ledger.label([(frame_id, BAD) for frame_id in corrected], "ada")
    truth_of = {d.frame_id: d.truth for d in told} | dict.fromkeys(corrected, BAD)

    columns = [decisions.c.line, decisions.c.station, decisions.c.model_version]
    groupings: list[list[Any]] = [[], columns[:1], columns[:2], columns[2:]]
    for group_by in groupings:
        tallies = ledger.scores([], group_by)
        assert sum(tally.decisions for tally in tallies) == 600
        for tally in tallies:
            wanted = dict(zip([column.name for column in group_by], tally.group, strict=True))
            members = [d for d in told if all(getattr(d, name) == value for name, value in wanted.items())]
            labelled = [d for d in members if truth_of[d.frame_id]]
            judged = [d for d in labelled if d.verdict != HOLD]
            truth = [truth_of[d.frame_id] == BAD for d in judged]
            predicted = [d.verdict == DEFECTIVE for d in judged]
            precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="binary")
            tn, fp, fn, tp = confusion_matrix(truth, predicted).ravel()
            got = tally.confusion
            assert (got.precision, got.recall, got.f1) == pytest.approx((precision, recall, f1))
            assert (got.true_negatives, got.false_positives, got.false_negatives, got.true_positives) == (
                tn,
                fp,
                fn,
                tp,
            )
            held = [truth_of[d.frame_id] for d in labelled if d.verdict == HOLD]
            assert (got.held_good, got.held_defective) == (held.count(GOOD), held.count(BAD))
            assert (tally.decisions, tally.held) == (len(members), sum(d.verdict == HOLD for d in members))


def test_scores_of_no_decision_are_no_scores(ledger: Ledger) -> None:
    (overall,) = ledger.scores([], [])
    assert overall.decisions == 0
    assert overall.confusion.f1 is None
    assert ledger.scores([], [decisions.c.line]) == []


# Storage


def test_what_was_recorded_is_there_after_opening_again(opened: Callable[[], Engine], decide: Decide) -> None:
    decision = decide()
    Ledger(opened()).record([decision])
    again = Ledger(opened())

    assert again.record([decision]) == [DUPLICATE]
    assert again.record([decide()]) == [RECORDED]
    assert [record.cursor for record in again.page([], 0, 10)] == [1, 3]


def test_the_migrations_make_the_tables_that_the_code_names(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "version_table": "alembic_results"}
        )
        assert compare_metadata(context, metadata) == []


def test_a_commit_survives_a_power_cut(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL's durability is its server's setting")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_readers_do_not_wait_for_a_writer(engine: Engine, ledger: Ledger, decide: Decide) -> None:
    decision = decide()
    ledger.record([decision])
    with engine.begin() as writing, ThreadPoolExecutor(1) as pool:
        writing.execute(decisions.update().values(duplicates=7))
        assert pool.submit(ledger.get, decision.frame_id).result(timeout=5).duplicates == 0


@pytest.fixture
def full(disk: Any, engine: Engine) -> Iterator[Any]:
    if engine.dialect.name != "sqlite":
        pytest.skip("only SQLite has max_page_count")
    disk.fill()
    yield disk
    disk.free()


def test_a_full_disk_refuses_a_batch_whole_and_takes_it_later(full: Any, ledger: Ledger, decide: Decide) -> None:
    batch = [decide(source_item="x" * 500, truth=GOOD) for _ in range(50)]

    with pytest.raises(StorageFull, match="full"):
        ledger.record(batch)
    assert ledger.page([], 0, 100) == []
    assert ledger.last_cursor() == 0

    full.free()
    assert ledger.record(batch) == [RECORDED] * 50
