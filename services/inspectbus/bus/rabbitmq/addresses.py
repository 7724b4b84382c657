"""Where the broker is: amqp[s]://user:password@host:port[,host:port...]/vhost?window_messages=64&cacertfile=/etc/ca.pem

Files of TLS are named as in RabbitMQ's own URLs: cacertfile, certfile, keyfile. They are read anew for each connection.
The password stays inside this module's values and never stands in a message, a log or a repr.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pika
import pika.data

from inspectbus.bus.rabbitmq.limits import Limits
from inspectbus.errors import BadField

_TLS_FILES = ("cacertfile", "certfile", "keyfile")
_PORTS = {"amqp": 5672, "amqps": 5671}
SOCKET_PATIENCE_S = 5.0
"""For one TCP connection, and for the handshake on it: a frozen broker accepts the first, never answers the second."""


# An AMQP timestamp may lie beyond what Python calls a time, and a table be nested deeper than Python calls itself.
# pika then fails while it reads from the socket, which ends the connection, for ever again: the message cannot even be
# thrown away. Touched only where it is as we know it.
_decode_value: Any = getattr(pika.data, "decode_value", None)
_DEEPEST = 32
"""Tables and arrays within each other that are read; headers of ours have none, and the broker's two."""
_depth = threading.local()


def _decode_or_none(encoded: bytes, offset: int) -> Any:
    kind, depth = encoded[offset : offset + 1], getattr(_depth, "now", 0)
    if kind in (b"F", b"A") and depth >= _DEEPEST:
        return None, offset + 5 + int.from_bytes(encoded[offset + 1 : offset + 5], "big")
    _depth.now = depth + 1
    try:
        return _decode_value(encoded, offset)
    except (OverflowError, OSError, ValueError):
        if kind != b"T":
            raise
        return None, offset + 9
    finally:
        _depth.now = depth


if _decode_value is not None:
    pika.data.decode_value = _decode_or_none


@dataclass(frozen=True)
class Addresses:
    """Nodes of one broker, tried in turn."""

    nodes: tuple[str, ...]
    """host:port, for messages."""
    user: str
    vhost: str
    limits: Limits
    make_parameters: Callable[[], tuple[pika.ConnectionParameters, ...]] = field(repr=False)

    @property
    def parameters(self) -> tuple[pika.ConnectionParameters, ...]:
        """One for each node, with the certificates of this moment. Raises BadField when they cannot be read."""
        return self.make_parameters()


def parse(url: str, name: str = "inspectbus") -> Addresses:
    """Raises BadField, without the URL's text, for one that cannot be meant. `name` shows in the broker's lists."""
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        login, _, hosts = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        nodes = [_node(host, _PORTS[parts.scheme]) for host in hosts.split(",")]
    except (ValueError, KeyError):
        raise BadField("not a broker's URL: use amqp://user:password@host:5672/vhost", field="bus_url") from None
    tls = {key: query.pop(key) for key in _TLS_FILES if key in query}
    limits = _limits(query)
    vhost = unquote(parts.path[1:]) or "/"
    if tls and parts.scheme != "amqps":
        raise BadField(f"{next(iter(tls))} needs amqps://", field="bus_url")
    user = unquote(user) or "guest"
    credentials = pika.PlainCredentials(user, unquote(password) or "guest", erase_on_connect=False)

    def make() -> tuple[pika.ConnectionParameters, ...]:
        options = _tls(tls) if parts.scheme == "amqps" else None
        return tuple(
            pika.ConnectionParameters(
                host=host,
                port=port,
                virtual_host=vhost,
                credentials=credentials,
                heartbeat=limits.heartbeat_s,
                ssl_options=pika.SSLOptions(options, host) if options is not None else None,
                socket_timeout=SOCKET_PATIENCE_S,
                stack_timeout=2 * SOCKET_PATIENCE_S,
                client_properties={"connection_name": name},
            )
            for host, port in nodes
        )

    make()  # what cannot be read is told now, and not by a thread
    return Addresses(tuple(f"{host}:{port}" for host, port in nodes), user, vhost, limits, make)


def _node(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path:
        raise ValueError(text)
    return parts.hostname, parts.port or default_port


def _limits(query: dict[str, str]) -> Limits:
    kinds: dict[str, type] = {item.name: type(getattr(Limits, item.name)) for item in fields(Limits)}
    given: dict[str, Any] = {}
    for key, value in query.items():
        if key not in kinds:
            raise BadField(f"the bus URL has no option {key[:40]!r}; there are {', '.join(kinds)}", field="bus_url")
        try:
            number = kinds[key](value)
        except ValueError:
            raise BadField(f"bus URL option {key}: {value[:40]!r} is no number", field="bus_url") from None
        if not 0 < number < 1e12:
            raise BadField(f"bus URL option {key} must be above 0", field="bus_url")
        given[key] = number
    return replace(Limits(), **given)


def _tls(files: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=files.get("cacertfile") or None)
        if "certfile" in files:
            context.load_cert_chain(files["certfile"], files.get("keyfile"))
    except OSError as error:
        raise BadField(f"the bus URL's certificates cannot be read: {error.strerror}", field="bus_url") from None
    return context
