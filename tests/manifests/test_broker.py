"""A real broker that starts with what the manifests give it: queues and limits are there, each service gets in by its
pod's own URL and may do what it needs and no more, and KEDA may only look."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from inspectbus.bus.rabbitmq import addresses, naming, survey, topology
from inspectbus.bus.rabbitmq.dead import DeadLetters
from inspectbus.bus.topics import ALL, DEAD, DECISIONS, EVENTS, FRAMES, GATES, PREPARED, SHADOWS, TRAINING, Topic
from inspectbus.line import SERVICES
from k8s import make_secrets
from tests.doubles.rabbitmq import Broker
from tests.manifests.conftest import Rendered
from tests.manifests.kustomize import K8S, SECRET, Manifests

pytestmark = pytest.mark.rabbitmq
PLANT = K8S / "overlays" / "plant" / "plant.yaml"


@dataclass(frozen=True)
class Needs:
    """What a service does on the bus, as its events.py has it."""

    works: tuple[Topic, ...] = ()
    publishes: tuple[Topic, ...] = ()
    hears: tuple[Topic, ...] = ()


# Whoever works on messages parks what cannot succeed.
NEEDS = {
    "acquisition": Needs(publishes=(FRAMES, GATES), hears=(DECISIONS,)),
    "preprocessing": Needs((FRAMES,), (PREPARED, DECISIONS, DEAD)),
    "inference": Needs((PREPARED,), (DECISIONS, SHADOWS, DEAD), (EVENTS,)),
    "training": Needs((TRAINING,), (TRAINING, EVENTS, DEAD)),
    "results": Needs((DECISIONS, GATES, SHADOWS), (DECISIONS, DEAD)),
}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = make_secrets.secrets(PLANT, tmp_path_factory.mktemp("passwords") / "passwords.json")
    return {each["metadata"]["name"]: each["stringData"] for each in made}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, secrets: dict[str, Any], rendered: Rendered) -> Iterator[Broker]:
    """Told what the cluster's is told: the same lines, and definitions in files of the same names."""
    found = rendered("overlays/plant")
    folder = tmp_path_factory.mktemp("broker")
    override = found.one("RabbitmqCluster", "rabbitmq")["spec"]["override"]
    (mounted,) = override["statefulSet"]["spec"]["template"]["spec"]["volumes"]
    topology_map, users_secret = mounted["projected"]["sources"]
    definitions = folder / "definitions"
    definitions.mkdir()
    for item in topology_map["configMap"]["items"]:
        (definitions / item["path"]).write_text(found.data(topology_map["configMap"]["name"])[item["key"]])
    for item in users_secret["secret"]["items"]:
        (definitions / item["path"]).write_text(secrets[users_secret["secret"]["name"]][item["key"]])
    welcome_the_double(definitions)
    told = additional_config(found).replace("/etc/inspectbus/definitions", str(definitions))
    # As much free disk as memory is a node's of its own; a test machine may have less, and publishers would wait.
    lines = [line for line in told.splitlines() if not line.startswith("disk_free_limit")]
    assert any(line.startswith("ssl_options.") for line in lines)
    with Broker(folder / "node", config=lines) as broker:
        yield broker


