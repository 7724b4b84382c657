"""Manifests as a cluster would get them: kustomizations rendered by kubectl, and what a reader asks of the result.

folder, or base and some components ─> kubectl kustomize ─> Manifests ─> workloads, their pods, their environment
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inspectbus.line import SERVICES
from tests.doubles.servers import tool

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
NAME = "app.kubernetes.io/name"
SECRET = "s3cret"
"""What stands for each value of a Secret."""
WORKLOADS = ("Deployment", "StatefulSet", "Job", "CronJob")


@dataclass(frozen=True)
class Workload:
    """What makes pods."""

    kind: str
    name: str
    object: Mapping[str, Any]

    @property
    def template(self) -> Any:
        spec = self.object["spec"]
        return spec["jobTemplate"]["spec"]["template"] if self.kind == "CronJob" else spec["template"]

    @property
    def pod(self) -> Any:
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.template["metadata"]["labels"])

    @property
    def service(self) -> str:
        """Which of our services runs in it; empty for a server of others and for a job."""
        name = self.pod["containers"][0]["name"]
        return name if name in SERVICES else ""

    @property
    def containers(self) -> list[Any]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]


class Manifests:
    """Objects of one rendering."""

    def __init__(self, objects: Sequence[Any]) -> None:
        self.objects = list(objects)

    def of(self, *kinds: str) -> list[Any]:
        return [each for each in self.objects if each["kind"] in kinds]

    def one(self, kind: str, name: str) -> Any:
        (found,) = (each for each in self.of(kind) if each["metadata"]["name"] == name)
        return found

    @property
    def workloads(self) -> Iterator[Workload]:
        for each in self.of(*WORKLOADS):
            yield Workload(each["kind"], each["metadata"]["name"], each)

    @property
    def ours(self) -> Iterator[Workload]:
        return (each for each in self.workloads if each.service)

    def workload(self, name: str) -> Workload:
        (found,) = (each for each in self.workloads if each.name == name)
        return found

    def data(self, config_map: str) -> dict[str, str]:
        """Empty when there is none of that name."""
        found = [each for each in self.of("ConfigMap") if each["metadata"]["name"] == config_map]
        return dict(found[0]["data"]) if found else {}

    def environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """What the process sees, as Kubernetes puts it together; every value of a Secret is SECRET."""
        environ: dict[str, str] = {}
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                environ |= self.data(source["configMapRef"]["name"])
        named: dict[str, str] = {}
        for entry in container.get("env", []):
            reference = entry.get("valueFrom", {})
            if "configMapKeyRef" in reference:
                value = self.data(reference["configMapKeyRef"]["name"]).get(reference["configMapKeyRef"]["key"], "")
            elif "secretKeyRef" in reference:
                value = SECRET
            else:
                value = entry.get("value", "")
                # Only what stands before it is known, and nothing of envFrom is.
                for known, content in named.items():
                    value = value.replace(f"$({known})", content)
            named[entry["name"]] = value
        return environ | named


def render(folder: Path) -> Manifests:
    """Raises AssertionError with kustomize's own words when it does not build."""
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return Manifests([each for each in yaml.safe_load_all(done.stdout) if each])


def render_base_with(components: Sequence[str], folder: Path) -> Manifests:
    """The base and some components, put together in a folder of the test's own."""
    folder.mkdir(parents=True)

    def beside(place: Path) -> str:
        # kustomize takes no absolute path.
        return os.path.relpath(place, folder.resolve())

    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "inspectbus",
        "resources": [beside(K8S / "base")],
        "components": [beside(K8S / "components" / name) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return render(folder)
