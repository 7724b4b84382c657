"""What the bus promises on RabbitMQ beyond the common contract: outages, quarantine, foreign messages, users."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

import pika
import pika.data
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from inspectbus.api.v1.decision_pb2 import Decision
from inspectbus.bus import Bus, Delivery, Lane, Message, connect
from inspectbus.bus.rabbitmq import topology, wire
from inspectbus.bus.rabbitmq.addresses import parse
from inspectbus.bus.rabbitmq.dead import DeadLetters
from inspectbus.bus.topics import DEAD, DECISIONS, FRAMES, GATES, PREPARED, SHADOWS, Topic
from inspectbus.errors import (
    BadField,
    BusAway,
    ModelNotReady,
    NotAllowed,
    NotPossibleNow,
    QueueFull,
    StorageAway,
    TooLate,
)
from tests.doubles.rabbitmq import Broker
from tests.doubles.vhost import Vhost

pytestmark = pytest.mark.rabbitmq

PATIENCE_S = 20.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def bus(rabbitmq_vhost: Vhost) -> Iterator[Bus]:
    with connect(f"{rabbitmq_vhost.url}?retry_delay_s=0.01") as bus:
        yield bus


@pytest.fixture
def breakable(tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, with the bus declared, that may be killed."""
    with Broker(tmp_path / "broker") as broker:
        topology.declare(parse(broker.url()))
        broker.settle()
        yield broker


def message(body: bytes = b"x", lane: Lane = Lane.LIVE, **more: Any) -> Message:
    return Message(body, ("line-1", "top"), source="test", subject="frame", lane=lane, **more)


def receive_all(bus: Bus, count: int) -> tuple[set[str], threading.Event]:
    """Ids seen by a subscriber that settles everything, and when there are so many."""
    seen: set[str] = set()
    complete = threading.Event()

    def take(delivery: Delivery) -> None:
        seen.add(delivery.message.id)
        if len(seen) == count:
            complete.set()
        delivery.done()

    bus.subscribe(FRAMES, "preprocessing", take)
    return seen, complete


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_broker_that_goes_and_comes_back_loses_nothing_that_was_published(breakable: Broker, how: str) -> None:
    with connect(f"{breakable.url()}?reconnect_s=0.5&window_messages=64") as bus:
        _, complete = receive_all(bus, 300)
        futures = [bus.publish(FRAMES, message()) for _ in range(100)]
        getattr(breakable, how)()
        sender = threading.Thread(target=lambda: futures.extend(bus.publish(FRAMES, message()) for _ in range(200)))
        sender.start()
        breakable.start()
        sender.join(60)
        assert not wait_for_all(futures, timeout=60).not_done
        assert complete.wait(60)


def test_a_sender_with_little_patience_is_told_that_the_broker_is_away(breakable: Broker) -> None:
    with connect(f"{breakable.url()}?reconnect_s=0.5") as bus:
        breakable.kill()
        future = bus.publish(FRAMES, message(), patience_s=0.5)
        assert isinstance(future.exception(PATIENCE_S), TooLate)
        assert "broker" in bus.trouble
        breakable.start()
        bus.publish(FRAMES, message()).result(60)
        # The other connection comes back in its own time.
        pause, until_s = threading.Event(), time.monotonic() + PATIENCE_S
        while "broker" in bus.trouble:
            assert time.monotonic() < until_s, bus.trouble
            pause.wait(0.05)


def test_a_window_of_unconfirmed_messages_makes_the_sender_wait(breakable: Broker) -> None:
    with connect(f"{breakable.url()}?window_messages=8&publish_patience_s=0.2") as bus:
        breakable.kill()
        futures = [bus.publish(FRAMES, message()) for _ in range(8)]
        with pytest.raises(QueueFull):
            bus.publish(FRAMES, message())
        breakable.start()
        assert not wait_for_all(futures, timeout=60).not_done