def welcome_the_double(definitions: Path) -> None:
    """Its own user; a broker that is given users makes no `guest`."""
    guest = {"name": "guest", "password_hash": topology.password_hash("guest"), "tags": "administrator"}
    everything = {"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    login = guest | {"hashing_algorithm": "rabbit_password_hashing_sha256"}
    (definitions / "30-guest.json").write_text(json.dumps({"users": [login], "permissions": [everything]}))


def additional_config(found: Manifests) -> str:
    return str(found.one("RabbitmqCluster", "rabbitmq")["spec"]["rabbitmq"]["additionalConfig"])


def definition_lines(conf: str) -> list[str]:
    return [line for line in conf.splitlines() if "definitions" in line.partition("=")[0]]


def refuses(connection: pika.BlockingConnection, attempt: Any) -> bool:
    """On a channel of its own, which the broker closes when it refuses."""
    opened = connection.channel()
    opened.confirm_delivery()
    try:
        attempt(opened)
    except ChannelClosedByBroker as error:
        if error.reply_code != 403:
            raise
        return True
    opened.close()
    return False


def publish(topic: Topic) -> Any:
    # Only its rights are asked for; nobody works on what arrives.
    return lambda opened: opened.basic_publish(topic.name, "nobody", b"")


def take(queue: str) -> Any:
    return lambda opened: opened.basic_get(queue)


def hear(topic: Topic) -> Any:
    def follow(opened: BlockingChannel) -> None:
        queue = f"{naming.NEWS_PREFIX}{uuid.uuid4()}"
        opened.queue_declare(queue, arguments={"x-expires": 60_000})
        opened.queue_bind(queue, topic.name, "line-1.top.#")
        opened.basic_get(queue)

    return follow


def url_of(rendered: Rendered, broker: Broker, secrets: dict[str, Any], service: str) -> str:
    """Its pod's, of the overlay without TLS, with the Secret's words and this broker's port."""
    found = rendered("overlays/local")
    name = service if service != "training" else "training-worker"
    (container,) = found.workload(name).pod["containers"]
    variable = "INSPECTBUS_BUS_URL" if service == "operator" else f"INSPECTBUS_{service.upper()}_BUS_URL"
    url = found.environment(container)[variable]
    (named,) = (entry["valueFrom"]["secretKeyRef"]["name"] for entry in container["env"] if entry["name"] == "BUS_USER")
    login = secrets[named]
    assert f"//{SECRET}:{SECRET}@rabbitmq:5672/" in url
    words = f"//{login['username']}:{login['password']}@127.0.0.1:{broker.port}/"
    return url.replace(f"//{SECRET}:{SECRET}@rabbitmq:5672/", words)


def test_every_queue_is_there_with_its_limit(broker: Broker) -> None:
    rows = [line.split("\t") for line in broker.ctl("list_queues", "name", "policy", "type").splitlines()]
    found = {name: (policy, kind) for name, policy, kind in rows if name.startswith("inspectbus.")}

    assert {queue.name for queue in topology.queues()} == found.keys() - {n for n in found if naming.NEWS_PREFIX in n}
    assert found["inspectbus.shadows"] == ("inspectbus-shadows", "quorum")
    assert found["inspectbus.shadows.retry"] == ("inspectbus-aside", "quorum")
    assert all(policy for policy, _ in found.values())


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_may_do_on_the_bus_what_it_needs_and_no_more(
    rendered: Rendered, broker: Broker, secrets: dict[str, Any], service: str
) -> None:
    needs = NEEDS[service]
    queues = {topic: [q for group in topic.groups for q in naming.work_queues(topic, group)] for topic in ALL}

    with topology.connected(addresses.parse(url_of(rendered, broker, secrets, service))) as connection:
        may_publish = {topic.name for topic in ALL if not refuses(connection, publish(topic))}
        may_take = {queue for own in queues.values() for queue in own if not refuses(connection, take(queue))}
        may_hear = {topic.name for topic in ALL if not refuses(connection, hear(topic))}
        aside = [
            end(queue)
            for topic in needs.works
            for queue in queues[topic]
            for end in (naming.retry_queue, naming.quarantine_queue)
        ]
        may_set_aside = [
            not refuses(connection, lambda opened, key=key: opened.basic_publish("", key, b"")) for key in aside
        ]
        may_quarantine = [not refuses(connection, take(queue)) for queue in aside if queue.endswith(".quarantine")]
        may_make = not refuses(connection, lambda opened: opened.queue_declare("inspectbus.mine"))

    assert may_publish == {topic.name for topic in needs.publishes}
    assert may_take == {queue for topic in needs.works for queue in queues[topic]}
    assert may_hear == {topic.name for topic in needs.hears}
    assert all(may_set_aside)
    assert all(may_quarantine)
    assert not may_make


def test_a_single_broker_reads_them_in_the_same_way(rendered: Rendered) -> None:
    maps = rendered("overlays/local").of("ConfigMap")
    (conf,) = (each["data"]["rabbitmq.conf"] for each in maps if "rabbitmq.conf" in each["data"])
    assert definition_lines(conf) == definition_lines(additional_config(rendered("overlays/plant"))) != []


def test_every_service_of_the_manifests_has_its_row(rendered: Rendered) -> None:
    assert {each.service for each in rendered("overlays/plant").ours} == NEEDS.keys() == set(SERVICES)


def test_people_may_count_all_queues_and_look_at_dead_letters(
    rendered: Rendered, broker: Broker, secrets: dict[str, Any]
) -> None:
    where = addresses.parse(url_of(rendered, broker, secrets, "operator"))

    queue = naming.work_queues(FRAMES, "preprocessing")[0]

    with topology.connected(where) as connection:
        assert survey.missing(connection) == []
        assert {standing.queue for standing in survey.standings(connection)} >= set(naming.letter_queues())
        opened = connection.channel()
        opened.confirm_delivery()
        opened.basic_publish(DEAD.name, queue, b"what nobody could read")
    with DeadLetters(where) as letters:
        assert queue in {letter.queue for letter in letters.browse(100)}


def test_who_scales_may_look_and_take_nothing(rendered: Rendered, broker: Broker, secrets: dict[str, Any]) -> None:
    triggers = [each for scaled in rendered("overlays/plant").of("ScaledObject") for each in scaled["spec"]["triggers"]]
    queues = {each["metadata"]["queueName"] for each in triggers if each["type"] == "rabbitmq"}
    assert queues
    told = secrets["inspectbus-keda"]["broker"]
    url = told.replace("rabbitmq.inspectbus.svc:5672", f"127.0.0.1:{broker.port}")
    assert url != told

    with topology.connected(addresses.parse(url)) as connection:
        for queue in queues:
            assert not refuses(connection, lambda opened, queue=queue: opened.queue_declare(queue, passive=True))
            assert refuses(connection, take(queue))
            assert refuses(connection, lambda opened, queue=queue: opened.basic_publish("", queue, b""))


def test_a_restart_takes_a_new_password_and_deletes_nobody(tmp_path: Path) -> None:
    """As the page on Kubernetes says of passwords that are replaced and of stations that are gone."""
    passwords, definitions = tmp_path / "passwords.json", tmp_path / "definitions"
    definitions.mkdir()
    welcome_the_double(definitions)
    topology_file = K8S / "components" / "broker-definitions" / "definitions.json"
    (definitions / "10-topology.json").write_text(topology_file.read_text("utf-8"))
    plant, user, gone = tmp_path / "plant.yaml", "inspectbus-results", "inspectbus-station-line-1.top"

    def tell(lines: str) -> str:
        plant.write_text(f"acquisition: {{lines: [{lines}]}}")
        made = {each["metadata"]["name"]: each["stringData"] for each in make_secrets.secrets(plant, passwords)}
        (definitions / "20-users.json").write_text(made["inspectbus-broker-users"]["users.json"])
        return str(made["inspectbus-bus-results"]["password"])

    old = tell("{name: line-1, stations: [{name: top, source: {kind: push}}]}")
    with Broker(tmp_path / "node", config=[f"load_definitions = {definitions}"]) as broker:
        broker.ctl("authenticate_user", user, old)
        kept = json.loads(passwords.read_text())
        del kept[user]
        passwords.write_text(json.dumps(kept))
        new = tell("")
        broker.kill()
        broker.start()

        broker.ctl("authenticate_user", user, new)
        with pytest.raises(AssertionError):
            broker.ctl("authenticate_user", user, old)
        assert gone in broker.ctl("list_users")
        broker.ctl("delete_user", gone)
        assert gone not in broker.ctl("list_users")
