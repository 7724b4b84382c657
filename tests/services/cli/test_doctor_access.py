"""The doctor at doors with TLS, client certificates and tokens: well where all is right, and in plain words what is
wrong with an authority, a certificate or a token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import Result

from inspectbus.channels import Access as Caller
from inspectbus.doctor.doors import CALLS, look_at_door
from inspectbus.doctor.finding import Finding, State
from inspectbus.line import SERVICES
from inspectbus.runtime.roles import Role, needed_for
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.tokens import hash_of, new_token
from tests.doubles.certificates import Authority, Papers
from tests.doubles.plant import open_plant

Inspectbus = Callable[..., Result]


@dataclass(frozen=True)
class Access:
    """What a caller of the plant has, right and wrong."""

    authority: Authority
    stranger: Authority
    token: Path
    tokens: Path

    def right(self) -> dict[str, Path]:
        return self.shows(self.authority.issue("doctor")) | {"TOKEN_FILE": self.token}

    def shows(self, papers: Papers) -> dict[str, Path]:
        return {"TLS_CA": self.authority.file, "TLS_CERTIFICATE": papers.certificate, "TLS_KEY": papers.key}


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Access:
    folder = tmp_path_factory.mktemp("access")
    token = new_token()
    (folder / "token").write_text(token)
    (folder / "withdrawn").write_text(new_token())
    (folder / "tokens.yaml").write_text(f"doctor: {{role: viewer, sha256: {hash_of(token)}}}\n")
    (folder / "notes.pem").write_text("a shopping list")
    authority, stranger = (Authority(folder / name, name) for name in ("plant", "stranger"))
    return Access(authority, stranger, token=folder / "token", tokens=folder / "tokens.yaml")


@pytest.fixture(scope="module")
def door(access: Access) -> Iterator[str]:
    """Of acquisition, which asks for everything."""
    papers = access.authority.issue("acquisition", ends=datetime.now(UTC) + timedelta(days=30))
    settings = ServiceSettings(
        drain_s=1.0,
        tls_certificate=papers.certificate,
        tls_key=papers.key,
        tls_client_ca=access.authority.file,
        tokens=access.tokens,
    )
    with open_plant(settings=settings, services=["acquisition"]) as plant:
        yield plant.addresses["acquisition"]


@pytest.fixture
def says(inspectbus: Inspectbus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """State and sentence about the service, as the doctor gives them to who has these variables."""

    def examined(address: str, told: Mapping[str, Path], *arguments: str) -> tuple[str, str]:
        monkeypatch.setenv("INSPECTBUS_ACQUISITION_ADDRESS", address)
        for name, value in told.items():
            monkeypatch.setenv(f"INSPECTBUS_{name}", str(value))
        (tmp_path / "frames").mkdir(exist_ok=True)
        file = tmp_path / "plant.yaml"
        file.write_text(json.dumps({"acquisition": {"state_dir": str(tmp_path), "metrics_port": 0}}))
        result = inspectbus("doctor", *arguments, "acquisition", "--config", file, "--json")
        found = [json.loads(line) for line in result.stdout.splitlines()]
        (one,) = ((each["state"], each["says"]) for each in found if each["about"] == "acquisition service")
        assert result.exit_code == (0 if one[0] == "ok" else 2)
        return one

    return examined


def test_with_the_right_files_all_is_well(access: Access, door: str, says: Callable[..., tuple[str, str]]) -> None:
    assert says(door, access.right()) == ("ok", f"serves at {door}")


WRONG: dict[str, tuple[Callable[[Access], dict[str, Path]], str]] = {
    "called without TLS": (lambda _: {}, "speaks TLS, and was called without"),
    "another authority": (
        lambda access: access.right() | {"TLS_CA": access.stranger.file},
        "is not of the authority in {TLS_CA}: is INSPECTBUS_TLS_CA this plant's?",
    ),
    "no authority in the file": (
        lambda access: access.right() | {"TLS_CA": access.token.with_name("notes.pem")},
        "authority {TLS_CA}",
    ),
    "no such file": (
        lambda access: access.right() | {"TLS_CA": access.token.with_name("none.pem")},
        "cannot read {TLS_CA}",
    ),
    "no certificate": (lambda access: {"TLS_CA": access.authority.file}, "asks for a certificate and was shown none"),
    "a stranger's certificate": (
        lambda access: access.shows(access.stranger.issue("doctor")),
        "does not take the certificate {TLS_CERTIFICATE}",
    ),
    "an expired certificate": (
        lambda access: access.shows(access.authority.issue("doctor", expired=True)),
        "does not take the certificate {TLS_CERTIFICATE}: it has expired",
    ),
    "another's key": (
        lambda access: access.right() | {"TLS_KEY": access.authority.issue("other").key},
        "certificate and key fit each other",
    ),
    "no token": (
        lambda access: access.shows(access.authority.issue("doctor")),
        "refuses this caller: ListStations needs role viewer and the call has no token",
    ),
    "a withdrawn token": (
        lambda access: access.right() | {"TOKEN_FILE": access.token.with_name("withdrawn")},
        "the token is not known here: it was withdrawn",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_in_plain_words(
    access: Access, door: str, says: Callable[..., tuple[str, str]], wrong: str
) -> None:
    make, words = WRONG[wrong]
    told = make(access)

    state, sentence = says(door, told)

    assert state == "fail"
    assert words.format(**told) in sentence
    assert access.token.read_text() not in sentence


def test_a_doors_own_certificate_that_has_expired_or_is_for_other_names_is_told(
    access: Access, says: Callable[..., tuple[str, str]]
) -> None:
    expired = access.authority.issue("acquisition", expired=True)
    settings = ServiceSettings(drain_s=1.0, tls_certificate=expired.certificate, tls_key=expired.key)
    with open_plant(settings=settings, services=["acquisition"]) as plant:
        assert "out of its time (certificate has expired)" in says(plant.addresses["acquisition"], access.right())[1]

    papers = access.authority.issue("acquisition")
    settings = ServiceSettings(drain_s=1.0, host="127.0.0.2", tls_certificate=papers.certificate, tls_key=papers.key)
    with open_plant(settings=settings, services=["acquisition"]) as plant:
        state, sentence = says(plant.addresses["acquisition"], access.right())
    assert (state, "is for other names than 127.0.0.2" in sentence) == ("fail", True)


@pytest.mark.parametrize(("days", "warned"), [(6.9, True), (7.1, False)])
def test_a_doors_certificate_that_ends_within_a_week_is_a_warning(access: Access, days: float, warned: bool) -> None:
    ends = datetime.now(UTC) + timedelta(days=days)
    papers = access.authority.issue("acquisition", ends=ends)
    settings = ServiceSettings(drain_s=1.0, tls_certificate=papers.certificate, tls_key=papers.key)
    with open_plant(settings=settings, services=["acquisition"]) as plant:
        address = plant.addresses["acquisition"]
        serves, *more = look_at_door("acquisition", address, Caller(ca=access.authority.file))

    assert serves.state is State.OK
    says = f"of {address} ends at {ends:%Y-%m-%d %H:%M} UTC: renew it before, it is read without a restart"
    assert more == ([Finding("certificate of acquisition", State.WARN, says)] if warned else [])


def test_a_door_without_tls_and_one_where_nobody_listens_are_told_apart(
    access: Access, says: Callable[..., tuple[str, str]]
) -> None:
    with open_plant(services=["acquisition"]) as plant:
        address = plant.addresses["acquisition"]
        assert f"{address} does not speak TLS" in says(address, access.right())[1]
    assert says(address, access.right())[1].startswith(f"nobody answers at {address}")


def test_a_health_check_needs_no_token(access: Access, door: str, says: Callable[..., tuple[str, str]]) -> None:
    assert says(door, access.shows(access.authority.issue("probe")), "--doors")[0] == "ok"


@pytest.mark.parametrize("service", SERVICES)
def test_what_every_door_is_asked_is_a_viewers_question_that_changes_nothing(service: str) -> None:
    assert needed_for(f"/inspectbus.api.v1.{CALLS[service]}") is Role.VIEWER
    with open_plant(services=[service]) as plant:
        (found,) = look_at_door(service, plant.addresses[service], knows_us=True)
        assert found.state == "ok"
        assert list(plant.calls) == [CALLS[service].rpartition("/")[2]]