def test_a_frozen_broker_costs_a_connection_and_no_message(breakable: Broker) -> None:
    with connect(f"{breakable.url()}?confirm_s=1&heartbeat_s=2&reconnect_s=0.5") as bus:
        _, complete = receive_all(bus, 20)
        breakable.pause()
        # It stands still a moment after it was told to.
        futures = [bus.publish(FRAMES, message()) for _ in range(10)]
        wait_for_all(futures, timeout=1)
        futures += [bus.publish(FRAMES, message()) for _ in range(10)]
        assert wait_for_all(futures, timeout=5).not_done
        breakable.resume()
        assert not wait_for_all(futures, timeout=60).not_done
        assert complete.wait(60)


def test_what_an_outage_holds_for_long_goes_back_to_the_broker_uncounted(rabbitmq_vhost: Vhost) -> None:
    with connect(f"{rabbitmq_vhost.url}?held_s=0.2&retry_delay_s=0.05") as bus:
        told = [message() for _ in range(5)]
        handed_over: dict[str, set[Delivery]] = {each.id: set() for each in told}
        taken: Queue[Delivery] = Queue()

        def take(delivery: Delivery) -> None:
            handed_over[delivery.message.id].add(delivery)
            # The same delivery again and again is still held here; a second one has been with the broker.
            if any(len(deliveries) < 2 for deliveries in handed_over.values()):
                raise StorageAway("the database restarts")
            taken.put(delivery)
            delivery.done()

        bus.subscribe(FRAMES, "preprocessing", take)
        for each in told:
            bus.publish(FRAMES, each).result(PATIENCE_S)

        came = [taken.get(timeout=PATIENCE_S) for _ in told]
        assert {delivery.message.id for delivery in came} == set(handed_over)
        assert {delivery.attempts for delivery in came} == {1}


def test_a_memory_alarm_holds_publishers_and_not_consumers(breakable: Broker) -> None:
    with connect(breakable.url()) as bus:
        breakable.memory_alarm(True)
        deadline_s = time.monotonic() + PATIENCE_S
        future = bus.publish(FRAMES, message(b"x" * 100_000))
        # The alarm reaches a connection in its own time; until then frames are taken.
        while wait_for_all([future], timeout=1.5).done:
            assert time.monotonic() < deadline_s, "publishers are not held"
            future = bus.publish(FRAMES, message(b"x" * 100_000))
        breakable.memory_alarm(False)
        future.result(60)


