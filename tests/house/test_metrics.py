"""Metrics are what their page says, keep Prometheus's habits, and are what alerts and dashboard ask for."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from tests.doubles.servers import tool
from tests.house.metrics_table import PAGE, Row, page, registries, rows_of


@pytest.fixture(scope="module")
def scrapes() -> dict[str, str]:
    """What each service says to a scrape before anything happened; `rows` fills it."""
    return {}


@pytest.fixture(scope="module")
def rows(scrapes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    found: list[Row] = []
    for service, registry in registries(tmp_path_factory.mktemp("state")):
        found += rows_of(service, registry)
        scrapes[service] = generate_latest(registry).decode()
    return found


def test_the_page_of_metrics_is_what_the_services_register(rows: list[Row]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(rows), "run `make metrics`"


def test_a_name_means_one_thing(rows: list[Row]) -> None:
    """Two services that show different things under one name would be added up by whoever asks for it."""
    meanings = defaultdict(set)
    for row in rows:
        meanings[row.name].add((row.kind, row.labels, row.meaning))
    assert [name for name, several in meanings.items() if len(several) > 1] == []


def test_names_say_their_unit_and_kind(rows: list[Row]) -> None:
    for row in rows:
        assert re.fullmatch(r"inspectbus_[a-z]+(_[a-z]+)*", row.name)
        assert not re.search(r"_(ms|us|milliseconds|minutes|hours|kb|mb|kilobytes|megabytes|count)(_|$)", row.name)
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name
        assert row.kind != "histogram" or row.unit != "number" or row.name.endswith("_size"), row.name
        assert row.meaning.endswith("."), row.name


def test_what_a_scrape_hears_passes_the_linter_of_prometheus(rows: list[Row], scrapes: dict[str, str]) -> None:
    for service, text in scrapes.items():
        done = subprocess.run(
            [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{service}: {done.stdout}{done.stderr}"
    assert len(scrapes) == len({row.service for row in rows})


def test_a_metric_that_nobody_listed_is_found(rows: list[Row]) -> None:
    registry = CollectorRegistry()
    Counter("inspectbus_surprises", "What nobody expected.", ["line"], registry=registry)

    (row,) = rows_of("results", registry)

    assert (row.name, row.kind, row.labels, row.unit) == ("inspectbus_surprises_total", "counter", ("line",), "number")
    assert page([*rows, row]) != PAGE.read_text(encoding="utf-8")
