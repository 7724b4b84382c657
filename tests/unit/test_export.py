"""What is exported judges like the network it was made of: held against ONNX Runtime, which nobody here wrote."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import Architecture, Calibration, Normalisation, Views
from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField, Internal
from inspectbus.networks.classifier import Classifier, build
from inspectbus.networks.scorer import Scorer
from inspectbus.training.export import Deviation, check_export, deviation, export, open_export

CALIBRATION = Calibration(temperature=0.7, bias=-0.3)
NORMALISATION = Normalisation(mean=(127.0, 120.0, 110.0), std=(128.0, 64.0, 32.0))
PREPARATION = Preparation(width=64, height=96)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def network_of(backbone: str, views: Views = 1) -> Classifier:
    """With fresh weights, and a head that gives dark images to bright ones logits around 0, one apart on average."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = build(Architecture(backbone=backbone, views=views), NORMALISATION).eval()
        logits = network(torch.from_numpy(pictures(8)))
        network.head.weight.div_(logits.std())
        network.head.bias.sub_(logits.mean()).div_(logits.std())
    return network


def pictures(count: int) -> NDArray[np.uint8]:
    """Noise, each picture brighter than the one before."""
    shape = (count, PREPARATION.height, PREPARATION.width, 3)
    noise = np.random.default_rng(count).integers(0, 256, shape)
    pictures: NDArray[np.uint8] = (noise * np.linspace(0.2, 1, count)[:, None, None, None]).astype(np.uint8)
    return pictures


