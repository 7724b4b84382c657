"""Alerts see a cluster's pods by the labels that Prometheus gives them there: promtool relabels, and promtool alerts.

PodMonitor, pods ─> a scrape as the operator writes it ─> promtool's labels ─> series ─> promtool's alerts
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.doubles.servers import tool
from tests.manifests.conftest import Rendered
from tests.manifests.kustomize import NAME, Manifests

ADDRESS = "10.1.2.3:9100"
JOB = "podMonitor/inspectbus/inspectbus/0"


def labels_of(found: Manifests, service: str, tmp_path: Path) -> dict[str, str]:
    """What a pod's series bear. The operator names a job after its PodMonitor first, and then does what that says."""
    (endpoint,) = found.one("PodMonitor", "inspectbus")["spec"]["podMetricsEndpoints"]
    own = [{"target_label": "job", "replacement": "inspectbus/inspectbus"}]
    asked = [{_snake(key): value for key, value in each.items()} for each in endpoint.get("relabelings", [])]
    pod = {f"__meta_kubernetes_pod_label_{re.sub(r'[./-]', '_', NAME)}": service}
    scrape = {
        "job_name": JOB,
        "static_configs": [{"targets": [ADDRESS], "labels": pod}],
        "relabel_configs": own + asked,
    }
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
    (target,) = json.loads(promtool("check", "service-discovery", "--timeout=1s", str(file), JOB))
    return {name: value for name, value in target["labels"].items() if not name.startswith("__")}


def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def promtool(*words: str) -> str:
    done = subprocess.run([tool("promtool"), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts(found: Manifests, alert: str, series: dict[str, str], expected: dict[str, str], tmp_path: Path) -> None:
    """Ten minutes of the series, after which the cluster's own rules have told exactly this alert. Raises otherwise."""
    groups = found.one("PrometheusRule", "inspectbus")["spec"]["groups"]
    (rule,) = (rule for group in groups for rule in group["rules"] if rule["alert"] == alert)
    told = {name: _filled(text, expected) for name, text in rule["annotations"].items()}
    labels = {**expected, **rule["labels"]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    asked = {"alertname": alert, "eval_time": "10m", "exp_alerts": [{"exp_labels": labels, "exp_annotations": told}]}
    content = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [asked],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(content))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def _filled(text: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels.get(found[1], ""), text)


def series(metric: str, labels: dict[str, str]) -> str:
    return metric + "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


@pytest.mark.parametrize("service", ["inference", "training-worker"])
def test_a_pods_series_bear_the_names_that_alerts_ask_by(rendered: Rendered, tmp_path: Path, service: str) -> None:
    labels = labels_of(rendered("overlays/plant"), service, tmp_path)

    assert labels == {"job": "inspectbus", "service": service, "instance": ADDRESS}


def test_a_pod_that_is_down_is_told_by_its_service(rendered: Rendered, tmp_path: Path) -> None:
    found = rendered("overlays/plant")
    labels = labels_of(found, "inference", tmp_path)

    alerts(found, "ServiceDown", {series("up", labels): "0x15"}, labels, tmp_path)


def test_a_pod_without_its_broker_is_told_by_its_service(rendered: Rendered, tmp_path: Path) -> None:
    found = rendered("overlays/plant")
    labels = labels_of(found, "results", tmp_path)
    link = {"link": "publish"}
    expected = {name: value for name, value in (labels | link).items() if name != "job"}

    alerts(found, "BrokerUnreachable", {series("inspectbus_bus_up", labels | link): "0x15"}, expected, tmp_path)


def test_without_relabelings_the_alert_would_be_blind(rendered: Rendered, tmp_path: Path) -> None:
    found = rendered("overlays/plant")
    endpoint: Any = found.one("PodMonitor", "inspectbus")["spec"]["podMetricsEndpoints"][0]
    del endpoint["relabelings"]
    labels = labels_of(found, "inference", tmp_path)

    assert labels["job"] == "inspectbus/inspectbus"
    with pytest.raises(AssertionError, match="ServiceDown"):
        alerts(found, "ServiceDown", {series("up", labels): "0x15"}, labels, tmp_path)
