"""OpenVINO as an engine: a version's model.onnx on the processor, in float32 or in bf16.

images (N, H, W, 3) uint8 ─> a request that is idle ─> one of the compiled model's streams ─> scores and heatmaps

In bf16 the network computes in half precision; what makes a score of its logit stays float32.
"""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from inspectbus.domain.model_version import EXPORT_FILE
from inspectbus.errors import NotPossibleNow
from inspectbus.inference.engine import Device, Images, Output, Place

# Importing openvino tells its maker so, over the network, with an id that it keeps in the home folder. Where the
# package that does so is missing, it has a stub for it. What a plant runs is nobody else's business.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402


class OpenVinoEngine:
    def __init__(self, file: Path, place: Place, *, bf16: bool = False) -> None:
        check_processor(place.device, bf16=bf16)
        self._bf16 = bf16
        self._streams = place.streams
        how = {
            "NUM_STREAMS": place.streams,
            # Told in any case: left alone, it takes bf16 wherever the processor has it.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            # Two services of one machine would bind their threads to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        if threads := place.threads_each:
            how["INFERENCE_NUM_THREADS"] = threads * place.streams
        core = openvino.Core()
        try:
            self._compiled = core.compile_model(core.read_model(file), "CPU", how)
        except RuntimeError as error:  # its one kind, whether the file is broken or too new
            last = (str(error).strip().splitlines() or [""])[-1]
            raise NotPossibleNow(f"openvino refuses {EXPORT_FILE}: {last}"[:500], field=EXPORT_FILE) from error
        # A request runs one batch at a time; a thread finds one, or makes one, and lays it back.
        self._idle: deque[Any] = deque()

    @property
    def name(self) -> str:
        return f"openvino {openvino.__version__.split('-')[0]}" + (", bf16" if self._bf16 else "")

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def streams(self) -> int:
        return self._streams

    def infer(self, images: Images) -> Output:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            # Reads the caller's memory without a copy, and gives copies of its own outputs.
            output = Output(*request.infer(images, share_inputs=True).to_tuple())
        finally:
            self._idle.append(request)
        if output.heatmaps is not None:
            # Its clamp makes 0 of what is no number: a score, and of a sound part. The heatmap has no clamp.
            output.scores[~np.isfinite(output.heatmaps).all(axis=(1, 2))] = np.nan
        return output


def check_processor(device: Device, *, bf16: bool = False) -> None:
    """Raises NotPossibleNow when something else is meant, or the processor has no bf16."""
    if device == "cuda":
        raise NotPossibleNow("openvino runs on the processor, and device cuda was asked for", field="device")
    if bf16 and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotPossibleNow("this processor has no bf16, and openvino would only imitate it", field="device")
