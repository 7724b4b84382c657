"""Every form of the bus keeps the contract: one body, run on each form."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from contextlib import ExitStack
from queue import Empty, Queue
from typing import TYPE_CHECKING

import pytest

from inspectbus.bus import Bus, Delivery, Lane, Message
from inspectbus.bus.embedded import EmbeddedBus, Limits
from inspectbus.bus.topics import DEAD, DECISIONS, FRAMES, PREPARED
from inspectbus.errors import BadField, BusClosed, ModelNotReady, QueueFull, TooLate

if TYPE_CHECKING:
    from tests.doubles.vhost import Vhost

PATIENCE_S = 10.0
BusMaker = Callable[..., Bus]


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def make_bus(request: pytest.FixtureRequest) -> Iterator[BusMaker]:
    """Makes buses of one form that reach each other; small limits on request."""
    with ExitStack() as buses:
        if request.param == "embedded":
            yield _embedded(buses)
        else:
            yield _on_rabbitmq(buses, request.getfixturevalue("rabbitmq_vhost"))


@pytest.fixture
def bus(make_bus: BusMaker) -> Bus:
    return make_bus()


@pytest.fixture
def embedded() -> Iterator[Bus]:
    with ExitStack() as buses:
        yield _embedded(buses)()


def _embedded(buses: ExitStack) -> BusMaker:
    name = f"contract-{uuid.uuid4()}"

    def make(**limits: float) -> Bus:
        return buses.enter_context(EmbeddedBus(name, Limits(retry_delay_s=0.01, **limits)))  # type: ignore[arg-type]

    return make


def _on_rabbitmq(buses: ExitStack, vhost: Vhost) -> BusMaker:
    """What the embedded form holds in its queues is here a policy of the broker and the publisher's window."""
    from inspectbus.bus import connect

    def make(queue_messages: int = 0, queue_bytes: int = 0, **options: float) -> Bus:
        if queue_messages:
            vhost.limit({"max-length": queue_messages})
            options["window_messages"] = queue_messages
        if queue_bytes:
            vhost.limit({"max-length-bytes": queue_bytes})
            options["window_bytes"] = queue_bytes
        query = "&".join(f"{name}={value}" for name, value in {"retry_delay_s": 0.01, **options}.items())
        return buses.enter_context(connect(f"{vhost.url}?{query}"))

    return make


def eventually(read: Callable[[], object], expected: object) -> None:
    """A broker counts a little later than it delivers."""
    pause = threading.Event()
    deadline_s = time.monotonic() + PATIENCE_S
    while (found := read()) != expected:
        assert time.monotonic() < deadline_s, f"{found} did not become {expected}"
        pause.wait(0.02)


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
    seen: Queue[bytes] = Queue()

    def handler(delivery: Delivery) -> None:
        seen.put(delivery.message.body)
        delivery.done(after=[output])

    bus.subscribe(FRAMES, "preprocessing", handler, prefetch=1)
    bus.publish(FRAMES, message(b"first"))
    bus.publish(FRAMES, message(b"second"))
    assert seen.get(timeout=PATIENCE_S) == b"first"
    eventually(lambda: bus.depth(FRAMES, "preprocessing"), 1)
    assert seen.empty(), "the first still holds the only place"

    output.set_result(None)
    assert seen.get(timeout=PATIENCE_S) == b"second"
    eventually(lambda: bus.depth(FRAMES, "preprocessing"), 0)


def test_an_output_that_fails_brings_the_input_back(bus: Bus) -> None:
    attempts: Queue[int] = Queue()

    def handler(delivery: Delivery) -> None:
        attempts.put(delivery.attempts)
        output: Future[None] = Future()
        if delivery.attempts == 1:
            output.set_exception(ModelNotReady("gone"))
        else:
            output.set_result(None)
        delivery.done(after=[output])

    bus.subscribe(FRAMES, "preprocessing", handler)
    bus.publish(FRAMES, message()).result(timeout=PATIENCE_S)
    assert [attempts.get(timeout=PATIENCE_S) for _ in range(2)] == [1, 2]


def test_an_event_whose_handler_raises_comes_back_with_its_attempts_counted(bus: Bus) -> None:
    attempts: Queue[int] = Queue()

    def handler(delivery: Delivery) -> None:
        attempts.put(delivery.attempts)
        if delivery.attempts < 3:
            raise ModelNotReady("still loading")
        delivery.done()

    bus.subscribe(FRAMES, "preprocessing", handler)
    bus.publish(FRAMES, message()).result(timeout=PATIENCE_S)
    assert [attempts.get(timeout=PATIENCE_S) for _ in range(3)] == [1, 2, 3]


def test_an_outage_is_not_counted_as_the_messages_failure(bus: Bus) -> None:
    tries: Queue[int] = Queue()
    done = threading.Event()

    def handler(delivery: Delivery) -> None:
        tries.put(1)
        if tries.qsize() < 9:
            raise QueueFull("those behind us are away")
        delivery.done()
        done.set()

    epitaphs: list[BaseException] = []

    def epitaph(_: Message, error: BaseException) -> list[Future[None]]:
        epitaphs.append(error)
        return []

    bus.subscribe(FRAMES, "preprocessing", handler, epitaph=epitaph)
    bus.publish(FRAMES, message())
    assert done.wait(PATIENCE_S)
    assert not epitaphs


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

    dead: Queue[Delivery] = Queue()
    bus.subscribe(DEAD, "dead", dead.put)
    bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.park(BadField("bad")), epitaph=epitaph)
    bus.publish(FRAMES, message())
    assert asked.wait(PATIENCE_S)
    with pytest.raises(Empty):
        dead.get(timeout=0.1)
    decision.set_result(None)
    dead.get(timeout=PATIENCE_S).done()


