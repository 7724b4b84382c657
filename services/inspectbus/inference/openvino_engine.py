"""OpenVINO as an engine: a version's model.onnx on the processor, in float32 or in bf16.

images (N, H, W, 3) uint8 ─> a request for each ─> the first stream that is idle ─> scores and heatmaps
                                                                                 └> the last one of a pass: done

It is compiled for one image: on a processor a batch saves nothing, and a network whose batch may have any size is
planned anew whenever the size changes. Measured with EfficientNet-Lite0 in bf16 at 224 px on two cores, CPU time of an
image: one by one 2.2 ms; a network for any size 2.4 to 2.6 ms while the size stays, 2.8 to 3.1 ms while it changes.

In bf16 the network computes in half precision; what makes a score of its logit stays float32.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from inspectbus.domain.model_version import EXPORT_FILE
from inspectbus.errors import NotPossibleNow
from inspectbus.inference.engine import Device, Done, Images, Output, Place

# Importing openvino tells its maker so, over the network, with an id that it keeps in the home folder. Where the
# package that does so is missing, it has a stub for it. What a plant runs is nobody else's business.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402

log = structlog.get_logger(__name__)

LOOK_S = 1.0
"""After so long without a word a request is asked whether it has failed."""


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
            first = _Request(self._compiled)
        except RuntimeError as error:  # its one kind, whether the file is broken or too new
            last = (str(error).strip().splitlines() or [""])[-1]
            raise NotPossibleNow(f"openvino refuses {EXPORT_FILE}: {last}"[:500], field=EXPORT_FILE) from error
        self._shapes = [output.shape[1:] for output in first.outputs]
        # Whoever starts finds one for each image, or makes one.
        self._idle = deque([first])

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
        answers: list[Output | Exception] = []
        told = threading.Event()

        def done(answer: Output | Exception) -> None:
            answers.append(answer)
            told.set()

        self.start(images, done)
        while not told.wait(LOOK_S):
            self.look()
        _lay_back(wait_s=LOOK_S)  # so that whoever has the answer may let the engine go
        (answer,) = answers
        if isinstance(answer, Exception):
            raise answer
        return answer

    def start(self, images: Images, done: Done) -> None:
        _Pass(self, images, [np.empty((len(images), *shape), np.float32) for shape in self._shapes], done).start()

    def look(self) -> None:
        _lay_back()
        # The library calls back for what is computed and not, from Python, for what fails.
        before_s = time.monotonic() - LOOK_S
        for one in list(_under_way):
            if one.engine is self and one.begun_s < before_s:
                one.look()

    def request(self) -> _Request:
        """One that is idle."""
        try:
            return self._idle.popleft()
        except IndexError:
            return _Request(self._compiled)

    def lay_back(self, request: _Request) -> None:
        self._idle.append(request)


_returning: dict[int, tuple[OpenVinoEngine, _Request]] = {}
"""By thread of the library: what called back there last, and may not have returned.

While a request calls back it has no callback: started again, and computed meanwhile, it would end unheard. Nor may its
engine be let go there: the end of a request waits for its callback. So both are kept here, until another request calls
back on the thread or the library says that this one is over.
"""
_moving = threading.Lock()
"""Of what is in there."""


def _returns(engine: OpenVinoEngine, request: _Request) -> None:
    """On the library's thread, in the request's callback."""
    thread = threading.get_ident()
    with _moving:
        before = _returning.get(thread)
        _returning[thread] = (engine, request)
    if before is not None:
        before[0].lay_back(before[1])


def _lay_back(wait_s: float = 0.0) -> None:
    """What has returned. On a thread of ours; waits so long for each."""
    for thread, one in list(_returning.items()):
        engine, request = one
        if request.is_over(wait_s)[0]:
            with _moving:
                ours = _returning.get(thread) is one
                if ours:
                    del _returning[thread]
            if ours:
                engine.lay_back(request)


class _Request:
    """For one image at a time."""

    def __init__(self, compiled: Any) -> None:
        self.ov = compiled.create_infer_request()
        self.outputs: list[NDArray[np.float32]] = [
            self.ov.get_output_tensor(at).data for at in range(len(compiled.outputs))
        ]
        """Its own memory, where it leaves what it computed: (1,) scores and, where there are some, (1, h, w) heatmaps.
        """
        self.of: _Pass | None = None
        # Weakly: Python's garbage collector does not see what the library keeps.
        self.ov.set_callback(_called_back, weakref.ref(self))

    def is_over(self, wait_s: float = 0.0) -> tuple[bool, Exception | None]:
        """Whether it is computed and has called back, or has failed; and of what."""
        try:
            return self.ov.wait_for(round(1000 * wait_s)), None
        except Exception as failure:  # what was raised in the library, and not said
            return True, failure


def _called_back(asked: weakref.ref[_Request]) -> None:
    """By the library, on a thread of its own, when the request's image is computed."""
    try:
        _stay()
        if (request := asked()) is not None and (one := request.of) is not None:
            one.computed(request)
    except BaseException:  # not ours any more, but the library's, which could only drop it
        log.exception("what became of an image could not be told")


