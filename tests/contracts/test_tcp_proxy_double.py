"""The cable that tests pull: bytes pass whole, freeze while it is cut, and a torn one is told to both ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.doubles.tcp_proxy import TcpProxy

PATIENCE_S = 10.0
FROZEN_S = 0.2
"""Long enough that on this machine a byte that could pass would have."""


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that answers with what it was told, each connection in turn."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    while part := connection.recv(1 << 16):
                        connection.sendall(part)
                except ConnectionResetError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE_S)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[TcpProxy]:
    with TcpProxy(echo) as proxy:
        yield proxy


def connected(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S)


def test_bytes_pass_whole_in_both_directions_until_both_ends_are_done(proxy: TcpProxy) -> None:
    sent = bytes(range(256)) * 20_000
    with connected(proxy) as client:

        def write() -> None:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=write)
        writer.start()
        arrived = bytearray()
        while part := client.recv(1 << 16):
            arrived += part
        writer.join(PATIENCE_S)

    assert arrived == sent


def test_a_cut_link_freezes_and_a_healed_one_loses_nothing(proxy: TcpProxy) -> None:
    with connected(proxy) as old:
        old.sendall(b"before")
        assert old.recv(100) == b"before"

        proxy.cut()
        old.sendall(b"during")
        with connected(proxy) as new:
            for frozen in (old, new):
                frozen.settimeout(FROZEN_S)
                with pytest.raises(TimeoutError):
                    frozen.recv(1)
                frozen.settimeout(PATIENCE_S)

        proxy.heal()
        assert old.recv(100) == b"during"


def test_a_torn_link_is_told_and_the_next_connection_works(proxy: TcpProxy) -> None:
    with connected(proxy) as client:
        client.sendall(b"before")
        assert client.recv(100) == b"before"

        proxy.reset()

        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connected(proxy) as client:
        client.sendall(b"after")
        assert client.recv(100) == b"after"


def test_a_server_that_is_away_is_told_as_a_reset() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with (
            TcpProxy(nobody.getsockname()[1]) as proxy,
            pytest.raises(ConnectionResetError),  # it may come before the connection is reported as made
            connected(proxy) as client,
        ):
            client.recv(1)
