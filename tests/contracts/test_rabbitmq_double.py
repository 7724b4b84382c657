"""The brokers that tests start do what tests rely on: they keep data through a crash, stand still, refuse, and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import psutil
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from tests.doubles.rabbitmq import Broker
from tests.doubles.rabbitmq_cluster import Cluster

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0

pytestmark = pytest.mark.rabbitmq


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One that these tests may kill: each leaves it running."""
    with Broker(tmp_path_factory.mktemp("rabbitmq")) as broker:
        yield broker


def confirming(url: str) -> BlockingChannel:
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.confirm_delivery()
    return channel


def publish(url: str, queue: str, body: bytes) -> None:
    """Refused, it tries again on another channel: one that found the leader dead refuses until that leader is back."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.2)):
        channel = confirming(url)
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        try:
            channel.basic_publish("", queue, body, mandatory=True)
        except pika.exceptions.NackError:
            pause.wait(0.2)
        else:
            return
        finally:
            channel.connection.close()
    raise AssertionError(f"{queue} took nothing for {PATIENCE_S:.0f} s")


def first_of(channel: BlockingChannel, queue: str) -> bytes:
    """Waits: after a restart a queue seems empty for a moment."""
    for _, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=PATIENCE_S):
        channel.cancel()
        return body or b""
    return b""


def test_what_was_confirmed_is_still_there_after_a_crash(broker: Broker) -> None:
    url = broker.url(broker.new_vhost())
    publish(url, "parts", b"part-1")
    broker.settle()

    broker.kill()
    broker.start()

    assert first_of(confirming(url), "parts") == b"part-1"


def test_a_broker_that_was_stopped_comes_back_with_its_definitions(broker: Broker) -> None:
    broker.import_definitions({"vhosts": [{"name": "plant"}]})

    broker.stop()
    broker.start()

    assert "plant" in broker.ctl("list_vhosts").split()


def test_a_broker_that_stands_still_answers_nobody_until_it_goes_on(broker: Broker) -> None:
    address = pika.URLParameters(f"{broker.url()}?stack_timeout=1")

    broker.pause()
    with pytest.raises(AMQPConnectorStackTimeout):
        pika.BlockingConnection(address)
    broker.resume()

    broker.await_ready()


def test_tests_do_not_see_each_others_queues(rabbitmq: Broker, rabbitmq_url: str) -> None:
    other = rabbitmq.new_vhost()

    publish(rabbitmq_url, "parts", b"mine")

    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        confirming(rabbitmq.url(other)).queue_declare("parts", passive=True)


def test_publishers_wait_while_the_memory_alarm_is_on(broker: Broker) -> None:
    address = pika.URLParameters(f"{broker.url()}?blocked_connection_timeout=1")
    broker.memory_alarm(True)
    channel = pika.BlockingConnection(address).channel()
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.ConnectionBlockedTimeout):
        channel.basic_publish("amq.fanout", "", b"part-1")

    broker.memory_alarm(False)

    confirming(broker.url()).basic_publish("amq.fanout", "", b"part-1")


STARTER = """
import sys
from pathlib import Path
from tests.doubles.rabbitmq import Broker
with Broker(Path(sys.argv[1])) as broker:
    print(broker.pid, flush=True)
    sys.stdin.read()
"""


def test_a_broker_ends_with_a_session_that_is_killed(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("services", "clients", "."))}
    command = [sys.executable, "-c", STARTER, str(tmp_path)]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdout is not None
        broker = psutil.Process(int(session.stdout.readline()))
        epmd = [child for child in psutil.Process(session.pid).children() if child.name() == "epmd"]
        assert len(epmd) == 1

        session.send_signal(signal.SIGKILL)

        gone, alive = psutil.wait_procs([broker, *epmd], timeout=PATIENCE_S)
    assert (len(gone), alive) == (2, [])


@pytest.mark.slow
def test_a_cluster_serves_on_when_the_leader_of_a_queue_is_killed(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        publish(cluster.nodes[0].url(), "parts", b"part-1")
        leader = cluster.leader_of("parts")
        cluster.settle()

        cluster.kill(leader)

        survivor = cluster.running[0].url()
        publish(survivor, "parts", b"part-2")
        assert first_of(confirming(survivor), "parts") == b"part-1"
        assert cluster.leader_of("parts") != leader

        cluster.start(leader)
        assert len(cluster.running) == len(cluster.nodes)
