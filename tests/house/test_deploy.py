"""What deploys the product says what the code means: images, compose files and scripts, read and not run.

`make image-test` builds and runs the images.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from inspectbus.bus.rabbitmq import topology
from inspectbus.line import SERVICES, settings_class
from inspectbus.runtime.settings import refuse_unknown
from tests.doubles.servers import tool

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE_FILES = sorted(DEPLOY.glob("compose*.yaml"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|://[^/@]*:[^/@]*@")
REQUIRED = re.compile(r"\$\{(\w+):\?")
"""A variable that compose refuses to start without."""
ONCE = {"definitions", "operator"}
"""They do one thing and end."""
INTERPRETER = re.compile(rb"#!\s*\S*/(?:env\s+)?(?:ba|da)?sh\b")


def compose(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return parsed


def composed() -> list[Any]:
    """Every service of every file; a layer's part of one stands for itself."""
    return [
        pytest.param(name, service, id=f"{file.name}: {name}")
        for file in COMPOSE_FILES
        for name, service in compose(file.name)["services"].items()
    ]


def environment(service: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in service.get("environment", {}).items()}


def passes(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def scripts() -> list[Path]:
    """Every file of the tree that a shell runs."""
    found = []
    for folder, below, files in os.walk(ROOT):
        below[:] = [name for name in below if name == ".ci" or not name.startswith((".", "__", "build", "dist"))]
        for file in files:
            path = Path(folder, file)
            if path.is_file() and path.stat().st_size < 1_000_000 and is_shell(path):
                found.append(path)
    return found


def is_shell(path: Path) -> bool:
    with path.open("rb") as opened:
        return path.suffix == ".sh" or INTERPRETER.match(opened.readline(200)) is not None


def test_the_dockerfile_passes_its_linter() -> None:
    passes(tool("hadolint"), DEPLOY / "Dockerfile")


def test_every_shell_script_passes_its_linter() -> None:
    found = scripts()

    assert {"make-secrets", "run"} <= {path.name for path in found}
    passes(tool("shellcheck"), *found)


def test_compose_files_keep_to_their_specification() -> None:
    passes(sys.executable, "-m", "check_jsonschema", "--builtin-schema=vendor.compose-spec", *COMPOSE_FILES)


def test_a_misspelt_word_in_a_compose_file_is_noticed(tmp_path: Path) -> None:
    """The check itself works: it has its specification at hand, and is strict."""
    wrong = tmp_path / "compose.yaml"
    wrong.write_text("services: {results: {image: inspectbus-results, read_olny: true}}\n")

    with pytest.raises(AssertionError, match="read_olny"):
        passes(sys.executable, "-m", "check_jsonschema", "--builtin-schema=vendor.compose-spec", wrong)


@pytest.mark.parametrize(("name", "service"), composed())
def test_settings_are_known_and_their_values_taken(
    name: str, service: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = environment(service)
    ours = {key: REQUIRED.sub("word${", value) for key, value in told.items() if key.startswith("INSPECTBUS_")}

    refuse_unknown(ours, [settings_class(each) for each in SERVICES])

    if name in SERVICES:
        foreign = [f"INSPECTBUS_{each.upper()}_" for each in SERVICES if each != name]
        assert [key for key in ours if key.startswith(tuple(foreign))] == [], "another service's setting"
        for key, value in ours.items():
            monkeypatch.setenv(key, value)
        settings_class(name).load(yaml.safe_load((DEPLOY / "plant.yaml").read_text()).get(name))


@pytest.mark.parametrize(("name", "service"), composed())
def test_no_secret_stands_in_a_compose_file(name: str, service: Mapping[str, Any]) -> None:
    for key, value in environment(service).items():
        if SECRET.search(key) or SECRET.search(value):
            assert REQUIRED.search(value), f"{name}: {key} must come from .env: ${{NAME:?run deploy/make-secrets}}"
            # Beside the variable there is nothing but a user's name and an address.
            assert not re.search(r"://[^/@]*:[^/@$]+@", value), f"{name}: {key} has a password in it"


@pytest.mark.parametrize(("name", "service"), composed())
def test_ports_are_published_on_this_machine_alone(name: str, service: Mapping[str, Any]) -> None:
    assert [port for port in service.get("ports", []) if not str(port).startswith("127.0.0.1:")] == []
    if name in SERVICES and "ports" in service:
        port = settings_class(name).model_fields["port"].default
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]


@pytest.mark.parametrize(("name", "service"), composed())
def test_whatever_is_mounted_from_here_is_here(name: str, service: Mapping[str, Any]) -> None:
    volumes = {volume for file in COMPOSE_FILES for volume in compose(file.name).get("volumes", {})}
    for mount in service.get("volumes", []):
        if isinstance(mount, dict):
            assert mount["bind"]["create_host_path"] is True
            assert mount["read_only"] is True
        elif mount.startswith("."):
            source, _, how = mount.partition(":")
            assert (DEPLOY / source).exists(), f"{name} mounts {source}"
            assert how.endswith(":ro")
        else:
            assert mount.partition(":")[0] in volumes


@pytest.mark.parametrize(("name", "service"), composed())
def test_images_are_built_of_extras_that_there_are(name: str, service: Mapping[str, Any]) -> None:
    build = service.get("build")
    if build is None:
        return
    declared = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert set(build["args"]) <= declared
    assert build["args"].get("EXTRA", name) == name
    extras = {name, *(extra for extra in build["args"].get("WITH", "").split(",") if extra)}
    assert extras <= set(PROJECT["optional-dependencies"])
    assert "demo" not in extras, "its photographs are for non-commercial use only"
    # What reads the records needs their database; nobody else carries it.
    if "WITH" in build["args"]:
        assert ("postgresql" in extras) == ("database_url" in settings_class(name).model_fields)
    if "dockerfile" in build:
        assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


@pytest.mark.parametrize(("name", "service"), [each for each in composed() if "compose.gpu" not in str(each.id)])
def test_what_runs_is_watched_and_has_no_more_rights_than_it_needs(name: str, service: Mapping[str, Any]) -> None:
    assert not {"privileged", "cap_add", "pid", "ipc", "userns_mode"} & set(service)
    if name in ONCE:
        assert service["restart"] == "no"
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"
    if str(service["image"]).startswith("inspectbus-"):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    if name in SERVICES:
        assert service["healthcheck"]["test"][1:] == ["inspectbus", "doctor", "--doors", name]
        drain_s = settings_class(name).model_fields["drain_s"].default
        assert float(service["stop_grace_period"].removesuffix("s")) > drain_s + 10


@pytest.mark.parametrize(
    ("file", "carriers"), [("compose.yaml", {"training"}), ("compose.gpu.yaml", {"training", "inference"})]
)
def test_torch_is_carried_by_those_who_need_it(file: str, carriers: set[str]) -> None:
    """On processors inference judges by a version's exported form; on a GPU torch does."""
    arguments = {name: dict(service["build"]["args"]) for name, service in built("compose.yaml").items()}
    if file != "compose.yaml":
        for name, service in built(file).items():
            arguments[name] |= service["build"]["args"]

    installed = {name: brought([needs(name), *given["WITH"].split(",")]) for name, given in arguments.items()}

    assert {name for name, libraries in installed.items() if "torch" in libraries} == carriers
    assert {name for name, libraries in installed.items() if "onnxruntime" in libraries} == {"training", "inference"}


def built(file: str) -> dict[str, Any]:
    return {name: service for name, service in compose(file)["services"].items() if "build" in service}


def needs(service: str) -> str:
    """The extra of ours that the Dockerfile installs for it."""
    cases = re.findall(r"^ +([a-z |]+)\) needs=(\S+) ;;", DOCKERFILE, re.MULTILINE)
    (found,) = [str(extra) for names, extra in cases if service in names.split(" | ")]
    return found.replace('"${EXTRA}"', service)


def brought(extras: Iterable[str]) -> set[str]:
    """Names of the libraries that they and the extras they stand on ask for."""
    found: set[str] = set()
    for extra in extras:
        for wanted in map(Requirement, PROJECT["optional-dependencies"][extra]):
            found |= brought(wanted.extras) if wanted.name == PROJECT["name"] else {wanted.name}
    return found


def test_the_line_is_complete_and_shares_what_it_must() -> None:
    services = compose("compose.yaml")["services"]

    assert set(SERVICES) < set(services)
    for name in SERVICES:
        mounts = [mount for mount in services[name]["volumes"] if isinstance(mount, str)]
        # State is each one's own; images are everybody's who may claim one.
        assert f"{name}:/var/lib/inspectbus" in mounts
        if "frame_store_url" in settings_class(name).model_fields:
            assert "frames:/var/lib/inspectbus/frames" in mounts


def test_every_image_from_elsewhere_names_its_version() -> None:
    images = {str(service["image"]) for file in COMPOSE_FILES for service in compose(file.name)["services"].values()}
    foreign = {image for image in images if not image.startswith("inspectbus-")}

    assert foreign
    assert [image for image in foreign if not re.search(r"/[\w-]+:v?\d", image)] == []
    client = re.search(r"^mlflow-skinny==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert client
    assert f"ghcr.io/mlflow/mlflow:v{client.group(1)}" in foreign


def test_every_variable_that_is_required_is_made_and_stays_as_it_was_made(tmp_path: Path) -> None:
    required = {name for file in COMPOSE_FILES for name in REQUIRED.findall(file.read_text())}
    script = shutil.copy(DEPLOY / "make-secrets", tmp_path)

    passes(script)
    first = (tmp_path / ".env").read_text()
    passes(script)

    made = dict(line.split("=") for line in first.splitlines())
    assert set(made) == required
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch("[0-9a-f]{48}", password) for password in made.values())
    assert (tmp_path / ".env").read_text() == first
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert "deploy/.env" in (ROOT / ".gitignore").read_text().split()


def test_the_broker_is_given_each_user_that_compose_has_a_password_for(tmp_path: Path) -> None:
    """The script of `definitions` is run as it stands, by a shell."""
    service = compose("compose.yaml")["services"]["definitions"]
    (command,) = service["command"]
    users = {user.name for user in topology.users()}
    told = {name: f"word-of-{name}" for name in environment(service)}
    assert {f"inspectbus-{name.removesuffix('_BUS_PASSWORD').lower()}" for name in told} == users

    # Compose makes one $ of two; /tmp is the container's own.
    script = command.replace("$$", "$").replace("/tmp/", f"{tmp_path}/")
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INSPECTBUS_")}
    done = subprocess.run(
        [*service["entrypoint"], script],
        cwd=tmp_path,
        env={**clean, **told, "PATH": paths, "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'clients'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    made = yaml.safe_load((tmp_path / "bus.json").read_text())
    assert {user["name"] for user in made["users"]} == users
    assert stat.S_IMODE((tmp_path / "bus.json").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "users.json").stat().st_mode) == 0o600
    passwords = yaml.safe_load((tmp_path / "users.json").read_text())
    assert passwords["inspectbus-results"] == "word-of-RESULTS_BUS_PASSWORD"


def test_the_build_is_given_what_it_copies_and_nothing_secret() -> None:
    given = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source for words in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.MULTILINE) for source in words.split()[:-1]
    }

    assert copied == given
    assert (ROOT / ".dockerignore").read_text().split("\n")[1] == "*"
    assert all((ROOT / name).exists() for name in given)


def test_the_dockerfile_knows_every_service_and_this_release() -> None:
    cases = re.findall(r"^ +([a-z |]+)\) needs=", DOCKERFILE, re.MULTILINE)
    assert sorted(name for names in cases for name in names.split(" | ")) == sorted(SERVICES)
    assert re.findall(r'^ARG VERSION="(.+)"$', DOCKERFILE, re.MULTILINE) == [PROJECT["version"]]


def test_prometheus_scrapes_every_service_of_the_line() -> None:
    scraped = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())["scrape_configs"]
    found = {each["labels"]["service"]: each["targets"] for each in scraped[0]["static_configs"]}
    ports = {name: settings_class(name).model_fields["metrics_port"].default for name in SERVICES}
    assert found == {name: [f"{name}:{port}"] for name, port in ports.items()}
