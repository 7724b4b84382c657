"""The server's side of TLS: certificates from files, read anew when they change.

    handshake ─> have the files changed? ── no ──────────────────────────────> the certificate in use
                                         ├─ yes, and key and certificate fit ─> the new one, from this handshake on
                                         └─ yes, but half written or missing ─> told in the log, the one in use stays

TLS 1.2 is the oldest that gRPC's own library speaks. When a certificate ends is told to Prometheus, because a renewal
that fails is otherwise seen on the day of its end.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakSet

import grpc
import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from inspectbus.errors import BadField
from inspectbus.runtime.settings import ServiceSettings

log = structlog.get_logger(__name__)

_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.+?)-----END ", re.DOTALL)
# Tags of X.690.
_SEQUENCE, _UTC_TIME = 0x30, 0x17


def server_credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    """None where the settings name no certificate. Raises BadField for files that cannot be used."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    files = _Files(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    # Its stub file forgets that None, for no change, is an answer.
    changed: Any = files.changed
    return grpc.dynamic_ssl_server_credentials(
        files.read(), changed, require_client_authentication=settings.tls_client_ca is not None
    )


def server_context(settings: ServiceSettings) -> ssl.SSLContext | None:
    """The same for a server that is not gRPC's own, and speaks HTTP/2."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    files = _Files(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    files.read()

    def choose(handshake: ssl.SSLObject, name: str | None, asked: ssl.SSLContext) -> None:
        files.changed()
        handshake.context = files.context

    first = files.context
    first.sni_callback = choose  # asked at each handshake, whether the client names the server or not
    return first


class Expiry(Collector):
    """When the certificates end that the doors of this process show, each by the name of its file."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "inspectbus_tls_certificate_expiration_timestamp_seconds",
            "When the certificate ends that the next handshake at this process's doors is shown, since the epoch; "
            "without TLS there is none.",
            labels=["file"],
        )
        for name, ends_s in {files.name: files.ends_s for files in list(_in_use)}.items():
            family.add_metric([name], ends_s)
        yield family


class _Files:
    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._seen: object = None
        self._ends_s = 0.0
        self.context: ssl.SSLContext
        """Of what was read last."""
        _in_use.add(self)

    @property
    def name(self) -> str:
        return str(self._certificate)

    @property
    def ends_s(self) -> float:
        """Seconds since the epoch, of the certificate that the next handshake is shown."""
        if self._stamps() != self._seen:
            try:
                return _ends_s(self._load()[0])
            except BadField:
                pass  # told in the log when a handshake meets it
        return self._ends_s

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Raises BadField."""
        before = self._seen = self._stamps()
        certificate, key, ca, context = self._load()
        if self._stamps() != before:
            self._seen = None
            raise BadField(f"{self._certificate} was changed while it was read", field="tls_certificate")
        self._ends_s, self.context = _ends_s(certificate), context
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca)

    def _load(self) -> tuple[bytes, bytes, bytes | None, ssl.SSLContext]:
        """Certificate, key and the clients' authority (PEM), and what serves with them. Raises BadField."""
        try:
            certificate, key = self._certificate.read_bytes(), self._key.read_bytes()
            ca = self._client_ca.read_bytes() if self._client_ca is not None else None
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._client_ca)
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except ValueError as error:
            raise BadField(f"tls_key {self._key} {error}", field="tls_key") from None
        except ssl.SSLError as error:
            raise BadField(
                f"tls_certificate {self._certificate} and tls_key {self._key} (PEM) do not fit each other, "
                f"or tls_client_ca is no certificate: {error.reason or 'unreadable'}",
                field="tls_certificate",
            ) from None
        except OSError as error:
            raise BadField(f"TLS: cannot read {error.filename}: {error.strerror}", field="tls_certificate") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_NONE if ca is None else ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        return certificate, key, ca, context

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC at every handshake; None keeps the one in use."""
        if self._stamps() == self._seen:
            return None
        try:
            found = self.read()
        except BadField as error:
            log.error("certificate not read, the last good one stays", error=error.message)
            return None
        log.info("certificate read anew", file=str(self._certificate))
        return found

    def _stamps(self) -> list[object]:
        stamps: list[object] = []
        for file in (self._certificate, self._key, self._client_ca):
            try:
                found = file.stat() if file is not None else None
            except OSError:
                found = None
            stamps.append(found and (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino))
        return stamps


_in_use: WeakSet[_Files] = WeakSet()
"""Of all servers of this process: gRPC holds each for as long as its door is open."""


def _ends_s(pem: bytes) -> float:
    """`notAfter` (RFC 5280, 4.1) of the first certificate, in seconds since the epoch. Raises BadField where there is
    none."""
    found = _PEM.search(pem)
    if found is None:
        raise BadField("tls_certificate holds no certificate (PEM)", field="tls_certificate")
    ((_, certificate), *_) = _parts(base64.b64decode(found[1]))
    ((_, to_be_signed), *_) = _parts(certificate)
    _, _, validity, *_ = (content for tag, content in _parts(to_be_signed) if tag == _SEQUENCE)
    _, (tag, written) = _parts(validity)
    text = written.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "5" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element of a sequence's content (X.690, definite lengths)."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, at = int.from_bytes(der[at : at + count]), at + count
        yield tag, der[at : at + length]
        at += length


def _no_password() -> str:
    """Instead of a question on the terminal."""
    raise ValueError("is encrypted: use a key without a passphrase, in a file that only the service reads")
