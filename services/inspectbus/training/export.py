"""The network as a file that other engines run, and the proof that they will say what PyTorch says.

Scorer ─ torch.onnx ─> graph ─ checked, stripped ─> model.onnx
images ─> PyTorch's scores ───┐
      └─> ONNX Runtime's ─────┴> Deviation: the largest difference, and verdicts that differ
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from inspectbus.domain.model_version import Calibration
from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField, Internal
from inspectbus.networks.classifier import Classifier
from inspectbus.networks.scorer import HEATMAP, IMAGES, SCORE, Scorer

Floats = NDArray[np.float64]

OPSET = 18
"""What the exporter writes natively, and every engine of the last years reads."""
MAX_DEVIATION = 1e-3
"""Of a score. Another order of adding float32 gives some 1e-6; a graph that computes something else gives more."""

ScoreBatch = Callable[[NDArray[np.uint8]], Floats]
"""Prepared images (N, H, W, 3) to scores (N,)."""


@dataclass(frozen=True)
class Deviation:
    """How far the scores of the export lie from PyTorch's, image by image."""

    images: int
    largest: float
    """Between 0 and 1; NaN when a score is no number."""
    differing: int
    """Images that get another verdict."""


def export(
    network: Classifier, backbone: str, calibration: Calibration, preparation: Preparation, file: Path
) -> tuple[int, int] | None:
    """Writes the network, which then takes batches of any size, and gives its heatmap's height and width.

    None where it has no heatmap. Raises BadField naming the backbone when it cannot be written as ONNX.
    """
    scorer = Scorer(network, calibration).eval()
    outputs = [SCORE, HEATMAP] if network.explains else [SCORE]
    # Two, because a batch of one would be taken for a constant.
    images = torch.zeros(2, preparation.height, preparation.width, 3, dtype=torch.uint8)
    try:
        # The exporter warns of its own habits; what matters here is raised, or found by the proof.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                scorer,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGES],
                output_names=outputs,
                dynamic_shapes={IMAGES: {0: torch.export.Dim("N", min=1)}},
                verbose=False,
            )
        assert program is not None
        graph = program.model_proto
        _strip(graph)
        onnx.checker.check_model(graph, full_check=True)
    except Exception as error:  # the exporter, the tracer and the checker raise each their own, and have no common base
        why = (str(error).strip().splitlines() or [""])[0]
        raise BadField(
            f"backbone {backbone} cannot be exported to ONNX, which a model version needs; take another: "
            f"{type(error).__name__}: {why}"[:500],
            field="backbone",
        ) from error
    file.write_bytes(graph.SerializeToString(deterministic=True))
    shape = [place.dim_value for place in graph.graph.output[-1].type.tensor_type.shape.dim]
    return (shape[1], shape[2]) if network.explains else None


def runtime_installed() -> bool:
    """Whether exports can be run here."""
    return importlib.util.find_spec("onnxruntime") is not None


def open_export(file: Path) -> ScoreBatch:
    """ONNX Runtime on the processor, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def score(images: NDArray[np.uint8]) -> Floats:
        (scores,) = session.run([SCORE], {IMAGES: images})
        return np.asarray(scores, np.float64)

    return score


def deviation(ours: Floats, exported: Floats, thresholds: Sequence[float]) -> Deviation:
    """Of scores (N,) of the same images in the same order; a verdict changes at each threshold, as it does on the line.

    A score at a threshold belongs above it.
    """
    divides = np.sort(np.asarray(thresholds, np.float64))
    return Deviation(
        images=len(ours),
        largest=float(np.abs(ours - exported).max()) if len(ours) else 0.0,
        differing=int((np.digitize(ours, divides) != np.digitize(exported, divides)).sum()),
    )


def check_export(found: Deviation, backbone: str) -> None:
    """Raises Internal when the export is another judge than the network it was made of."""
    # Written so that NaN fails: no comparison with it is true.
    if not found.largest <= MAX_DEVIATION or found.differing:
        raise Internal(
            f"the ONNX export of backbone {backbone} does not say what the network says: scores differ by up to "
            f"{found.largest:.2g} (at most {MAX_DEVIATION:g} is allowed) and {found.differing} verdicts of "
            f"{found.images} validation images are others; nothing is registered, take another backbone"
        )


def _strip(model: Any) -> None:
    """Where a node came from is told with paths of this machine's files, and makes up a tenth of a small graph."""
    graph = model.graph
    parts: Iterable[Any] = (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info)
    for part in (*parts, *graph.initializer, *model.functions, *(n for f in model.functions for n in f.node)):
        del part.metadata_props[:]
