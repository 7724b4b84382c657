"""What a process tells of itself while something goes wrong: its numbers, its log.

a process ─ /metrics ─> number("inspectbus_bus_connects_total", link="publish")
          └─ log ────> lines("connected again")
"""

from __future__ import annotations

import json
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.doubles.service_process import ServiceProcess

PATIENCE_S = 20.0
"""A page waits for the broker's answers about its queues."""


def number(process: ServiceProcess, name: str, **labels: str) -> float:
    """The sum of a metric over all that has these labels; 0 when there is none yet."""
    with urllib.request.urlopen(process.metrics_url(), timeout=PATIENCE_S) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def lines(process: ServiceProcess, *events: str) -> int:
    """How often it has logged one of these events, over all its lives; every warning and error when none is named."""
    count = 0
    for line in process.log.read_text(errors="replace").splitlines():
        try:
            words = json.loads(line)
        except ValueError:
            continue
        wanted = words.get("event") in events if events else words.get("level") in ("warning", "error", "critical")
        count += wanted
    return count
