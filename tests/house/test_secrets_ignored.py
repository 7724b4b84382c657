"""What our pages and commands have somebody write into a checkout, and nobody else may read, git does not take."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOLD = (
    *(ROOT / name for name in ("README.md", "k8s/README.md", "deploy/SECURITY.md")),
    *sorted((ROOT / "services" / "inspectbus" / "cli").glob("*.py")),
)
ENDS = (".py", ".proto", ".yaml", ".json", ".env", ".md")
WRITES = (
    r"tokens make .*?--out (\S+)",
    r"tokens make .*?--file ([\w.]+)",
    r"bus definitions .*?--credentials (\S+)",
    r"bus definitions .*?--output (\S+)",
    r"bus definitions .*?> ([\w.]+)",
    r"--from-env-file=(\S+)",
    r"--from-file=(?:\w+=)?(\S+)",
    r"INSPECTBUS_TLS_KEY=(\S+)",
    r"INSPECTBUS_TOKEN_FILE=(\S+)",
    r"INSPECTBUS_TOKENS=(\S+)",
)


def secrets() -> set[str]:
    """Files of the working folder; what lies in somebody's home is not in a checkout."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in TOLD)
    found = {name.strip('`",') for pattern in WRITES for name in re.findall(pattern, text)}
    return {name for name in found if not name.startswith(("~", "/", "."))}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with our .gitignore, whether or not this one has a history."""
    folder = tmp_path_factory.mktemp("checkout")
    subprocess.run(["git", "init", "-q", str(folder)], check=True, timeout=30)
    (folder / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    return folder


def ignored(checkout: Path, name: str) -> bool:
    return check_ignore(checkout, [name]) == [name]


def check_ignore(checkout: Path, names: list[str]) -> list[str]:
    """Those of the names that are ignored."""
    asked = ["git", "-C", str(checkout), "check-ignore", "--stdin"]
    done = subprocess.run(asked, input="\n".join(names), capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_files_of_secrets_that_pages_name_are_ignored(checkout: Path) -> None:
    named = secrets()

    assert {"anna.token", "tokens.yaml", "users.json", "s3.env", "tls.key"} <= named
    assert [name for name in sorted(named) if not ignored(checkout, name)] == []


def test_what_make_secrets_writes_is_ignored(checkout: Path) -> None:
    (written,) = set(re.findall(r">> (\S+)", (ROOT / "deploy" / "make-secrets").read_text(encoding="utf-8")))

    assert ignored(checkout, f"deploy/{written}")


def test_nothing_of_the_project_is_ignored(checkout: Path) -> None:
    parts = ("services", "clients", "protos", "k8s", "docs", "tests")
    files = [file for part in parts for file in (ROOT / part).rglob("*") if file.suffix in ENDS]
    assert files

    assert check_ignore(checkout, [str(file.relative_to(ROOT)) for file in files]) == []
