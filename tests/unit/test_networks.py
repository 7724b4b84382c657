"""The network by name: what goes in, what comes out, and where it can be cut."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from inspectbus.domain.model_version import Architecture, Normalisation, Views
from inspectbus.errors import BadField
from inspectbus.networks.classifier import build

NORMALISATION = Normalisation(mean=(127.0, 120.0, 110.0), std=(128.0, 64.0, 32.0))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pictures(count: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", ["test_efficientnet", "timm/test_resnet", "torchvision/mobilenet_v3_small"])
def test_a_backbone_by_name_gives_one_logit_per_image(backbone: str) -> None:
    network = build(Architecture(backbone=backbone), NORMALISATION).eval()
    with torch.inference_mode():
        logits = network(pictures(3, 64))
    assert logits.shape == (3,)
    assert logits.dtype == torch.float32


def test_normalisation_is_inside_and_not_among_the_weights() -> None:
    network = build(Architecture(backbone="test_efficientnet"), NORMALISATION)
    images = pictures(2, 32)
    normal = network.normalise(images)
    assert normal.shape == (2, 3, 32, 32)
    assert normal.is_contiguous(memory_format=torch.channels_last)
    for channel in range(3):
        expected = (images[..., channel].float() - NORMALISATION.mean[channel]) / NORMALISATION.std[channel]
        torch.testing.assert_close(normal[:, channel], expected)
    assert not {"mean", "std"} & set(network.state_dict())


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_network_cut_anywhere_gives_the_same_logits(cut: int) -> None:
    network = build(Architecture(backbone="tf_efficientnet_lite0"), NORMALISATION).eval()
    links = [link for _, link in network.chain()]
    images = pictures(1, 64)
    with torch.inference_mode():
        lower = nn.Sequential(*links[:cut])(network.normalise(images))
        upper = network.judge(nn.Sequential(*links[cut:])(lower))
        assert torch.equal(upper, network(images))


def test_the_chain_is_the_networks_own_and_looking_at_it_changes_no_mode() -> None:
    network = build(Architecture(backbone="torchvision/resnet18"), NORMALISATION).train()
    names = [name for name, _ in network.chain()]
    assert names[-3:] == ["avgpool", "flatten", "fc"]
    assert all(module.training for module in network.modules())
    assert dict(network.chain())["conv1"] is network.backbone.get_submodule("conv1")


@pytest.mark.parametrize(
    ("backbone", "side", "places"),
    [
        ("tf_efficientnet_lite0", 96, (3, 3)),
        ("test_efficientnet", 64, (2, 2)),
        ("timm/test_resnet", 64, (2, 2)),
        ("torchvision/resnet18", 96, (3, 3)),
        ("torchvision/efficientnet_b0", 64, (2, 2)),
    ],
)
def test_the_heatmaps_mean_and_the_heads_bias_are_the_logit(backbone: str, side: int, places: tuple[int, int]) -> None:
    network = build(Architecture(backbone=backbone), NORMALISATION).eval()
    images = pictures(3, side)
    with torch.inference_mode():
        logits, heatmaps = network.explained(images)
        expected = network(images)
    assert network.explains
    assert heatmaps is not None
    assert (heatmaps.shape, heatmaps.dtype) == ((3, *places), torch.float32)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heatmaps.mean((1, 2)) + network.head.bias, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", [1, 2, 4])
def test_the_heatmap_of_several_views_is_the_mean_of_theirs_turned_back(views: Views) -> None:
    # Given a network of one view and the same of several, and images that no flip leaves as they are
    one = build(Architecture(backbone="test_efficientnet"), NORMALISATION).eval()
    several = build(Architecture(backbone="test_efficientnet", views=views), NORMALISATION).eval()
    several.load_state_dict(one.state_dict())
    images = torch.cat([pictures(3, 96), pictures(3, 96)], dim=2)
    axes = [(), (2,), (1,), (1, 2)][:views]

    # When it explains itself
    with torch.inference_mode():
        logits, heatmaps = several.explained(images)
        expected = several(images)
        flipped = [one.explained(images.flip(flip))[1] for flip in axes]

    # Then places are those of the image, and what they say still adds up to the logit
    assert heatmaps is not None
    assert (heatmaps.shape, heatmaps.dtype) == ((3, 3, 6), torch.float32)
    back = [view.flip(flip) for view, flip in zip(flipped, axes, strict=True) if view is not None]
    torch.testing.assert_close(heatmaps, torch.stack(back).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heatmaps.mean((1, 2)) + several.head.bias, expected, rtol=1e-4, atol=1e-5)


def test_the_heatmap_is_what_the_gradient_says_each_place_adds() -> None:
    # Given the last feature map of a network, and how the logit changes with it
    network = build(Architecture(backbone="tf_efficientnet_lite0"), NORMALISATION).eval()
    kept: list[torch.Tensor] = []
    network.backbone.get_submodule("bn2").register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    logit = network(pictures(1, 96))
    (gradient,) = torch.autograd.grad(logit.sum(), kept[0])
    # When each place's share of the logit is taken from there: for a linear end, gradient times value
    share = (gradient * kept[0]).sum(1)
    # Then the heatmap says the same, on the scale of a logit
    with torch.inference_mode():
        _, heatmap = network.explained(pictures(1, 96))
    assert heatmap is not None
    torch.testing.assert_close(heatmap, share.detach() * share[0].numel(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "side"),
    [
        ("torchvision/mobilenet_v3_small", 64),  # a layer of its own behind the pooling
        ("test_convnext", 64),  # a norm behind the pooling
        ("test_vit", 160),  # no chain of modules at all
    ],
)
def test_a_backbone_whose_end_is_not_a_mean_has_no_heatmap_and_the_same_logits(backbone: str, side: int) -> None:
    network = build(Architecture(backbone=backbone), NORMALISATION).eval()
    with torch.inference_mode():
        logits, heatmaps = network.explained(pictures(2, side))
        assert torch.equal(logits, network(pictures(2, side)))
    assert heatmaps is None
    assert not network.explains


def test_a_backbone_that_is_no_chain_says_so() -> None:
    with pytest.raises(BadField, match="cannot be cut"):
        build(Architecture(backbone="test_vit"), NORMALISATION).chain()


@pytest.mark.parametrize("views", [1, 2, 4])
def test_several_views_give_the_mean_of_their_logits(views: Views) -> None:
    one = build(Architecture(backbone="test_efficientnet"), NORMALISATION).eval()
    several = build(Architecture(backbone="test_efficientnet", views=views), NORMALISATION).eval()
    several.load_state_dict(one.state_dict())
    images = pictures(3, 64)
    flips = [images, images.flip(2), images.flip(1), images.flip(1).flip(2)][:views]

    with torch.inference_mode():
        expected = torch.stack([one(flip) for flip in flips]).mean(0)
        torch.testing.assert_close(several(images), expected, rtol=1e-4, atol=1e-5)


def test_a_graph_made_of_the_network_judges_its_views_for_any_number_of_images() -> None:
    network = build(Architecture(backbone="test_efficientnet", views=4), NORMALISATION).eval()

    graph = torch.export.export(
        network, (pictures(2, 32),), dynamic_shapes=({0: torch.export.Dim("images", min=1, max=64)},)
    ).module()

    with torch.inference_mode():
        for count in (1, 5):
            images = pictures(count, 32)
            torch.testing.assert_close(graph(images), network(images), rtol=1e-4, atol=1e-5)


def test_a_card_written_before_there_were_views_keeps_its_hash() -> None:
    architecture = Architecture(backbone="test_efficientnet")

    assert architecture.views == 1
    assert architecture.model_dump_json() == '{"backbone":"test_efficientnet","dropout":0.5}'
    assert '"views":2' in Architecture(backbone="test_efficientnet", views=2).model_dump_json()


@pytest.mark.parametrize(
    "backbone", ["", "resnet18x", "hf-hub:someone/resnet18", "local-dir:/etc", "../resnet18", "keras/resnet18"]
)
def test_a_backbone_nobody_knows_is_refused_by_name(backbone: str) -> None:
    with pytest.raises(BadField) as refused:
        build(Architecture(backbone=backbone), NORMALISATION)
    assert refused.value.field == "backbone"


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("backbone", ["squeezenet1_1", "googlenet"])
def test_a_torchvision_network_without_one_last_linear_layer_is_refused(backbone: str) -> None:
    with pytest.raises(BadField, match="linear layer"):
        build(Architecture(backbone=f"torchvision/{backbone}"), NORMALISATION)


def test_torchvision_can_be_imported_after_our_networks_and_declaring_twice_is_harmless() -> None:
    script = (
        "import inspectbus.networks as n; n.torchvision_operators.declare(); n.torchvision_operators.declare();"
        "import torchvision, torch; print(hasattr(torch.ops.torchvision, 'nms'), torchvision.models.resnet18.__name__)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False, env=environ
    )
    assert done.stdout.split() == ["True", "resnet18"], done.stderr
