"""Several RabbitMQ nodes of the test's own that are one broker.

with Cluster(folder) as cluster:
    cluster.kill(cluster.leader_of("queue"))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.doubles.rabbitmq import Epmd, Node, amqp_url


class Cluster:
    """A node is named by its number, from 0."""

    def __init__(self, folder: Path, nodes: int = 3, plugins: Sequence[str] = ()) -> None:
        self._epmd = Epmd(folder)
        self._house = ExitStack()
        self.nodes = [Node(folder / f"node-{number}", self._epmd, plugins) for number in range(nodes)]
        settings = [
            "cluster_formation.peer_discovery_backend = classic_config",
            "cluster_formation.randomized_startup_delay_range.min = 0",
            "cluster_formation.randomized_startup_delay_range.max = 0",
            # A minority stops serving: it could only promise what the others do not know.
            "cluster_partition_handling = pause_minority",
            *(f"cluster_formation.classic_config.nodes.{at} = {node.name}" for at, node in enumerate(self.nodes, 1)),
        ]
        for number in range(nodes):
            with (folder / f"node-{number}" / "rabbitmq.conf").open("a") as file:
                file.write("\n".join(settings) + "\n")

    def __enter__(self) -> Self:
        self._house.enter_context(self._epmd)
        for node in self.nodes:
            self._house.callback(node.kill)
        first, *others = self.nodes
        try:
            first.start()
            for node in others:
                node.launch()
            for node in others:
                node.await_ready()
        except BaseException:  # whatever it was, no process must stay
            self._house.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._house.close()

    def url(self, vhost: str = "/", user: str = "guest", password: str = "guest") -> str:
        """All nodes, as hosts divided by commas."""
        return amqp_url([node.port for node in self.nodes], vhost, user, password)

    def start(self, number: int) -> None:
        self.nodes[number].start()

    def stop(self, number: int) -> None:
        self.nodes[number].stop()

    def kill(self, number: int) -> None:
        self.nodes[number].kill()

    def leader_of(self, queue: str, vhost: str = "/") -> int:
        """The number of the node that leads a quorum queue. Raises LookupError while none does."""
        found = re.search(
            r"rabbit-\w+@localhost",
            self.running[0].evaluate(
                f'begin {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)), '
                "{Name, _} = amqqueue:get_pid(Q), "
                "case ra:members({Name, node()}, 5000) of {ok, _, {_, Leader}} -> Leader; _ -> none end end"
            ),
        )
        if found is None:
            raise LookupError(f"nobody leads {queue}")
        return [node.name for node in self.nodes].index(found[0])

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.runs]

    def settle(self) -> None:
        for node in self.running:
            node.settle()
