"""The server's side of TLS: certificates from files, read anew when they change.

    handshake ─> have the files changed? ── no ──────────────────────────────> the certificate in use
                                         ├─ yes, and key and certificate fit ─> the new one, from this handshake on
                                         └─ yes, but half written or missing ─> told in the log, the one in use stays

TLS 1.2 is the oldest that gRPC's own library speaks.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc
import structlog

from inspectbus.errors import BadField
from inspectbus.runtime.settings import ServiceSettings

log = structlog.get_logger(__name__)


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


class _Files:
    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._seen: object = None

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Raises BadField."""
        before = self._seen = self._stamps()
        try:
            certificate, key = self._certificate.read_bytes(), self._key.read_bytes()
            ca = self._client_ca.read_bytes() if self._client_ca is not None else None
            check = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._client_ca)
            check.load_cert_chain(self._certificate, self._key, password=_no_password)
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
        if self._stamps() != before:
            self._seen = None
            raise BadField(f"{self._certificate} was changed while it was read", field="tls_certificate")
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca)

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
            stamps.append(found and (found.st_mtime_ns, found.st_size, found.st_ino))
        return stamps


def _no_password() -> str:
    """Instead of a question on the terminal."""
    raise ValueError("is encrypted: use a key without a passphrase, in a file that only the service reads")
