"""Does a message that kills or hangs its worker hurt nobody but itself?"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from inspectbus.bus import Message
from inspectbus.bus.rabbitmq.ward import START_S, ChildUnfit, Crashed, Hung, Ward
from inspectbus.bus.topics import DECISIONS, FRAMES, GATES, Topic
from inspectbus.errors import BadField, BusClosed, ModelNotReady

ROOT = Path(__file__).parents[2]


class Parent:
    """The process with the real bus: remembers what the child published through it."""

    def __init__(self) -> None:
        self.published: list[tuple[Topic, Message]] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self.fails_to_publish = False
        self.command = [sys.executable, "-m", "tests.contracts.alone"]

    def start_child(self, fd: int) -> subprocess.Popen[bytes]:
        path = f"{ROOT / 'services'}:{ROOT}"
        child = subprocess.Popen([*self.command, str(fd)], pass_fds=(fd,), env={"PYTHONPATH": path}, cwd=ROOT)
        self.children.append(child)
        return child

    def publish(self, topic: Topic, message: Message) -> Future[None]:
        future: Future[None] = Future()
        if self.fails_to_publish:
            future.set_exception(BusClosed("gone"))
        else:
            self.published.append((topic, message))
            future.set_result(None)
        return future


@pytest.fixture
def parent() -> Parent:
    return Parent()


@pytest.fixture
def ward(parent: Parent) -> Iterator[Ward]:
    ward = Ward(parent.start_child, parent.publish, limit_s=3.0)
    yield ward
    ward.close()
    assert all(child.wait(10) is not None for child in parent.children), "no child outlives its ward"


def frame(body: bytes) -> Message:
    return Message(body, ("line-1", "top"), source="test", subject="frame-1")


def test_an_innocent_message_is_worked_on_and_its_output_goes_out(ward: Ward, parent: Parent) -> None:
    ward.work(FRAMES, "preprocessing", frame(b"\x00good\xff"), attempts=3)
    assert parent.published == [(DECISIONS, parent.published[0][1])]
    assert parent.published[0][1].body == b"\x00good\xff"
    assert parent.published[0][1].key == ("line-1", "top")


def test_a_message_that_kills_its_worker_says_how_and_the_next_one_is_well(ward: Ward, parent: Parent) -> None:
    with pytest.raises(Crashed, match="SIGSEGV"):
        ward.work(FRAMES, "preprocessing", frame(b"crash"), attempts=3)
    ward.work(FRAMES, "preprocessing", frame(b"good"), attempts=3)
    assert len(parent.children) == 2


def test_a_message_that_hangs_is_ended_with_its_worker(parent: Parent) -> None:
    ward = Ward(parent.start_child, parent.publish, limit_s=0.5)
    try:
        with pytest.raises(Hung):
            ward.work(FRAMES, "preprocessing", frame(b"hang"), attempts=3)
        assert parent.children[0].wait(10) < 0
    finally:
        ward.close()


def test_one_child_works_for_both_subscriptions_of_its_service(ward: Ward, parent: Parent) -> None:
    ward.work(FRAMES, "preprocessing", frame(b"good"), attempts=3)
    begun = time.monotonic()
    ward.work(GATES, "outcomes", frame(b"good"), attempts=3)
    assert time.monotonic() - begun < START_S / 4, "what became ready meanwhile was not waited for again"
    assert len(parent.children) == 1


def test_one_child_serves_many_messages(ward: Ward, parent: Parent) -> None:
    for number in range(20):
        ward.work(FRAMES, "preprocessing", frame(str(number).encode()), attempts=3)
    assert len(parent.children) == 1
    assert len(parent.published) == 20


@pytest.mark.parametrize(
    ("body", "kind", "may_succeed"), [(b"bad", BadField, False), (b"not yet", ModelNotReady, True)]
)
def test_what_the_worker_says_of_a_message_is_heard(
    ward: Ward, body: bytes, kind: type[Exception], may_succeed: bool
) -> None:
    with pytest.raises(kind) as raised:
        ward.work(FRAMES, "preprocessing", frame(body), attempts=3)
    assert getattr(raised.value, "retryable") is may_succeed  # noqa: B009


def test_an_output_that_was_not_confirmed_leaves_the_message_undone(ward: Ward, parent: Parent) -> None:
    parent.fails_to_publish = True
    with pytest.raises(BusClosed) as raised:
        ward.work(FRAMES, "preprocessing", frame(b"good"), attempts=3)
    assert raised.value.retryable


def test_a_ward_closed_while_its_child_starts_leaves_no_child(parent: Parent) -> None:
    def start_late(fd: int) -> subprocess.Popen[bytes]:
        process = parent.start_child(fd)
        closing.close()
        return process

    closing = Ward(start_late, parent.publish, limit_s=0.5)
    with pytest.raises(ChildUnfit):
        closing.work(FRAMES, "preprocessing", frame(b"good"), attempts=3)
    assert parent.children[0].wait(10) < 0


def test_a_child_that_does_not_start_is_no_fault_of_the_message(parent: Parent) -> None:
    parent.command = [sys.executable, "-c", "raise SystemExit(3)"]
    ward = Ward(parent.start_child, parent.publish, limit_s=3.0)
    with pytest.raises(ChildUnfit, match="exit code 3"):
        ward.work(FRAMES, "preprocessing", frame(b"good"), attempts=3)
    ward.close()
