"""TLS with servers that are not ours, on real ones: RabbitMQ and PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from inspectbus.bus.rabbitmq import topology
from inspectbus.bus.rabbitmq.addresses import parse
from inspectbus.bus.rabbitmq.link import Link
from inspectbus.errors import BadField, BusAway, StorageAway
from inspectbus.stores.database import open_database
from tests.doubles.certificates import Authority, Papers
from tests.doubles.children import lasting_port
from tests.doubles.postgres import Postgres
from tests.doubles.rabbitmq import Broker

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def tls_port(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a broker that takes clients with a certificate of the authority only."""
    papers, port = authority.issue("broker"), lasting_port()
    config = [
        f"listeners.ssl.1 = 127.0.0.1:{port}",
        f"ssl_options.cacertfile = {authority.file}",
        f"ssl_options.certfile = {papers.certificate}",
        f"ssl_options.keyfile = {papers.key}",
        "ssl_options.verify = verify_peer",
        "ssl_options.fail_if_no_peer_cert = true",
    ]
    with Broker(tmp_path_factory.mktemp("broker"), config=config):
        yield port


def amqps(port: int, ca: Path, papers: Papers) -> str:
    files = f"cacertfile={ca}&certfile={papers.certificate}&keyfile={papers.key}"
    return f"amqps://guest:guest@127.0.0.1:{port}/?{files}&reconnect_s=0.2"


@pytest.mark.rabbitmq
def test_a_broker_is_trusted_by_its_authority_alone_and_asks_for_ours(
    authority: Authority, stranger: Authority, tls_port: int
) -> None:
    own, foreign = authority.issue("results"), stranger.issue("results")
    with topology.connected(parse(amqps(tls_port, authority.file, own))) as connection:
        assert connection.is_open
    with pytest.raises(BusAway, match="is not trusted"):
        topology.connected(parse(amqps(tls_port, stranger.file, own)))
    with pytest.raises(BusAway):
        topology.connected(parse(amqps(tls_port, authority.file, foreign)))


class Noting:
    """Notes when its link is up."""

    def __init__(self, link: Link) -> None:
        self.opens: Queue[None] = Queue()
        link.add(self)

    def opened(self, connection: Any) -> None:
        self.opens.put(None)

    def lost(self) -> None:
        """Nothing to give up."""

    def work(self) -> None:
        """Nothing to do."""


@pytest.mark.rabbitmq
def test_a_link_that_comes_back_shows_the_certificate_of_that_moment(
    authority: Authority, stranger: Authority, tls_port: int, tmp_path: Path
) -> None:
    files = Papers(tmp_path / "own.crt", tmp_path / "own.key")

    def put(papers: Papers) -> None:
        shutil.copy(papers.key, files.key)
        shutil.copy(papers.certificate, files.certificate)

    put(stranger.issue("results"))
    link = Link("publish", parse(amqps(tls_port, authority.file, files)))
    tenant = Noting(link)
    link.start()
    try:
        link.tried(PATIENCE_S)
        assert tenant.opens.empty()
        put(authority.issue("results"))
        tenant.opens.get(timeout=PATIENCE_S)
    finally:
        link.close(PATIENCE_S)


def test_a_bus_url_with_files_that_cannot_be_read_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadField, match="certificates cannot be read"):
        parse(f"amqps://broker/?cacertfile={tmp_path / 'absent.pem'}")


@pytest.mark.postgresql
def test_a_databases_url_says_whom_to_trust_and_the_records_travel_encrypted(
    authority: Authority, stranger: Authority
) -> None:
    with Postgres(authority.issue("database")) as server:
        url = f"{server.new_database()}?sslmode=verify-full&sslrootcert="
        engine = open_database(f"{url}{authority.file}", "results")
        try:
            with engine.connect() as connection:
                asked = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                assert tuple(connection.execute(text(asked)).one()) == (True, "TLSv1.3")
        finally:
            engine.dispose()
        with pytest.raises(StorageAway, match="certificate verify failed"):
            open_database(f"{url}{stranger.file}", "results", patience_s=0)
        with pytest.raises(psycopg.OperationalError, match="no encryption"):
            psycopg.connect(f"{server.url()}?sslmode=disable")