def test_another_channel_is_tried_for_a_queue_that_only_refuses_while_others_take(
    rabbitmq_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectbus.bus.rabbitmq.publisher.NACKS_S", 0.5)
    with connect(rabbitmq_vhost.url) as bus, capture_logs() as told:
        # Given frames that are refused, outcomes being taken all the while.
        bus.subscribe(GATES, "outcomes", Delivery.done)
        rabbitmq_vhost.limit({"max-length": 1}, "inspectbus.preprocessing.*")
        frames: list[Future[None]] = []
        deadline_s = time.monotonic() + PATIENCE_S
        while not told:
            assert time.monotonic() < deadline_s, "no other channel was tried"
            # A queue takes some beyond its limit, and tells its refusal later.
            if len(frames) < 20:
                frames.append(bus.publish(FRAMES, message()))
            bus.publish(GATES, message()).result(PATIENCE_S)
        # Then they go, by the new channel, as soon as there is room.
        rabbitmq_vhost.limit({"max-length": 1000}, "inspectbus.preprocessing.*")
        for frame in frames:
            frame.result(PATIENCE_S)
    assert [words["event"] for words in told] == ["nothing but refusals, another channel is tried"]


def test_nothing_is_lost_where_no_queue_is_bound(rabbitmq: Broker) -> None:
    vhost = rabbitmq.new_vhost()
    with connect(f"{rabbitmq.url(vhost)}?reconnect_s=0.2") as bus:
        future = bus.publish(FRAMES, message())
        assert not wait_for_all([future], timeout=0.5).done
        assert "bus declare" in bus.trouble or "no exchange" in bus.trouble
        topology.declare(parse(rabbitmq.url(vhost)))
        future.result(PATIENCE_S)
    rabbitmq.drop_vhost(vhost)


def alone(fd: int) -> subprocess.Popen[bytes]:
    path = f"{ROOT / 'services'}:{ROOT}"
    command = [sys.executable, "-m", "tests.contracts.alone", str(fd)]
    return subprocess.Popen(command, pass_fds=(fd,), env={"PYTHONPATH": path}, cwd=ROOT)


def lose_with_its_worker(url: str, times: int) -> None:
    """Takes what is there and goes without settling it, as a worker does that is killed."""
    for _ in range(times):
        with connect(url) as worker:
            held: Queue[Delivery] = Queue()
            worker.subscribe(FRAMES, "preprocessing", held.put, prefetch=8)
            held.get(timeout=PATIENCE_S)


@pytest.mark.parametrize("body", [b"crash", b"hang", b"good"])
def test_what_was_lost_twice_with_its_worker_is_worked_on_alone(rabbitmq_vhost: Vhost, body: bytes) -> None:
    url = f"{rabbitmq_vhost.url}?quarantine_s=2&retry_delay_s=0.01"
    with ExitStack() as buses:
        bus = buses.enter_context(connect(url))
        decided: Queue[Message] = Queue()
        dead: Queue[Delivery] = Queue()

        def record(delivery: Delivery) -> None:
            decided.put(delivery.message)
            delivery.done()

        bus.subscribe(DECISIONS, "results", record)
        bus.subscribe(DEAD, "dead", dead.put)
        bus.publish(FRAMES, message(body)).result(PATIENCE_S)
        lose_with_its_worker(url, 2)

        def epitaph(_: Message, error: BaseException) -> list[Future[None]]:
            return [bus.publish(DECISIONS, message(str(error).encode()))]

        worked: list[Delivery] = []
        worker = buses.enter_context(connect(url, start_child=alone))
        worker.subscribe(FRAMES, "preprocessing", worked.append, epitaph=epitaph)

        words = decided.get(timeout=PATIENCE_S).body.decode()
        assert not worked, "no third worker is risked"
        if body == b"good":
            assert words == "good"
            assert dead.empty()
        else:
            assert ("SIGSEGV" if body == b"crash" else "2 s") in words
            letter = dead.get(timeout=PATIENCE_S)
            assert letter.message.key == (FRAMES.name, "preprocessing")
            assert words in letter.message.headers["error"]
            letter.done()


def test_a_connection_lost_while_one_is_worked_on_alone_costs_no_place(rabbitmq_vhost: Vhost) -> None:
    url = f"{rabbitmq_vhost.url}?quarantine_s=2&reconnect_s=0.5"
    with connect(url) as bus:
        bus.publish(FRAMES, message(b"hang")).result(PATIENCE_S)
        lose_with_its_worker(url, 2)
        started = threading.Event()

        def start_child(fd: int) -> subprocess.Popen[bytes]:
            started.set()
            return alone(fd)

        with connect(url, start_child=start_child) as worker:
            taken: Queue[Delivery] = Queue()
            decided: Queue[Message] = Queue()

            def epitaph(frame: Message, _: BaseException) -> list[Future[None]]:
                decided.put(frame)
                return []

            worker.subscribe(FRAMES, "preprocessing", taken.put, prefetch=1, epitaph=epitaph)
            assert started.wait(PATIENCE_S)
            rabbitmq_vhost.broker.ctl("close_all_connections", "-p", rabbitmq_vhost.name, "a test")
            bus.publish(FRAMES, message(b"good")).result(PATIENCE_S)
            delivery = taken.get(timeout=PATIENCE_S)
            assert delivery.message.body == b"good"
            delivery.done()
            assert decided.get(timeout=PATIENCE_S).body == b"hang"
            bus.publish(FRAMES, message(b"another")).result(PATIENCE_S)
            taken.get(timeout=PATIENCE_S).done()


def sent_by_others(url: str, topic: Topic, body: bytes, properties: pika.BasicProperties, key: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish(topic.name, key, body, properties, mandatory=True)
    connection.close()


def damaged(how: str) -> pika.BasicProperties:
    properties = wire.properties(FRAMES, message(), "guest")
    headers = dict(properties.headers or {})
    match how:
        case "content type":
            properties.content_type = "application/json"
        case "missing id":
            del headers["cloudEvents:id"]
        case "other type":
            headers["cloudEvents:type"] = "inspectbus.api.v1.Decision"
        case "future":
            headers["cloudEvents:time"] = wire.rfc3339(time.time() + 7200)
        case "no time":
            headers["cloudEvents:time"] = "soon"
        case "no headers":
            headers = {}
        case "no user":
            properties.user_id = None
        case "a name that is no text":
            headers = {b"\xff": "x"}  # type: ignore[dict-item]
        case "headers of a whole frame":
            headers["long"] = "x" * 130_000
            properties.content_type = "text/plain"
        case "headers of a whole frame in other letters":
            headers["long"] = "好" * 43_400
            properties.content_type = "text/plain"
        case "headers of the broker's own, malformed":
            headers |= {"x-death": [1, 2], "x-delivery-count": "many"}
            properties.content_type = "text/plain"
    properties.headers = headers
    return properties


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("content type", "application/json"),
        ("missing id", "cloudEvents:id is missing"),
        ("other type", "is no inspectbus.api.v1.Frame"),
        ("future", "in the future"),
        ("no time", "is no time"),
        ("no headers", "is missing"),
        ("no user", "no user_id"),
        ("a name that is no text", "is missing"),
        ("headers of a whole frame", "text/plain"),
        ("headers of a whole frame in other letters", "text/plain"),
        ("headers of the broker's own, malformed", "text/plain"),
    ],
)
def test_a_message_we_would_not_have_sent_is_parked_with_its_reason(
    rabbitmq_vhost: Vhost, bus: Bus, how: str, reason: str
) -> None:
    worked: list[Delivery] = []
    dead: Queue[Delivery] = Queue()
    bus.subscribe(FRAMES, "preprocessing", worked.append)
    bus.subscribe(DEAD, "dead", dead.put)
    sent_by_others(rabbitmq_vhost.url, FRAMES, b"body", damaged(how), "live.line-1.top")
    letter = dead.get(timeout=PATIENCE_S)
    assert reason in letter.message.headers["error"]
    assert letter.message.body == b"body"
    letter.done()
    assert not worked
    bus.publish(FRAMES, message(b"good")).result(PATIENCE_S)  # over the same connection as ever