def session_of(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "timm/test_resnet"])
def test_an_export_takes_uint8_images_in_any_number_and_gives_pytorchs_scores_and_heatmaps(
    backbone: str, tmp_path: Path
) -> None:
    network, file = network_of(backbone), tmp_path / "model.onnx"

    places = export(network, backbone, CALIBRATION, PREPARATION, file)

    session = session_of(file)
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(uint8)", [96, 64, 3])
    assert [(out.name, out.type, out.shape[1:]) for out in session.get_outputs()] == [
        ("score", "tensor(float)", []),
        ("heatmap", "tensor(float)", list(places or ())),
    ]
    assert not [out.shape[0] for out in (taken, *session.get_outputs()) if isinstance(out.shape[0], int)]
    for count in (1, 2, 5):
        images = pictures(count)
        scores, heatmaps = session.run(None, {"images": images})
        with torch.inference_mode():
            logits = network(torch.from_numpy(images)).double().numpy()
            _, expected = network.explained(torch.from_numpy(images))
        assert scores == pytest.approx(1 / (1 + np.exp(-(logits / 0.7 - 0.3))), abs=1e-5)
        assert expected is not None
        np.testing.assert_allclose(heatmaps, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert len(set(scores.tolist())) == 5


@pytest.mark.parametrize("views", [1, 2, 4])
def test_views_and_the_knots_of_a_calibration_are_in_the_graph(views: Views, tmp_path: Path) -> None:
    # Given a calibration that no sigmoid can stand for
    calibration = Calibration(knots=((0, 0.02), (0.3, 0.4), (0.32, 0.6), (1, 0.9)))
    network, file = network_of("test_efficientnet", views), tmp_path / "model.onnx"
    assert export(network, "test_efficientnet", calibration, PREPARATION, file) == (3, 2)
    session, images = session_of(file), pictures(7)

    # When the graph judges, and PyTorch
    scores, heatmaps = session.run(None, {"images": images})
    with torch.inference_mode():
        ours, expected = Scorer(network, calibration).eval()(torch.from_numpy(images))
        logits = network(torch.from_numpy(images)).double().numpy()

    # Then both say the same, and what the card's arithmetic says
    np.testing.assert_allclose(scores, ours.numpy(), atol=1e-5)
    np.testing.assert_allclose(scores, scored(logits, calibration), atol=1e-4)
    np.testing.assert_allclose(heatmaps, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert np.abs(scores - scored(logits, Calibration())).max() > 0.05


def test_a_network_without_a_heatmap_is_exported_with_its_score_alone(tmp_path: Path) -> None:
    backbone, file = "torchvision/mobilenet_v3_small", tmp_path / "model.onnx"
    network = network_of(backbone)

    assert export(network, backbone, CALIBRATION, PREPARATION, file) is None

    assert [out.name for out in session_of(file).get_outputs()] == ["score"]
    with torch.inference_mode():
        (expected,) = Scorer(network, CALIBRATION)(torch.from_numpy(pictures(3)))
    assert open_export(file)(pictures(3)) == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_same_network_gives_the_same_file_which_tells_nothing_of_this_machine(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.onnx", "two.onnx")]
    for file in files:
        export(network_of("test_efficientnet"), "test_efficientnet", CALIBRATION, PREPARATION, file)

    one, two = (file.read_bytes() for file in files)

    assert one == two
    assert b"site-packages" not in one
    assert str(Path(__file__).parents[2]).encode() not in one
    assert [entry.version for entry in onnx.load(files[0]).opset_import] == [18]


class Undecided(nn.Module):
    """Its way depends on the numbers in the image, which no graph can write down."""

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean((2, 3))
        return pooled if pooled.sum() > 0 else -pooled


def test_a_backbone_that_cannot_be_exported_is_refused_by_name_and_leaves_no_file(tmp_path: Path) -> None:
    network = Classifier(Undecided(), 3, 0.5, NORMALISATION).eval()

    with pytest.raises(BadField, match=r"backbone undecided cannot be exported to ONNX.*take another") as refused:
        export(network, "undecided", CALIBRATION, PREPARATION, tmp_path / "model.onnx")

    assert refused.value.field == "backbone"
    assert list(tmp_path.iterdir()) == []


def test_another_thread_judges_as_before_while_a_network_is_exported(tmp_path: Path) -> None:
    # Given a service that judges in the process that trains
    serving = Scorer(network_of("timm/test_resnet"), CALIBRATION).eval()
    images = torch.from_numpy(pictures(2))
    with torch.inference_mode():
        expected = serving(images)[0]
    found: list[Tensor] = []
    over = threading.Event()

    def judge() -> None:
        while not over.is_set():
            with torch.inference_mode():
                found.append(serving(images)[0])

    thread = threading.Thread(target=judge)
    thread.start()
    # When a network is exported beside it
    try:
        export(network_of("test_efficientnet"), "test_efficientnet", CALIBRATION, PREPARATION, tmp_path / "model.onnx")
    finally:
        over.set()
        thread.join(30)
    # Then no score was another
    assert len(found) > 10
    assert all(torch.equal(scores, expected) for scores in found)


def test_a_deviation_is_the_largest_difference_and_the_verdicts_that_differ() -> None:
    ours, exported = np.array([0.1, 0.5, 0.79, 0.9]), np.array([0.1, 0.4999, 0.81, 0.9])

    found = deviation(ours, exported, [0.5])

    assert (found.images, found.differing) == (4, 1)
    assert found.largest == pytest.approx(0.02)
    assert deviation(ours, exported, [0.8, 0.3]).differing == 1
    assert deviation(ours, exported, [0.5, 0.8]).differing == 2
    assert deviation(ours, ours, [0.5]) == Deviation(4, 0.0, 0)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Deviation(10, 2e-3, 0), "0.002"),
        (Deviation(10, 1e-7, 1), "1 verdicts of 10"),
        (Deviation(10, float("nan"), 0), "nan"),
    ],
)
def test_an_export_that_is_another_judge_is_refused_with_the_figures(found: Deviation, words: str) -> None:
    with pytest.raises(Internal, match=words) as refused:
        check_export(found, "resnet18")
    assert "resnet18" in refused.value.message
    check_export(Deviation(10, 1e-6, 0), "resnet18")
