"""The seam between the batcher and whatever runs the network, and the forms behind it by name.

verified version folder ─> open_engine("onnxruntime", ...) ─> Engine ── uint8 images ─> scores and heatmaps

An engine blocks, and may also call back (`Starting`); one that does not is given threads to block (`blocking`).

Only the chosen form's library is imported, so none of the others need be installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from inspectbus.domain.model_version import EXPORT_FILE, ModelCard
from inspectbus.errors import BadField, NotPossibleNow

Images = NDArray[np.uint8]
"""(N, H, W, 3) uint8 RGB, prepared."""
Scores = NDArray[np.float32]
"""(N,) float32 in [0, 1]: calibrated score of being defective."""
Heatmap = NDArray[np.float32]
"""(h, w) float32: what each place of the image adds to the logit, which is the mean plus a constant of the network."""
Heatmaps = NDArray[np.float32]
"""(N, h, w)."""

Device = Literal["auto", "cpu", "cuda"]

BEST_BATCH = 2
"""On a processor, whose caches hold what is computed of one image or two and not of many. Measured with
EfficientNet-Lite0 at 224 px on two cores, CPU time of an image in batches of 1, 2, 4 and 8: ONNX Runtime 4.8, 4.7, 5.2
and 5.7 ms; torch 14.7, 13.6, 16.2 and 20.3 ms."""


class Output(NamedTuple):
    """Of one forward pass."""

    scores: Scores
    heatmaps: Heatmaps | None = None
    """None where the network has none; see `Classifier.explains`."""


class Engine(Protocol):
    """Runs one model version. Stateless between calls, and computes for several callers: for `streams` at once, and
    has as many more as `runs_ahead` in hand.
    """

    @property
    def name(self) -> str:
        """What runs it, with its version: "torch 2.13.0"."""

    @property
    def device(self) -> str:
        """Where: "cpu", "cuda: NVIDIA H100". Where it begins with cuda, batches come in few sizes, in pinned memory."""

    @property
    def streams(self) -> int:
        """How many batches it computes side by side: whoever wants all it can do calls from so many threads."""

    @property
    def best_batch(self) -> int | None:
        """Images at once beyond which each of them costs no less; None where more are always better."""

    def infer(self, images: Images) -> Output:
        """One score and heatmap per image, in order. The images are the caller's again, to write into, once it returns;
        the output is, too. Any N from 1. May raise anything.
        """


Done = Callable[[Output | Exception], object]
"""Told what became of a pass, on any thread. It raises nothing, and returns soon: the engine may wait for it."""


@runtime_checkable
class Starting(Protocol):
    """What an engine may be besides: one that calls back. Whoever has images starts it and goes on, and no thread of
    ours waits for it.
    """

    def start(self, images: Images, done: Done) -> None:
        """As `infer`, begun; returns at once. `done` is called exactly once, perhaps before this returns, and nothing
        is raised: whatever goes wrong is told to `done`. Until then the engine reads the images, also after a failure.
        """

    def look(self) -> None:
        """To be called every second or so while something is under way, and when nothing is any more: tells of passes
        that ended without a word, and tidies up."""


@dataclass(frozen=True)
class Place:
    """Where an engine runs, and how much of the machine it takes."""

    device: Device = "auto"
    """auto: CUDA where the engine's library sees it."""
    threads: int = 0
    """Of the processor, for each stream; 0 shares all it has among the streams."""
    streams: int = 1

    @property
    def threads_each(self) -> int:
        """Threads of one stream where they are not left to the library; 0 where they are: one stream, told nothing."""
        if self.threads or self.streams == 1:
            return self.threads
        return max(1, len(os.sched_getaffinity(0)) // self.streams)


@dataclass(frozen=True)
class Form:
    """One way to run a version. Both functions raise ImportError where its library is not installed."""

    name: str
    """As the setting `engine` spells it."""
    extra: str
    """Of our package, which brings the library."""
    check: Callable[[Device], object]
    """Raises NotPossibleNow where the device is not there, or not for this form."""
    open: Callable[[Path, ModelCard, Place], Engine]
    reduced: bool = False
    """It computes in fewer bits than training did, so it must also keep every pinned image's verdict."""


def _check_torch(device: Device, *, bf16: bool = False) -> None:
    from inspectbus.inference.torch_engine import chosen_device

    chosen_device(device, bf16=bf16)


def _torch(folder: Path, card: ModelCard, place: Place, *, bf16: bool = False) -> Engine:
    from inspectbus.inference.torch_engine import TorchEngine

    return TorchEngine(folder, card, place, bf16=bf16)


def _check_onnxruntime(device: Device) -> None:
    from inspectbus.inference.onnx_engine import chosen_providers

    chosen_providers(device)


def _onnxruntime(folder: Path, card: ModelCard, place: Place) -> Engine:
    file = _export_of(folder, card)
    from inspectbus.inference.onnx_engine import OnnxEngine

    return OnnxEngine(file, place)


def _check_openvino(device: Device, *, bf16: bool = False) -> None:
    from inspectbus.inference.openvino_engine import check_processor

    check_processor(device, bf16=bf16)


def _openvino(folder: Path, card: ModelCard, place: Place, *, bf16: bool = False) -> Engine:
    file = _export_of(folder, card)
    from inspectbus.inference.openvino_engine import OpenVinoEngine

    return OpenVinoEngine(file, place, bf16=bf16)


def _export_of(folder: Path, card: ModelCard) -> Path:
    if card.export is None:
        raise NotPossibleNow(
            f"{card.name} {card.version} was made before versions had {EXPORT_FILE}, which this engine runs: "
            "train it anew, or set `engine` to torch",
            field="engine",
        )
    return folder / EXPORT_FILE


_forms = (
    Form("torch", "inference", _check_torch, _torch),
    Form("onnxruntime", "inference", _check_onnxruntime, _onnxruntime),
    Form("openvino", "openvino", _check_openvino, _openvino),
    Form("openvino-bf16", "openvino", partial(_check_openvino, bf16=True), partial(_openvino, bf16=True), reduced=True),
    Form("torch-bf16", "inference", partial(_check_torch, bf16=True), partial(_torch, bf16=True), reduced=True),
)
FORMS = {form.name: form for form in _forms}


def check_engine(name: str, device: Device) -> None:
    """What can be told of an engine without a model. Raises as `open_engine` does of its library and its device."""
    with _translated(name) as form:
        form.check(device)


def open_engine(name: str, folder: Path, card: ModelCard, place: Place) -> Engine:
    """The engine of that name for a verified version folder, not yet checked against its pinned images.

    Raises CorruptModel naming the file that is broken, NotPossibleNow when the engine's library, its device or the file
    that it runs is not there, BadField for a name nobody has.
    """
    with _translated(name) as form:
        return form.open(folder, card, place)


@contextmanager
def _translated(name: str) -> Iterator[Form]:
    if (form := FORMS.get(name)) is None:
        raise BadField(f"no engine {name!r}: there are {', '.join(FORMS)}", field="engine")
    try:
        yield form
    except ImportError as error:
        raise NotPossibleNow(
            f"engine {name} cannot be loaded: {error}; install inspectbus[{form.extra}], or set `engine` to another",
            field="engine",
        ) from error