def test_only_the_first_verb_counts(bus: Bus) -> None:
    dead: Queue[Delivery] = Queue()
    calls: Queue[int] = Queue()

    def handler(delivery: Delivery) -> None:
        calls.put(delivery.attempts)
        delivery.done()
        delivery.retry(RuntimeError("too late"))
        delivery.park(RuntimeError("too late"))

    bus.subscribe(DEAD, "dead", dead.put)
    bus.subscribe(FRAMES, "preprocessing", handler)
    for _ in range(3):
        bus.publish(FRAMES, message()).result(timeout=PATIENCE_S)
    assert [calls.get(timeout=PATIENCE_S) for _ in range(3)] == [1, 1, 1]
    eventually(lambda: bus.depth(FRAMES, "preprocessing"), 0)
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
    taken: list[Future[None]] = []

    with pytest.raises(QueueFull):
        taken.extend(bus.publish(FRAMES, message()) for _ in range(50))

    bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.done())
    bus.publish(FRAMES, message(), patience_s=PATIENCE_S).result(timeout=PATIENCE_S)
    assert len(taken) >= 4
    assert not wait_for_all(taken, timeout=PATIENCE_S).not_done


def test_a_sender_may_be_less_patient_than_the_bus(make_bus: BusMaker) -> None:
    bus = make_bus(queue_messages=4, publish_patience_s=60)

    def refusal() -> BaseException | None:
        try:
            return bus.publish(FRAMES, message(), patience_s=0.1).exception(timeout=0.5)
        except QueueFull as full:
            return full
        except TimeoutError:  # taken into a queue: on the embedded bus that is not the end of it
            return None

    told = [refusal() for _ in range(10)]
    assert any(isinstance(error, QueueFull | TooLate) for error in told)


def test_a_queue_is_bounded_by_bytes_too_but_takes_one_large_message(make_bus: BusMaker) -> None:
    bus = make_bus(queue_bytes=1000, publish_patience_s=0.1)
    bus.publish(FRAMES, message(b"x" * 5000))
    with pytest.raises(QueueFull):
        all(bus.publish(FRAMES, message(b"x" * 400)) for _ in range(50))


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
    eventually(lambda: [bus.depth(FRAMES, "preprocessing", lane) for lane in Lane], [40, 40])
    order: Queue[bytes] = Queue()
    work = threading.Event()

    def handler(delivery: Delivery) -> None:
        # Lanes matter where work is slower than its delivery.
        work.wait(0.005)
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
    eventually(lambda: bus.depth(FRAMES, "preprocessing"), 3)
    bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.done())
    assert not wait_for_all(futures, timeout=PATIENCE_S).not_done


def test_what_a_closed_subscription_left_unsettled_goes_to_another_and_its_late_verb_does_nothing(bus: Bus) -> None:
    held: Queue[Delivery] = Queue()
    subscription = bus.subscribe(FRAMES, "preprocessing", held.put)
    confirmed = bus.publish(FRAMES, message())
    late = held.get(timeout=PATIENCE_S)

    subscription.close(patience_s=0.05)
    late.done()

    second: Queue[Delivery] = Queue()
    bus.subscribe(FRAMES, "preprocessing", second.put)
    again = second.get(timeout=PATIENCE_S)
    assert again.attempts == 2, "a late verb must not settle what has been given back"
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


def test_a_closed_embedded_bus_fails_what_was_not_settled(embedded: Bus) -> None:
    bus = embedded
    open_future = bus.publish(FRAMES, message())
    bus.__exit__(None, None, None)
    with pytest.raises(BusClosed):
        open_future.result(timeout=PATIENCE_S)


def test_a_closed_bus_takes_nothing_and_says_so(make_bus: BusMaker) -> None:
    bus = make_bus()
    bus.__exit__(None, None, None)
    with pytest.raises(BusClosed):
        bus.publish(FRAMES, message())
    with pytest.raises(BusClosed):
        bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.done())


def test_a_confirmed_publish_means_the_whole_chain_is_settled(embedded: Bus) -> None:
    """The embedded form's meaning of responsibility: what it confirms cannot be lost with the process any more."""
    bus = embedded
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
    all_seen = threading.Event()

    def flaky(delivery: Delivery) -> None:
        if delivery.attempts == 1 and hash(delivery.message.body) % 3 == 0:
            raise RuntimeError("first try fails")
        with lock:
            seen[delivery.message.body] += 1
            if seen.total() == 400:
                all_seen.set()
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
    assert all_seen.wait(2 * PATIENCE_S)
    assert len(seen) == 400
    assert set(seen.values()) == {1}
    eventually(lambda: bus.depth(FRAMES, "preprocessing"), 0)
