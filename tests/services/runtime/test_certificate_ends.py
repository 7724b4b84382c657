"""When a door's certificate ends is told to Prometheus: of the one that the next handshake is shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from prometheus_client import CollectorRegistry

from inspectbus.errors import BadField
from inspectbus.runtime.rpc_server import rpc_server
from inspectbus.runtime.settings import ServiceSettings
from tests.doubles.certificates import Authority, Papers

METRIC = "inspectbus_tls_certificate_expiration_timestamp_seconds"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def put(tmp_path: Path) -> Callable[[Papers], Papers]:
    """Into the files that the door's settings name."""
    files = Papers(tmp_path / "tls.crt", tmp_path / "tls.key")

    def place(papers: Papers) -> Papers:
        shutil.copy(papers.certificate, files.certificate)
        shutil.copy(papers.key, files.key)
        return files

    return place


def end_of(certificate: Path) -> float:
    """As another library reads it."""
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()


# RFC 5280 writes dates before 2050 in one way, and later ones in another.
@pytest.mark.parametrize("year", [2049, 2050, 2061])
def test_a_renewed_certificates_end_is_told_before_anybody_called_and_a_broken_ones_is_not(
    authority: Authority, put: Callable[[Papers], Papers], year: int
) -> None:
    first, registry = authority.issue("acquisition"), CollectorRegistry()
    renewed = authority.issue("acquisition", ends=datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC))
    files = put(first)
    settings = ServiceSettings(drain_s=1.0, tls_certificate=files.certificate, tls_key=files.key)

    def told() -> float | None:
        return registry.get_sample_value(METRIC, {"file": str(files.certificate)})

    with rpc_server("acquisition", settings, registry, {}):
        assert told() == end_of(first.certificate)

        files.certificate.write_bytes(renewed.certificate.read_bytes())  # the key is still the old one
        assert told() == end_of(first.certificate)

        put(renewed)
        assert told() == end_of(renewed.certificate) == datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp()


def test_a_key_alone_is_no_certificate(authority: Authority, put: Callable[[Papers], Papers]) -> None:
    files = put(authority.issue("acquisition"))
    files.certificate.write_bytes(files.key.read_bytes())
    settings = ServiceSettings(drain_s=1.0, tls_certificate=files.certificate, tls_key=files.key)

    with (
        pytest.raises(BadField, match="tls_certificate"),
        rpc_server("acquisition", settings, CollectorRegistry(), {}),
    ):
        pass
