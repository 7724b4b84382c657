"""The gate by a driven clock: one outcome for each frame, in time or fail-safe, over restarts too."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Queue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from inspectbus.acquisition.gate import Gate
from inspectbus.acquisition.gate_journal import GateJournal
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.settings import GateSettings
from inspectbus.api.v1.acquisition_pb2 import Station
from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE, VERDICT_HOLD, VERDICT_QUALIFIED, Decision, Verdict
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.api.v1.gate_pb2 import (
    GATE_ACTION_DIVERT,
    GATE_ACTION_PASS,
    GATE_ACTION_REJECT,
    GATE_REASON_DEADLINE,
    GATE_REASON_DECISION,
    GATE_REASON_RESTART,
    GateAction,
    GateOutcome,
)
from inspectbus.bus import Bus, Message, connect
from inspectbus.bus.messages import decision_message
from inspectbus.bus.topics import GATES
from inspectbus.errors import BusClosed, QueueFull, StorageFull


class World:
    """A monotonic and a wall clock that only the test moves, and everything the gate told its watcher."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 1000.0
        self.wall_s = 1_700_000_000.0
        self.folder = folder
        self.registry = CollectorRegistry()

    def open(self, house: ExitStack, bus: Bus, **values: object) -> Gate:
        self.registry = CollectorRegistry()
        gate = Gate(
            "line-1",
            "top",
            GateSettings.model_validate(values),
            self.folder,
            bus,
            AcquisitionMetrics(self.registry),
            clock=lambda: self.now_s,
            wall_clock=lambda: self.wall_s,
        )
        self.seen = house.enter_context(gate.watch())
        house.callback(gate.close, 0)
        gate.open()
        return gate

    def pass_time(self, gate: Gate, seconds: float) -> None:
        self.now_s += seconds
        gate.turn()

    def outcomes(self) -> list[GateOutcome]:
        """Those given since the last look."""
        found = []
        while (event := self.seen.next(0)) is not None:
            if event.HasField("outcome"):
                found.append(event.outcome)
        return found


@pytest.fixture
def bus() -> Iterator[Bus]:
    with connect(f"embedded://gate-{uuid.uuid4()}") as bus:
        yield bus


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "gate")


@pytest.fixture
def house() -> Iterator[ExitStack]:
    with ExitStack() as house:
        yield house


@pytest.fixture
def gate_of(world: World, house: ExitStack, bus: Bus) -> Callable[..., Gate]:
    return lambda **values: world.open(house, bus, **values)


def frame(name: str = "a", part_id: str = "") -> Frame:
    return Frame(
        frame_id=str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
        line="line-1",
        station="top",
        run_id="run-1",
        part_id=part_id,
    )


def decide(gate: Gate, of: Frame, verdict: Verdict.ValueType = VERDICT_QUALIFIED, revision: int = 0) -> None:
    decision = Decision(frame_id=of.frame_id, line=of.line, station=of.station, verdict=verdict, revision=revision)
    gate.hear(decision_message(decision, "test"))
    gate.turn()


@pytest.mark.parametrize(
    ("verdict", "action"),
    [
        (VERDICT_QUALIFIED, GATE_ACTION_PASS),
        (VERDICT_DEFECTIVE, GATE_ACTION_REJECT),
        (VERDICT_HOLD, GATE_ACTION_DIVERT),
    ],
)
def test_a_decision_in_time_is_the_outcome(
    world: World, gate_of: Callable[..., Gate], verdict: Verdict.ValueType, action: GateAction.ValueType
) -> None:
    gate = gate_of(deadline_s=2)
    gate.expect(frame(part_id="4711"))
    world.now_s += 1.5

    decide(gate, frame(), verdict)

    [outcome] = world.outcomes()
    assert (outcome.action, outcome.reason, outcome.verdict) == (action, GATE_REASON_DECISION, verdict)
    assert (outcome.frame_id, outcome.line, outcome.station) == (frame().frame_id, "line-1", "top")
    assert (outcome.run_id, outcome.part_id, outcome.waited_s) == ("run-1", "4711", 1.5)
    assert outcome.at.ToSeconds() == 1_700_000_000


@pytest.mark.parametrize(
    ("word", "action"),
    [("divert", GATE_ACTION_DIVERT), ("reject", GATE_ACTION_REJECT), ("pass", GATE_ACTION_PASS)],
)
def test_without_a_decision_the_deadline_brings_the_fail_safe(
    world: World, gate_of: Callable[..., Gate], word: str, action: GateAction.ValueType
) -> None:
    gate = gate_of(deadline_s=2, fail_safe=word)
    gate.expect(frame())
    world.pass_time(gate, 1.99)
    assert world.outcomes() == []

    world.pass_time(gate, 0.01)

    [outcome] = world.outcomes()
    assert (outcome.action, outcome.reason, outcome.verdict) == (action, GATE_REASON_DEADLINE, 0)
    assert outcome.waited_s == pytest.approx(2.0)


