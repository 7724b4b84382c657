"""Every form of the bus keeps the contract: one body, run on each form."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from queue import Empty, Queue

import pytest

from inspectbus.bus import Bus, Delivery, Lane, Message
from inspectbus.bus.embedded import EmbeddedBus, Limits
from inspectbus.bus.topics import DEAD, DECISIONS, FRAMES, PREPARED
from inspectbus.errors import BadField, BusClosed, ModelNotReady, QueueFull

PATIENCE_S = 10.0
BusMaker = Callable[..., Bus]


@pytest.fixture(params=["embedded"])
def make_bus(request: pytest.FixtureRequest) -> Iterator[BusMaker]:
    """Makes buses of one form that reach each other; small limits on request."""
    name = f"contract-{uuid.uuid4()}"
    made: list[EmbeddedBus] = []

    def make(**limits: float) -> Bus:
        made.append(EmbeddedBus(name, Limits(retry_delay_s=0.01, **limits)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for bus in made:
        bus.close()


@pytest.fixture
def bus(make_bus: BusMaker) -> Bus:
    return make_bus()


def message(body: bytes = b"x", key: tuple[str, ...] = ("line-1", "top"), lane: Lane = Lane.LIVE) -> Message:
    return Message(body, key, source="test", lane=lane)


def test_a_message_reaches_one_subscriber_of_its_group_whole(bus: Bus) -> None:
    arrived: Queue[Delivery] = Queue()
    bus.subscribe(FRAMES, "preprocessing", arrived.put)
    sent = message(b"\x00\xffpixels")

    confirmed = bus.publish(FRAMES, sent)

    delivery = arrived.get(timeout=PATIENCE_S)
    assert delivery.message == sent
    assert delivery.attempts == 1
    delivery.done()
    confirmed.result(timeout=PATIENCE_S)


def test_a_delivery_may_be_settled_later_from_another_thread(bus: Bus) -> None:
    held: Queue[Delivery] = Queue()
    bus.subscribe(FRAMES, "preprocessing", held.put)
    futures = [bus.publish(FRAMES, message()) for _ in range(5)]

    deliveries = [held.get(timeout=PATIENCE_S) for _ in range(5)]
    for delivery in reversed(deliveries):
        threading.Thread(target=delivery.done).start()

    assert not wait_for_all(futures, timeout=PATIENCE_S).not_done


def test_input_is_only_done_when_its_output_is_confirmed(bus: Bus) -> None:
    output: Future[None] = Future()
    bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.done(after=[output]), prefetch=1)
    seen_second = threading.Event()
    bus.follow(FRAMES, lambda news: seen_second.set() if news.body == b"second" else None)

    bus.publish(FRAMES, message(b"first"))
    bus.publish(FRAMES, message(b"second"))
    assert seen_second.wait(PATIENCE_S)
    assert bus.depth(FRAMES, "preprocessing") == 1, "the first still holds the only place"

    output.set_result(None)
    drained = bus.publish(FRAMES, message(b"third"))
    drained.result(timeout=PATIENCE_S)


def test_an_output_that_fails_brings_the_input_back(bus: Bus) -> None:
    attempts: Queue[int] = Queue()

    def handler(delivery: Delivery) -> None:
        attempts.put(delivery.attempts)
        output: Future[None] = Future()
        if delivery.attempts == 1:
            output.set_exception(BusClosed("gone"))
        else:
            output.set_result(None)
        delivery.done(after=[output])

    bus.subscribe(FRAMES, "preprocessing", handler)
    bus.publish(FRAMES, message()).result(timeout=PATIENCE_S)
    assert [attempts.get(timeout=PATIENCE_S) for _ in range(2)] == [1, 2]


def test_an_event_whose_handler_raises_comes_back_with_its_attempts_counted(bus: Bus) -> None:
    attempts: list[int] = []

    def handler(delivery: Delivery) -> None:
        attempts.append(delivery.attempts)
        if len(attempts) < 3:
            raise ModelNotReady("still loading")
        delivery.done()

    bus.subscribe(FRAMES, "preprocessing", handler)
    bus.publish(FRAMES, message()).result(timeout=PATIENCE_S)
    assert attempts == [1, 2, 3]


@pytest.mark.parametrize("how", ["park", "raise", "exhaust"])
def test_what_cannot_be_worked_on_is_parked_after_its_epitaph(bus: Bus, how: str) -> None:
    dead: Queue[Delivery] = Queue()
    epitaphs: list[BaseException] = []

    def handler(delivery: Delivery) -> None:
        if how == "park":
            delivery.park(BadField("no picture"))
        elif how == "raise":
            raise BadField("no picture")
        else:
            raise RuntimeError("always")

    def epitaph(_: Message, error: BaseException) -> list[Future[None]]:
        epitaphs.append(error)
        return [bus.publish(DECISIONS, message(b"hold"))]

    bus.subscribe(DECISIONS, "results", lambda delivery: delivery.done())
    bus.subscribe(FRAMES, "preprocessing", handler, epitaph=epitaph)
    bus.subscribe(DEAD, "dead", dead.put)

    confirmed = bus.publish(FRAMES, message(b"bad"))

    letter = dead.get(timeout=PATIENCE_S)
    confirmed.result(timeout=PATIENCE_S)
    assert letter.message.body == b"bad"
    assert letter.message.key == (FRAMES.name, "preprocessing")
    assert letter.message.headers["attempts"] == ("5" if how == "exhaust" else "1")
    assert ("always" if how == "exhaust" else "no picture") in letter.message.headers["error"]
    assert len(epitaphs) == 1
    letter.done()


def test_a_message_waits_for_its_epitaph_before_it_is_let_go(bus: Bus) -> None:
    decision: Future[None] = Future()
    asked = threading.Event()

    def epitaph(_: Message, __: BaseException) -> list[Future[None]]:
        asked.set()
        return [decision]

    bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.park(BadField("bad")), epitaph=epitaph)
    confirmed = bus.publish(FRAMES, message())
    assert asked.wait(PATIENCE_S)
    assert not confirmed.done()
    decision.set_result(None)
    confirmed.result(timeout=PATIENCE_S)


def test_only_the_first_verb_counts(bus: Bus) -> None:
    dead: Queue[Delivery] = Queue()
    calls: list[int] = []

    def handler(delivery: Delivery) -> None:
        calls.append(delivery.attempts)
        delivery.done()
        delivery.retry(RuntimeError("too late"))
        delivery.park(RuntimeError("too late"))

    bus.subscribe(DEAD, "dead", dead.put)
    bus.subscribe(FRAMES, "preprocessing", handler)
    for _ in range(3):
        bus.publish(FRAMES, message()).result(timeout=PATIENCE_S)
    assert calls == [1, 1, 1]
    with pytest.raises(Empty):
        dead.get_nowait()


def test_a_consumer_never_holds_more_than_its_prefetch(bus: Bus) -> None:
    held: Queue[Delivery] = Queue()
    bus.subscribe(FRAMES, "preprocessing", held.put, prefetch=3)
    for _ in range(10):
        bus.publish(FRAMES, message())

    first = [held.get(timeout=PATIENCE_S) for _ in range(3)]
    with pytest.raises(Empty):
        held.get(timeout=0.1)
    first[0].done()
    held.get(timeout=PATIENCE_S)


def test_a_full_queue_makes_the_publisher_wait_and_then_says_so(make_bus: BusMaker) -> None:
    bus = make_bus(queue_messages=4, publish_patience_s=0.2)
    for _ in range(4):
        bus.publish(FRAMES, message())
    with pytest.raises(QueueFull):
        bus.publish(FRAMES, message())

    bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.done())
    bus.publish(FRAMES, message()).result(timeout=PATIENCE_S)


def test_a_queue_is_bounded_by_bytes_too_but_takes_one_large_message(make_bus: BusMaker) -> None:
    bus = make_bus(queue_bytes=1000, publish_patience_s=0.1)
    bus.publish(FRAMES, message(b"x" * 5000))
    with pytest.raises(QueueFull):
        bus.publish(FRAMES, message(b"x"))


def test_a_waiting_publisher_goes_on_when_room_appears(make_bus: BusMaker) -> None:
    bus = make_bus(queue_messages=1, publish_patience_s=PATIENCE_S)
    bus.publish(FRAMES, message())
    held: Queue[Delivery] = Queue()
    waiting = threading.Thread(target=lambda: bus.publish(FRAMES, message(b"second")))
    waiting.start()
    bus.subscribe(FRAMES, "preprocessing", held.put, prefetch=1)
    held.get(timeout=PATIENCE_S).done()
    assert held.get(timeout=PATIENCE_S).message.body == b"second"
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


def test_live_goes_first_and_backlog_keeps_its_share(bus: Bus) -> None:
    for _ in range(40):
        bus.publish(FRAMES, message(b"backlog", lane=Lane.BACKLOG))
        bus.publish(FRAMES, message(b"live"))
    order: Queue[bytes] = Queue()

    def handler(delivery: Delivery) -> None:
        order.put(delivery.message.body)
        delivery.done()

    bus.subscribe(FRAMES, "preprocessing", handler, prefetch=1)

    first = Counter(order.get(timeout=PATIENCE_S) for _ in range(40))
    rest = Counter(order.get(timeout=PATIENCE_S) for _ in range(40))
    assert first[b"live"] >= 30
    assert first[b"backlog"] >= 4, "a steady live stream must not starve the backlog"
    assert sum((first + rest).values()) == 80


def test_consumers_of_one_group_share_the_work_fairly(bus: Bus) -> None:
    inboxes: list[Queue[Delivery]] = [Queue(), Queue()]
    for inbox in inboxes:
        bus.subscribe(FRAMES, "preprocessing", inbox.put, prefetch=100)
    futures = [bus.publish(FRAMES, message()) for _ in range(40)]

    for inbox in inboxes:
        for delivery in [inbox.get(timeout=PATIENCE_S) for _ in range(20)]:
            delivery.done()
    assert not wait_for_all(futures, timeout=PATIENCE_S).not_done


def test_a_slow_consumer_does_not_hold_up_the_others_of_its_group(bus: Bus) -> None:
    stuck: Queue[Delivery] = Queue()
    bus.subscribe(FRAMES, "preprocessing", stuck.put, prefetch=2)
    bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.done(), prefetch=2)
    in_hand = threading.Semaphore(0)
    futures = [bus.publish(FRAMES, message()) for _ in range(50)]
    for future in futures:
        future.add_done_callback(lambda _: in_hand.release())

    for _ in range(48):
        assert in_hand.acquire(timeout=PATIENCE_S), "the other consumer must go on"
    for _ in range(2):
        stuck.get(timeout=PATIENCE_S).done()
    assert not wait_for_all(futures, timeout=PATIENCE_S).not_done


def test_closing_a_subscription_waits_for_work_in_hand_and_gives_back_the_rest(bus: Bus) -> None:
    held: Queue[Delivery] = Queue()
    subscription = bus.subscribe(FRAMES, "preprocessing", held.put, prefetch=2)
    futures = [bus.publish(FRAMES, message()) for _ in range(5)]
    in_hand = [held.get(timeout=PATIENCE_S) for _ in range(2)]

    closing = threading.Thread(target=lambda: subscription.close(patience_s=PATIENCE_S))
    closing.start()
    for delivery in in_hand:
        delivery.done()
    closing.join(PATIENCE_S)

    assert not closing.is_alive()
    assert not wait_for_all(futures[:2], timeout=PATIENCE_S).not_done
    assert bus.depth(FRAMES, "preprocessing") == 3
    bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.done())
    assert not wait_for_all(futures, timeout=PATIENCE_S).not_done


def test_what_a_closed_subscription_left_unsettled_goes_to_another_and_its_late_verb_does_nothing(bus: Bus) -> None:
    held: Queue[Delivery] = Queue()
    subscription = bus.subscribe(FRAMES, "preprocessing", held.put)
    confirmed = bus.publish(FRAMES, message())
    late = held.get(timeout=PATIENCE_S)

    subscription.close(patience_s=0.05)
    late.done()
    assert not confirmed.done()

    second: Queue[Delivery] = Queue()
    bus.subscribe(FRAMES, "preprocessing", second.put)
    again = second.get(timeout=PATIENCE_S)
    assert again.attempts == 2
    again.done()
    confirmed.result(timeout=PATIENCE_S)


def test_followers_hear_every_matching_message_and_cost_the_work_nothing(bus: Bus) -> None:
    everything: Queue[bytes] = Queue()
    top_only: Queue[bytes] = Queue()
    bus.follow(DECISIONS, lambda news: everything.put(news.body))
    bus.follow(DECISIONS, lambda news: top_only.put(news.body), key=("*", "top"))
    bus.subscribe(DECISIONS, "results", lambda delivery: delivery.done())

    for station in ("top", "side"):
        bus.publish(DECISIONS, message(station.encode(), key=("line-1", station, "qualified"))).result(PATIENCE_S)

    assert [everything.get(timeout=PATIENCE_S) for _ in range(2)] == [b"top", b"side"]
    assert top_only.get(timeout=PATIENCE_S) == b"top"
    with pytest.raises(Empty):
        top_only.get(timeout=0.05)


def test_a_follower_that_never_reads_loses_the_oldest_and_delays_nobody(make_bus: BusMaker) -> None:
    bus = make_bus(news_limit=5)
    release = threading.Event()
    heard: Queue[bytes] = Queue()

    def slow(news: Message) -> None:
        heard.put(news.body)
        release.wait(PATIENCE_S)

    follower = bus.follow(DECISIONS, slow)
    bus.subscribe(DECISIONS, "results", lambda delivery: delivery.done())
    bus.publish(DECISIONS, message(b"first")).result(PATIENCE_S)
    assert heard.get(timeout=PATIENCE_S) == b"first"
    for number in range(100):
        bus.publish(DECISIONS, message(str(number).encode())).result(PATIENCE_S)
    release.set()
    assert [heard.get(timeout=PATIENCE_S) for _ in range(5)] == [b"95", b"96", b"97", b"98", b"99"]
    follower.close()


def test_a_topic_without_groups_is_news_only() -> None:
    from inspectbus.bus.topics import Topic

    with EmbeddedBus(f"news-{uuid.uuid4()}") as bus:
        heard: Queue[bytes] = Queue()
        bus.follow(Topic("inspectbus.test-news"), lambda news: heard.put(news.body))
        bus.publish(Topic("inspectbus.test-news"), message(b"hello")).result(PATIENCE_S)
        assert heard.get(timeout=PATIENCE_S) == b"hello"


def test_an_unknown_group_is_refused_with_the_groups_there_are(bus: Bus) -> None:
    with pytest.raises(BadField, match="preprocessing"):
        bus.subscribe(FRAMES, "nobody", lambda delivery: delivery.done())


def test_a_closed_bus_says_so_and_fails_what_was_not_settled(make_bus: BusMaker) -> None:
    bus = make_bus()
    open_future = bus.publish(FRAMES, message())
    bus.__exit__(None, None, None)
    with pytest.raises(BusClosed):
        open_future.result(timeout=PATIENCE_S)
    with pytest.raises(BusClosed):
        bus.publish(FRAMES, message())


def test_a_confirmed_publish_means_the_whole_chain_is_settled(bus: Bus) -> None:
    """The embedded form's meaning of responsibility: what it confirms cannot be lost with the process any more."""
    recorded: list[bytes] = []
    gate = threading.Event()

    def record(delivery: Delivery) -> None:
        assert gate.wait(PATIENCE_S)
        recorded.append(delivery.message.body)
        delivery.done()

    bus.subscribe(FRAMES, "preprocessing", lambda d: d.done(after=[bus.publish(PREPARED, d.message)]))
    bus.subscribe(PREPARED, "inference", lambda d: d.done(after=[bus.publish(DECISIONS, d.message)]))
    bus.subscribe(DECISIONS, "results", record)

    futures = [bus.publish(FRAMES, message(str(number).encode())) for number in range(20)]
    assert not any(future.done() for future in futures)
    gate.set()
    assert not wait_for_all(futures, timeout=PATIENCE_S).not_done
    assert sorted(recorded) == sorted(str(number).encode() for number in range(20))


def test_nothing_is_lost_or_left_over_under_many_threads_and_random_failures(bus: Bus) -> None:
    seen: Counter[bytes] = Counter()
    lock = threading.Lock()

    def flaky(delivery: Delivery) -> None:
        if delivery.attempts == 1 and hash(delivery.message.body) % 3 == 0:
            raise RuntimeError("first try fails")
        with lock:
            seen[delivery.message.body] += 1
        delivery.done()

    for _ in range(3):
        bus.subscribe(FRAMES, "preprocessing", flaky, prefetch=7)
    futures: list[Future[None]] = []

    def publisher(name: int) -> None:
        for number in range(100):
            future = bus.publish(FRAMES, message(f"{name}-{number}".encode()))
            with lock:
                futures.append(future)

    threads = [threading.Thread(target=publisher, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert not wait_for_all(futures, timeout=PATIENCE_S).not_done
    assert len(seen) == 400
    assert set(seen.values()) == {1}
    assert bus.depth(FRAMES, "preprocessing") == 0
