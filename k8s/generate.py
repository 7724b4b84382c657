"""Manifests that follow from something else, written anew: `make manifests`. A test compares them.

overlays/plant/plant.yaml ─> overlays/plant/lines/: one acquisition for each line, and the names of its certificate
the code's topology ───────> components/broker-definitions/definitions.json
deploy/monitoring ─────────> components/monitoring/: alert rules and the dashboard, where they are
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from inspectbus.acquisition.settings import AcquisitionSettings, LineSettings
from inspectbus.bus.rabbitmq import topology
from inspectbus.errors import BadField, InspectBusError
from inspectbus.line import read_plant

ROOT = Path(__file__).parents[1]
K8S = Path(__file__).parent
PLANT = K8S / "overlays" / "plant"
MONITORED = ROOT / "deploy" / "monitoring"
FOLDERS = (PLANT / "lines", K8S / "components" / "broker-definitions", K8S / "components" / "monitoring")
"""In which everything but KEPT is written here."""
KEPT = (
    K8S / "components" / "broker-definitions" / "kustomization.yaml",
    K8S / "components" / "monitoring" / "pod-monitors.yaml",
)
NAMESPACE = "inspectbus"
LINE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
"""A DNS label, because a line's name ends those of its workload and its Service."""
LINE_NAME_MAX = 40
"""A StatefulSet's name and the hash of its revision, 11 characters, make one label of a pod, which may have 63; and
`acquisition-` stands before the line."""
GIB = 1024**3
WRITTEN = "# Written by `make manifests`; change {source} instead.\n"


def manifests() -> dict[Path, str]:
    """Every generated file with its text. Raises BadField for a plant.yaml that acquisition or Kubernetes
    would refuse."""
    lines = AcquisitionSettings.load(read_plant(PLANT / "plant.yaml").get("acquisition", {})).lines
    _check_names([line.name for line in lines])
    return dict([*_lines(lines), _definitions(), *_monitoring()])


def write() -> None:
    """Brings the folders up to date: what no longer follows from anything goes."""
    wanted = manifests()
    for file in stale(wanted):
        file.unlink()
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    for file, text in wanted.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{file.relative_to(ROOT)}\n")


def stale(wanted: dict[Path, str]) -> list[Path]:
    """Files in our folders that nobody asks for."""
    there = [file for folder in FOLDERS for file in sorted(folder.rglob("*")) if file.is_file()]
    return [file for file in there if file not in wanted and file not in KEPT]


def _check_names(lines: Sequence[str]) -> None:
    for number, name in enumerate(lines):
        field = f"acquisition.lines.{number}.name"
        if len(name) > LINE_NAME_MAX:
            raise BadField(f"line {name!r} is too long for Kubernetes: at most {LINE_NAME_MAX} characters", field=field)
        if not LINE_NAME.fullmatch(name):
            raise BadField(f"line {name!r} is no DNS label: let it end with a letter or a digit", field=field)
        if name in lines[:number]:
            raise BadField(f"line {name!r} stands twice: its stations belong under one", field=field)


def _lines(lines: tuple[LineSettings, ...]) -> Iterator[tuple[Path, str]]:
    folder, source = PLANT / "lines", "overlays/plant/plant.yaml"
    names = [line.name for line in lines]
    yield folder / "kustomization.yaml", _written(source, _kustomization(resources=names))
    yield folder / "certificate.yaml", _written(source, _certificate(names))
    for line in lines:
        yield folder / line.name / "kustomization.yaml", _written(source, _line(line))
        plant = {"acquisition": {"lines": [line.model_dump(mode="json", exclude_unset=True)]}}
        yield folder / line.name / "plant.yaml", _written(source, plant)


def _line(line: LineSettings) -> dict[str, Any]:
    size = {"op": "replace", "path": "/spec/volumeClaimTemplates/0/spec/resources/requests/storage"}
    return _kustomization(
        resources=["../../../../base/acquisition"],
        nameSuffix=f"-{line.name}",
        labels=[{"pairs": {"inspectbus.io/line": line.name}, "includeSelectors": True}],
        configMapGenerator=[{"name": "acquisition-plant", "behavior": "replace", "files": ["plant.yaml"]}],
        patches=[
            {"target": {"kind": "StatefulSet"}, "patch": json.dumps([size | {"value": f"{disk_gib(line)}Gi"}])},
        ],
    )


def disk_gib(line: LineSettings) -> int:
    """What the line's stations and the service's own may keep at most: spools, an eighth more, and gate journals."""
    stations = [*line.stations, AcquisitionSettings(lines=(line,)).inspect_station]
    spool = AcquisitionSettings.model_fields["spool_max_bytes"].default * 9 / 8
    return ceil(sum(each.gate.journal_bytes + (spool if each.spools else 0) for each in stations) / GIB)


def _certificate(lines: list[str]) -> dict[str, Any]:
    services = ["acquisition", *(f"acquisition-{line}" for line in lines)]
    ends = ("", f".{NAMESPACE}", f".{NAMESPACE}.svc", f".{NAMESPACE}.svc.cluster.local")
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": "acquisition"},
        "spec": {"dnsNames": [f"{service}{end}" for service in services for end in ends]},
    }


def _definitions() -> tuple[Path, str]:
    # Users come from a Secret: their passwords are the plant's.
    told = {name: part for name, part in topology.definitions().items() if part}
    return K8S / "components" / "broker-definitions" / "definitions.json", json.dumps(told, indent=2) + "\n"


def _monitoring() -> Iterator[tuple[Path, str]]:
    folder = K8S / "components" / "monitoring"
    rules, dashboard = MONITORED / "alerts.yaml", MONITORED / "dashboard.json"
    content: dict[str, Any] = {"resources": ["pod-monitors.yaml"]}
    if rules.exists():
        content["resources"].append("alerts.yaml")
        yield folder / "alerts.yaml", _written("deploy/monitoring/alerts.yaml", _rule(rules))
    if dashboard.exists():
        content["configMapGenerator"] = [
            {
                "name": "inspectbus-dashboard",
                "files": ["dashboard.json"],
                # By this label Grafana's sidecar finds it; without a hash in its name it is replaced, not doubled.
                "options": {"labels": {"grafana_dashboard": "1"}, "disableNameSuffixHash": True},
            }
        ]
        yield folder / "dashboard.json", dashboard.read_text(encoding="utf-8")
    head = (
        "# Prometheus Operator: every service is scraped; alert rules, and a dashboard for Grafana's sidecar.\n"
        "# Costs: a scrape of each pod every 15 seconds.\n"
    )
    yield folder / "kustomization.yaml", head + _written("deploy/monitoring", _kustomization("Component", **content))


def _rule(rules: Path) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "inspectbus"},
        "spec": {"groups": yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]},
    }


def _kustomization(kind: str = "Kustomization", **content: Any) -> dict[str, Any]:
    version = "v1alpha1" if kind == "Component" else "v1beta1"
    return {"apiVersion": f"kustomize.config.k8s.io/{version}", "kind": kind, **content}


def _written(source: str, content: dict[str, Any]) -> str:
    return WRITTEN.format(source=source) + yaml.safe_dump(content, sort_keys=False, width=1000)


if __name__ == "__main__":
    try:
        write()
    except InspectBusError as error:
        sys.exit(f"error: {error}")