def test_a_time_beyond_time_is_read_as_none() -> None:
    pieces: list[bytes] = []
    pika.data.encode_table(pieces, {"when": 1})
    beyond = b"".join(pieces)[:-5] + b"T" + (2**62).to_bytes(8, "big")
    table = (len(beyond) - 4).to_bytes(4, "big") + beyond[4:]
    assert pika.data.decode_table(table, 0)[0] == {"when": None}


def test_arrays_nested_without_end_are_read_as_far_as_anybody_means_it() -> None:
    deep = b"V"
    for _ in range(600):
        deep = b"A" + len(deep).to_bytes(4, "big") + deep
    body = b"\x04deep" + deep + b"\x05afterI" + (1).to_bytes(4, "big")
    table, offset = pika.data.decode_table(len(body).to_bytes(4, "big") + body, 0)
    assert (table["after"], offset) == (1, len(body) + 4)
    found: Any = table["deep"]
    depth = 0
    while found is not None:
        (found,), depth = found, depth + 1
    assert depth < 40


def test_a_body_larger_than_the_bus_takes_is_refused_at_the_sender_and_parked_when_it_comes(
    rabbitmq_vhost: Vhost,
) -> None:
    with connect(f"{rabbitmq_vhost.url}?body_bytes=1000") as bus:
        with pytest.raises(BadField, match="at most 1000"):
            bus.publish(FRAMES, message(b"x" * 1001))
        told: Queue[BaseException] = Queue()

        def epitaph(_: Message, error: BaseException) -> list[Future[None]]:
            told.put(error)
            return []

        bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.done(), epitaph=epitaph)
        sent_by_others(
            rabbitmq_vhost.url, FRAMES, b"x" * 2000, wire.properties(FRAMES, message(), "guest"), "live.line-1.top"
        )
        assert "2000 bytes" in str(told.get(timeout=PATIENCE_S))


