"""The table of all metrics, made of what each service registers: `make metrics` writes it to docs/metrics.md.

each service, really opened ─> its registry ─> name, type, labels, unit, meaning ─> one table

There is no list of metrics anywhere: whatever a service adds to its registry is a row here, and a test compares.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from inspectbus.bus.embedded import EmbeddedBus
from inspectbus.bus.rabbitmq import RabbitMQBus
from inspectbus.line import SERVICES, settings_class

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
NOBODY = "amqp://nobody:nothing@127.0.0.1:1/"
"""A broker that is away: the bus has the same metrics as with one."""
UNITS = ("seconds", "bytes")
SUFFIXES = {"counter": "_total", "info": "_info"}
"""What a scrape adds to the name in the code."""
SETTINGS = {"inference": {"model": "none"}}
"""Without which a service does not start."""

HEAD = """# Metrics

Each service shows its own at `http://HOST:METRICS_PORT/metrics`. `make metrics` writes this page from what the services
register, and a test compares the two. A histogram is scraped as `NAME_bucket` (with the label `le`), `NAME_sum` and
`NAME_count`. Labels are never what a sender wrote. The bus has metrics where it is a RabbitMQ.

| metric | type | labels | unit | service | meaning |
| --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True, order=True)
class Row:
    """One metric, as one service registers it."""

    name: str
    """As it is scraped: a counter's ends in _total."""
    kind: str
    labels: tuple[str, ...]
    meaning: str
    service: str = field(compare=False)

    @property
    def unit(self) -> str:
        stem = self.name.removesuffix("_total")
        return next((unit for unit in UNITS if stem.endswith(f"_{unit}")), "number")


class _RecordingBus(EmbeddedBus):
    """Keeps the registry that a service gives to its bus, and has a broker's metrics in it."""

    def __init__(self, broker: RabbitMQBus) -> None:
        super().__init__(f"metrics-{uuid.uuid4()}")
        self.registry = CollectorRegistry()
        self._rabbitmq = broker

    def report_to(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._rabbitmq.report_to(registry)


def registries(state_dir: Path) -> Iterator[tuple[str, CollectorRegistry]]:
    """Each service's registry, while the service is open."""
    with RabbitMQBus(NOBODY) as broker:
        for service in SERVICES:
            settings = settings_class(service).load({**SETTINGS.get(service, {}), "state_dir": state_dir})
            settings = settings.model_copy(update={"port": 0, "metrics_port": 0})
            with ExitStack() as house:
                bus = _RecordingBus(broker)
                house.enter_context(bus)
                house.enter_context(import_module(f"inspectbus.{service}.service").open_service(settings, bus))
                yield service, bus.registry


def rows_of(service: str, registry: CollectorRegistry) -> Iterator[Row]:
    # The library has no public word for a registry's collectors, nor for the labels of one that has no child yet.
    for collector in list(registry._collector_to_names):
        yield from (_row(service, *each) for each in _families(collector))


def _families(collector: Collector) -> Iterator[tuple[Metric, tuple[str, ...]]]:
    if isinstance(collector, MetricWrapperBase):
        (family,) = collector.describe()
        yield family, tuple(collector._labelnames)
    else:
        for family in collector.collect():
            yield family, tuple(family._labelnames)  # type: ignore[attr-defined]  # as every family we make has


def _row(service: str, family: Metric, labels: tuple[str, ...]) -> Row:
    name = family.name + SUFFIXES.get(family.type, "")
    return Row(name, family.type, labels, " ".join(family.documentation.split()), service)


def page(rows: list[Row]) -> str:
    """The whole page. A metric of several services is one row."""
    services: dict[Row, list[str]] = {}
    for row in rows:
        services.setdefault(row, []).append(row.service)
    lines = [
        f"| `{row.name}` | {row.kind} | {', '.join(row.labels)} | {row.unit} | {_who(who)} | {_cell(row.meaning)} |\n"
        for row, who in sorted(services.items())
    ]
    return HEAD + "".join(lines)


def _who(services: list[str]) -> str:
    return "all" if len(services) == len(SERVICES) else ", ".join(services)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def all_rows() -> list[Row]:
    with TemporaryDirectory() as folder:
        return [row for service, registry in registries(Path(folder)) for row in rows_of(service, registry)]


def read_page(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels of each metric in the table."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {
        name.strip("`"): (kind.strip(), tuple(filter(None, labels.strip().split(", "))))
        for name, kind, labels, *_ in cells
    }


if __name__ == "__main__":
    PAGE.write_text(page(all_rows()), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
