"""Certificates of the test's own, made on the fly.

plant = Authority(folder)
papers = plant.issue("results")     # papers.certificate, papers.key: PEM files
plant.file                          # what whoever trusts it is given
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOUR = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Papers:
    certificate: Path
    key: Path


class Authority:
    """Vouches for names on 127.0.0.1."""

    def __init__(self, folder: Path, name: str = "plant") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._issued = 0
        now = dt.datetime.now(dt.UTC)
        subject = _named(f"authority of {name}")
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - HOUR)
            .not_valid_after(now + 24 * HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / f"{name}-ca.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, expired: bool = False, ends: dt.datetime | None = None) -> Papers:
        """A certificate for DNS `name`, localhost and 127.0.0.1, and its key, in files of their own."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        ends = ends or (now - HOUR if expired else now + 2 * HOUR)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost"), address])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * HOUR)
            .not_valid_after(ends)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._issued += 1
        papers = Papers(*(self._folder / f"{name}-{self._issued}{end}" for end in (".pem", ".key")))
        papers.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8
        papers.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        papers.key.chmod(0o600)
        return papers


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
