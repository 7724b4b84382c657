"""ONNX Runtime as an engine: a version's model.onnx on the processor, or by one of its providers on CUDA.

images (N, H, W, 3) uint8 ─> session of model.onnx ─> scores and heatmaps

One session serves all streams: each caller's thread computes, with helpers from the session's one pool.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf

from inspectbus.domain.model_version import EXPORT_FILE
from inspectbus.errors import CorruptModel, NotPossibleNow
from inspectbus.inference.engine import Device, Images, Output, Place

Providers = list[str | tuple[str, dict[str, str]]]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
BY_CUDA: Providers = [
    # The default tries every algorithm anew for each size of batch, on live frames.
    (CUDA, {"cudnn_conv_algo_search": "HEURISTIC"}),
    CPU,
]
BY_TENSORRT: Providers = [TENSORRT, *BY_CUDA]
DEVICES = {CPU: "cpu", CUDA: "cuda", TENSORRT: "cuda: TensorRT"}


class OnnxEngine:
    def __init__(self, file: Path, place: Place, *, tensorrt: bool = False) -> None:
        providers = chosen_providers(place.device, tensorrt=tensorrt)
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
        if self._provider != _name(providers[0]):
            # It only logs a warning, and would compute on the processor in its place.
            raise NotPossibleNow(
                f"onnxruntime could not start its {_name(providers[0])}, though it was built with it: its log says "
                "why; mend it, or set `device` to cpu",
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

    def infer(self, images: Images) -> Output:
        return Output(*self._session.run(None, {self._images: images}))


def chosen_providers(device: Device, *, tensorrt: bool = False) -> Providers:
    """ONNX Runtime's names, the one that is meant first. Raises NotPossibleNow when it is not in the build we have."""
    available = onnxruntime.get_available_providers()
    if tensorrt and device == "cpu":
        raise NotPossibleNow("onnxruntime-tensorrt runs on CUDA, and `device` is cpu", field="device")
    if not tensorrt and (device == "cpu" or (device == "auto" and CUDA not in available)):
        return [CPU]
    wanted = BY_TENSORRT if tensorrt else BY_CUDA
    if (name := _name(wanted[0])) not in available:
        raise NotPossibleNow(
            f"the onnxruntime that is installed has no {name}: install onnxruntime-gpu in its place, or set `device` "
            "and `engine` to others",
            field="device",
        )
    return wanted


def _name(provider: str | tuple[str, dict[str, str]]) -> str:
    return provider if isinstance(provider, str) else provider[0]