def test_two_hundred_megabytes_are_refused_before_anything_is_sent(bus: Bus) -> None:
    with pytest.raises(BadField, match="at most"):
        bus.publish(FRAMES, message(bytes(200_000_000)))
    bus.publish(FRAMES, message()).result(PATIENCE_S)


def test_declaring_twice_changes_nothing_and_other_arguments_are_named(rabbitmq: Broker) -> None:
    vhost = rabbitmq.new_vhost()
    address = parse(rabbitmq.url(vhost))
    connection = topology.connected(address)
    connection.channel().queue_declare("inspectbus.results", durable=True, arguments={"x-queue-type": "quorum"})
    connection.close()
    with pytest.raises(NotPossibleNow, match=r"inspectbus\.results"):
        topology.declare(address)
    rabbitmq.drop_vhost(vhost)


def test_declaring_again_is_harmless(rabbitmq_vhost: Vhost, bus: Bus) -> None:
    bus.publish(FRAMES, message()).result(PATIENCE_S)
    names = topology.declare(parse(rabbitmq_vhost.url))
    assert "inspectbus.preprocessing.live.quarantine" in names
    assert bus.depth(FRAMES, "preprocessing") == 1


def test_a_wrong_password_is_told_at_once_and_never_shown(rabbitmq_vhost: Vhost) -> None:
    url = rabbitmq_vhost.url.replace("guest:guest", "guest:s3cret")
    with pytest.raises(NotAllowed) as raised:
        connect(url)
    assert "guest" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_missing_vhost_is_told_at_once(rabbitmq: Broker) -> None:
    with pytest.raises(NotAllowed, match="no-such-place"):
        connect(rabbitmq.url("no-such-place"))


def test_declaring_without_a_broker_says_where_none_answers() -> None:
    with pytest.raises(BusAway, match=r"127\.0\.0\.1:1"):
        topology.declare(parse("amqp://guest:guest@127.0.0.1:1"))


@pytest.fixture
def station_bus(rabbitmq_vhost: Vhost) -> Iterator[Bus]:
    user = "inspectbus-station-line-1.top"
    passwords = {user: "station-password"}
    rabbitmq_vhost.broker.import_definitions(
        topology.definitions(rabbitmq_vhost.name, passwords, [("line-1", "top"), ("line-1", "side")])
    )
    with connect(rabbitmq_vhost.broker.url(rabbitmq_vhost.name, user, "station-password")) as bus:
        yield bus


def test_a_station_publishes_its_own_frames_and_outcomes_and_hears_its_own_decisions(
    bus: Bus, station_bus: Bus
) -> None:
    heard: Queue[Message] = Queue()
    station_bus.follow(DECISIONS, heard.put, key=("line-1", "top"))
    station_bus.publish(FRAMES, message()).result(PATIENCE_S)
    station_bus.publish(FRAMES, message(lane=Lane.BACKLOG)).result(PATIENCE_S)
    station_bus.publish(GATES, message()).result(PATIENCE_S)
    for station in ("side", "top"):
        decision = Message(Decision().SerializeToString(), ("line-1", station, "hold"), source="test")
        bus.publish(DECISIONS, decision).result(PATIENCE_S)
    assert heard.get(timeout=PATIENCE_S).key == ("line-1", "top", "hold")


def test_inference_publishes_what_shadows_say_and_results_takes_it(rabbitmq_vhost: Vhost) -> None:
    passwords = {f"inspectbus-{name}": f"{name}-password" for name in ("inference", "results")}
    rabbitmq_vhost.broker.import_definitions(topology.definitions(rabbitmq_vhost.name, passwords))

    def as_user(name: str) -> Bus:
        user = f"inspectbus-{name}"
        return connect(rabbitmq_vhost.broker.url(rabbitmq_vhost.name, user, passwords[user]))

    taken: Queue[Delivery] = Queue()
    with as_user("inference") as inference, as_user("results") as results:
        results.subscribe(SHADOWS, "shadows", taken.put)
        inference.publish(SHADOWS, message()).result(PATIENCE_S)
        delivery = taken.get(timeout=PATIENCE_S)
        assert delivery.message.key == ("line-1", "top")
        delivery.done()
        with pytest.raises(NotAllowed):
            results.publish(SHADOWS, message()).result(PATIENCE_S)


