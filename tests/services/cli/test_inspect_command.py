"""`inspectbus inspect`: what it prints, and the exit code a script goes by."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import Result

from inspectbus.errors import BusClosed
from tests.doubles.plant import PNG, Plant

Inspectbus = Callable[..., Result]


@pytest.fixture
def judge(inspectbus: Inspectbus, plant: Plant) -> Inspectbus:
    return lambda *arguments: inspectbus("inspect", "--address", plant.addresses["acquisition"], *arguments)


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    return folder


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["a.png", "b.png"], 0),
        (["a.png", "scratched.png"], 1),
        (["a.png", "dark.png"], 2),
        (["scratched.png", "dark.png"], 2),
        (["scratched.png", "refused.png"], 2),
    ],
)
def test_the_exit_code_is_the_worst_of_all_parts(
    judge: Inspectbus, tmp_path: Path, names: list[str], code: int
) -> None:
    assert judge(folder_of(tmp_path, *names)).exit_code == code


def test_a_table_shows_each_file_in_order_with_its_reason(judge: Inspectbus, tmp_path: Path) -> None:
    result = judge(folder_of(tmp_path, "c/scratched.JPG", "a.png", "b-dark.tiff", "notes.txt"), "--recipe", "cells")

    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["QUALIFIED", "HOLD", "DEFECTIVE"]
    assert "UNUSABLE_IMAGE: too dark: brightness 3.0 is below 10.0" in lines[2]
    assert lines[3].split()[2:] == ["0.900", "0.500", "elpv/0f3a0f3a0f3a0f3a", "12.000"]
    assert lines[4].startswith("3 images: ")
    assert "notes.txt" not in result.stdout
    assert result.stderr == ""


def test_json_is_one_object_per_file_and_failures_are_objects_too(judge: Inspectbus, tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"

    result = judge(folder_of(tmp_path, "dark.png"), missing, "--json")

    rows = {Path(row["file"]).name: row for row in map(json.loads, result.stdout.splitlines())}
    assert result.exit_code == 2
    assert rows["dark.png"]["verdict"] == "HOLD"
    assert rows["dark.png"]["score"] is None
    assert rows["dark.png"]["hold"]["measure"] == "brightness"
    assert rows["dark.png"]["ms"] == 12.0
    assert rows["missing.png"]["verdict"] is None
    assert rows["missing.png"]["error"]["kind"] == "NotFound"


def test_csv_can_be_read_back(judge: Inspectbus, tmp_path: Path) -> None:
    result = judge(folder_of(tmp_path, "a, b.png"), "--csv")

    (row,) = csv.DictReader(io.StringIO(result.stdout))
    assert (row["file"], row["verdict"], row["score"]) == (str(tmp_path / "a, b.png"), "QUALIFIED", "0.0")


def test_each_file_that_is_no_image_gets_one_line_that_names_it(judge: Inspectbus, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "list.png").write_text("milk, eggs")
    (tmp_path / "odd\nname.png").write_bytes(PNG)
    refused = folder_of(tmp_path, "refused.png") / "refused.png"
    paths = [tmp_path / name for name in ("empty", "missing.png", "empty.png", "list.png", "odd\nname.png")]

    result = judge(*paths, refused)

    complaints = sorted(result.stderr.splitlines())
    assert complaints == sorted(
        [
            f"error: {tmp_path}/empty: holds no PNG, JPEG, BMP or TIFF image",
            f"error: {tmp_path}/missing.png: there is no such file",
            f"error: {tmp_path}/empty.png: is empty",
            f"error: {tmp_path}/list.png: is not a PNG, JPEG, BMP or TIFF image",
            f"error: {refused}: cannot be decoded",
        ]
    )
    assert f"{tmp_path}/odd name.png" in result.stdout
    assert result.exit_code == 2


def test_what_lies_in_a_folder_like_an_image_and_is_no_file_is_told_and_neither_waited_for_nor_passed_over(
    judge: Inspectbus, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "good.png").write_bytes(PNG)

    result = judge(tmp_path)

    assert sorted(result.stderr.splitlines()) == [
        f"error: {tmp_path}/broken.png: there is no such file",
        f"error: {tmp_path}/endless.png: is no file, nor a link to one",
        f"error: {tmp_path}/pipe.png: is no file, nor a link to one",
    ]
    assert f"{tmp_path}/good.png" in result.stdout
    assert result.exit_code == 2


def test_the_masks_of_a_data_set_are_left_out_and_counted(judge: Inspectbus, tmp_path: Path) -> None:
    photographs = ("test/scratch/1.png", "test/good/2.png", "masks.png")
    masks = ("ground_truth/scratch/1_mask.png", "Masks/2.png", "train/mask/3.png")
    folder_of(tmp_path, *photographs, *masks)

    result = judge(tmp_path, "--json")

    judged = {Path(json.loads(line)["file"]).relative_to(tmp_path).as_posix() for line in result.stdout.splitlines()}
    assert judged == set(photographs)
    folders = ", ".join(f"{tmp_path}/{folder}/" for folder in ("Masks", "ground_truth", "train/mask"))
    assert result.stderr == f"left out 3 masks, which are no pictures of parts: {folders}\n"


def test_a_folder_of_masks_that_is_named_outright_is_judged_and_one_that_is_found_is_nothing(
    judge: Inspectbus, tmp_path: Path
) -> None:
    folder_of(tmp_path, "masks/1.png", "masks/2.png")

    assert len(judge(tmp_path / "masks", "--json").stdout.splitlines()) == 2
    assert judge(tmp_path / "masks" / "1.png").exit_code == 0
    assert judge(tmp_path).exit_code == 2


def test_nothing_to_inspect_is_not_all_is_well(judge: Inspectbus, tmp_path: Path) -> None:
    assert judge(tmp_path).exit_code == 2


def test_a_service_that_goes_away_leaves_what_was_decided_and_one_line(
    judge: Inspectbus, plant: Plant, tmp_path: Path
) -> None:
    plant.break_stream("InspectStream", after=1)
    folder_of(tmp_path, "a.png", "b.png")

    original = plant.enter

    def away_after_the_first(method: str) -> None:
        original(method)
        if plant.calls["InspectStream"] > 1:
            raise BusClosed("the line has been shut down")

    plant.enter = away_after_the_first  # type: ignore[method-assign]
    result = judge(tmp_path, "--timeout", "0.5")

    assert result.exit_code == 2
    assert result.stderr == "error: the line has been shut down\n"
    assert result.stdout.count("QUALIFIED") == 1


def test_json_and_csv_exclude_each_other(judge: Inspectbus, tmp_path: Path) -> None:
    assert judge(tmp_path, "--json", "--csv").exit_code == 2


def test_without_an_address_a_line_is_opened_for_the_command_and_closed_after(
    inspectbus: Inspectbus, plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    @contextmanager
    def private_line(state: Path, patience_s: float) -> Iterator[dict[str, str]]:
        opened.append(state)
        yield plant.addresses
        opened.clear()

    line = types.ModuleType("inspectbus.line")
    line.private_line = private_line  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "inspectbus.line", line)
    monkeypatch.delenv("INSPECTBUS_ACQUISITION_ADDRESS", raising=False)

    result = inspectbus("inspect", folder_of(tmp_path, "good.png"), "--state", tmp_path / "state")

    assert result.exit_code == 0
    assert opened == []
    assert plant.calls["InspectStream"] == 1
