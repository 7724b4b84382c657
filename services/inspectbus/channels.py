"""The way to a service: with TLS or without, with a token or without.

    open_channel(address, access) ─> grpc.Channel
        ├── certificates and token are files: changed ones are used by the next call, without a restart
        └── replicas are called in turn, and one that restarts is found again within seconds

Whoever calls a service of ours does it from here: the client, and services that ask each other. Addresses are as gRPC
spells them: HOST:PORT, dns:///NAME:PORT for all that stand behind a name, ipv4:IP:PORT,IP:PORT.
"""

from __future__ import annotations

import ipaddress
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from inspectbus.errors import BadField

LOOK_S = 1.0
"""How often a channel looks whether its files have changed."""
MAX_TOKEN_BYTES = 4096

File = str | os.PathLike[str] | None
Options = Sequence[tuple[str, Any]]

_REPLICAS: Mapping[str, Any] = {
    "grpc.service_config": '{"loadBalancingConfig": [{"round_robin": {}}]}',
    # gRPC's own pauses grow to two minutes.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2000,
    # A replica that was replaced has another address; gRPC's default asks for it every half a minute at most.
    "grpc.dns_min_time_between_resolutions_ms": 1000,
}


@dataclass(frozen=True)
class Access:
    """What a caller shows, and whom it trusts."""

    ca: File = None
    """The authorities (PEM) that vouch for the service; None calls without TLS."""
    certificate: File = None
    """The caller's own (PEM), where the service asks for one."""
    key: File = None
    token: str = field(default="", repr=False)
    token_file: File = None
    allow_plaintext: bool = False
    """Send the token without TLS to other machines."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise BadField("a client certificate and its key go together: name both or none", field="certificate")
        if self.certificate is not None and self.ca is None:
            raise BadField("a client certificate is shown over TLS only: name the service's authority too", field="ca")
        if self.token and self.token_file is not None:
            raise BadField("name a token or a file with one, not both", field="token")

    @classmethod
    def from_environment(cls) -> Access:
        """What the commands and the examples show: INSPECTBUS_TLS_CA, and with it INSPECTBUS_TLS_CERTIFICATE and
        INSPECTBUS_TLS_KEY; INSPECTBUS_TOKEN_FILE or INSPECTBUS_TOKEN. Never arguments: everybody on the machine could
        read a secret among them. Raises BadField for half of it."""

        def told(name: str) -> str:
            return os.environ.get(f"INSPECTBUS_{name}", "")

        with_tls = bool(told("TLS_CA"))
        return cls(
            ca=told("TLS_CA") or None,
            # Services' own too, which need no authority to show theirs at their door.
            certificate=(told("TLS_CERTIFICATE") or None) if with_tls else None,
            key=(told("TLS_KEY") or None) if with_tls else None,
            token=told("TOKEN"),
            token_file=told("TOKEN_FILE") or None,
        )

    def check(self) -> None:
        """Raises BadField for files that cannot be read."""
        for name in ("ca", "certificate", "key", "token_file"):
            file = getattr(self, name)
            if file is not None:
                _read(file, name)

    @property
    def shows_token(self) -> bool:
        return bool(self.token) or self.token_file is not None


NO_ACCESS = Access()
"""Plaintext and nameless, as on one machine."""


def open_channel(address: str, access: Access = NO_ACCESS, options: Options = ()) -> grpc.Channel:
    """Quiet until its first call. The caller closes it. `options` are gRPC's, beside those for replicas.

    Raises BadField for files that cannot be read, and for a token that would go to another machine in the clear.
    """
    options = [*{**_REPLICAS, **dict(options)}.items()]
    if access.ca is None and not access.shows_token:
        return grpc.insecure_channel(address, options=options)
    if access.ca is None and not access.allow_plaintext and not _stays_here(address):
        raise BadField(f"the token would travel to {address} in the clear: name the authority of its TLS", field="ca")
    return _Renewed(address, access, options)


def is_loopback(host: str) -> bool:
    """True when only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Renewed(grpc.Channel):
    """A channel whose calls take the certificates and the token of the moment. Thread-safe."""

    def __init__(self, address: str, access: Access, options: Options) -> None:
        self._address, self._access, self._options = address, access, options
        self._lock = threading.Lock()
        self._look_at_s = 0.0
        self._token = access.token
        self._token_stamp: object = None
        self._stamp = self._stamps()
        self._channel = self._dial()
        self._before: grpc.Channel | None = None
        """Its calls in hand, streams above all, go on until the next renewal."""
        self._read_token()

    def unary_unary(self, method: str, *serializers: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_unary(method, *serializers, **named))

    def unary_stream(self, method: str, *serializers: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_stream(method, *serializers, **named))

    def stream_unary(self, method: str, *serializers: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_unary(method, *serializers, **named))

    def stream_stream(self, method: str, *serializers: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_stream(method, *serializers, **named))

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        self._channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        with self._lock:
            channels = [channel for channel in (self._channel, self._before) if channel is not None]
        for channel in channels:
            channel.close()

    def __enter__(self) -> _Renewed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def now(self) -> tuple[grpc.Channel, str]:
        """The channel and the token (empty for none) that the next call takes."""
        with self._lock:
            if time.monotonic() >= self._look_at_s:
                self._look_at_s = time.monotonic() + LOOK_S
                self._renew()
            return self._channel, self._token

    def _renew(self) -> None:
        # What cannot be read now was good before: a file is replaced in steps, and the service says if it is too old.
        try:
            self._read_token()
            stamp = self._stamps()
            if stamp != self._stamp:
                fresh = self._dial()
                oldest, self._before, self._channel = self._before, self._channel, fresh
                self._stamp = stamp
                if oldest is not None:
                    oldest.close()
        except BadField:
            return

    def _dial(self) -> grpc.Channel:
        access = self._access
        if access.ca is None:
            return grpc.insecure_channel(self._address, options=self._options)
        credentials = grpc.ssl_channel_credentials(
            _read(access.ca, "ca"),
            _read(access.key, "key") if access.key else None,
            _read(access.certificate, "certificate") if access.certificate else None,
        )
        return grpc.secure_channel(self._address, credentials, options=self._options)

    def _stamps(self) -> list[object]:
        return [_stamp(file) for file in (self._access.ca, self._access.certificate, self._access.key)]

    def _read_token(self) -> None:
        file = self._access.token_file
        if file is None or _stamp(file) == self._token_stamp:
            return
        stamp = _stamp(file)
        text = _read(file, "token_file")[:MAX_TOKEN_BYTES].decode(errors="replace").strip()
        if not text or not text.isascii() or not text.isprintable():
            raise BadField(f"{file} holds no token", field="token_file")
        self._token, self._token_stamp = text, stamp


