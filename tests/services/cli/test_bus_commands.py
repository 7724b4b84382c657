"""A broker made ready: declared, described with users and passwords, and looked at."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pika
import pytest
from typer.testing import Result

from inspectbus.bus import Bus, Lane, Message, connect
from inspectbus.bus.rabbitmq import addresses, topology
from inspectbus.bus.rabbitmq.topology import users
from inspectbus.bus.topics import DECISIONS, EVENTS, FRAMES
from inspectbus.errors import InspectBusError

if TYPE_CHECKING:
    from tests.doubles.rabbitmq import Broker

Inspectbus = Callable[..., Result]

PLANT = """
acquisition:
  lines:
    - name: line-1
      stations:
        - {name: top, source: {kind: push}}
        - {name: side, source: {kind: push}}
"""
PATIENCE_S = 10.0


@pytest.fixture
def plant_file(tmp_path: Path) -> Path:
    file = tmp_path / "plant.yaml"
    file.write_text(PLANT)
    return file


def by_queue(result: Result) -> dict[str, dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return {each["queue"]: each for each in map(json.loads, result.stdout.splitlines())}


@pytest.mark.rabbitmq
def test_declaring_makes_every_queue_and_again_changes_nothing(
    rabbitmq_url: str, inspectbus: Inspectbus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECTBUS_BUS_URL", rabbitmq_url)

    first = by_queue(inspectbus("bus", "declare", "--json"))
    with connect(rabbitmq_url) as bus:
        bus.publish(DECISIONS, Message(b"x", ("line-1", "top", "hold"), "test")).result(PATIENCE_S)
    again = by_queue(inspectbus("bus", "declare", "--json"))
    table = inspectbus("bus", "declare").stdout

    assert set(first) == {queue.name for queue in topology.queues()} == set(again)
    assert {each["messages"] for each in first.values()} == {0}
    assert again["inspectbus.results"]["messages"] == 1
    assert "inspectbus.frames backlog.#" in table


@pytest.mark.rabbitmq
def test_status_tells_what_waits_by_lane_and_what_is_missing(
    rabbitmq_url: str, inspectbus: Inspectbus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECTBUS_BUS_URL", rabbitmq_url)
    bare = inspectbus("bus", "status", "--json")
    missing = [json.loads(line)["messages"] for line in bare.stdout.splitlines()]
    topology.declare(addresses.parse(rabbitmq_url))
    with connect(rabbitmq_url) as bus:
        for lane in (Lane.LIVE, Lane.BACKLOG, Lane.BACKLOG):
            bus.publish(FRAMES, Message(b"x", ("line-1", "top"), "test", lane=lane)).result(PATIENCE_S)

    found = by_queue(inspectbus("bus", "status", "--json"))
    rows = [line.split() for line in inspectbus("bus", "status").stdout.splitlines()]

    assert (bare.exit_code, bare.stderr.count("\n")) == (2, 1)
    assert f"33 of 33 exchanges and queues are missing in vhost {addresses.parse(rabbitmq_url).vhost}:" in bare.stderr
    assert "bus definitions" in bare.stderr
    assert set(missing) == {None}
    assert found["inspectbus.preprocessing.live"]["messages"] == 1
    assert found["inspectbus.preprocessing.backlog"] == {
        "queue": "inspectbus.preprocessing.backlog",
        "kind": "work",
        "lane": "backlog",
        "messages": 2,
        "consumers": 0,
    }
    assert ["inspectbus.preprocessing.backlog", "backlog", "2", "0", "0", "0"] in rows


@pytest.mark.rabbitmq
def test_a_queue_with_other_arguments_is_named_with_the_argument(
    rabbitmq_url: str, inspectbus: Inspectbus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECTBUS_BUS_URL", rabbitmq_url)
    with pika.BlockingConnection(list(addresses.parse(rabbitmq_url).parameters)) as connection:
        arguments = {"x-queue-type": "quorum", "x-overflow": "drop-head"}
        connection.channel().queue_declare("inspectbus.dead", durable=True, arguments=arguments)

    result = inspectbus("bus", "declare")

    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "'inspectbus.dead'" in result.stderr
    assert "x-overflow" in result.stderr


@pytest.mark.rabbitmq
@pytest.mark.parametrize("command", [("bus", "declare"), ("bus", "status"), ("dead", "list")], ids=" ".join)
def test_a_broker_that_refuses_is_told_in_one_line_without_the_password(
    rabbitmq: Broker, inspectbus: Inspectbus, command: tuple[str, str]
) -> None:
    wrong = inspectbus(*command, "--bus-url", rabbitmq.url("/", "guest", "s3cret"))
    nowhere = inspectbus(*command, "--bus-url", rabbitmq.url("no-such-vhost"))

    for result, words in ((wrong, "refuses user 'guest'"), (nowhere, "no vhost 'no-such-vhost'")):
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert words in result.stderr
        assert "s3cret" not in result.stderr


@pytest.mark.rabbitmq
def test_dead_letters_of_an_undeclared_broker_say_what_to_do(rabbitmq_url: str, inspectbus: Inspectbus) -> None:
    result = inspectbus("dead", "list", "--bus-url", rabbitmq_url)

    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "inspectbus bus declare" in result.stderr


@pytest.mark.parametrize("command", [("bus", "declare"), ("bus", "status"), ("dead", "list")], ids=" ".join)
def test_with_nothing_running_that_is_said_in_one_line(inspectbus: Inspectbus, command: tuple[str, str]) -> None:
    result = inspectbus(*command, "--bus-url", "amqp://u:s3cret@127.0.0.1:1/plant")

    assert (result.exit_code, result.stderr) == (2, "error: no broker answers at 127.0.0.1:1\n")


def test_a_name_that_does_not_resolve_is_told_as_that(inspectbus: Inspectbus) -> None:
    result = inspectbus("bus", "status", "--bus-url", "amqp://u:s3cret@no-such-host.invalid/plant")

    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "name does not resolve" in result.stderr


@pytest.mark.rabbitmq
def test_tls_asked_of_a_plaintext_port_is_told_by_commands_and_by_a_bus(
    rabbitmq_url: str, inspectbus: Inspectbus
) -> None:
    url = rabbitmq_url.replace("amqp://", "amqps://")

    result = inspectbus("bus", "status", "--bus-url", url)
    with connect(url) as bus:
        trouble = bus.trouble

    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "is it a plaintext port?" in result.stderr
    assert "is it a plaintext port?" in trouble


@pytest.mark.parametrize(
    ("command", "code"),
    [(("bus", "declare"), 0), (("bus", "status"), 2), (("bus", "definitions"), 2), (("dead", "list"), 2)],
    ids=["declare", "status", "definitions", "dead"],
)
def test_an_embedded_bus_needs_nothing_of_it(inspectbus: Inspectbus, command: tuple[str, str], code: int) -> None:
    result = inspectbus(*command, "--bus-url", "embedded://line")

    assert (result.exit_code, result.stdout) == (code, "")
    assert "embedded bus" in result.stderr
    assert command[1] == "definitions" or "INSPECTBUS_BUS_URL or --bus-url" in result.stderr


@pytest.mark.rabbitmq
def test_who_may_not_configure_declares_nothing_and_is_told_whether_that_was_needed(
    rabbitmq: Broker, rabbitmq_url: str, inspectbus: Inspectbus
) -> None:
    where = addresses.parse(rabbitmq_url)
    rabbitmq.import_definitions(
        {
            **topology.definitions(where.vhost, {"inspectbus-operator": "secret"}),
            **{"exchanges": [], "queues": [], "bindings": []},
        }
    )
    url = rabbitmq.url(where.vhost, "inspectbus-operator", "secret")

    needed = inspectbus("bus", "declare", "--bus-url", url)
    topology.declare(where)
    needless = inspectbus("bus", "declare", "--bus-url", url)

    assert (needed.exit_code, needed.stderr.count("\n")) == (2, 1)
    assert "user 'inspectbus-operator' may not make queues, and 33 of 33" in needed.stderr
    assert (needless.exit_code, "nothing to do" in needless.stderr) == (0, True)


@pytest.mark.parametrize("user", topology.users([("line-1", "top")]), ids=lambda user: user.name)
def test_every_pattern_of_a_users_rights_is_anchored(user: topology.User) -> None:
    for pattern in (user.configure, user.write, user.read):
        assert (pattern[0], pattern[-1]) == ("^", "$")


def test_definitions_are_written_for_their_owners_eyes_alone(inspectbus: Inspectbus, tmp_path: Path) -> None:
    file = tmp_path / "bus.json"
    file.touch(0o644)

    inspectbus("bus", "definitions", "--output", file)
    unwritable = inspectbus("bus", "definitions", "--output", tmp_path / "none" / "bus.json")

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (unwritable.exit_code, str(tmp_path / "none") in unwritable.stderr) == (2, True)


@pytest.mark.rabbitmq
def test_definitions_make_a_station_that_may_send_its_own_frames_and_nothing_else(
    rabbitmq: Broker, rabbitmq_url: str, inspectbus: Inspectbus, plant_file: Path, tmp_path: Path
) -> None:
    vhost, file, output = addresses.parse(rabbitmq_url).vhost, tmp_path / "users.json", tmp_path / "bus.json"
    arguments = ("--plant", plant_file, "--credentials", file, "--output", output, "--bus-url", rabbitmq_url)

    result = inspectbus("bus", "definitions", *arguments)
    rabbitmq.import_definitions(output)

    assert (result.exit_code, result.stdout) == (0, "")
    password = json.loads(file.read_text())["inspectbus-station-line-1.top"]
    with connect(rabbitmq.url(vhost, "inspectbus-station-line-1.top", password)) as bus:
        bus.publish(FRAMES, Message(b"x", ("line-1", "top"), "test")).result(PATIENCE_S)
        with pytest.raises(InspectBusError):
            bus.publish(FRAMES, Message(b"x", ("line-1", "side"), "test"), patience_s=2.0).result(PATIENCE_S)


@pytest.mark.rabbitmq
def test_definitions_let_inference_hear_what_training_names(
    rabbitmq: Broker, rabbitmq_url: str, inspectbus: Inspectbus, tmp_path: Path
) -> None:
    vhost, file, output = addresses.parse(rabbitmq_url).vhost, tmp_path / "users.json", tmp_path / "bus.json"
    inspectbus("bus", "definitions", "--credentials", file, "--output", output, "--bus-url", rabbitmq_url)
    rabbitmq.import_definitions(output)
    passwords = json.loads(file.read_text())
    heard: SimpleQueue[Message] = SimpleQueue()

    def bus_of(user: str) -> AbstractContextManager[Bus]:
        return connect(rabbitmq.url(vhost, user, passwords[user]))

    key = ("model", "alias-changed")
    with bus_of("inspectbus-inference") as inference, bus_of("inspectbus-training") as training:
        news = inference.follow(EVENTS, heard.put, key=key)
        training.publish(EVENTS, Message(b"x", key, "training")).result(PATIENCE_S)
        assert heard.get(timeout=PATIENCE_S).body == b"x"
        news.close()


def test_passwords_are_kept_in_the_file_alone_and_stay_when_the_plant_grows(
    inspectbus: Inspectbus, plant_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "users.json"
    services = inspectbus("bus", "definitions", "--credentials", file)
    before = json.loads(file.read_text())
    whole = inspectbus("bus", "definitions", "--credentials", file, "--plant", plant_file)
    after = json.loads(file.read_text())

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(before) == {user.name for user in users()}
    assert after == {**after, **before}
    assert set(after) - set(before) == {"inspectbus-station-line-1.top", "inspectbus-station-line-1.side"}
    assert {user["name"] for user in json.loads(whole.stdout)["users"]} == set(after)
    printed = services.stdout + services.stderr + whole.stdout + whole.stderr
    assert not [password for password in after.values() if password in printed]


def test_without_credentials_the_definitions_have_no_users(inspectbus: Inspectbus) -> None:
    result = inspectbus("bus", "definitions", "--vhost", "plant")

    definitions = json.loads(result.stdout)
    assert definitions["users"] == definitions["permissions"] == []
    assert definitions["vhosts"] == [{"name": "plant"}]
    assert "--credentials" in result.stderr


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ('{"inspectbus-results": "s3cret"}', 0o644, "chmod 600"),
        ('["s3cret"]', 0o600, "no JSON object"),
        ('{"inspectbus-results": ["s3cret"]}', 0o600, "no JSON object"),
        ("s3cret", 0o600, "no JSON object"),
    ],
    ids=["readable by all", "a list", "odd values", "no JSON"],
)
def test_a_credentials_file_that_is_none_is_refused_and_not_quoted(
    inspectbus: Inspectbus, tmp_path: Path, content: str, mode: int, words: str
) -> None:
    file = tmp_path / "users.json"
    file.write_text(content)
    file.chmod(mode)

    result = inspectbus("bus", "definitions", "--credentials", file)

    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert words in result.stderr
    assert "s3cret" not in result.stderr
    assert file.read_text() == content
