"""`inspectbus tokens make`: a token in a file, its hash on a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from inspectbus.channels import Access
from inspectbus.cli.doors import access
from inspectbus.errors import BadField
from inspectbus.runtime.roles import Role
from inspectbus.runtime.tokens import read_tokens

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(inspectbus: Callable[..., Result]) -> Run:
    """`run("anna", "--role", "viewer")`: exit code, standard output and standard error."""

    def made(*words: object) -> tuple[int, str, str]:
        done = inspectbus("tokens", "make", *words)
        return done.exit_code, done.stdout, done.stderr

    return made


def test_the_line_printed_knows_the_token_written_and_does_not_show_it(run: Run, tmp_path: Path) -> None:
    out, tokens = tmp_path / "top.token", tmp_path / "tokens.yaml"
    code, line, _ = run("line-1-top", "--role", "station", "--speaks-for", "line-1/top", "--out", out)

    assert code == 0
    token = out.read_text().strip()
    assert token not in line
    assert out.stat().st_mode & 0o777 == 0o600
    tokens.write_text(line)
    found = read_tokens(tokens).by_token(token)
    assert found is not None
    assert (found[0], found[1].role, found[1].speaks_for) == ("line-1-top", Role.STATION, ("line-1/top",))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("anna", "--role", "chief"), "anna.role"),
        (("Anna B", "--role", "viewer"), "'Anna B' cannot be an identity's name"),
        (("anna", "--role", "station", "--speaks-for", "Line 1"), "anna.speaks_for"),
    ],
)
def test_what_would_be_refused_later_is_refused_now(
    run: Run, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    code, line, error = run(*words, "--out", tmp_path / "token")

    assert (code, line) == (2, "")
    assert says in error
    assert not (tmp_path / "token").exists()


def test_a_token_that_may_be_in_use_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "token"
    out.write_text("ibt_old")
    code, _, error = run("anna", "--role", "viewer", "--out", out)

    assert code == 2
    assert "is there already" in error
    assert out.read_text() == "ibt_old"


def test_commands_take_certificates_and_tokens_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TLS_CA", "TLS_CERTIFICATE", "TLS_KEY", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"INSPECTBUS_{name}", raising=False)
    assert access() == Access()

    told = {"TLS_CERTIFICATE": "tls.crt", "TLS_KEY": "tls.key", "TOKEN_FILE": "token"}
    for name, value in told.items():
        monkeypatch.setenv(f"INSPECTBUS_{name}", value)
    assert access() == Access(token_file="token")
    monkeypatch.setenv("INSPECTBUS_TLS_CA", "ca.pem")
    assert access() == Access(ca="ca.pem", certificate="tls.crt", key="tls.key", token_file="token")
    monkeypatch.setenv("INSPECTBUS_TOKEN", "ibt_")
    with pytest.raises(BadField, match="not both"):
        access()
