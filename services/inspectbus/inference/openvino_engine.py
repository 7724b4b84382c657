"""OpenVINO as an engine: a version's model.onnx on the processor, in float32 or in bf16.

images (N, H, W, 3) uint8 ─> a request for each ─> the first stream that is idle ─> scores and heatmaps

It is compiled for one image: on a processor a batch saves nothing, and a network whose batch may have any size is
planned anew whenever the size changes. Measured with EfficientNet-Lite0 in bf16 at 224 px on two cores, CPU time of an
image: one by one 2.2 ms; a network for any size 2.4 to 2.6 ms while the size stays, 2.8 to 3.1 ms while it changes.

In bf16 the network computes in half precision; what makes a score of its logit stays float32.
"""

from __future__ import annotations

import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspectbus.domain.model_version import EXPORT_FILE
from inspectbus.errors import NotPossibleNow
from inspectbus.inference.engine import Device, Images, Output, Place

# Importing openvino tells its maker so, over the network, with an id that it keeps in the home folder. Where the
# package that does so is missing, it has a stub for it. What a plant runs is nobody else's business.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402


class _Request(NamedTuple):
    """For one image at a time."""

    request: Any
    outputs: list[NDArray[np.float32]]
    """Its own memory, where it leaves what it computed: (1,) scores and, where there are some, (1, h, w) heatmaps."""


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
            model = core.read_model(file)
            model.reshape([1, *list(model.input(0).partial_shape)[1:]])
            self._compiled = core.compile_model(model, "CPU", how)
        except RuntimeError as error:  # its one kind, whether the file is broken or too new
            last = (str(error).strip().splitlines() or [""])[-1]
            raise NotPossibleNow(f"openvino refuses {EXPORT_FILE}: {last}"[:500], field=EXPORT_FILE) from error
        # A thread finds one for each image, or makes one, and lays it back.
        self._idle: deque[_Request] = deque()

    @property
    def name(self) -> str:
        return f"openvino {openvino.__version__.split('-')[0]}" + (", bf16" if self._bf16 else "")

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def streams(self) -> int:
        return self._streams

    @property
    def best_batch(self) -> None:
        return None  # none is saved here, but whoever asks has less to do for each

    def infer(self, images: Images) -> Output:
        requests: list[_Request] = []
        try:
            for number in range(len(images)):
                requests.append(self._request())
                request = requests[-1].request
                # Read where it lies: its own door for arrays would look at each anew, for what we know.
                request.set_input_tensor(openvino.Tensor(images[number : number + 1], shared_memory=True))
                request.start_async()
            for request, _ in reversed(requests):  # so that this thread is woken once, by the last
                request.wait()
            output = Output(*map(np.concatenate, zip(*(of for _, of in requests), strict=True)))
        except Exception:
            for request, _ in requests:  # none may read the caller's memory any more
                with suppress(Exception):
                    request.wait()
            raise
        finally:
            self._idle.extend(requests)
        if output.heatmaps is not None:
            # Its clamp makes 0 of what is no number: a score, and of a sound part. The heatmap has no clamp.
            output.scores[~np.isfinite(output.heatmaps).all(axis=(1, 2))] = np.nan
        return output

    def _request(self) -> _Request:
        try:
            return self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
            outputs = [request.get_output_tensor(at).data for at in range(len(self._compiled.outputs))]
            return _Request(request, outputs)


def check_processor(device: Device, *, bf16: bool = False) -> None:
    """Raises NotPossibleNow when something else is meant, or the processor has no bf16."""
    if device == "cuda":
        raise NotPossibleNow("openvino runs on the processor, and device cuda was asked for", field="device")
    if bf16 and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotPossibleNow("this processor has no bf16, and openvino would only imitate it", field="device")