def test_a_decision_after_the_deadline_changes_nothing_even_when_the_timer_is_behind(
    world: World, gate_of: Callable[..., Gate]
) -> None:
    gate = gate_of(deadline_s=2)
    gate.expect(frame("late"))
    world.now_s += 2.0  # the process was stopped, say: nobody took a turn

    decide(gate, frame("late"))

    assert [outcome.reason for outcome in world.outcomes()] == [GATE_REASON_DEADLINE]
    decide(gate, frame("late"))
    assert world.outcomes() == []


def test_a_wall_clock_that_jumps_changes_only_the_stamp(world: World, gate_of: Callable[..., Gate]) -> None:
    gate = gate_of(deadline_s=2)
    for name, jump_s in (("year-ahead", 3.2e7), ("back-to-1970", -1_699_999_000.0)):
        world.wall_s = 1_700_000_000.0
        gate.expect(frame(name))
        world.wall_s += jump_s
        world.pass_time(gate, 1.9)
        assert world.outcomes() == [], "no jump makes a part late"

        decide(gate, frame(name))

        [outcome] = world.outcomes()
        assert outcome.reason == GATE_REASON_DECISION
        assert outcome.waited_s == pytest.approx(1.9)
        assert outcome.at.ToSeconds() == int(1_700_000_000 + jump_s)


def test_revisions_and_strangers_are_ignored(world: World, gate_of: Callable[..., Gate]) -> None:
    gate = gate_of(deadline_s=2)
    gate.expect(frame())

    decide(gate, frame(), revision=1)
    decide(gate, frame("stranger"))
    assert world.outcomes() == []

    decide(gate, frame(), VERDICT_DEFECTIVE)
    assert [outcome.action for outcome in world.outcomes()] == [GATE_ACTION_REJECT]


def test_a_frame_expected_twice_has_one_timer_and_one_outcome(world: World, gate_of: Callable[..., Gate]) -> None:
    gate = gate_of(deadline_s=2)
    gate.expect(frame())
    world.pass_time(gate, 1.5)
    gate.expect(frame())
    world.pass_time(gate, 0.5)
    assert [outcome.reason for outcome in world.outcomes()] == [GATE_REASON_DEADLINE]

    gate.expect(frame())
    world.pass_time(gate, 10)
    decide(gate, frame())

    assert world.outcomes() == []


def test_a_forgotten_frame_gets_none_unless_another_sender_still_has_it(
    world: World, gate_of: Callable[..., Gate]
) -> None:
    gate = gate_of(deadline_s=2)
    for name in ("refused", "twice", "twice"):
        gate.expect(frame(name))

    gate.forget(frame("refused").frame_id)
    gate.forget(frame("twice").frame_id)
    gate.forget(frame("stranger").frame_id)
    world.pass_time(gate, 2)

    assert [outcome.frame_id for outcome in world.outcomes()] == [frame("twice").frame_id]


def test_a_forgotten_frame_may_come_again_with_a_new_timer(world: World, gate_of: Callable[..., Gate]) -> None:
    gate = gate_of(deadline_s=2)
    gate.expect(frame())
    gate.forget(frame().frame_id)
    world.pass_time(gate, 5)

    gate.expect(frame())
    world.pass_time(gate, 1.5)
    decide(gate, frame())

    assert [outcome.waited_s for outcome in world.outcomes()] == [1.5]


def test_what_was_pending_gets_its_outcome_at_the_next_start_and_no_other(
    world: World, house: ExitStack, bus: Bus
) -> None:
    gate = world.open(house, bus, deadline_s=2)
    for name in ("decided", "forgotten", "pending"):
        gate.expect(frame(name, part_id=name))
    decide(gate, frame("decided"))
    gate.forget(frame("forgotten").frame_id)
    house.close()

    world.now_s = 5.0  # the machine was started again, and its monotonic clock with it
    gate = world.open(house, bus, deadline_s=2, fail_safe="reject")

    [outcome] = world.outcomes()
    assert (outcome.frame_id, outcome.part_id) == (frame("pending").frame_id, "pending")
    assert (outcome.action, outcome.reason) == (GATE_ACTION_REJECT, GATE_REASON_RESTART)
    assert not outcome.HasField("waited_s")
    for name in ("decided", "pending"):
        gate.expect(frame(name))
        decide(gate, frame(name))
    world.pass_time(gate, 60)
    assert world.outcomes() == [], "a resumed run may publish them again; their parts have been sorted"


def test_beyond_max_pending_the_sender_is_told(world: World, gate_of: Callable[..., Gate]) -> None:
    gate = gate_of(max_pending=2)
    gate.expect(frame("a"))
    gate.expect(frame("b"))

    with pytest.raises(QueueFull, match="2 frames wait at the gate already"):
        gate.expect(frame("c"))

    gate.expect(frame("b"))
    decide(gate, frame("a"))
    gate.expect(frame("c"))