_here = threading.local()


def _stay() -> None:
    """Keeps what Python knows of this thread, which it would make anew for each callback, and forget after it: of the
    50 us of processor that an image costs beside its computing that is 15."""
    if not hasattr(_here, "stays"):
        ctypes.pythonapi.PyGILState_Ensure()  # and never released
        _here.stays = True


_under_way: set[_Pass] = set()
"""While the library computes, nobody else need refer to a pass."""


class _Pass:
    """Images on their way through the network, a request for each."""

    def __init__(self, engine: OpenVinoEngine, images: Images, outputs: list[NDArray[np.float32]], done: Done) -> None:
        self.engine = engine
        self.begun_s = time.monotonic()
        self._images = images
        self._outputs = outputs
        self._done = done
        self._places: dict[_Request, int] = {}
        """Of the images that are being computed. Whoever takes one out counts it."""
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._to_come = len(images) + 1
        """And that all are started."""

    def start(self) -> None:
        _under_way.add(self)
        for place in range(len(self._images)):
            try:
                self._start(place)
            except Exception as error:  # its one kind is RuntimeError, but those before are under way in any case
                self._error = error
                self._came(len(self._images) - place)
                break
        self._came(1)

    def _start(self, place: int) -> None:
        request = self.engine.request()
        # Read where it lies: its own door for arrays would look at each anew, for what we know.
        request.ov.set_input_tensor(openvino.Tensor(self._images[place : place + 1], shared_memory=True))
        request.of = self
        self._places[request] = place
        try:
            request.ov.start_async()
        except Exception:  # whatever it is, it never began
            self._left(request)
            raise

    def computed(self, request: _Request) -> None:
        place = self._left(request)
        if place is None:
            return
        try:
            self._keep(request, place)
        except Exception as error:  # whatever it is, the pass ends
            self._error = error
        _returns(self.engine, request)
        self._came(1)

    def look(self) -> None:
        for request in list(self._places):
            over, error = request.is_over()
            # One that has called back is ours no more. One that has failed is not used again.
            if over and self._left(request) is not None:
                self._error = error or RuntimeError("openvino ended a request without a word")
                self._came(1)

    def _left(self, request: _Request) -> int | None:
        """The request's place, for the first that asks."""
        place = self._places.pop(request, None)
        if place is not None:
            request.of = None
        return place

    def _keep(self, request: _Request, place: int) -> None:
        for output, found in zip(self._outputs, request.outputs, strict=True):
            output[place] = found[0]
        # Its clamp makes 0 of what is no number: a score, and of a sound part. The heatmap has no clamp.
        if len(self._outputs) > 1 and not np.isfinite(request.outputs[1]).all():
            self._outputs[0][place] = np.nan

    def _came(self, count: int) -> None:
        with self._lock:
            self._to_come -= count
            last = not self._to_come
        if last:
            _under_way.discard(self)
            try:
                self._done(self._error or Output(*self._outputs))
            except Exception:  # it promised to raise nothing; neither whoever starts nor the library can help it
                log.exception("what an engine found could not be told")


def check_processor(device: Device, *, bf16: bool = False) -> None:
    """Raises NotPossibleNow when something else is meant, or the processor has no bf16."""
    if device == "cuda":
        raise NotPossibleNow("openvino runs on the processor, and device cuda was asked for", field="device")
    if bf16 and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotPossibleNow("this processor has no bf16, and openvino would only imitate it", field="device")
