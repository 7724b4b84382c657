"""Contracts change only so that programs and messages of yesterday still fit: in a rolling upgrade both run at once.

main's history ─> the last two forms of protos/ that it had ─> buf breaking ─> what would no longer fit

Two, because on main itself the last form is the one that is checked out: there it is the last change that is judged.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.doubles.servers import tool

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
FORMS = 2
MAIN = ("refs/remotes/origin/main", "refs/heads/main")


@pytest.mark.parametrize("back", range(FORMS))
def test_what_main_already_speaks_still_fits(back: int, tmp_path: Path) -> None:
    commits = _commits_of_main_that_changed_contracts()
    if back >= len(commits):
        pytest.skip(f"main has changed its contracts {len(commits)} times only")
    with tarfile.open(fileobj=io.BytesIO(_git("archive", commits[back], "protos"))) as archive:
        # Our own history: nothing in it leads out. Debian's Python 3.11 has no `filter` yet.
        archive.extractall(tmp_path)

    said = _breaking(PROTOS, tmp_path / "protos")

    assert said == "", f"since {commits[back][:12]} of main; keep the field, its number and its type, and add another"


def test_a_field_that_was_taken_away_is_told(tmp_path: Path) -> None:
    changed = shutil.copytree(PROTOS, tmp_path / "protos")
    frame = changed / "inspectbus/api/v1/frame.proto"
    kept = [line for line in frame.read_text().splitlines() if "string part_id" not in line]
    frame.write_text("\n".join(kept))

    said = _breaking(changed, PROTOS)

    assert 'field "8" with name "part_id"' in said


def _breaking(now: Path, before: Path) -> str:
    """What buf says of the change; empty when all still fits."""
    command = [tool("buf"), "breaking", "--against", str(before)]
    done = subprocess.run(command, cwd=now, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 100), done.stderr  # 100: it has found something
    return done.stdout


def _commits_of_main_that_changed_contracts() -> list[str]:
    """The last of them first. Skips where there is no history to ask."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone: without history nobody knows what main speaks")
    if _git("rev-parse", "--is-shallow-repository").strip() != b"false":
        pytest.skip("this clone is shallow: fetch main's history (git fetch --unshallow)")
    for main in MAIN:
        if _git("for-each-ref", main):
            # Its own line only: what a branch tried on its way to main was nobody's contract.
            found = _git("log", "--first-parent", f"-{FORMS}", "--format=%H", main, "--", "protos")
            return found.decode().split()
    pytest.skip("this clone has no branch main: git fetch origin main")


def _git(*command: str) -> bytes:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    # Whoever owns the files, as in a container's mount: only git's own objects are read.
    trusting = ["git", "-c", f"safe.directory={ROOT}", *command]
    return subprocess.run(trusting, cwd=ROOT, capture_output=True, timeout=60, check=True).stdout