class _Method:
    """One method's calls, each on the channel and with the token of its moment."""

    def __init__(self, channel: _Renewed, make: Callable[[grpc.Channel], Any]) -> None:
        self._channel = channel
        self._make = make
        self._made: tuple[grpc.Channel, Any] | None = None

    def __call__(self, *args: Any, **named: Any) -> Any:
        method, named = self._now(named)
        return method(*args, **named)

    def with_call(self, *args: Any, **named: Any) -> Any:
        method, named = self._now(named)
        return method.with_call(*args, **named)

    def future(self, *args: Any, **named: Any) -> Any:
        method, named = self._now(named)
        return method.future(*args, **named)

    def _now(self, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        channel, token = self._channel.now()
        made = self._made
        if made is None or made[0] is not channel:
            made = self._made = (channel, self._make(channel))
        if token:
            shown = (*(named.get("metadata") or ()), ("authorization", f"Bearer {token}"))
            named = {**named, "metadata": shown}
        return made[1], named


def _read(file: str | os.PathLike[str], name: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise BadField(f"cannot read {file}: {error.strerror}", field=name) from None


def _stamp(file: File) -> object:
    if file is None:
        return None
    try:
        found = Path(file).stat()
    except OSError:
        return "away"
    return found.st_mtime_ns, found.st_size, found.st_ino


def _stays_here(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    places = re.sub(r"^(dns:///|ipv[46]:)", "", address).split(",")
    return all(is_loopback(place.rpartition(":")[0]) for place in places)
