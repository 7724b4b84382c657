"""A part whose score lies between the thresholds: held through the whole line, told why, and counted apart."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from inspectbus.cli.inspect import Form, inspect_files
from inspectbus.line import open_line
from inspectbus.stores.models import read_card
from inspectbus_client import Client, HoldReason, Label, Shot, Verdict
from tests.doubles.model_owner import model_owner
from tests.doubles.tiny_model import BRIGHT, DARK, tiny_version

BETWEEN = 127
LEVELS = (DARK, BETWEEN, BRIGHT)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """Of a line whose model has one threshold, and whose recipe can hold."""
    folder = tiny_version(tmp_path / "versions")
    with model_owner() as (owner, models_address):
        owner.cards["tiny", "production"] = read_card(folder)
        sections: dict[str, dict[str, Any]] = {"inference": {"model": "tiny", "model_dir": folder, "threads": 1}}
        services = ("results", "inference", "preprocessing", "acquisition")
        everywhere = {"state_dir": tmp_path, "models_address": models_address, "port": 0, "metrics_port": 0}
        with (
            open_line(services, sections, bus_url=f"embedded://{uuid.uuid4()}", **everywhere) as doors,
            Client.connect({name: doors[name].address for name in services}) as client,
        ):
            client.put_recipe("name: default\nmodel: tiny\nthreshold: 0.9\nqualified_below: 0.1\n")
            yield client


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Rough pictures, sharp enough to be judged, one of each level."""
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{level}.png" for level in LEVELS]
    for file, level in zip(files, LEVELS, strict=True):
        cv2.imwrite(str(file), rng.integers(level - 25, level + 25, (64, 64, 3), dtype=np.uint8))
    return files


def test_an_uncertain_part_is_held_and_neither_an_escape_nor_overkill(client: Client, images: list[Path]) -> None:
    truths = (Label.GOOD, Label.DEFECTIVE, Label.DEFECTIVE)
    dark, between, bright = (
        client.inspect(Shot(image, truth=truth)) for image, truth in zip(images, truths, strict=True)
    )

    assert (dark.verdict, between.verdict, bright.verdict) == (Verdict.QUALIFIED, Verdict.HOLD, Verdict.DEFECTIVE)
    assert between.hold is not None
    assert between.hold.reason is HoldReason.UNCERTAIN_SCORE
    assert (between.qualified_below, between.threshold) == (0.1, 0.9)
    assert client.decision(between.frame_id).decision == between
    counts = client.scores().overall.scores
    assert (counts.confusion.true_negatives, counts.confusion.true_positives) == (1, 1)
    assert (counts.confusion.held_defective, counts.confusion.held_good) == (1, 0)
    assert (counts.escape, counts.overkill) == (0, 0)


def test_the_command_shows_it_with_both_thresholds_and_asks_for_a_person(
    client: Client, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = inspect_files(client, images, form=Form.JSON)

    rows = {Path(row["file"]).stem: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    held = rows[str(BETWEEN)]
    assert code == 2
    assert {name: row["verdict"] for name, row in rows.items()} == {
        str(DARK): "QUALIFIED",
        str(BETWEEN): "HOLD",
        str(BRIGHT): "DEFECTIVE",
    }
    assert (held["qualified_below"], held["threshold"]) == (0.1, 0.9)
    assert held["hold"]["reason"] == "UNCERTAIN_SCORE"
    assert "neither good nor defective: threshold 0.9, qualified below 0.1" in held["hold"]["detail"]
