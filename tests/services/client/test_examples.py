"""The examples run, as their docstrings say, against a plant behind real doors."""

from __future__ import annotations

import random
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from inspectbus.errors import NotIdentified
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.tokens import hash_of, new_token
from tests.doubles.certificates import Authority
from tests.doubles.plant import PNG, Plant, open_plant

EXAMPLES = Path(__file__).parents[3] / "clients" / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def test_a_folder_is_sorted_by_verdict(plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good.png", "scratched.png", "dark.png"):
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "notes.txt").write_text("a shopping list")

    code = example("inspect_folder.py")["main"]([str(tmp_path), "--acquisition", plant.addresses["acquisition"]])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[:2] == ["DEFECTIVE: 1", "  scratched.png"]
    assert "  dark.png" in lines
    assert any(line.startswith("  notes.txt (") and "not a PNG" in line for line in lines)


def test_a_camera_pushes_and_a_watcher_sees_every_frame_once_over_two_sittings(
    plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push = ["--acquisition", plant.addresses["acquisition"], "--frames", "6", "--fps", "0", "--scratched", "0.5"]
    assert example("push_camera.py")["main"](push) == 0
    assert "6 of 6 frames accepted" in capsys.readouterr().out
    assert {record.truth for record in plant.records} == {1, 2}

    cursor = tmp_path / "seen.txt"
    cursor.write_text("0")
    watch = ["--results", plant.addresses["results"], "--line", "line-1", "--cursor-file", str(cursor), "--limit", "3"]
    for _ in range(2):
        assert example("watch_line.py")["main"](watch) == 0

    seen = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert seen == ["#1", "#2", "#3", "#4", "#5", "#6"]


def test_the_examples_call_a_plant_with_tls_and_tokens_as_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority, token = Authority(tmp_path / "authority"), new_token()
    papers, own = authority.issue("plant"), authority.issue("camera")
    tokens, token_file = tmp_path / "tokens.yaml", tmp_path / "camera.token"
    tokens.write_text(f"camera: {{role: station, sha256: {hash_of(token)}}}\n")
    token_file.write_text(token)
    settings = ServiceSettings(
        drain_s=1.0,
        tls_certificate=papers.certificate,
        tls_key=papers.key,
        tls_client_ca=authority.file,
        tokens=tokens,
    )
    told = {"TLS_CA": authority.file, "TLS_CERTIFICATE": own.certificate, "TLS_KEY": own.key, "TOKEN_FILE": token_file}
    for name, value in told.items():
        monkeypatch.setenv(f"INSPECTBUS_{name}", str(value))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "good.png").write_bytes(PNG)
    cursor = tmp_path / "seen.txt"
    cursor.write_text("0")

    with open_plant(settings=settings) as plant:
        acquisition, results = plant.addresses["acquisition"], plant.addresses["results"]
        push = ["--acquisition", acquisition, "--frames", "2", "--fps", "0"]
        watch = ["--results", results, "--cursor-file", str(cursor), "--limit", "2"]
        inspect = [str(tmp_path / "photos"), "--acquisition", acquisition]
        done = [
            example("push_camera.py")["main"](push),
            example("watch_line.py")["main"](watch),
            example("inspect_folder.py")["main"](inspect),
        ]
        monkeypatch.delenv("INSPECTBUS_TOKEN_FILE")
        with pytest.raises(NotIdentified, match="has no token"):
            example("watch_line.py")["main"](watch)

    out = capsys.readouterr().out
    assert done == [0, 0, 0]
    assert "2 of 2 frames accepted" in out
    assert "QUALIFIED: 1" in out


def test_a_rendered_part_is_an_image_and_a_scratch_is_on_it() -> None:
    render = example("push_camera.py")["render"]

    def pixels(scratched: bool) -> NDArray[np.uint8]:
        decoded: Any = cv2.imdecode(np.frombuffer(render(random.Random(1), scratched), np.uint8), cv2.IMREAD_GRAYSCALE)
        return np.asarray(decoded, np.uint8)

    good, bad = pixels(False), pixels(True)

    assert good.shape == (128, 128)
    disc = np.hypot(*(np.indices(good.shape) - 64)) < 45
    assert good[disc].min() > 150
    assert bad[disc].min() < 70


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_explains_itself_when_asked(name: str) -> None:
    roots = [str(EXAMPLES.parent), str(EXAMPLES.parents[1] / "services")]
    answer = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--help"],
        env={"PYTHONPATH": ":".join(roots)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"python clients/examples/{name}" in answer.stdout