@pytest.mark.parametrize(
    ("topic", "key"),
    [
        (DECISIONS, ("line-1", "top", "qualified")),
        (FRAMES, ("line-1", "side")),
        (FRAMES, ("line-1", "top", "more")),
        (GATES, ("line-2", "top")),
        (PREPARED, ("line-1", "top")),
        (SHADOWS, ("line-1", "top")),
    ],
)
def test_a_station_cannot_publish_a_decision_or_for_another_station(
    bus: Bus, station_bus: Bus, topic: Topic, key: tuple[str, ...]
) -> None:
    with pytest.raises(NotAllowed):
        station_bus.publish(topic, replace(message(), key=key)).result(PATIENCE_S)
    station_bus.publish(FRAMES, message()).result(PATIENCE_S)


def test_a_station_cannot_speak_for_another_by_an_exchange_of_its_own(
    rabbitmq_vhost: Vhost, bus: Bus, station_bus: Bus
) -> None:
    user = "inspectbus-station-line-1.top"
    dead: Queue[Delivery] = Queue()
    worked: list[Delivery] = []
    bus.subscribe(DEAD, "dead", dead.put)
    bus.subscribe(FRAMES, "preprocessing", worked.append)
    connection = topology.connected(parse(rabbitmq_vhost.broker.url(rabbitmq_vhost.name, user, "station-password")))
    channel = connection.channel()
    channel.exchange_declare("inspectbus.news.mine", "fanout")
    channel.exchange_bind(FRAMES.name, "inspectbus.news.mine")
    channel.basic_publish("inspectbus.news.mine", "live.line-1.side", b"x", wire.properties(FRAMES, message(), user))
    letter = dead.get(timeout=PATIENCE_S)
    connection.close()
    assert "may not speak for live.line-1.side" in letter.message.headers["error"]
    assert not worked
    letter.done()


def as_station(vhost: Vhost, topic: Topic, key: str, headers: dict[str, Any], body: bytes = b"x") -> None:
    """Sent on the station's own key, with headers of its own invention."""
    user = "inspectbus-station-line-1.top"
    properties = wire.properties(topic, message(), user)
    properties.headers = {**(properties.headers or {}), **headers}
    url = vhost.broker.url(vhost.name, user, "station-password")
    sent_by_others(url, topic, body, properties, key)


@pytest.mark.parametrize(
    "lies",
    [
        {"x-delivery-count": 2, wire.KEY: "live.line-1.side"},
        {wire.KEY: "live.line-1.side", wire.ATTEMPTS: 3},
        {"x-delivery-count": 2, "CC": ["inspectbus.results"], "BCC": ["inspectbus.results"]},
    ],
    ids=["lost with its workers", "failed before", "for others too"],
)
def test_a_stations_headers_change_neither_whose_frame_it_is_nor_where_it_goes(
    rabbitmq_vhost: Vhost, station_bus: Bus, lies: dict[str, Any]
) -> None:
    worked: Queue[Delivery] = Queue()
    decided: list[Delivery] = []
    failed = threading.Event()

    def fail_once(delivery: Delivery) -> None:
        if not failed.is_set():
            failed.set()
            raise ModelNotReady("not yet")
        worked.put(delivery)
        delivery.done()

    with connect(f"{rabbitmq_vhost.url}?retry_delay_s=0.01", start_child=alone) as bus:
        bus.subscribe(FRAMES, "preprocessing", fail_once)
        bus.subscribe(DECISIONS, "results", decided.append)
        as_station(rabbitmq_vhost, FRAMES, "live.line-1.top", lies)
        delivery = worked.get(timeout=PATIENCE_S)
        assert delivery.message.key == ("line-1", "top")
        assert delivery.attempts == 2
        assert not decided, "it was taken for one that had been lost, or sent on with a service's rights"


