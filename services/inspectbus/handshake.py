"""Why a door that listens does not let us in, and for how long it will: a handshake of our own, whose failure says
more than gRPC's closed connection.

TCP ─> does it speak TLS? ─> is its certificate trusted? ─> does it take ours? ─> a sentence about the first that fails
"""

from __future__ import annotations

import re
import socket
import ssl
from datetime import UTC, datetime

from inspectbus.channels import Access

PATIENCE_S = 2.0
"""For each step; the doctor's gRPC call before it has waited too, and all its checks together have ten seconds."""
NOT_YET, EXPIRED, OTHER_NAME, OTHER_ADDRESS = 9, 10, 62, 64
"""OpenSSL's X509_V_ERR_..."""


def obstacle(address: str, access: Access, patience_s: float = PATIENCE_S) -> str:
    """What keeps us out at `address`, and what to do; empty when nobody listens there, or it is not TLS's doing.

    Each of a few steps has patience_s; of replicas the first is looked at.
    """
    host, port = _place(address)
    try:
        plain = socket.create_connection((host, int(port)), patience_s)
    except (OSError, ValueError):
        return ""
    with plain:
        try:
            context = _context(access)
        except ssl.SSLError as error:
            return f"TLS cannot be spoken with these files: {_files(access)} ({error.reason})"
        try:
            secure = context.wrap_socket(plain, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            return _distrust(address, host, access, error)
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                return _refused(address, access)
            return (
                f"{address} does not speak TLS: leave INSPECTBUS_TLS_CA out, or is it another port?"
                if access.ca
                else ""
            )
        except OSError:
            return ""
        with secure:
            if access.ca is None:
                return f"{address} speaks TLS, and was called without: name its authority in INSPECTBUS_TLS_CA"
            return "" if _welcome(secure) else _refused(address, access)


def end_of_certificate(address: str, access: Access, patience_s: float = PATIENCE_S) -> datetime | None:
    """When the certificate ends that the door at `address` shows to who trusts it; None without TLS, and where nobody
    answers whom we trust. Time and replicas as above."""
    if access.ca is None:
        return None
    host, port = _place(address)
    try:
        with (
            socket.create_connection((host, int(port)), patience_s) as plain,
            _context(access).wrap_socket(plain, server_hostname=host) as secure,
        ):
            told = secure.getpeercert() or {}
    except (OSError, ValueError):
        return None
    ends = told.get("notAfter")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), UTC) if isinstance(ends, str) else None


def _place(address: str) -> tuple[str, str]:
    """Host and port of the first that a gRPC address names."""
    host, _, port = re.sub(r"^(dns:///|ipv[46]:)", "", address).partition(",")[0].rpartition(":")
    return host.strip("[]"), port


def _welcome(secure: ssl.SSLSocket) -> bool:
    """With TLS 1.3 a certificate is refused after the handshake; whom it takes, a gRPC server greets at once."""
    try:
        return bool(secure.recv(1))
    except TimeoutError:
        return True  # it is slow, which is another matter
    except OSError:
        return False


def _context(access: Access) -> ssl.SSLContext:
    """As gRPC would speak, and without an authority as one who only looks. Raises SSLError."""
    if access.ca is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context = ssl.create_default_context(cafile=access.ca)
    if access.certificate is not None:
        context.load_cert_chain(access.certificate, access.key)
    context.set_alpn_protocols(["h2"])
    return context


def _files(access: Access) -> str:
    names = {"authority": access.ca, "certificate": access.certificate, "key": access.key}
    told = ", ".join(f"{name} {file}" for name, file in names.items() if file is not None)
    return f"{told}: each must be PEM, and certificate and key fit each other"


def _distrust(address: str, host: str, access: Access, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in (EXPIRED, NOT_YET):
        return (
            f"the certificate of {address} is out of its time ({error.verify_message}): renew it, or look at the clocks"
        )
    if error.verify_code in (OTHER_NAME, OTHER_ADDRESS):
        return f"the certificate of {address} is for other names than {host}: call it by one that it bears"
    return (
        f"the certificate of {address} is not of the authority in {access.ca}: is INSPECTBUS_TLS_CA this plant's? "
        f"({error.verify_message})"
    )


def _refused(address: str, access: Access) -> str:
    if access.certificate is None:
        return (
            f"{address} asks for a certificate and was shown none: name yours in INSPECTBUS_TLS_CERTIFICATE and "
            "INSPECTBUS_TLS_KEY, and its authority in INSPECTBUS_TLS_CA"
        )
    return (
        f"{address} does not take the certificate {access.certificate}: it has expired, or is of another authority "
        "than the door's tls_client_ca"
    )
