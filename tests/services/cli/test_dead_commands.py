"""Dead letters on a real broker: looked at, shown, sent again as a revision, dropped."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest
from typer.testing import Result

from inspectbus.api.v1.decision_pb2 import HOLD_REASON_ERROR, Decision
from inspectbus.api.v1.frame_pb2 import Claim, Frame
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.bus import Bus, Delivery, Message, connect
from inspectbus.bus.messages import decision_message, prepared_message
from inspectbus.bus.rabbitmq import addresses, topology, wire
from inspectbus.bus.rabbitmq.dead import QUEUE
from inspectbus.bus.topics import DECISIONS, FRAMES, PREPARED, Topic
from inspectbus.domain.decision import hold_decision
from inspectbus.errors import BadField
from inspectbus.stores.frames import FrameStore, evidence_key

if TYPE_CHECKING:
    from tests.doubles.rabbitmq import Broker

pytestmark = pytest.mark.rabbitmq

PATIENCE_S = 20.0
PNG = b"\x89PNG\r\n\x1a\n" + bytes(300)

Inspectbus = Callable[..., Result]


class Line:
    """A declared broker, a bus on it, and a dead queue to look into."""

    def __init__(self, url: str, bus: Bus) -> None:
        self.url = url
        self.bus = bus
        self.addresses = addresses.parse(url)

    def frame(self, number: int = 0, **fields: Any) -> Frame:
        frame_id = f"00000000-0000-4000-8000-{number:012d}"
        return Frame(**{"frame_id": frame_id, "line": "line-1", "station": "top", "image": PNG, **fields})

    def send(self, topic: Topic, message: Message) -> None:
        self.bus.publish(topic, message).result(PATIENCE_S)

    def bury(self, *bodies: bytes, queue: str = "inspectbus.preprocessing.live", **headers: str) -> None:
        """Letters as a consumer would leave them."""
        with pika.BlockingConnection(list(self.addresses.parameters)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for number, body in enumerate(bodies):
                sent = Message(body, ("line-1", "top"), "test", subject=f"frame-{number}", id=f"id-{number}")
                properties = wire.again(
                    wire.properties(FRAMES, sent, "guest"), "live.line-1.top", error=BadField("no image")
                )
                properties.headers = {**(properties.headers or {}), **headers}
                channel.basic_publish("inspectbus.dead", queue, body, properties, mandatory=True)

    def depth(self, queue: str = QUEUE) -> int:
        with pika.BlockingConnection(list(self.addresses.parameters)) as connection:
            return int(connection.channel().queue_declare(queue, passive=True).method.message_count)

    def wait_for(self, depth: int, queue: str = QUEUE) -> None:
        until_s, pause = time.monotonic() + PATIENCE_S, threading.Event()
        while self.depth(queue) != depth:
            assert time.monotonic() < until_s, f"{queue} holds {self.depth(queue)}, not {depth}"
            pause.wait(0.02)

    def taken(self, queue: str) -> tuple[str, pika.BasicProperties, bytes]:
        """The next message of a queue; it is gone then."""
        with pika.BlockingConnection(list(self.addresses.parameters)) as connection:
            method, properties, body = connection.channel().basic_get(queue, auto_ack=True)
            assert method is not None
            assert properties is not None
            return method.routing_key or "", properties, body or b""


@pytest.fixture
def line(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setenv("INSPECTBUS_BUS_URL", rabbitmq_url)
    topology.declare(addresses.parse(rabbitmq_url))
    with connect(f"{rabbitmq_url}?max_attempts=2&retry_delay_s=0.01") as bus:
        yield Line(rabbitmq_url, bus)


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_parked_frame_is_decided_hold_first_and_after_replay_again_as_revision_1(
    line: Line, inspectbus: Inspectbus
) -> None:
    """A broken handler parks; the repaired one judges the very same frame, on the backlog lane."""
    repaired = threading.Event()

    def judge(delivery: Delivery) -> None:
        frame = Frame.FromString(delivery.message.body)
        if not repaired.is_set():
            raise BadField("cannot decode")
        decision = Decision(frame_id=frame.frame_id, line=frame.line, station=frame.station, revision=frame.revision)
        delivery.done([line.bus.publish(DECISIONS, decision_message(decision, "test"))])

    def epitaph(message: Message, error: BaseException) -> list[Any]:
        hold = hold_decision(Frame.FromString(message.body), HOLD_REASON_ERROR, str(error))
        return [line.bus.publish(DECISIONS, decision_message(hold, "test"))]

    decided: list[Decision] = []
    both = threading.Event()

    def record(delivery: Delivery) -> None:
        decided.append(Decision.FromString(delivery.message.body))
        delivery.done()
        if len(decided) == 2:
            both.set()

    line.bus.subscribe(FRAMES, "preprocessing", judge, epitaph=epitaph)
    line.bus.subscribe(DECISIONS, "results", record)
    frame = line.frame(7)
    line.send(FRAMES, Message(frame.SerializeToString(), ("line-1", "top"), "test", subject=frame.frame_id))
    line.wait_for(1)

    (listed,) = lines(inspectbus("dead", "list", "--json"))
    repaired.set()
    result = inspectbus("dead", "replay", listed["id"])

    assert both.wait(PATIENCE_S)
    assert listed["frame_id"] == frame.frame_id
    assert listed["reason"] == "BadField: cannot decode"
    assert (listed["line"], listed["station"], listed["topic"]) == ("line-1", "top", "inspectbus.frames")
    assert (listed["queue"], listed["attempts"]) == ("inspectbus.preprocessing.live", 1)
    assert listed["first_failed"] == listed["last_failed"] != ""
    assert result.exit_code == 0
    assert "1 replayed, 0 left" in result.stderr
    assert [(each.frame_id, each.revision) for each in decided] == [(frame.frame_id, 0), (frame.frame_id, 1)]
    line.wait_for(0)


def test_listing_loses_and_reorders_nothing_however_much_each_look_takes(line: Line, inspectbus: Inspectbus) -> None:
    line.bury(*(line.frame(number).SerializeToString() for number in range(100)))

    before = [each["id"] for each in lines(inspectbus("dead", "list", "--json"))]
    few = [each["id"] for each in lines(inspectbus("dead", "list", "--json", "--limit", "3"))]
    some = [each["id"] for each in lines(inspectbus("dead", "list", "--json", "--limit", "70"))]
    inspectbus("dead", "show", before[50])
    after = inspectbus("dead", "list", "--json")

    assert len(set(before)) == 100
    assert few == before[:3]
    assert some == before[:70]
    assert [each["id"] for each in lines(after)] == before
    assert "100 of 100" in after.stderr


def test_the_list_is_bounded_and_tells_the_total(line: Line, inspectbus: Inspectbus) -> None:
    line.bury(*(line.frame(number).SerializeToString() for number in range(5)))

    result = inspectbus("dead", "list", "--limit", "2")

    assert len(result.stdout.splitlines()) == 3
    assert "2 of 5 dead letters" in result.stderr


def test_a_letter_is_shown_without_its_bytes_and_its_image_can_be_saved(
    line: Line, inspectbus: Inspectbus, tmp_path: Path
) -> None:
    line.bury(line.frame(1).SerializeToString())
    saved = tmp_path / "part.png"

    result = inspectbus("dead", "show", line.frame(1).frame_id, "--save", saved)

    assert "BadField: no image" in result.stdout
    assert f'"image": "{len(PNG)} bytes"' in result.stdout
    assert saved.read_bytes() == PNG
    line.wait_for(1)


def test_an_image_that_travelled_by_claim_is_saved_from_the_frame_store(
    line: Line, inspectbus: Inspectbus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECTBUS_FRAME_STORE_URL", f"file://{tmp_path}/frames")
    store = FrameStore(f"file://{tmp_path}/frames")
    (tmp_path / "frames").mkdir()
    frame = line.frame(2, image=b"")
    key = evidence_key("line-1", "top", frame.frame_id, "original", "png")
    frame.claim.CopyFrom(Claim(key=key, sha256=hashlib.sha256(PNG).digest(), size=len(PNG)))
    line.bury(PreparedFrame(frame=frame).SerializeToString(), queue="inspectbus.inference.live")

    missing = inspectbus("dead", "show", frame.frame_id, "--save", tmp_path / "none.png")
    store.put(key, PNG)
    inspectbus("dead", "show", frame.frame_id, "--save", tmp_path / "part.png")
    store.put(key, b"another")
    changed = inspectbus("dead", "show", frame.frame_id, "--save", tmp_path / "changed.png")

    assert (tmp_path / "part.png").read_bytes() == PNG
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
    assert key in missing.stderr
    assert changed.exit_code == 2
    assert not (tmp_path / "changed.png").exists()


@pytest.mark.parametrize("topic", [PREPARED, DECISIONS], ids=["prepared", "decision"])
def test_a_replay_raises_the_revision_wherever_the_letter_died(
    line: Line, inspectbus: Inspectbus, topic: Topic
) -> None:
    frame = line.frame(3, revision=1)
    if topic is PREPARED:
        line.bury(PreparedFrame(frame=frame).SerializeToString(), queue="inspectbus.inference.backlog")
        queue = "inspectbus.inference.backlog"
    else:
        decision = Decision(frame_id=frame.frame_id, line="line-1", station="top", revision=1)
        headers = {wire.KEY: "line-1.top.hold", "cloudEvents:type": topic.body}
        line.bury(decision.SerializeToString(), queue="inspectbus.results", **headers)
        queue = "inspectbus.results"

    assert inspectbus("dead", "replay", "--all").exit_code == 0

    routing_key, properties, body = line.taken(queue)
    revised = PreparedFrame.FromString(body).frame if topic is PREPARED else Decision.FromString(body)
    assert revised.revision == 2
    assert routing_key == ("backlog.line-1.top" if topic is PREPARED else "line-1.top.hold")
    assert wire.attempts(properties) == (0, 0)
    assert not {wire.ERROR, wire.KEY, wire.LAST_FAILED, "x-death"} & set(properties.headers or {})
    wire.check(topic, routing_key, properties, body, body_bytes=1 << 20, ahead_s=60)


def test_what_cannot_be_read_is_replayed_only_when_told(line: Line, inspectbus: Inspectbus) -> None:
    line.bury(b"\xff\xffnonsense", line.frame(4).SerializeToString())

    first = inspectbus("dead", "replay", "--all")
    left = line.depth()
    second = inspectbus("dead", "replay", "--all", "--unchanged")

    assert (first.exit_code, left, second.exit_code) == (1, 1, 0)
    assert "1 replayed, 1 left" in first.stderr
    assert "--unchanged" in first.stdout
    assert line.taken("inspectbus.preprocessing.backlog")[2] == _revised(line.frame(4))
    assert line.taken("inspectbus.preprocessing.backlog")[2] == b"\xff\xffnonsense"


def test_a_replay_may_be_of_one_queue_alone(line: Line, inspectbus: Inspectbus) -> None:
    line.bury(line.frame(5).SerializeToString())
    line.bury(PreparedFrame(frame=line.frame(6)).SerializeToString(), queue="inspectbus.inference.live")

    inspectbus("dead", "replay", "--all", "--queue", "inspectbus.inference.live")

    line.wait_for(1, "inspectbus.inference.backlog")
    assert [each["frame_id"] for each in lines(inspectbus("dead", "list", "--json"))] == [line.frame(5).frame_id]


def test_many_are_replayed_through_a_window_and_none_is_lost(line: Line, inspectbus: Inspectbus) -> None:
    line.bury(*(line.frame(number).SerializeToString() for number in range(150)))

    result = inspectbus("dead", "replay", "--all", "--json")

    assert [each["replayed"] for each in lines(result)] == [True] * 150
    line.wait_for(150, "inspectbus.preprocessing.backlog")
    line.wait_for(0)


def test_a_replay_that_the_bus_refuses_leaves_the_letters_where_they_are(
    line: Line, inspectbus: Inspectbus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectbus.bus.rabbitmq.dead.PATIENCE_S", 0.5)
    line.bury(*(line.frame(number).SerializeToString() for number in range(3)))
    with pika.BlockingConnection(list(line.addresses.parameters)) as connection:
        connection.channel().queue_unbind("inspectbus.preprocessing.backlog", "inspectbus.frames", "backlog.#")

    result = inspectbus("dead", "replay", "--all")

    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    line.wait_for(3)


def test_a_letter_of_the_broker_itself_says_delivery_limit_and_is_replayed_to_its_key(
    line: Line, inspectbus: Inspectbus
) -> None:
    prepared = PreparedFrame(frame=line.frame(8))
    line.send(PREPARED, prepared_message(prepared, "test", lane=Message(b"", (), "").lane))
    with pika.BlockingConnection(list(line.addresses.parameters)) as connection:
        channel = connection.channel()
        until_s = time.monotonic() + PATIENCE_S
        while line.depth() == 0:
            assert time.monotonic() < until_s
            method, _, _ = channel.basic_get("inspectbus.inference.live")
            if method is not None:
                channel.basic_nack(method.delivery_tag or 0)

    (listed,) = lines(inspectbus("dead", "list", "--json"))
    inspectbus("dead", "replay", listed["id"])

    assert listed["reason"].startswith("delivery limit")
    assert listed["attempts"] == topology.DELIVERY_LIMIT + 1
    assert (listed["line"], listed["station"], listed["queue"]) == ("line-1", "top", "inspectbus.inference.live")
    assert listed["last_failed"].endswith("Z")
    routing_key, _, body = line.taken("inspectbus.inference.backlog")
    assert routing_key == "backlog.line-1.top"
    assert PreparedFrame.FromString(body).frame.revision == 1


@pytest.mark.parametrize(
    ("routing_key", "headers"),
    [
        ("somewhere.else", {}),
        ("inspectbus.preprocessing.live", {wire.KEY: ""}),
        ("inspectbus.preprocessing.live", {wire.KEY: "live." + "x" * 300 + ".top"}),
        ("inspectbus.preprocessing.live", {"x-death": [1, {"reason": ["odd"], "routing-keys": "live"}], wire.KEY: 7}),
        ("inspectbus.preprocessing.live", {"cloudEvents:time": "yesterday\x1b[2J", wire.ATTEMPTS: -4}),
    ],
    ids=["another queue", "no key", "a long key", "odd headers", "an odd time"],
)
def test_letters_of_strangers_are_listed_and_shown_without_harm(
    line: Line, inspectbus: Inspectbus, routing_key: str, headers: dict[str, Any]
) -> None:
    with pika.BlockingConnection(list(line.addresses.parameters)) as connection:
        properties = pika.BasicProperties(headers={"cloudEvents:subject": "a\x1b[31mname", **headers})
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("inspectbus.dead", routing_key, b"\x00what?", properties)

    (listed,) = lines(inspectbus("dead", "list", "--json"))
    shown = inspectbus("dead", "show", listed["id"])
    table = inspectbus("dead", "list")
    replayed = inspectbus("dead", "replay", "--all", "--unchanged")

    assert (shown.exit_code, table.exit_code) == (0, 0)
    assert "\x1b" not in shown.stdout + table.stdout + replayed.stdout
    assert replayed.exit_code in (0, 1)
    line.wait_for(0 if replayed.exit_code == 0 else 1)


def test_the_operators_user_may_look_replay_and_drop(
    rabbitmq: Broker, line: Line, inspectbus: Inspectbus, monkeypatch: pytest.MonkeyPatch
) -> None:
    rabbitmq.import_definitions(topology.definitions(line.addresses.vhost, {"inspectbus-operator": "secret"}))
    line.bury(line.frame(1).SerializeToString(), line.frame(2).SerializeToString())
    monkeypatch.setenv("INSPECTBUS_BUS_URL", rabbitmq.url(line.addresses.vhost, "inspectbus-operator", "secret"))

    (first, second) = lines(inspectbus("dead", "list", "--json"))
    replayed = inspectbus("dead", "replay", first["id"])
    dropped = inspectbus("dead", "drop", second["id"], "--yes")

    assert (replayed.exit_code, dropped.exit_code) == (0, 0)
    assert inspectbus("bus", "status").exit_code == 0
    line.wait_for(1, "inspectbus.preprocessing.backlog")
    line.wait_for(0)


def test_dropping_asks_first_and_then_it_is_gone(line: Line, inspectbus: Inspectbus) -> None:
    line.bury(line.frame(1).SerializeToString(), line.frame(2).SerializeToString())
    (first, _) = lines(inspectbus("dead", "list", "--json"))

    unconfirmed = inspectbus("dead", "drop", first["id"])
    kept = line.depth()
    inspectbus("dead", "drop", first["id"], "--yes")
    (left,) = lines(inspectbus("dead", "list", "--json"))
    inspectbus("dead", "drop", "--all", "--yes")

    assert (unconfirmed.exit_code, kept) == (2, 2)
    assert "--yes" in unconfirmed.stderr
    assert left["frame_id"] == line.frame(2).frame_id
    line.wait_for(0)


@pytest.mark.parametrize("verb", ["show", "replay", "drop"])
def test_a_letter_that_is_not_there_is_one_line_and_exit_code_2(line: Line, inspectbus: Inspectbus, verb: str) -> None:
    result = inspectbus("dead", verb, "0123456789ab", *(["--yes"] if verb == "drop" else []))

    assert (result.exit_code, result.stderr.splitlines()) == (2, ["error: there is no dead letter 0123456789ab"])


@pytest.mark.parametrize("command", [("list",), ("replay", "--all"), ("drop", "--all", "--yes")], ids=lambda c: c[0])
def test_a_queue_that_is_none_is_refused_with_the_names_of_those_there_are(
    line: Line, inspectbus: Inspectbus, command: tuple[str, ...]
) -> None:
    result = inspectbus("dead", *command, "--queue", "nosuch")

    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "'nosuch'" in result.stderr
    assert "inspectbus.inference.live" in result.stderr


def test_an_image_that_cannot_be_saved_says_where(line: Line, inspectbus: Inspectbus, tmp_path: Path) -> None:
    line.bury(line.frame(1).SerializeToString())

    result = inspectbus("dead", "show", line.frame(1).frame_id, "--save", tmp_path / "none" / "part.png")

    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path}/none/part.png cannot be written" in result.stderr


def test_neither_a_letter_nor_all_is_refused(line: Line, inspectbus: Inspectbus) -> None:
    assert inspectbus("dead", "replay").exit_code == 2
    assert inspectbus("dead", "drop", "abc", "--all", "--yes").exit_code == 2


def _revised(frame: Frame) -> bytes:
    frame.revision = 1
    return frame.SerializeToString()
