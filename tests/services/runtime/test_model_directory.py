"""What is said of a model that nobody tells: there is none, its owner refuses us, or it is away."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from inspectbus.api.v1 import model_pb2_grpc
from inspectbus.channels import Access
from inspectbus.domain.preparation import Preparation
from inspectbus.errors import ModelNotReady
from inspectbus.runtime.rpc_server import rpc_server
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.stores.model_directory import ModelDirectory
from tests.doubles.certificates import Authority
from tests.doubles.model_owner import ModelOwner, card_for

SERVICE = "inspectbus.api.v1.ModelService"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.yaml"
    file.write_text("someone-else: {role: viewer, certificate: someone-else}\n")
    return file


@pytest.fixture
def owner() -> ModelOwner:
    return ModelOwner()


@contextmanager
def plant_door(owner: ModelOwner, authority: Authority, tokens: Path) -> Iterator[str]:
    """Training's door as a plant has it; its address."""
    papers = authority.issue("training")
    settings = ServiceSettings(
        drain_s=1.0,
        tls_certificate=papers.certificate,
        tls_key=papers.key,
        tls_client_ca=authority.file,
        tokens=tokens,
    )
    contracts = {SERVICE: lambda server: model_pb2_grpc.add_ModelServiceServicer_to_server(owner, server)}
    with rpc_server("training", settings, CollectorRegistry(), contracts) as door:
        yield door.address


def test_a_refusal_is_no_missing_version_and_ends_with_a_line_in_tokens_yaml(
    owner: ModelOwner, authority: Authority, tokens: Path, tmp_path: Path
) -> None:
    papers = authority.issue("inference")
    access = Access(ca=authority.file, certificate=papers.certificate, key=papers.key)
    owner.cards["cells", "production"] = card_for(Preparation(width=32, height=32))

    with (
        plant_door(owner, authority, tokens) as address,
        ModelDirectory(address, tmp_path / "directory", access=access, fresh_s=0) as directory,
    ):
        with capture_logs() as logs, pytest.raises(ModelNotReady) as refused:
            directory.resolve("cells", "production")
        with pytest.raises(ModelNotReady):
            directory.resolve("cells", "production")

        assert "its tokens.yaml has no line for our certificate or token with role viewer" in refused.value.message
        assert "no model version" not in refused.value.message
        assert owner.asked == 0
        assert [entry["why"] for entry in logs if "why" in entry] == [refused.value.message]

        with tokens.open("a") as file:
            file.write("inference: {role: viewer, certificate: inference}\n")

        assert directory.resolve("cells", "production") == owner.cards["cells", "production"]
        with pytest.raises(ModelNotReady, match=f"no model version stands behind cells@next yet .asked {address}"):
            directory.resolve("cells", "next")


def test_an_owner_that_is_away_is_no_missing_version(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens, and nobody else may
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with (
            ModelDirectory(address, tmp_path / "directory", fresh_s=0) as directory,
            pytest.raises(ModelNotReady, match=rf"which version is cells@production\? {address} does not answer"),
        ):
            directory.resolve("cells", "production")
