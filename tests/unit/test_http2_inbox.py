"""What a call's sender sends becomes messages, however it is cut, and he gets back the room that he may have.

No more, or memory would have no bound; and no less, or he would wait for ever.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectbus.errors import BadField, BusClosed, TooLarge
from inspectbus.runtime.http2 import inbox
from inspectbus.runtime.http2.inbox import PREFIX_BYTES, WINDOW_BYTES, HungUp, Inbox, Message
from tests.doubles.http2_client import framed

T = TypeVar("T")
MOST_BYTES = 4 * WINDOW_BYTES
PATIENCE_S = 10.0
MESSAGES = [b"", b"one", b"", bytes(range(200)), b"last"]


def run(body: Awaitable[T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await body

    return asyncio.run(bounded())


@dataclass
class Sender:
    """Keeps to what it was given, as its side of the protocol counts it."""

    inbox: Inbox = field(init=False)
    window: int = WINDOW_BYTES
    given: int = 0
    sent: int = 0

    def __post_init__(self) -> None:
        self.inbox = Inbox(MOST_BYTES, self.give)

    def give(self, count: int) -> None:
        assert count > 0, "room for nothing is an error of the protocol"
        self.given += count
        self.window += count
        assert self.given <= self.sent, "more is given back than came"

    def send(self, data: bytes, *, padding: int = 0, direct: bool = False) -> None:
        """One DATA frame, for which there is room; `direct` as what is received where the message will lie."""
        length = len(data) + padding
        assert length <= self.window
        self.window -= length
        self.sent += length
        assert self.inbox.may_come(length), "who keeps to his window is never refused"
        rest = memoryview(data)
        while rest:
            room = self.inbox.room if direct else None
            if room is None:
                part, rest = (rest[:PREFIX_BYTES], rest[PREFIX_BYTES:]) if direct else (rest, rest[:0])
                self.inbox.received(part)
            else:
                count = min(len(room), len(rest))
                room[:count] = rest[:count]
                rest = rest[count:]
                self.inbox.filled(count)
        self.inbox.settle()


async def all_of(inbox: Inbox) -> list[bytes]:
    found = []
    while (message := await inbox.read()) is not None:
        found.append(bytes(message.data))
    return found


def cuts(data: bytes) -> Iterator[tuple[bytes, ...]]:
    """In two at every byte, and in single bytes."""
    yield from ((data[:at], data[at:]) for at in range(len(data) + 1))
    yield tuple(data[at : at + 1] for at in range(len(data)))


@pytest.mark.parametrize("direct", [False, True])
def test_messages_are_the_same_wherever_their_bytes_are_cut(direct: bool) -> None:
    async def body() -> None:
        for frames in cuts(b"".join(map(framed, MESSAGES))):
            sender = Sender()
            for each in frames:
                sender.send(each, direct=direct)
            sender.inbox.end()
            assert await all_of(sender.inbox) == MESSAGES

    run(body())


def test_a_message_that_comes_while_it_is_waited_for_is_given_at_once() -> None:
    async def body() -> Message | None:
        sender = Sender()
        reading = asyncio.ensure_future(sender.inbox.read())
        await asyncio.sleep(0)
        sender.send(framed(b"late")[:7])
        await asyncio.sleep(0)
        assert not reading.done()
        sender.send(framed(b"late")[7:])
        return await reading

    assert run(body()) == Message(b"late", compressed=False)


def test_what_is_compressed_is_told_so_message_by_message() -> None:
    async def body() -> list[bool]:
        sender = Sender()
        sender.send(framed(b"small", flag=1) + framed(b"plain") + framed(b"", flag=1))
        return [message.compressed for _ in range(3) if (message := await sender.inbox.read()) is not None]

    assert run(body()) == [True, False, True]


@pytest.mark.parametrize("flag", [2, 0x80, 0xFF])
def test_a_flag_that_there_is_not_is_refused_and_what_came_before_is_read(flag: int) -> None:
    async def body() -> None:
        sender = Sender()
        sender.send(framed(b"good") + framed(b"bad", flag=flag))
        assert await sender.inbox.read() == Message(b"good", compressed=False)
        with pytest.raises(BadField, match="compressed"):
            await sender.inbox.read()

    run(body())


def test_a_message_of_the_largest_size_is_read_and_one_byte_more_is_refused_when_it_is_announced() -> None:
    async def body() -> None:
        inbox = Inbox(10, lambda count: None)
        inbox.received(memoryview(framed(bytes(10))))
        inbox.received(memoryview(framed(b"", said=11)))
        assert await inbox.read() == Message(bytes(10), compressed=False)
        assert inbox.room is None
        with pytest.raises(TooLarge, match="11 bytes, and 10 may be"):
            await inbox.read()

    run(body())


@pytest.mark.parametrize("at", range(1, PREFIX_BYTES + 3))
def test_an_end_within_a_message_is_refused(at: int) -> None:
    async def body() -> None:
        sender = Sender()
        sender.send(framed(b"before") + framed(b"cut")[:at])
        sender.inbox.end()
        assert await sender.inbox.read() == Message(b"before", compressed=False)
        with pytest.raises(BadField, match="ends within a message"):
            await sender.inbox.read()

    run(body())


def test_an_end_after_the_last_message_is_told_again_and_again() -> None:
    async def body() -> list[Message | None]:
        sender = Sender()
        sender.inbox.end()
        return [await sender.inbox.read() for _ in range(2)]

    assert run(body()) == [None, None]


@pytest.mark.parametrize("begun", [b"", framed(b"half")[:7]])
def test_who_waits_for_a_sender_that_hangs_up_hears_of_it(begun: bytes) -> None:
    async def body() -> None:
        sender = Sender()
        sender.send(begun)
        reading = asyncio.ensure_future(sender.inbox.read())
        await asyncio.sleep(0)
        sender.inbox.hung_up()
        with pytest.raises(HungUp):
            await reading
        with pytest.raises(HungUp):
            await sender.inbox.read()

    run(body())


def test_what_a_sender_that_has_hung_up_left_unread_is_forgotten() -> None:
    async def body() -> None:
        sender = Sender()
        sender.send(framed(b"unread"))
        sender.inbox.hung_up()
        with pytest.raises(HungUp):
            await sender.inbox.read()
        assert sender.inbox.room is None

    run(body())


def test_a_message_larger_than_the_window_is_whole_if_somebody_waits_for_it() -> None:
    async def body() -> int:
        sender = Sender()
        reading = asyncio.ensure_future(sender.inbox.read())
        await asyncio.sleep(0)
        left = len(framed(bytes(MOST_BYTES)))
        sent = memoryview(framed(bytes(MOST_BYTES)))
        while left:
            assert sender.window, "the sender is stuck"
            count = min(left, sender.window)
            sender.send(bytes(sent[:count]), direct=True)
            sent, left = sent[count:], left - count
        message = await reading
        assert message is not None
        return len(message.data)

    assert run(body()) == MOST_BYTES


def test_a_reader_that_gives_up_waiting_gives_no_more_room_for_what_nobody_reads() -> None:
    async def body() -> None:
        sender = Sender()
        reading = asyncio.ensure_future(sender.inbox.read())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        while sender.window > 2000:
            sender.send(framed(bytes(1000)))
        assert sender.given < WINDOW_BYTES // 2

    run(body())


@pytest.mark.parametrize("size", [0, 1, 100, 10_000])
def test_what_nobody_reads_is_never_more_than_the_window(size: int) -> None:
    """Of the messages' own bytes and of those that announce them: a million empty messages are something."""

    async def body() -> None:
        sender = Sender()
        frame = framed(bytes(size)) * (20_000 // (PREFIX_BYTES + size))
        while sender.window >= len(frame) and sender.sent < 4 * WINDOW_BYTES:
            sender.send(frame)
        assert sender.sent <= WINDOW_BYTES

    run(body())


@pytest.mark.parametrize(("size", "cut"), [(0, 10_000), (0, 1), (1, 7), (100, 3)])
def test_what_nobody_reads_takes_little_more_memory_than_its_bytes(size: int, cut: int) -> None:
    """However small its messages are, and the frames that they come in."""

    async def body() -> int:
        sender = Sender()
        data = framed(bytes(size)) * (50_000 // (PREFIX_BYTES + size))
        tracemalloc.start()
        for at in range(0, len(data), cut):
            sender.send(data[at : at + cut])
        return tracemalloc.get_traced_memory()[0]

    try:
        assert run(body()) < 150_000
    finally:
        tracemalloc.stop()


SMALL_WINDOW = 1000
"""Of the random conversations, so that a few messages fill it."""


def test_a_sender_of_very_many_messages_that_are_read_is_never_stuck() -> None:
    async def body() -> None:
        sender = Sender(window=SMALL_WINDOW)
        for at in range(2000):
            assert sender.window >= PREFIX_BYTES + at % 3, f"after {at} messages"
            sender.send(framed(bytes(at % 3)))
            assert await sender.inbox.read() is not None

    with patch.object(inbox, "WINDOW_BYTES", SMALL_WINDOW):
        run(body())


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 5 * SMALL_WINDOW)), max_size=12),
    frames=st.lists(
        st.tuples(st.integers(1, 2 * SMALL_WINDOW), st.sampled_from([0, 1, 9, 256]), st.booleans()),
        min_size=1,
        max_size=20,
    ),
    reads=st.lists(st.integers(0, 5), min_size=1, max_size=20),
)
def test_a_sender_that_keeps_to_its_window_is_never_refused_and_never_stuck(
    sizes: list[int], frames: list[tuple[int, int, bool]], reads: list[int]
) -> None:
    """Whatever it sends at once, with whatever padding, and however eagerly it is read: both sides count alike."""

    async def body() -> None:
        sender = Sender(window=SMALL_WINDOW)
        sent = memoryview(b"".join(framed(bytes(size)) for size in sizes))
        least = 1 + len(sent) // 300
        found: list[int] = []
        reading: asyncio.Future[Message | None] | None = None
        turn = 0
        while sent or len(found) < len(sizes):
            turn += 1
            assert turn < 3000, "neither side goes on"
            wanted, padding, direct = frames[turn % len(frames)]
            padding = min(padding, max(0, sender.window - 1))
            count = min(max(least, wanted), len(sent), sender.window - padding)
            if count > 0:
                sender.send(bytes(sent[:count]), padding=padding, direct=direct)
                sent = sent[count:]
            # Who only waits for room is read: a call that reads nothing may stop its sender for ever.
            for _ in range(max(reads[turn % len(reads)], 0 if count > 0 else 1)):
                reading = reading or asyncio.ensure_future(sender.inbox.read())
                await asyncio.sleep(0)
                if not reading.done():
                    break
                message, reading = reading.result(), None
                assert message is not None
                found.append(len(message.data))
            assert 0 <= sender.window <= SMALL_WINDOW
        assert found == sizes
        sender.inbox.end()
        assert await (reading or sender.inbox.read()) is None

    with patch.object(inbox, "WINDOW_BYTES", SMALL_WINDOW):
        run(body())


def test_what_comes_after_an_inbox_is_closed_is_neither_kept_nor_given_room_for() -> None:
    async def conversation() -> None:
        sender = Sender()
        sender.send(framed(b"wanted") + framed(b"x" * 50)[:20])
        assert (await sender.inbox.read()) == Message(b"wanted", compressed=False)

        sender.inbox.close()

        given = sender.given
        tracemalloc.start()
        try:
            for _ in range(7):
                sender.send(bytes(100_000))
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 50_000
        assert sender.inbox.room is None
        assert sender.given == given

    run(conversation())


def test_who_waits_for_a_message_hears_that_none_is_taken_any_more() -> None:
    async def conversation() -> None:
        sender = Sender()
        reading = asyncio.ensure_future(sender.inbox.read())
        await asyncio.sleep(0)
        sender.inbox.fail(BusClosed("stopping"))
        with pytest.raises(BusClosed):
            await reading

    run(conversation())
