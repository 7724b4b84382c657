"""Metrics: operational numbers on an HTTP port, one registry per service so that several fit in one process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from inspectbus.runtime.tls import Expiry
from inspectbus.runtime.tokens import Outdated

GLANCE_S = 0.02
"""How often the server looks whether it shall end. prometheus_client's own server looks every half second, which a
line of five services would feel each time it stops."""


@contextmanager
def metrics_server(registry: CollectorRegistry, host: str, port: int) -> Iterator[int]:
    """Serves the registry, and what is the process's own, at http://host:port/metrics and yields the port it got.

    Raises OSError when it is taken.
    """
    registry.register(Expiry())
    registry.register(Outdated())
    form = _Server6 if ":" in host else _Server
    try:
        server = make_server(host.strip("[]"), port, make_wsgi_app(registry), form, _Quiet)
    except OSError as error:
        raise OSError(f"metrics: cannot listen on {host}:{port}; is the port taken? ({error.strerror})") from None
    thread = threading.Thread(target=server.serve_forever, args=(GLANCE_S,), name="metrics", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


class _Server(ThreadingMixIn, WSGIServer):
    # A scraper that hangs must not keep the process alive.
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A scrape every few seconds is not news."""
