"""ONNX Runtime as an engine: a version's model.onnx on the processor, or by its provider on CUDA.

images (N, H, W, 3) uint8 ─> session of model.onnx ─> scores and heatmaps

One session serves all streams: each caller's thread computes, with helpers from the session's one pool.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf

from inspectbus.domain.model_version import EXPORT_FILE
from inspectbus.errors import CorruptModel, NotPossibleNow
from inspectbus.inference.engine import BEST_BATCH, Device, Images, Output, Place

Providers = list[str | tuple[str, dict[str, str]]]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
BY_CUDA: Providers = [
    # The default tries every algorithm anew for each size of batch, on live frames.
    (CUDA, {"cudnn_conv_algo_search": "HEURISTIC"}),
    CPU,
]
DEVICES = {CPU: "cpu", CUDA: "cuda"}


class OnnxEngine:
    def __init__(self, file: Path, place: Place) -> None:
        providers = chosen_providers(place.device)
        options = onnxruntime.SessionOptions()
        # The caller's thread works too: a pool of n has n - 1 helpers, here those of all streams together.
        each = place.threads_each
        options.intra_op_num_threads = place.streams * (each - 1) + 1 if each else 0
        options.inter_op_num_threads = 1
        # Helpers that wait must sleep: one that spins takes its core from the doors, and from whoever else is there.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._streams = place.streams
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=providers)
        except InvalidProtobuf as error:
            raise CorruptModel(f"{EXPORT_FILE} cannot be read: {error}"[:500], field=EXPORT_FILE) from error
        except Exception as error:  # its faults have no common base; a graph that is whole may be none for this release
            raise NotPossibleNow(f"onnxruntime refuses {EXPORT_FILE}: {error}"[:500], field=EXPORT_FILE) from error
        self._provider: str = self._session.get_providers()[0]
        if providers is BY_CUDA and self._provider != CUDA:
            # It only logs a warning, and would compute on the processor in its place.
            raise NotPossibleNow(
                f"onnxruntime could not start its {CUDA}, though it was built with it: its log says why; mend it, or "
                "set `device` to cpu",
                field="device",
            )
        self._images: str = self._session.get_inputs()[0].name

    @property
    def name(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}"

    @property
    def device(self) -> str:
        return DEVICES[self._provider]

    @property
    def streams(self) -> int:
        return self._streams

    @property
    def best_batch(self) -> int | None:
        return BEST_BATCH if self.device == "cpu" else None

    def infer(self, images: Images) -> Output:
        return Output(*self._session.run(None, {self._images: images}))


def chosen_providers(device: Device) -> Providers:
    """ONNX Runtime's names, the one that is meant first. Raises NotPossibleNow when it is not in the build we have."""
    if device != "cpu" and CUDA in onnxruntime.get_available_providers():
        return BY_CUDA
    if device == "cuda":
        raise NotPossibleNow(
            f"the onnxruntime that is installed has no {CUDA}: install onnxruntime-gpu in its place, or set `device` "
            "to cpu",
            field="device",
        )
    return [CPU]
