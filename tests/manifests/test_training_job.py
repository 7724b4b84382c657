"""The plant's training job, run as its manifest says, at a door that asks for TLS, a certificate and a token."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspectbus.runtime.settings import PREFIX, ServiceSettings
from inspectbus.runtime.tokens import hash_of, new_token
from tests.doubles.certificates import Authority
from tests.doubles.plant import Plant, open_plant
from tests.manifests.combinations import with_training
from tests.manifests.conftest import Rendered
from tests.manifests.kustomize import ROOT

TLS, TOKEN = "etc/inspectbus/tls", "etc/inspectbus/token"


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A root with the files that the job's Secrets give it."""
    authority = Authority(tmp_path / "authority")
    papers = authority.issue("client")
    tls, token = tmp_path / "root" / TLS, tmp_path / "root" / TOKEN
    tls.mkdir(parents=True)
    token.mkdir(parents=True)
    for name, file in (("ca.crt", authority.file), ("tls.crt", papers.certificate), ("tls.key", papers.key)):
        (tls / name).write_bytes(file.read_bytes())
    (token / "token").write_text(new_token())
    return tmp_path / "root"


@pytest.fixture
def plant(tmp_path: Path, mounted: Path) -> Iterator[Plant]:
    authority = Authority(tmp_path / "doors", "doors")
    papers = authority.issue("training")
    # Clients trust the doors' authority; doors ask for a certificate of the clients'.
    clients_ca = tmp_path / "clients-ca.pem"
    clients_ca.write_bytes((mounted / TLS / "ca.crt").read_bytes())
    (mounted / TLS / "ca.crt").write_bytes(authority.file.read_bytes())
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"train: {{role: engineer, sha256: {hash_of((mounted / TOKEN / 'token').read_text())}}}\n")
    settings = ServiceSettings(
        drain_s=1.0,
        tls_certificate=papers.certificate,
        tls_key=papers.key,
        tls_client_ca=clients_ca,
        tokens=tokens,
    )
    with open_plant(settings=settings, services=["training"]) as plant:
        yield plant


def run_job(rendered: Rendered, plant: Plant, mounted: Path) -> subprocess.CompletedProcess[str]:
    found = rendered(with_training("plant"))
    (container,) = found.workload("train").pod["containers"]
    _, port = plant.addresses["training"].rsplit(":", 1)
    told = {
        name: f"{mounted}{value}" if value.startswith("/") else value
        for name, value in found.environment(container).items()
    }
    arguments = [word.replace("training:50054", f"localhost:{port}") for word in container["args"]]
    assert container["command"] == ["inspectbus"]
    assert arguments != container["args"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    path = os.pathsep.join(str(ROOT / part) for part in ("services", "clients"))
    return subprocess.run(
        [sys.executable, "-m", "inspectbus", *arguments],
        env={**environ, **told, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_job_asks_for_a_training_and_follows_it_to_its_end(rendered: Rendered, plant: Plant, mounted: Path) -> None:
    done = run_job(rendered, plant, mounted)

    assert done.returncode == 0, done.stderr
    assert "model elpv/1b2c1b2c1b2c1b2c" in done.stdout
    assert plant.calls["StartTraining"] == 1


def test_without_its_token_the_job_fails_and_says_so(rendered: Rendered, plant: Plant, mounted: Path) -> None:
    (mounted / TOKEN / "token").write_text(new_token())

    done = run_job(rendered, plant, mounted)

    assert done.returncode != 0
    assert "the token is not known here" in done.stderr
    assert plant.calls["StartTraining"] == 0
