"""`inspectbus tokens make`: a token in a file, its hash, or a certificate's name, in tokens.yaml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from inspectbus.channels import Access
from inspectbus.cli.doors import access
from inspectbus.errors import BadField
from inspectbus.runtime.roles import Role
from inspectbus.runtime.tokens import hash_of, read_tokens

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
        (("anna", "--role", "chief"), "anna.role: must be viewer, station, reviewer, engineer or admin"),
        (("anna", "--role", "anybody"), "anna.role: must be viewer, station, reviewer, engineer or admin"),
        (("anna", "--role", "viewer", "--speaks-for", "line-1"), "a viewer sends no images"),
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


def test_a_certificate_needs_no_token(run: Run, tmp_path: Path) -> None:
    code, line, _ = run("inference", "--role", "viewer", "--certificate", "inference")

    assert (code, line) == (0, "inference: {role: viewer, certificate: inference}\n")
    code, _, error = run("inference", "--role", "viewer")
    assert code == 2
    assert "Name --out for a token, or --certificate" in error


FILE = """# Of the plant.
line-1-top: {role: station, speaks_for: [line-1/top], certificate: top}   # the lower camera is line-1-side

# Anna replaced her token in May.
anna:
  role: reviewer
  sha256:
    - OLD   # until June
# Services.
inference: {role: viewer, certificate: inference}"""
OLD = "ibt_" + "o" * 43


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.yaml"
    file.write_text(FILE.replace("OLD", hash_of(OLD)))
    file.chmod(0o640)
    return file


def known_by(tokens: Path, token: str) -> tuple[str, Role] | None:
    found = read_tokens(tokens).by_token(token)
    return (found[0], found[1].role) if found else None


def test_a_new_name_is_added_to_the_file_and_all_else_stays(run: Run, tokens: Path, tmp_path: Path) -> None:
    before, out = tokens.read_text(), tmp_path / "eva.token"
    code, said, _ = run("eva", "--role", "engineer", "--out", out, "--file", tokens)

    assert (code, said) == (0, f"eva is in {tokens}\n")
    assert tokens.read_text().startswith(before + "\neva: {role: engineer, sha256: ")
    assert known_by(tokens, out.read_text().strip()) == ("eva", Role.ENGINEER)
    assert tokens.stat().st_mode & 0o777 == 0o640
    assert {each.name for each in tmp_path.iterdir()} == {"tokens.yaml", "eva.token"}


def test_a_file_that_is_not_there_begins_with_its_first_name(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"

    assert run("inference", "--role", "viewer", "--certificate", "inference", "--file", file)[0] == 0
    assert file.read_text() == "inference: {role: viewer, certificate: inference}\n"


@pytest.mark.parametrize(
    ("name", "role", "others"),
    [
        ("anna", "reviewer", ("# Of the plant.", "# Services.", "line-1-top: {role: station")),
        ("line-1-top", "station", ()),
    ],
)
def test_a_name_that_is_there_keeps_what_it_has_and_gets_one_more_token(
    run: Run, tokens: Path, tmp_path: Path, name: str, role: str, others: tuple[str, ...]
) -> None:
    out = tmp_path / "new.token"
    code, _, _ = run(name, "--role", role, "--out", out, "--file", tokens)

    assert code == 0
    assert known_by(tokens, out.read_text().strip()) == (name, Role(role))
    assert known_by(tokens, OLD) == ("anna", Role.REVIEWER)
    known = read_tokens(tokens)
    assert known.by_certificate["top"][1].speaks_for == ("line-1/top",)
    assert all(part in tokens.read_text() for part in others)


def test_withdrawing_the_older_of_two_tokens_is_taking_its_hash_out(run: Run, tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.token"
    run("anna", "--role", "reviewer", "--out", out, "--file", tokens)

    tokens.write_text(tokens.read_text().replace(hash_of(OLD) + ", ", ""))

    assert known_by(tokens, out.read_text().strip()) == ("anna", Role.REVIEWER)
    assert known_by(tokens, OLD) is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("anna", "--role", "engineer"), "anna is in {file} with role reviewer: name the same, or change its line"),
        (("line-1-top", "--role", "station", "--speaks-for", "line-2"), "with speaks_for ('line-1/top',)"),
        (("eva", "--role", "viewer", "--certificate", "inference"), "{file}: eva has another identity's certificate"),
    ],
)
def test_what_the_services_would_refuse_leaves_the_file_as_it_was(
    run: Run, tokens: Path, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    before, out = tokens.read_text(), tmp_path / "new.token"
    code, _, error = run(*words, "--out", out, "--file", tokens)

    assert code == 2
    assert says.format(file=tokens) in error.replace("\n", " ")
    assert tokens.read_text() == before
    assert {each.name for each in tmp_path.iterdir()} == {"tokens.yaml"}


def test_a_file_that_is_wrong_already_is_not_touched(run: Run, tokens: Path, tmp_path: Path) -> None:
    tokens.write_text("anna: {role: viewer, certificate: anna}\nanna: {role: viewer, certificate: eva}\n")
    code, _, error = run("eva", "--role", "viewer", "--out", tmp_path / "eva.token", "--file", tokens)

    assert code == 2
    assert "'anna' stands twice" in error
    assert not (tmp_path / "eva.token").exists()


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
