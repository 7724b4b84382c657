"""Nothing secret stands in the logs of a whole line, however talkative they are."""

from __future__ import annotations

import io
import secrets
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from inspectbus.bus import connect
from inspectbus.channels import Access
from inspectbus.errors import BadField, InspectBusError, NotIdentified
from inspectbus.runtime import logs
from inspectbus.runtime.tokens import hash_of, new_token
from inspectbus.stores.database import open_database
from inspectbus_client import Client, Shot
from tests.doubles.fuzzing import PNG
from tests.doubles.postgres import PASSWORD, Postgres
from tests.doubles.whole_line import whole_line


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """All that is logged, at debug level."""
    page = io.StringIO()
    monkeypatch.setattr("sys.stderr", page)
    before = structlog.get_config()
    logs.configure("debug", "json")
    yield page
    structlog.configure(**before)


@pytest.mark.postgresql
def test_the_logs_of_a_whole_line_hold_no_secret(
    written: io.StringIO, caplog: pytest.LogCaptureFixture, postgres: Postgres, tmp_path: Path
) -> None:
    caplog.set_level("DEBUG")  # the libraries' own
    token, unknown, broker_password = new_token(), new_token(), secrets.token_urlsafe(12)
    tokens, token_file = tmp_path / "tokens.yaml", tmp_path / "token"
    tokens.write_text(f"plant: {{role: admin, sha256: {hash_of(token)}}}\n")
    token_file.write_text(token)
    told: dict[str, Any] = {"tokens": tokens, "token_file": token_file, "database_url": postgres.new_database()}
    own = Access(token_file=token_file)

    with whole_line(tmp_path, own, **told) as doors:
        addresses = {name: door.address for name, door in doors.items()}
        with Client.connect(addresses, access=own) as client:
            client.put_recipe("name: default\nmodel: tiny\n")
            client.inspect(Shot(PNG))
            with pytest.raises(InspectBusError):
                client.start_station("line-1", "absent")
        with Client.connect(addresses, access=Access(token=unknown)) as client, pytest.raises(NotIdentified):
            client.stations()
        tokens.write_text(f"plant: {{role: {token}, sha256: {hash_of(token)}}}\n")
        with Client.connect(addresses, access=own) as client:
            client.stations()
        metrics = b""
        for door in doors.values():
            with urllib.request.urlopen(f"http://{door.metrics_address}/metrics", timeout=10) as page:
                metrics += page.read()
    failures = "".join(_failures(broker_password, postgres))

    text = written.getvalue() + caplog.text
    assert "call denied" in text
    assert '"serving"' in text
    assert "the last good ones stay" in text
    assert "no connection to the broker" in text
    for secret in (token, unknown, broker_password, PASSWORD):
        assert secret not in text
        assert secret not in failures
        assert secret.encode() not in metrics


def _failures(broker_password: str, postgres: Postgres) -> Iterator[str]:
    """The words of all that can be wrong with a URL that holds a password."""
    with connect(f"amqp://plant:{broker_password}@127.0.0.1:1/"):
        """Nobody is there, which the log tells."""
    for url in (f"amqp://plant:{broker_password}@127.0.0.1:1/?windw=3", f"amqp://plant:{broker_password}@host:port/"):
        with pytest.raises(BadField) as caught:
            connect(url)
        yield str(caught.value)
    for url in (postgres.url("absent"), f"postgresq://inspectbus:{PASSWORD}@127.0.0.1/x"):
        with pytest.raises(InspectBusError) as failed:
            open_database(url, "results", patience_s=0)
        yield str(failed.value)
