"""Does OpenVINO tell of every pass, also of one that fails on its way, and let go of what it was given?"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from inspectbus.inference.engine import Images, Output, Place

pytest.importorskip("openvino")

from inspectbus.inference.openvino_engine import OpenVinoEngine

PATIENCE_S = 30.0
SIDE = 4
SOUND, FAILING = 48, 47
"""The network reshapes the 48 values of an image into rows of as many as its brightest value says."""


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its score is the brightest value. What cannot be reshaped fails when it is computed, and not before."""
    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["values"], ["brightest"], keepdims=0),
        helper.make_node("Cast", ["brightest"], ["count"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["count", "first"], ["columns"]),
        helper.make_node("Concat", ["columns", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["values", "shape"], ["rows"]),
        helper.make_node("ReduceMax", ["rows"], ["of_each"], axes=[0], keepdims=0),
        helper.make_node("ReduceMean", ["of_each"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "first"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightest",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1])],
        [
            helper.make_tensor("first", TensorProto.INT64, [1], [0]),
            helper.make_tensor("rest", TensorProto.INT64, [1], [-1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    file = tmp_path_factory.mktemp("export") / "model.onnx"
    onnx.save(model, file)
    return file


@pytest.fixture
def engine(export: Path) -> OpenVinoEngine:
    return OpenVinoEngine(export, Place("cpu", threads=1, streams=2))


def images(*levels: int) -> Images:
    return np.stack([np.full((SIDE, SIDE, 3), level, np.uint8) for level in levels])


def started(engine: OpenVinoEngine, given: Images) -> Queue[Output | Exception]:
    told: Queue[Output | Exception] = Queue()
    engine.start(given, told.put)
    return told


@pytest.mark.parametrize("levels", [(FAILING,), (SOUND, FAILING, SOUND), (FAILING, FAILING)])
def test_a_pass_of_which_an_image_fails_on_its_way_is_told_once_and_the_next_is_computed(
    engine: OpenVinoEngine, levels: tuple[int, ...]
) -> None:
    with pytest.raises(RuntimeError):
        engine.infer(images(*levels))
    told = started(engine, images(SOUND, 24))
    answer = told.get(timeout=PATIENCE_S)
    engine.look()
    assert isinstance(answer, Output)
    assert answer.scores.tolist() == [SOUND, 24]
    assert told.empty()


def test_a_pass_whose_start_fails_in_the_middle_is_told_when_none_reads_its_images_any_more(
    engine: OpenVinoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a library that has no third request
    had, find = 0, engine.request

    def request() -> Any:
        nonlocal had
        had += 1
        if had == 3:
            raise RuntimeError("no memory for a request")
        return find()

    monkeypatch.setattr(engine, "request", request)
    told = started(engine, images(*[SOUND] * 4))
    assert "no memory for a request" in str(told.get(timeout=PATIENCE_S))
    assert told.empty()
    assert engine.infer(images(SOUND)).scores.tolist() == [SOUND]


def test_a_library_that_refuses_to_begin_is_told_of_and_nothing_is_raised(engine: OpenVinoEngine) -> None:
    told = started(engine, np.zeros((1, SIDE + 1, SIDE, 3), np.uint8))
    assert isinstance(told.get(timeout=PATIENCE_S), RuntimeError)


def test_whoever_is_told_and_raises_brings_nothing_down(engine: OpenVinoEngine) -> None:
    reached: Queue[None] = Queue()

    def raises(answer: Output | Exception) -> None:
        reached.put(None)
        raise ValueError("a fault of ours")

    for _ in range(20):  # told by the library's thread, or by ours where it was quicker than we
        engine.start(images(SOUND), raises)
        reached.get(timeout=PATIENCE_S)
    assert engine.infer(images(SOUND)).scores.tolist() == [SOUND]


def test_the_thread_that_calls_back_is_no_stranger_each_time(engine: OpenVinoEngine) -> None:
    here, told = threading.local(), Queue[tuple[int, bool]]()

    def done(_: Output | Exception) -> None:
        told.put((threading.get_ident(), hasattr(here, "met")))
        here.met = True

    met: list[tuple[int, bool]] = []
    for _ in range(20):
        engine.start(images(SOUND), done)
        met.append(told.get(timeout=PATIENCE_S))
    # some were perhaps told on our own thread, where the library was quicker than we
    theirs = [(thread, known) for thread, known in met if thread != threading.get_ident()]
    assert len(theirs) > len(dict(theirs)), "no thread of the library's came twice"
    assert sum(not known for _, known in theirs) == len(dict(theirs)), "a thread came as a stranger again"


def test_it_lets_go_of_its_memory_when_nobody_refers_to_it_any_more(export: Path, engine: OpenVinoEngine) -> None:
    gc.disable()
    try:
        asked, told = (OpenVinoEngine(export, Place("cpu", threads=1, streams=2)) for _ in range(2))
        assert asked.infer(images(SOUND, 24)).scores.tolist() == [SOUND, 24]
        assert isinstance(started(told, images(SOUND, 24)).get(timeout=PATIENCE_S), Output)
        first, second = weakref.ref(asked), weakref.ref(told)
        del asked, told
        assert first() is None
        # the other was perhaps let go in its own callback, which then must not end it: whoever looks next does
        until_s = time.monotonic() + PATIENCE_S
        while second() is not None:
            assert time.monotonic() < until_s
            engine.look()
    finally:
        gc.enable()


def test_whoever_is_told_may_let_the_engine_go_at_once(export: Path, engine: OpenVinoEngine) -> None:
    """The library ends a request only once its callback has returned: within that it would wait for itself."""
    alone = [OpenVinoEngine(export, Place("cpu", threads=1))]
    gone = weakref.ref(alone[0])
    told: Queue[Output | Exception] = Queue()

    def done(answer: Output | Exception) -> None:
        alone.clear()
        told.put(answer)

    alone[0].start(images(SOUND), done)
    assert isinstance(told.get(timeout=PATIENCE_S), Output)
    until_s = time.monotonic() + PATIENCE_S
    while gone() is not None:
        assert time.monotonic() < until_s
        engine.look()
