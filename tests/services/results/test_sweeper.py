"""Is every object that travelled by claim deleted in the end, and none that anybody may still need?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, event, select

from inspectbus.api.v1.decision_pb2 import Decision, Evidence, Hold, HoldReason, Verdict
from inspectbus.errors import NotFound, StorageAway
from inspectbus.results import claims as noting
from inspectbus.results import sweeper as sweeping
from inspectbus.results.first_wins import Fate
from inspectbus.results.ledger import Ledger
from inspectbus.results.shadows import ShadowBook
from inspectbus.results.sweeper import Sweeper
from inspectbus.results.tables import claims
from inspectbus.stores.database import writing
from inspectbus.stores.frames import FrameStore, evidence_key

Decide = Callable[..., Decision]
DEFECTIVE, HOLD = Verdict.VERDICT_DEFECTIVE, Verdict.VERDICT_HOLD
ERROR, NO_MODEL = HoldReason.HOLD_REASON_ERROR, HoldReason.HOLD_REASON_NO_MODEL


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    return FrameStore(f"file://{tmp_path}/frames")


def claimed(store: FrameStore, decision: Decision) -> Decision:
    """With image and pixels in the store."""
    for field, part, suffix in (("image_key", "original", "png"), ("pixels_key", "prepared", "rgb")):
        key = evidence_key(decision.line, decision.station, decision.frame_id, part, suffix)
        store.put(key, b"0123456789")
        setattr(decision, field, key)
    return decision


def sweeper(
    engine: Engine,
    store: FrameStore,
    registry: CollectorRegistry | None = None,
    *,
    grace_s: float = 0.0,
    batch: int = 3,
) -> Sweeper:
    return Sweeper(
        engine,
        ShadowBook(engine),
        store,
        registry or CollectorRegistry(),
        grace_s=grace_s,
        period_s=0.01,
        batch_size=batch,
        shadows_kept_s=3600.0,
    )


def stands(store: FrameStore, key: str) -> bool:
    try:
        store.size(key)
    except NotFound:
        return False
    return True


def noted(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.scalars(select(claims.c.key)))


def test_after_the_grace_objects_and_rows_of_recorded_frames_are_gone(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide
) -> None:
    registry = CollectorRegistry()
    recorded = [claimed(store, decide()) for _ in range(7)]
    undecided = claimed(store, decide())
    ledger.record(recorded)

    sweeper(engine, store, registry, grace_s=3600).sweep()
    assert all(stands(store, decision.image_key) for decision in recorded)

    sweeper(engine, store, other := CollectorRegistry()).sweep()
    keys = [key for decision in recorded for key in (decision.image_key, decision.pixels_key)]
    assert not any(stands(store, key) for key in keys)
    assert noted(engine) == set()
    assert stands(store, undecided.image_key)
    assert registry.get_sample_value("inspectbus_claims_swept_total") == 0
    assert other.get_sample_value("inspectbus_claims_swept_total") == 14
    assert other.get_sample_value("inspectbus_claims_swept_bytes_total") == 140


@pytest.mark.parametrize("evidence", ["original_key", "prepared_key", "heatmap_key"])
def test_evidence_is_kept_and_what_it_does_not_name_goes(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide, evidence: str
) -> None:
    decision = claimed(store, decide(verdict=DEFECTIVE))
    setattr(decision.evidence, evidence, decision.image_key)
    ledger.record([decision])

    sweeper(engine, store).sweep()

    assert stands(store, decision.image_key)
    assert not stands(store, decision.pixels_key)


@pytest.mark.parametrize(("reason", "kept"), [(ERROR, True), (NO_MODEL, False)])
def test_a_frame_that_may_rest_among_the_dead_letters_keeps_its_objects(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide, reason: HoldReason.ValueType, kept: bool
) -> None:
    decision = claimed(store, decide(verdict=HOLD, hold=Hold(reason=reason)))
    ledger.record([decision])

    sweeper(engine, store).sweep()

    assert stands(store, decision.image_key) is stands(store, decision.pixels_key) is kept


@pytest.mark.parametrize("first", ["plain", "pinning"])
@pytest.mark.parametrize("together", [True, False])
def test_any_decision_on_a_frame_pins_whichever_came_first(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide, first: str, together: bool
) -> None:
    plain = claimed(store, decide())
    pinning = Decision()
    pinning.CopyFrom(plain)
    pinning.verdict = DEFECTIVE
    pinning.evidence.CopyFrom(Evidence(original_key=plain.image_key, prepared_key=plain.pixels_key))
    batch = [plain, pinning] if first == "plain" else [pinning, plain]
    for part in [batch] if together else [batch[:1], batch[1:]]:
        ledger.record(part)

    sweeper(engine, store).sweep()

    assert stands(store, plain.image_key)
    assert stands(store, plain.pixels_key)


def test_a_repeat_begins_the_grace_anew_because_a_message_was_still_under_way(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide
) -> None:
    decision = claimed(store, decide())
    ledger.record([decision])
    with writing(engine) as connection:
        connection.execute(claims.update().values(named_at_us=1))
    assert ledger.record([decision]) == [Fate.DUPLICATE]

    sweeper(engine, store, grace_s=3600).sweep()

    assert stands(store, decision.image_key)


def test_a_frame_sent_again_after_its_sweep_is_swept_again(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide
) -> None:
    decision = claimed(store, decide())
    ledger.record([decision])
    sweeper(engine, store).sweep()
    ledger.record([claimed(store, decision)])
    assert stands(store, decision.image_key)

    sweeper(engine, store).sweep()

    assert not stands(store, decision.image_key)


def test_a_claim_says_nothing_about_what_was_decided(ledger: Ledger, store: FrameStore, decide: Decide) -> None:
    decision = decide()
    ledger.record([decision])

    assert ledger.record([claimed(store, decision)]) == [Fate.DUPLICATE]


@pytest.mark.parametrize("key", ["../../etc/passwd", "http://example.org/x.png", "/etc/passwd", "another's"])
def test_a_decision_cannot_have_anything_but_its_own_frames_objects_deleted(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide, key: str
) -> None:
    another = claimed(store, decide())
    ledger.record([decide(image_key=another.image_key if key == "another's" else key)])

    sweeper(engine, store).sweep()

    assert noted(engine) == set()
    assert stands(store, another.image_key)


def test_objects_that_cannot_be_deleted_are_counted_and_tried_again_and_hold_up_no_other(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide, monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions = [claimed(store, decide()) for _ in range(6)]
    ledger.record(decisions)
    stuck = {decision.image_key for decision in decisions[:2]}
    delete = FrameStore.delete

    def refusing(self: FrameStore, key: str) -> None:
        if key in stuck:
            raise StorageAway("the frame store does not answer: Permission denied")
        delete(self, key)

    monkeypatch.setattr(FrameStore, "delete", refusing)
    registry = CollectorRegistry()
    one = sweeper(engine, store, registry, batch=2)

    one.sweep()
    assert noted(engine) == stuck
    assert registry.get_sample_value("inspectbus_claim_sweep_failures_total") == 2

    monkeypatch.setattr(FrameStore, "delete", delete)
    one.sweep()
    assert noted(engine) == set()
    assert registry.get_sample_value("inspectbus_claims_swept_total") == 12


def test_a_store_that_is_away_is_not_asked_for_every_object(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.record([claimed(store, decide()) for _ in range(30)])
    asked: list[str] = []

    def away(self: FrameStore, key: str) -> int:
        asked.append(key)
        raise StorageAway("the frame store does not answer")

    monkeypatch.setattr(FrameStore, "size", away)

    sweeper(engine, store, batch=4).sweep()

    assert len(asked) == sweeping.MAX_FAILURES
    assert len(noted(engine)) == 60


def test_two_replicas_at_once_delete_everything_and_harm_nothing(
    opened: Callable[[], Engine], ledger: Ledger, store: FrameStore, decide: Decide
) -> None:
    decisions = [claimed(store, decide()) for _ in range(40)]
    kept = claimed(store, decide(verdict=DEFECTIVE))
    kept.evidence.CopyFrom(Evidence(original_key=kept.image_key, prepared_key=kept.pixels_key))
    ledger.record([*decisions, kept])
    engines = [opened(), opened()]
    gate = threading.Barrier(2, timeout=20)
    faults: list[Exception] = []

    def sweep(engine: Engine) -> None:
        gate.wait()
        try:
            sweeper(engine, store, batch=5).sweep()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=sweep, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert faults == []
    assert noted(engines[0]) == {kept.image_key, kept.pixels_key}
    assert stands(store, kept.image_key)
    assert not any(stands(store, decision.image_key) for decision in decisions)


def test_what_is_noted_is_noted_with_its_decision_or_not_at_all(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = claimed(store, decide())

    def broken(*_: object) -> None:
        raise RuntimeError("the power went")

    event.listen(engine, "commit", broken)
    with pytest.raises(RuntimeError):
        ledger.record([decision])
    event.remove(engine, "commit", broken)
    engine.dispose()

    assert noted(engine) == set()
    with pytest.raises(NotFound):
        ledger.get(decision.frame_id)
    ledger.record([decision])
    assert noted(engine) == {decision.image_key, decision.pixels_key}


def test_the_thread_outlives_a_database_that_fails_and_ends_when_told(
    engine: Engine, ledger: Ledger, store: FrameStore, decide: Decide, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = claimed(store, decide())
    ledger.record([decision])
    due, forget = noting.due_claims, noting.forget_claims
    gone = threading.Event()
    asked: list[int] = []

    def failing_at_first(*how: object) -> list[noting.Due]:
        asked.append(1)
        if len(asked) == 1:
            raise StorageAway("the database does not answer")
        return due(*how)  # type: ignore[arg-type]

    def forgetting(*how: object) -> None:
        forget(*how)  # type: ignore[arg-type]
        gone.set()

    monkeypatch.setattr(sweeping, "due_claims", failing_at_first)
    monkeypatch.setattr(sweeping, "forget_claims", forgetting)

    with sweeper(engine, store):
        assert gone.wait(20)

    assert not stands(store, decision.image_key)
    assert not any(thread.name == "results-sweeper" for thread in threading.enumerate())