def test_a_dead_letter_of_a_station_is_sent_again_under_its_own_key_only(
    rabbitmq_vhost: Vhost, bus: Bus, station_bus: Bus
) -> None:
    dead: Queue[Delivery] = Queue()
    subscription = bus.subscribe(FRAMES, "preprocessing", lambda delivery: delivery.park(BadField("poison")))
    as_station(rabbitmq_vhost, FRAMES, "live.line-1.top", {wire.KEY: "live.line-1.side"})
    watched = bus.subscribe(DEAD, "dead", dead.put)
    dead.get(timeout=PATIENCE_S)
    watched.close(0)
    subscription.close()
    again: Queue[Delivery] = Queue()
    bus.subscribe(FRAMES, "preprocessing", again.put)
    with DeadLetters(parse(rabbitmq_vhost.url)) as letters:
        letters.replay(lambda _: True, lambda letter, problem: None, unchanged=True)
    delivery = again.get(timeout=PATIENCE_S)
    assert delivery.message.key == ("line-1", "top")
    delivery.done()


@pytest.mark.parametrize("key", ["line-1.side.line-1.top", "inspectbus.outcomes"])
def test_a_key_that_ends_like_its_own_or_is_a_queues_name_is_not_a_stations(
    rabbitmq_vhost: Vhost, bus: Bus, station_bus: Bus, key: str
) -> None:
    user = "inspectbus-station-line-1.top"
    dead: Queue[Delivery] = Queue()
    worked: list[Delivery] = []
    bus.subscribe(DEAD, "dead", dead.put)
    bus.subscribe(GATES, "outcomes", worked.append)
    connection = topology.connected(parse(rabbitmq_vhost.broker.url(rabbitmq_vhost.name, user, "station-password")))
    channel = connection.channel()
    channel.exchange_declare("inspectbus.news.mine", "fanout")
    channel.exchange_bind(GATES.name, "inspectbus.news.mine", "#")
    properties = wire.properties(GATES, message(), user)
    properties.headers = {**(properties.headers or {}), wire.KEY: "line-1.side"}
    channel.basic_publish("inspectbus.news.mine", key, b"x", properties)
    letter = dead.get(timeout=PATIENCE_S)
    connection.close()
    assert "may not speak for" in letter.message.headers["error"]
    assert key in letter.message.headers["error"]
    assert not worked
    letter.done()


def test_one_refused_message_fails_alone(bus: Bus, station_bus: Bus) -> None:
    own = [station_bus.publish(FRAMES, message()) for _ in range(20)]
    foreign = station_bus.publish(DECISIONS, message())
    own += [station_bus.publish(FRAMES, message()) for _ in range(20)]
    assert isinstance(foreign.exception(PATIENCE_S), NotAllowed)
    assert not wait_for_all(own, timeout=PATIENCE_S).not_done
    assert all(future.exception() is None for future in own)


def test_the_bus_shows_its_numbers(bus: Bus) -> None:
    registry = CollectorRegistry()
    bus.report_to(registry)
    done = threading.Event()

    def take(delivery: Delivery) -> None:
        delivery.done()
        done.set()

    bus.subscribe(FRAMES, "preprocessing", take)
    bus.publish(FRAMES, message()).result(PATIENCE_S)
    assert done.wait(PATIENCE_S)
    shown = generate_latest(registry).decode()
    assert 'inspectbus_bus_up{link="publish"} 1.0' in shown
    assert 'inspectbus_bus_depth{queue="inspectbus.preprocessing.live"}' in shown
    assert "inspectbus_bus_confirm_seconds_count 1.0" in shown


@pytest.mark.parametrize(
    "url",
    [
        "amqp://",
        "amqp://host:port",
        "amqp://host?window=3",
        "amqp://host?window_messages=many",
        "amqp://h?cacertfile=/x",
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BadField):
        connect(url.replace("//", "//user:s3cret@"))
