"""Who calls, and whether they may.

    bearer token, or client certificate ─> tokens.yaml ─> Identity ─> roles.py: may it call this? ─> the service
    no tokens file: a peer on this machine is the local administrator, any other is anonymous, and both may everything

Every call carries an Identity from the interceptor on; services read it as `caller`.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from inspectbus.channels import is_loopback
from inspectbus.errors import NotAllowed, NotIdentified
from inspectbus.runtime.roles import Role, needed_for
from inspectbus.runtime.tokens import Entry, Tokens

BEARER = "bearer "


@dataclass(frozen=True)
class Identity:
    name: str
    role: Role | None = None
    """None where no tokens file gives any."""
    speaks_for: tuple[str, ...] = ()
    """Lines, or line/station, whose frames it may send; empty is all of them."""

    def check_speaks_for(self, line: str, station: str) -> None:
        """Raises NotAllowed when it may not send that station's frames."""
        if self.speaks_for and line not in self.speaks_for and f"{line}/{station}" not in self.speaks_for:
            place = f"station {line}/{station}" if line or station else "the service's own station"
            raise NotAllowed(f"{self.name} may not speak for {place}, only for {', '.join(self.speaks_for)}")


LOCAL_ADMIN = Identity("local", Role.ADMIN)
ANONYMOUS = Identity("anonymous")

caller: ContextVar[Identity] = ContextVar("caller", default=ANONYMOUS)
"""The caller of the RPC this thread is serving."""


class Doorkeeper:
    """Knows callers and what they may. Thread-safe."""

    def __init__(self, tokens: Path | None = None) -> None:
        """Raises BadField for a tokens file that cannot be read or is wrong."""
        self._tokens = Tokens(tokens) if tokens is not None else None

    def identify(self, context: grpc.ServicerContext) -> Identity:
        """Raises NotIdentified for a token that nobody was given."""
        if self._tokens is None:
            return _by_place(context)
        known = self._tokens.now()
        token = _bearer(context)
        if token is not None:
            # Never by another way then: who sends a token that was withdrawn shall hear of it.
            found = known.by_token(token)
            if found is None:
                raise NotIdentified("the token is not known here: it was withdrawn, or is not one of this plant's")
            return _identity(*found)
        for name in _certificate_names(context):
            if name in known.by_certificate:
                return _identity(*known.by_certificate[name])
        return ANONYMOUS

    def admit(self, identity: Identity, method: str) -> None:
        """Raises NotIdentified or NotAllowed when the identity may not call the method (/package.Service/Method)."""
        needed = needed_for(method)
        if self._tokens is None or needed is Role.ANYBODY:
            return
        short = method.rpartition("/")[2]
        if identity.role is None:
            raise NotIdentified(
                f"{short} needs role {needed} and the call has no token: send it as `authorization: Bearer TOKEN`"
            )
        if not identity.role.includes(needed):
            raise NotAllowed(f"{short} needs role {needed}; {identity.name} has role {identity.role}")


def host_of(peer: str) -> str:
    """The address of a gRPC peer ('ipv4:127.0.0.1:4711', 'ipv6:[::1]:4711', 'unix:') without its port."""
    kind, _, rest = peer.partition(":")
    return "unix" if kind == "unix" else rest.rsplit(":", 1)[0].replace("%5B", "[").replace("%5D", "]")


def _by_place(context: grpc.ServicerContext) -> Identity:
    host = host_of(context.peer())
    if host == "unix" or is_loopback(host):
        return LOCAL_ADMIN
    return next((Identity(name) for name in _certificate_names(context)), ANONYMOUS)


def _identity(name: str, entry: Entry) -> Identity:
    return Identity(name, entry.role, entry.speaks_for)


def _bearer(context: grpc.ServicerContext) -> str | None:
    for key, value in context.invocation_metadata():
        if key == "authorization":
            text = value if isinstance(value, str) else value.decode(errors="replace")
            return text[len(BEARER) :].strip() if text[: len(BEARER)].lower() == BEARER else ""
    return None


def _certificate_names(context: grpc.ServicerContext) -> list[str]:
    """Of a client certificate that the TLS handshake has verified: its alternative names, then its common name."""
    # Its stub file forgets that a certificate may have many names.
    found: Any = context.auth_context()
    return [
        name.decode(errors="replace")
        for key in ("x509_subject_alternative_name", "x509_common_name")
        for name in found.get(key, ())
    ]
