"""Who calls. Today there is one rule: a peer on this machine is the local administrator, any other is anonymous.

Every call carries an Identity from the interceptor on, so that roles and tokens change this room and no service.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

import grpc

from inspectbus.runtime.settings import is_loopback


@dataclass(frozen=True)
class Identity:
    name: str
    admin: bool


LOCAL_ADMIN = Identity("local", admin=True)
ANONYMOUS = Identity("anonymous", admin=False)

caller: ContextVar[Identity] = ContextVar("caller", default=ANONYMOUS)
"""The caller of the RPC this thread is serving."""


def identify(context: grpc.ServicerContext) -> Identity:
    """The identity behind a call, by its peer address ('ipv4:127.0.0.1:4711', 'ipv6:[::1]:4711', 'unix:')."""
    kind, _, rest = context.peer().partition(":")
    if kind == "unix":
        return LOCAL_ADMIN
    host = rest.rsplit(":", 1)[0].replace("%5B", "[").replace("%5D", "]")
    return LOCAL_ADMIN if is_loopback(host) else ANONYMOUS
