"""Images that were learnt from and are held out now: a set that grew is cut anew."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inspectbus.domain.model_version import ModelCard
from inspectbus.domain.preparation import Preparation
from inspectbus.stores.datasets import Split, cut, fingerprint, open_dataset, split
from inspectbus.training import overlap as overlap_room
from inspectbus.training.overlap import overlap
from inspectbus.training.validation import write_validation
from tests.doubles.model_owner import card_for
from tests.doubles.training_service import render_parts


@pytest.fixture
def parts(tmp_path: Path) -> Split:
    render_parts(tmp_path / "parts", count=12, side=32)
    return split(open_dataset(str(tmp_path / "parts")))


@pytest.fixture
def version(tmp_path: Path, parts: Split, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trained on the train part, as far as its card and its list of validation images tell."""
    folder = tmp_path / "0123456789abcdef"
    folder.mkdir()
    card = card_for(Preparation())
    data = card.data.model_copy(update={"sha256": fingerprint(parts.train.items)})

    def read(_: Path, version: str) -> ModelCard:
        assert version == folder.name
        return card.model_copy(update={"data": data})

    monkeypatch.setattr(overlap_room, "read_card", read)
    _, validation, _ = cut(parts.train.items, 0.5, 0)
    rows = [(item, hashlib.sha256(item.read()).hexdigest()) for item in validation]
    labels = np.array([item.label == "defective" for item in validation], dtype=np.int64)
    write_validation(folder, rows, labels, np.zeros(len(rows)))
    return folder


def test_on_the_split_it_was_trained_by_nothing_overlaps(version: Path, parts: Split) -> None:
    met = overlap(version, parts)
    assert (met.same_train_part, met.held_out, met.warning) == (True, 0, "")


def test_a_set_that_is_cut_elsewhere_now_is_told_with_how_many_it_had_seen(version: Path, parts: Split) -> None:
    swapped = Split(train=parts.held_out, held_out=parts.train)
    met = overlap(version, swapped)
    assert not met.same_train_part
    assert met.held_out == met.validation_images > 0
    assert f"{met.held_out} of the {met.validation_images} images it was validated on are held out now" in met.warning


def test_another_set_altogether_is_no_overlap(version: Path, parts: Split, tmp_path: Path) -> None:
    render_parts(tmp_path / "others", count=6, side=48)
    met = overlap(version, split(open_dataset(str(tmp_path / "others"))))
    assert (met.same_train_part, met.held_out, met.warning) == (False, 0, "")
    assert met.validation_images > 0


def test_a_version_that_kept_no_list_is_not_judged(version: Path, parts: Split) -> None:
    (version / "validation.csv").unlink()
    fewer = replace(parts.train, items=parts.train.items[:-1])
    assert overlap(version, Split(fewer, parts.held_out)).warning == ""