def test_a_disk_that_takes_no_more_refuses_frames_and_delays_no_outcome(
    world: World, gate_of: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = gate_of(deadline_s=2)
    gate.expect(frame())
    full = StorageFull("the disk is full")

    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise full

        patch.setattr(GateJournal, "expect", refuse)
        patch.setattr(GateJournal, "settle", refuse)
        with pytest.raises(StorageFull):
            gate.expect(frame("refused"))
        decide(gate, frame())
        assert [outcome.action for outcome in world.outcomes()] == [GATE_ACTION_PASS]
        assert "cannot be journaled, trying again: the disk is full" in gate.trouble

    world.pass_time(gate, 60)
    assert gate.trouble == ""
    assert world.outcomes() == []


def test_a_journal_another_process_holds_takes_no_frames_until_it_is_free(
    world: World, house: ExitStack, bus: Bus
) -> None:
    owner = GateJournal(world.folder, fsync=False)
    gate = world.open(house, bus)
    assert "the gate takes no frames: another process has" in gate.trouble
    gate.turn()
    owner.close()

    gate.expect(frame())
    decide(gate, frame())

    assert gate.trouble == ""
    assert len(world.outcomes()) == 1


def test_a_closed_gate_takes_no_frames(gate_of: Callable[..., Gate]) -> None:
    gate = gate_of()
    gate.close(0)

    with pytest.raises(BusClosed):
        gate.expect(frame())


def test_status_and_metrics_count_what_was_done(world: World, gate_of: Callable[..., Gate]) -> None:
    gate = gate_of(deadline_s=2, fail_safe="reject")
    for name in ("in time", "late", "pending"):
        if name == "pending":
            world.pass_time(gate, 2)
        gate.expect(frame(name))
        if name == "in time":
            decide(gate, frame(name))

    status = Station()
    gate.describe(status)

    assert (status.pending, status.outcomes, status.late) == (1, 2, 1)
    assert (status.deadline.ToSeconds(), status.fail_safe) == (2, GATE_ACTION_REJECT)
    station = {"line": "line-1", "station": "top"}
    value = world.registry.get_sample_value
    assert value("inspectbus_gate_outcomes_total", {**station, "action": "pass", "reason": "decision"}) == 1
    assert value("inspectbus_gate_outcomes_total", {**station, "action": "reject", "reason": "deadline"}) == 1
    assert value("inspectbus_gate_waited_seconds_count", station) == 2
    assert value("inspectbus_gate_pending", station) == 1
    world.pass_time(gate, 1)
    assert (value("inspectbus_gate_journal_bytes", station) or 0) > 0


NAMES = st.sampled_from("abcdefgh")
STEPS = st.one_of(
    st.tuples(st.just("expect"), NAMES),
    st.tuples(st.just("forget"), NAMES),
    st.tuples(st.just("decide"), NAMES),
    st.tuples(st.just("wait"), st.sampled_from([0.3, 1.0, 2.0])),
    st.tuples(st.just("restart"), st.none()),
)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_whatever_happens_each_frame_that_was_not_forgotten_gets_exactly_one_outcome(
    steps: list[tuple[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("gate"))
    given_to: list[str] = []
    senders: dict[str, int] = {}
    with connect(f"embedded://gate-{uuid.uuid4()}") as bus, ExitStack() as house:
        gate = world.open(house, bus, deadline_s=2)
        for verb, word in [*steps, ("restart", None)]:
            if verb == "expect":
                gate.expect(frame(str(word)))
                senders[str(word)] = senders.get(str(word), 0) + 1
            elif verb == "forget" and senders.get(str(word)):
                gate.forget(frame(str(word)).frame_id)
                senders[str(word)] -= 1
            elif verb == "decide":
                decide(gate, frame(str(word)))
            elif verb == "wait":
                world.pass_time(gate, float(str(word)))
            elif verb == "restart":
                house.close()
                gate = world.open(house, bus, deadline_s=2)
            given_to += [outcome.frame_id for outcome in world.outcomes()]

    assert len(given_to) == len(set(given_to)), "no frame has two"
    must = {frame(name).frame_id for name, count in senders.items() if count}
    assert must <= set(given_to) <= {frame(name).frame_id for name in senders}


def test_outcomes_are_published_under_the_frames_id(world: World, gate_of: Callable[..., Gate], bus: Bus) -> None:
    arrived: Queue[Message] = Queue()
    bus.follow(GATES, arrived.put)
    gate = gate_of()
    gate.expect(frame())

    decide(gate, frame())

    message = arrived.get(timeout=10)
    assert (message.id, message.key) == (f"{frame().frame_id}:gate", ("line-1", "top"))
    assert (message.source, message.subject) == ("acquisition/line-1/top", frame().frame_id)
    assert GateOutcome.FromString(message.body) == world.outcomes()[0]
