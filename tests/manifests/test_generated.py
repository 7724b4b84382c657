"""What is written by `make manifests` follows from its sources, and the Secrets of a plant fit its manifests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from inspectbus.acquisition.settings import LineSettings
from inspectbus.bus.rabbitmq import topology
from inspectbus.errors import BadField
from inspectbus.line import SERVICES
from inspectbus.preprocessing.settings import PreprocessingSettings
from k8s import generate, make_secrets
from tests.manifests import rules
from tests.manifests.combinations import COMPONENTS
from tests.manifests.conftest import Rendered
from tests.manifests.kustomize import K8S, ROOT

PLANT = K8S / "overlays" / "plant"


def test_every_generated_file_is_what_its_source_says() -> None:
    wanted = generate.manifests()

    assert [file for file, text in wanted.items() if not file.exists() or file.read_text("utf-8") != text] == []
    assert generate.stale(wanted) == []


def test_each_line_of_the_plant_has_a_workload_with_its_stations(rendered: Rendered) -> None:
    found = rendered("overlays/plant")
    plant = yaml.safe_load((PLANT / "plant.yaml").read_text("utf-8"))

    for line in plant["acquisition"]["lines"]:
        workload = found.workload(f"acquisition-{line['name']}")
        (config,) = (volume["configMap"]["name"] for volume in workload.pod["volumes"] if "configMap" in volume)
        assert yaml.safe_load(found.data(config)["plant.yaml"])["acquisition"]["lines"] == [line]
        assert workload.labels["inspectbus.io/line"] == line["name"]


def test_a_line_is_added_by_naming_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = tmp_path / "plant.yaml"
    plant.write_text("acquisition: {lines: [{name: paint, stations: [{name: top, source: {kind: push}}]}]}")
    (tmp_path / "lines" / "gone").mkdir(parents=True)
    (tmp_path / "lines" / "gone" / "plant.yaml").write_text("")
    monkeypatch.setattr(generate, "PLANT", tmp_path)
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "K8S", tmp_path)
    monkeypatch.setattr(generate, "FOLDERS", (tmp_path / "lines",))

    generate.write()

    assert yaml.safe_load((tmp_path / "lines" / "kustomization.yaml").read_text())["resources"] == ["paint"]
    assert not (tmp_path / "lines" / "gone").exists()
    names = yaml.safe_load((tmp_path / "lines" / "certificate.yaml").read_text())["spec"]["dnsNames"]
    assert {"acquisition", "acquisition-paint.inspectbus.svc"} <= set(names)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["paint", "line-9-"], "line 'line-9-' is no DNS label"),
        (["l" * 41], "is too long for Kubernetes: at most 40 characters"),
        (["paint", "paint"], "line 'paint' stands twice"),
        (["Paint"], "'Paint' is not a name"),
    ],
)
def test_a_line_that_kubernetes_or_acquisition_refuses_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], says: str
) -> None:
    plant = {"acquisition": {"lines": [{"name": name, "stations": []} for name in lines]}}
    (tmp_path / "plant.yaml").write_text(yaml.safe_dump(plant))
    monkeypatch.setattr(generate, "PLANT", tmp_path)

    with pytest.raises(BadField, match=re.escape(says)):
        generate.manifests()


def test_the_longest_name_of_a_line_makes_labels_that_kubernetes_takes() -> None:
    generate._check_names(["l" * generate.LINE_NAME_MAX])

    revision = f"acquisition-{'l' * generate.LINE_NAME_MAX}-{'f' * 10}"
    assert len(revision) == 63


def test_a_plant_that_is_wrong_is_told_in_one_line(tmp_path: Path) -> None:
    plant = tmp_path / "plant.yaml"
    plant.write_text("acquisition: {lines: [{name: Paint, stations: []}]}")
    command = [sys.executable, "-m", "k8s.make_secrets", "--plant", str(plant), "--passwords", str(tmp_path / "p.json")]
    path = os.pathsep.join(str(ROOT / part) for part in ("services", "clients", "."))

    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: setting acquisition.lines.0.name: 'Paint' is not a name")


def test_a_lines_disk_has_room_for_all_that_its_stations_may_keep() -> None:
    def line(*stations: dict[str, Any]) -> LineSettings:
        return LineSettings.model_validate({"name": "line-1", "stations": stations})

    camera = {"name": "top", "source": {"kind": "push"}}
    archive = {"name": "old", "source": {"kind": "folder", "path": "/data"}}
    # A spool of 1 GiB and an eighth, and a journal of 256 MiB: for the service's own station too.
    assert generate.disk_gib(line()) == 2
    assert generate.disk_gib(line(camera)) == 3
    # At the line's own speed a folder waits, and needs its journal only.
    assert generate.disk_gib(line(archive)) == 2


def test_the_brokers_definitions_are_the_codes_own_with_no_users() -> None:
    """As `inspectbus bus definitions` prints them."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("services", "clients"))}
    told = subprocess.run(
        [sys.executable, "-m", "inspectbus", "bus", "definitions"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={name: value for name, value in environ.items() if not name.startswith("INSPECTBUS_")},
    )
    printed = {name: part for name, part in json.loads(told.stdout).items() if part}
    checked_in = json.loads((K8S / "components" / "broker-definitions" / "definitions.json").read_text("utf-8"))

    assert checked_in == printed
    assert "users" not in checked_in


def test_alert_rules_and_dashboard_are_those_of_deploy(rendered: Rendered) -> None:
    found = rendered("overlays/plant")
    alerts, dashboard = (generate.MONITORED / name for name in ("alerts.yaml", "dashboard.json"))

    groups = [each["spec"]["groups"] for each in found.of("PrometheusRule")]
    boards = [each["data"]["dashboard.json"] for each in found.of("ConfigMap") if "dashboard.json" in each["data"]]

    assert groups == ([yaml.safe_load(alerts.read_text("utf-8"))["groups"]] if alerts.exists() else [])
    assert boards == ([dashboard.read_text("utf-8")] if dashboard.exists() else [])


def test_alert_rules_are_wrapped_and_the_dashboard_is_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [{"name": "inspectbus", "rules": [{"alert": "Late", "expr": "late > 0"}]}]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": groups}))
    (tmp_path / "dashboard.json").write_text('{"title": "InspectBus"}')
    monkeypatch.setattr(generate, "MONITORED", tmp_path)

    made = {file.name: text for file, text in generate.manifests().items() if file.parent.name == "monitoring"}

    assert yaml.safe_load(made["alerts.yaml"])["spec"]["groups"] == groups
    content = yaml.safe_load(made["kustomization.yaml"])
    assert content["resources"] == ["pod-monitors.yaml", "alerts.yaml"]
    assert content["configMapGenerator"][0]["options"]["labels"] == {"grafana_dashboard": "1"}
    assert made["dashboard.json"] == '{"title": "InspectBus"}'


@pytest.fixture
def secrets(tmp_path: Path) -> list[dict[str, Any]]:
    return make_secrets.secrets(PLANT / "plant.yaml", tmp_path / "passwords.json")


def test_the_secrets_are_those_the_manifests_ask_for(rendered: Rendered, secrets: list[dict[str, Any]]) -> None:
    made = {each["metadata"]["name"]: set(each["stringData"]) for each in secrets}
    found = rendered("overlays/plant")
    certified = {each["spec"]["secretName"] for each in found.of("Certificate")}
    asked = set(rules._secret_names(found.objects)) - certified - set(rules.GIVEN_BY_HAND)

    assert asked == set(made)
    for each in found.ours:
        for entry in each.pod["containers"][0]["env"]:
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            if reference is not None:
                assert reference["key"] in made[reference["name"]]
    for scaler in found.of("TriggerAuthentication"):
        for target in scaler["spec"]["secretTargetRef"]:
            assert target["name"] in certified or target["key"] in made[target["name"]]


def test_the_brokers_users_may_do_what_the_code_says_and_their_passwords_are_those_of_the_services(
    secrets: list[dict[str, Any]],
) -> None:
    by_name = {each["metadata"]["name"]: each["stringData"] for each in secrets}
    told = json.loads(by_name["inspectbus-broker-users"]["users.json"])
    stations = [("line-1", "top"), ("line-1", "side"), *(("line-2", name) for name in ("top", "side", "bottom"))]
    wanted = topology.users([*stations, ("packing", "label")])

    assert [each["name"] for each in told["users"]] == [user.name for user in wanted]
    assert {(each["user"], each["write"]) for each in told["permissions"]} == {(u.name, u.write) for u in wanted}
    people = (*SERVICES, "operator")
    logins = {by_name[f"inspectbus-bus-{name}"]["username"] for name in people}
    assert logins == {f"inspectbus-{name}" for name in people}
    assert all(by_name[f"inspectbus-bus-{name}"]["password"] not in json.dumps(told) for name in people)


def test_secrets_made_again_keep_their_passwords(tmp_path: Path) -> None:
    def made() -> dict[str, str]:
        found = make_secrets.secrets(PLANT / "plant.yaml", tmp_path / "passwords.json")
        return {each["metadata"]["name"]: each["stringData"].get("password", "") for each in found}

    assert made() == made()


def test_replicas_are_added_when_as_much_waits_as_one_has_in_hand(rendered: Rendered) -> None:
    for name in ("preprocessing", "inference"):
        triggers = rendered("overlays/plant").one("ScaledObject", name)["spec"]["triggers"]
        (live,) = (each["metadata"] for each in triggers if each["name"] == "live")
        assert live["queueName"] == f"inspectbus.{name}.live"
        assert int(live["value"]) == PreprocessingSettings.model_fields["prefetch"].default


def test_images_have_the_projects_version() -> None:
    version = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[0]
    files = [file for file in K8S.rglob("*.yaml") if "newTag" in file.read_text("utf-8")]
    tags = {tag for file in files for tag in re.findall(r"newTag: ([\w.-]+)", file.read_text("utf-8"))}
    assert {tag.removesuffix("-cuda") for tag in tags} == {version}


def test_the_readme_names_every_component_and_what_it_names_is_there() -> None:
    text = (K8S / "README.md").read_text("utf-8")
    table = re.findall(r"^\| (`.*?) \|", text.split("## What each component costs")[1], re.MULTILINE)
    told = {name for row in table for name in re.findall(r"`([\w-]+)`", row)}

    assert told == set(COMPONENTS) - {"broker-definitions"}
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not (K8S / link).exists()] == []
    assert [path for path in re.findall(r"\bk8s/[\w./-]*\w", text) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("overlay", ["local", "edge"])
def test_the_readme_says_what_a_machine_alone_is_asked_for(rendered: Rendered, overlay: str) -> None:
    standing = [each for each in rendered(f"overlays/{overlay}").workloads if each.kind != "CronJob"]
    asked = [container["resources"]["requests"] for each in standing for container in each.pod["containers"]]
    cores, memory = (sum(rules.amount(each[what]) for each in asked) for what in ("cpu", "memory"))

    assert {each.object["spec"].get("replicas", 1) for each in standing} == {1}
    assert f"for {cores:.1f} cores and {memory / 1024**3:.1f} GiB" in (K8S / "README.md").read_text("utf-8")


def test_every_component_says_what_it_costs() -> None:
    heads = {name: (K8S / "components" / name / "kustomization.yaml").read_text("utf-8") for name in COMPONENTS}

    assert [name for name, text in heads.items() if "# Costs: " not in text] == ["broker-definitions"]
