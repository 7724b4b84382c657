"""A checkpoint comes back as it was, or says what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.training.checkpoint import FILE, Checkpoint

OF = {"plan.epochs": "14", "data": "aaaa", "code": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "job/checkpoint"


def tensors(seed: int = 0) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {
        "now.weight": torch.randn(4, 3, 5, 5, generator=made).to(memory_format=torch.channels_last),
        "now.counter": torch.tensor(7),
        "generator": torch.randint(0, 256, (33,), dtype=torch.uint8, generator=made),
    }


def test_what_was_saved_comes_back_bit_by_bit(folder: Path) -> None:
    facts = {"best_ap": 0.1 + 0.2, "state": 2**127 - 1, "loss": math.inf, "ap": math.nan, "told": [{"number": 1}]}
    Checkpoint(folder, OF).save(3, facts, tensors())

    saved = Checkpoint(folder, OF).load()

    assert saved is not None
    found, values = saved
    assert math.isnan(found.pop("ap"))
    assert found == {name: value for name, value in facts.items() if name != "ap"}
    assert values.keys() == tensors().keys()
    assert all(
        torch.equal(values[name], value) and values[name].dtype is value.dtype for name, value in tensors().items()
    )


def test_there_is_none_before_the_first(folder: Path) -> None:
    assert Checkpoint(folder, OF).load() is None


def test_the_newest_is_the_only_one(folder: Path) -> None:
    checkpoint = Checkpoint(folder, OF)
    checkpoint.save(1, {"epoch": 1}, tensors(1))
    checkpoint.save(2, {"epoch": 2}, tensors(2))

    saved = checkpoint.load()

    assert saved is not None
    assert saved[0] == {"epoch": 2}
    assert torch.equal(saved[1]["now.weight"], tensors(2)["now.weight"])
    assert sorted(file.name for file in folder.iterdir()) == [FILE, "epoch-00002.safetensors"]


def test_another_trainings_checkpoint_is_refused_and_every_difference_named(folder: Path) -> None:
    Checkpoint(folder, OF).save(1, {}, tensors())

    with pytest.raises(BadField) as refused:
        Checkpoint(folder, {**OF, "plan.epochs": "12", "data": "bbbb"}).load()

    assert refused.value.field == "checkpoint"
    assert "plan.epochs is 12 here and 14 there" in refused.value.message
    assert "data is bbbb here and aaaa there" in refused.value.message
    assert "code" not in refused.value.message
    with pytest.raises(BadField, match="data is not given here and aaaa there"):
        Checkpoint(folder, {"plan.epochs": "14", "code": "1"}).load()


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(bytes(data))


def _shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _point_elsewhere(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "tensors": "../../outside.safetensors"}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("epoch-00001.safetensors", _flip),
        ("epoch-00001.safetensors", _shorten),
        ("epoch-00001.safetensors", Path.unlink),
        (FILE, _shorten),
        (FILE, _point_elsewhere),
        (FILE, lambda file: file.write_text("[]")),
    ],
)
def test_damage_is_found_and_told_with_its_file(folder: Path, name: str, damage: Callable[[Path], object]) -> None:
    checkpoint = Checkpoint(folder, OF)
    checkpoint.save(1, {}, tensors())
    damage(folder / name)

    with pytest.raises(NotPossibleNow) as found:
        checkpoint.load()

    assert found.value.field == "checkpoint"
    assert name in found.value.message
    assert str(folder) in found.value.message
    assert "remove the folder to begin anew" in found.value.message


def test_what_a_killed_writing_left_behind_harms_nothing(folder: Path) -> None:
    # given one that was killed between its files, and one within a file
    checkpoint = Checkpoint(folder, OF)
    checkpoint.save(1, {"epoch": 1}, tensors(1))
    (folder / "epoch-00002.safetensors").write_bytes(b"whole, but never named")
    (folder / "epoch-00003.safetensors.part").write_bytes(b"half")

    # when, then
    saved = checkpoint.load()
    assert saved is not None
    assert saved[0] == {"epoch": 1}
    checkpoint.save(3, {"epoch": 3}, tensors(3))
    assert sorted(file.name for file in folder.iterdir()) == [FILE, "epoch-00003.safetensors"]


def test_having_nowhere_to_write_ends_no_training(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")

    Checkpoint(folder, OF).save(1, {}, tensors())

    assert folder.read_text() == "a file where the folder should be"
