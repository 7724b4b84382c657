"""Alerts and dashboard ask for metrics that there are, and every alert is seen to fire and not to fire."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.doubles.servers import tool
from tests.house.metrics_table import PAGE, read_page

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "monitoring" / "alerts.yaml"
ALERT_TESTS = DEPLOY / "monitoring" / "alerts_test.yaml"
DASHBOARD = DEPLOY / "monitoring" / "dashboard.json"

TABLE = read_page(PAGE.read_text(encoding="utf-8"))
OF_PROMETHEUS = {"up"}
OF_THE_SCRAPE = {"job", "instance", "service"}
"""Labels that Prometheus adds; deploy/prometheus.yml names the service."""
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]


def questions() -> Iterator[tuple[str, str]]:
    """Every question to Prometheus, with who asks it."""
    yield from ((rule["alert"], rule["expr"]) for rule in rules())
    for panel in panels():
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for variable in json.loads(DASHBOARD.read_text(encoding="utf-8"))["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["query"]


def metrics_in(question: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of a question, and the labels it is selected by."""
    for name, _, selected in re.findall(r"\b(inspectbus_\w+|up)\b(\{([^}]*)\})?", question):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selected))


def labels_of(name: str) -> set[str] | None:
    """What the table gives a metric as labels; None when it is in no table."""
    if name in OF_PROMETHEUS:
        return set()
    if name in TABLE and TABLE[name][0] != "histogram":
        return set(TABLE[name][1])
    stem = HISTOGRAM.sub("", name)
    if stem != name and stem in TABLE and TABLE[stem][0] == "histogram":
        return {*TABLE[stem][1], "le"}
    return None


def unknown_in(question: str) -> list[str]:
    """Metrics, and labels selected or grouped by, that the table does not have."""
    found, known = [], set(OF_THE_SCRAPE)
    for name, selected in metrics_in(question):
        labels = labels_of(name)
        if labels is None:
            found.append(name)
            continue
        known |= labels
        found += [f"{name}{{{label}}}" for label in sorted(selected - labels - OF_THE_SCRAPE)]
    grouped = {word.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", question) for word in group.split(",")}
    return found + sorted(grouped - known)


@pytest.mark.parametrize(("who", "question"), list(questions()))
def test_what_is_asked_of_prometheus_is_in_the_table_of_metrics(who: str, question: str) -> None:
    assert list(metrics_in(question)), f"{who} asks for no metric"
    assert unknown_in(question) == []


@pytest.mark.parametrize(
    "question",
    [
        "inspectbus_gate_outcomes_totals",
        "inspectbus_publish_seconds",
        'inspectbus_spool_bytes{lane="live"}',
        "sum by (verdict) (inspectbus_spool_bytes)",
        "sum by (le) (inspectbus_spool_bytes_bucket)",
    ],
)
def test_a_question_that_no_metric_answers_is_found(question: str) -> None:
    assert unknown_in(question)


def test_words_that_label_values_are_known_to_the_code() -> None:
    """A misspelt value would match nothing, and the alert never fire."""
    from inspectbus.acquisition.replay import STATES
    from inspectbus.api.v1.acquisition_pb2 import StationState
    from inspectbus.api.v1.decision_pb2 import Verdict
    from inspectbus.api.v1.frame_pb2 import Label
    from inspectbus.api.v1.gate_pb2 import GateReason
    from inspectbus.bus import Lane
    from inspectbus.bus.rabbitmq.metrics import ENDS
    from inspectbus.errors import kinds

    words = {
        "state": {StationState.Name(state).removeprefix("STATION_STATE_").lower() for state in STATES},
        "verdict": {name.removeprefix("VERDICT_").lower() for name in Verdict.DESCRIPTOR.values_by_name},
        "label": {name.removeprefix("LABEL_").lower() for name in Label.DESCRIPTOR.values_by_name},
        "reason": {
            *(name.removeprefix("GATE_REASON_").lower() for name in GateReason.DESCRIPTOR.values_by_name),
            *kinds(),
        },
        "lane": {lane.value for lane in Lane},
        "how": set(ENDS),
    }
    asked = [pair for _, question in questions() for pair in re.findall(r'(\w+)!?="(\w+)"', question)]
    assert asked
    assert [f'{label}="{value}"' for label, value in asked if label in words and value not in words[label]] == []


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule["annotations"]) == {"summary", "description", "action"}
    assert all(len(text) > 20 for text in rule["annotations"].values())
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_every_alert_is_seen_to_fire_and_its_metrics_are_in_the_everyday_plant() -> None:
    everyday, *troubles = yaml.safe_load(ALERT_TESTS.read_text(encoding="utf-8"))["tests"]
    fired = re.findall(r'ALERTS\{alertname="(\w+)"', json.dumps(troubles).replace('\\"', '"'))
    there = {name for series in everyday["input_series"] for name, _ in metrics_in(series["series"])}
    asked = {name for rule in rules() for name, _ in metrics_in(rule["expr"])}

    assert set(fired) == {rule["alert"] for rule in rules()}
    assert asked - there == set(), "an alert that nothing is known of fires for nobody, and proves nothing"


def test_the_rules_are_right_and_fire_when_they_should() -> None:
    for question in (["check", "config", str(DEPLOY / "prometheus.yml")], ["test", "rules", str(ALERT_TESTS)]):
        done = subprocess.run([tool("promtool"), *question], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    loaded = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))["rule_files"]
    assert [(DEPLOY / name).resolve() for name in loaded] == [ALERTS]


def test_the_dashboard_has_panels_that_do_not_hide_each_other() -> None:
    shown = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in shown:
        at = panel["gridPos"]
        places = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not places & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= places
    assert len({panel["id"] for panel in shown}) == len(shown)
