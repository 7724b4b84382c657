"""A call that is denied is an audit event of the log, as deploy/SECURITY.md shows it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from inspectbus.channels import Access
from inspectbus.errors import InspectBusError
from inspectbus.runtime import logs
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.tokens import hash_of, new_token
from inspectbus_client import Client
from tests.doubles.plant import open_plant

PAGE = Path(__file__).parents[3] / "deploy" / "SECURITY.md"
METHOD = "/inspectbus.api.v1.AcquisitionService/StartStation"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    page = io.StringIO()
    monkeypatch.setattr("sys.stderr", page)
    before = structlog.get_config()
    logs.configure("warning", "json")
    yield page
    structlog.configure(**before)


def shown_in_the_page() -> dict[str, Any]:
    (example,) = re.findall(r"```json\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    shown: dict[str, Any] = json.loads(example)
    return shown


def test_who_was_denied_what_from_where_and_why_is_told_and_marked(written: io.StringIO, tmp_path: Path) -> None:
    known, unknown = new_token(), new_token()
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"anna: {{role: reviewer, sha256: {hash_of(known)}}}\n")
    settings = ServiceSettings(drain_s=1.0, tokens=tokens)

    with open_plant(settings=settings, services=["acquisition"]) as plant:
        for token in (known, unknown, ""):
            access = Access(token=token)
            with (
                Client(acquisition=plant.addresses["acquisition"], access=access) as client,
                pytest.raises(InspectBusError),
            ):
                client.start_station("line-1", "top")

    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    audited = [line for line in lines if line.get("audit") is True]
    assert [(line["event"], line["caller"], line["method"], line["peer"], line["reason"]) for line in audited] == [
        ("call denied", "anna", METHOD, "127.0.0.1", "NotAllowed"),
        ("call denied", "anonymous", METHOD, "127.0.0.1", "NotIdentified"),
        ("call denied", "anonymous", METHOD, "127.0.0.1", "NotIdentified"),
    ]
    assert not {known, unknown} & set(re.findall(r"ibt_[\w-]+", written.getvalue()))
    moving = {"timestamp", "peer"}
    shown = shown_in_the_page()
    assert shown.keys() == audited[0].keys()
    assert {name: value for name, value in shown.items() if name not in moving} == {
        name: value for name, value in audited[0].items() if name not in moving
    }


def test_other_lines_are_not_marked(written: io.StringIO) -> None:
    structlog.get_logger("test").warning("tokens not read, the last good ones stay")

    assert "audit" not in json.loads(written.getvalue())
