"""Does every engine keep the seam's promises, and say of an image what PyTorch says?"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import Queue
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from inspectbus.domain.model_version import EXPORT_FILE, Calibration, ModelCard
from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField, CorruptModel, NotPossibleNow
from inspectbus.inference.blocking import OnThreads
from inspectbus.inference.engine import FORMS, Engine, Images, Output, Place, Starting, check_engine, open_engine
from inspectbus.inference.pinned import check_pinned
from inspectbus.inference.settings import InferenceSettings
from inspectbus.stores.models import read_card
from tests.doubles.tiny_model import BRIGHT, DARK, flat_image, tiny_version

WIDTH, HEIGHT = 128, 64
PATIENCE_S = 30.0
BY_EXPORT = [name for name in FORMS if not name.startswith("torch")]
LIBRARIES = {"torch": "torch_engine", "onnxruntime": "onnx_engine", "openvino": "openvino_engine"}
"""And the module of ours that alone imports each."""


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    calibration = Calibration(temperature=1.5, bias=0.2, knots=((0, 0.02), (0.4, 0.5), (1, 0.97)))
    preparation = Preparation(width=WIDTH, height=HEIGHT)
    return tiny_version(
        tmp_path_factory.mktemp("versions"), preparation=preparation, calibration=calibration, exported=True
    )


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return available(request.param)


def available(name: str) -> str:
    try:
        check_engine(name, "auto")
    except NotPossibleNow as error:
        pytest.skip(error.message)
    return name


Open = Callable[..., Engine]


@pytest.fixture
def opened(form: str, version: Path) -> Open:
    def open_here(streams: int = 1, threads: int = 1) -> Engine:
        return open_engine(form, version, read_card(version), Place(threads=threads, streams=streams))

    return open_here


@pytest.fixture(scope="module")
def expected(version: Path) -> Callable[[Images], Output]:
    return open_engine("torch", version, read_card(version), Place("cpu", threads=1)).infer


def pictures(count: int, seed: int = 0) -> Images:
    """Dark to bright, each with a brighter place somewhere."""
    rng = np.random.default_rng(seed)
    made = np.stack([flat_image(int(level), WIDTH, HEIGHT) for level in rng.integers(DARK, BRIGHT, count)])
    for picture, x in zip(made, rng.integers(0, WIDTH - 32, count), strict=True):
        picture[16:48, x : x + 32] = BRIGHT
    return made


def assert_same(form: str, found: Output, expected: Output) -> None:
    """Within what the form's precision allows. bf16 has 8 bits, of logits between -5 and 5 and of what makes them."""
    reduced = FORMS[form].reduced
    np.testing.assert_allclose(found.scores, expected.scores, atol=0.02 if reduced else 1e-5)
    assert found.heatmaps is not None
    assert expected.heatmaps is not None
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps, atol=0.3 if reduced else 1e-3)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_scores_and_heatmaps_are_pytorchs_one_per_image_in_order(
    form: str, opened: Open, expected: Callable[[Images], Output], count: int
) -> None:
    images = pictures(count)

    found = opened().infer(images)

    assert found.heatmaps is not None
    assert found.scores.shape == (count,)
    assert found.heatmaps.shape == (count, 2, 4)
    assert found.scores.dtype == found.heatmaps.dtype == np.float32
    assert_same(form, found, expected(images))


def test_the_heat_lies_where_the_brightness_is(opened: Open) -> None:
    images = np.stack([flat_image(DARK, WIDTH, HEIGHT)] * 2)
    images[0, :, 64:], images[1, :, :64] = BRIGHT, BRIGHT

    heatmaps = opened().infer(images).heatmaps

    assert heatmaps is not None
    assert heatmaps[0, :, 3].min() > heatmaps[0, :, 0].max() + 1
    assert heatmaps[1, :, 0].min() > heatmaps[1, :, 3].max() + 1


def test_the_pinned_images_get_their_scores_and_verdicts(form: str, opened: Open, version: Path) -> None:
    engine = opened()
    for batch_size in (1, 8):
        deviation = check_pinned(
            lambda images: engine.infer(images).scores, version, read_card(version), batch_size, verdicts=True
        )
        assert deviation <= (0.02 if FORMS[form].reduced else 1e-5)


def test_an_image_is_judged_alike_whatever_shares_its_batch(form: str, opened: Open) -> None:
    engine, images = opened(), pictures(6)
    alone = [engine.infer(one[None]).scores[0] for one in images]
    together = engine.infer(images).scores
    np.testing.assert_allclose(together, alone, atol=0.01 if FORMS[form].reduced else 1e-5)


def test_as_many_threads_as_there_are_streams_get_each_its_own_answer(form: str, opened: Open) -> None:
    # Given an engine of three streams, and what it says of three batches one after the other
    engine = opened(streams=3)
    assert engine.streams == 3
    batches = [pictures(count, seed=count) for count in (1, 3, 4)]
    alone = [engine.infer(batch) for batch in batches]
    together = threading.Barrier(3)

    def judge(number: int) -> list[Output]:
        together.wait(PATIENCE_S)
        return [engine.infer(batches[number]) for _ in range(20)]

    # When three threads ask at the same time
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(judge, range(3), timeout=PATIENCE_S))

    # Then each hears of its own images, every time
    for number in range(3):
        for answer in answers[number]:
            assert_same(form, answer, alone[number])


@pytest.fixture
def starting(opened: Open) -> Iterator[Callable[[], Starting]]:
    """Opens engines of two streams as the batcher has them: what blocks is on threads."""
    with ExitStack() as house:

        def open_here() -> Starting:
            engine = opened(streams=2)
            if isinstance(engine, Starting):
                return engine
            on_threads = OnThreads(engine, 3)
            on_threads.open()
            house.callback(lambda: on_threads.close(time.monotonic() + PATIENCE_S))
            return on_threads

        yield open_here


def told_of(answer: Output | Exception) -> Output:
    assert isinstance(answer, Output), answer
    return answer


def test_what_is_started_is_told_once_each_with_its_own_answer(
    form: str, starting: Callable[[], Starting], expected: Callable[[Images], Output]
) -> None:
    engine = starting()
    batches = [pictures(1 + number % 3, seed=number) for number in range(12)]
    told: Queue[tuple[int, Output | Exception]] = Queue()
    for number, batch in enumerate(batches):
        engine.start(batch, lambda answer, number=number: told.put((number, answer)))  # type: ignore[misc]
    answers = [told.get(timeout=PATIENCE_S) for _ in batches]
    engine.look()
    assert sorted(number for number, _ in answers) == list(range(12))
    assert told.empty()
    for number, answer in answers:
        assert_same(form, told_of(answer), expected(batches[number]))


def test_whoever_is_told_may_start_the_next_at_once(form: str, starting: Callable[[], Starting]) -> None:
    # given images that are written anew for each pass as soon as the one before is told
    engine, together, of_each, before_s = starting(), 3, 60, sys.getswitchinterval()
    over: Queue[object] = Queue()

    def chain(bright: bool, images: Images, left: int, answer: Output | Exception) -> None:
        if isinstance(answer, Exception) or (answer.scores > 0.5).tolist() != [bright] * len(images):
            over.put(answer)
        elif not left:
            over.put(None)
        else:
            images[:] = DARK if bright else BRIGHT
            engine.start(images, partial(chain, not bright, images, left - 1))

    sys.setswitchinterval(1e-6)
    try:
        for number in range(together):
            images = np.full((1 + number, HEIGHT, WIDTH, 3), BRIGHT, np.uint8)
            engine.start(images, partial(chain, True, images, of_each))
        # then each hears of what it last wrote, every time
        assert [over.get(timeout=2 * PATIENCE_S) for _ in range(together)] == [None] * together
    finally:
        sys.setswitchinterval(before_s)


def test_what_was_given_and_what_was_got_are_the_callers_own(opened: Open) -> None:
    engine, slot = opened(), pictures(4)
    # Given an answer about the first images of a slot
    first = engine.infer(slot[:2])
    kept = Output(*(part.copy() for part in first if part is not None))
    # When the slot is filled anew, the engine runs again, and the caller writes into what it got
    slot[:] = pictures(4, seed=9)
    second = engine.infer(slot)
    second.scores[:] = 0
    # Then the first answer stands, and the images are as they were filled
    np.testing.assert_array_equal(first.scores, kept.scores)
    assert first.heatmaps is not None
    assert kept.heatmaps is not None
    np.testing.assert_array_equal(first.heatmaps, kept.heatmaps)
    np.testing.assert_array_equal(slot, pictures(4, seed=9))
    assert engine.infer(slot).scores.max() > 0


def test_it_says_what_and_where_it_is(form: str, opened: Open) -> None:
    engine = opened()
    assert engine.name.startswith(form.split("-")[0] + " ")
    assert engine.device == "cpu" or engine.device.startswith("cuda")


@pytest.mark.parametrize("name", BY_EXPORT)
def test_a_network_without_a_heatmap_gives_none(name: str, tmp_path: Path) -> None:
    backbone = "torchvision/mobilenet_v3_small"
    folder = tiny_version(tmp_path, backbone=backbone, exported=True)
    engine = open_engine(available(name), folder, read_card(folder), Place("cpu", threads=1))

    found = engine.infer(np.stack([flat_image(DARK), flat_image(BRIGHT)]))

    assert found.heatmaps is None
    assert found.scores[0] < 0.1 < 0.9 < found.scores[1]


def with_export(parent: Path, version: Path, data: bytes) -> tuple[Path, ModelCard]:
    """The version with another model.onnx, and a card that agrees: what hashes alone cannot find."""
    folder = parent / "changed"
    folder.mkdir()
    card = read_card(version)
    for file in card.files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data if file == EXPORT_FILE else (version / file).read_bytes())
    return folder, card.model_copy(update={"files": {**card.files, EXPORT_FILE: hashlib.sha256(data).hexdigest()}})


@pytest.mark.parametrize("name", BY_EXPORT)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_export_is_refused_by_its_name(name: str, share: float, version: Path, tmp_path: Path) -> None:
    whole = (version / EXPORT_FILE).read_bytes()
    folder, card = with_export(tmp_path, version, whole[: int(share * len(whole))])

    with pytest.raises(NotPossibleNow, match=EXPORT_FILE) as refused:
        open_engine(available(name), folder, card, Place("cpu", threads=1))

    assert refused.value.field == EXPORT_FILE


@pytest.mark.parametrize("name", BY_EXPORT)
@pytest.mark.parametrize("weights", ["network.backbone.conv_stem.weight", "network.head.weight"])
def test_an_export_whose_weights_are_no_numbers_fails_its_first_pinned_image(
    name: str, weights: str, version: Path, tmp_path: Path
) -> None:
    # Given an export with a NaN among its weights, and a card that agrees
    graph = onnx.load(version / EXPORT_FILE)
    found = next(each for each in graph.graph.initializer if each.name == weights)
    spoilt = numpy_helper.to_array(found).copy()
    spoilt.flat[0] = np.nan
    found.CopyFrom(numpy_helper.from_array(spoilt, weights))
    folder, card = with_export(tmp_path, version, graph.SerializeToString())
    engine = open_engine(available(name), folder, card, Place("cpu", threads=1))

    # Then the gate refuses the engine, by the image's name
    with pytest.raises(CorruptModel) as refused:
        check_pinned(lambda images: engine.infer(images).scores, folder, card, 2)
    assert refused.value.field == card.pinned[0].file


@pytest.mark.parametrize("name", BY_EXPORT)
def test_what_is_computed_without_numbers_is_no_score(name: str, version: Path, tmp_path: Path) -> None:
    """Some libraries' clamp makes 0 of NaN, which would call each part good."""
    graph = onnx.load(version / EXPORT_FILE)
    stem = next(each for each in graph.graph.initializer if each.name.startswith("network.backbone.conv_stem"))
    stem.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(stem), np.inf), stem.name))
    folder, card = with_export(tmp_path, version, graph.SerializeToString())

    scores = open_engine(available(name), folder, card, Place("cpu", threads=1)).infer(pictures(2)).scores

    assert np.isnan(scores).all()


@pytest.mark.parametrize("name", BY_EXPORT)
def test_a_version_from_before_there_were_exports_is_refused_by_what_it_lacks(
    name: str, version: Path, tmp_path: Path
) -> None:
    card = read_card(version).model_copy(update={"export": None})

    with pytest.raises(NotPossibleNow, match=r"before versions had model\.onnx.*set `engine` to torch") as refused:
        open_engine(available(name), version, card, Place("cpu"))

    assert refused.value.field == "engine"


@pytest.mark.parametrize("name", FORMS)
def test_an_engine_whose_library_is_not_installed_says_what_to_install(
    name: str, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a machine without the library
    library = next(library for library in LIBRARIES if name.startswith(library))
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"inspectbus.inference.{LIBRARIES[library]}", raising=False)

    for ask in (
        lambda: check_engine(name, "cpu"),
        lambda: open_engine(name, version, read_card(version), Place("cpu")),
    ):
        with pytest.raises(NotPossibleNow, match=rf"install inspectbus\[{FORMS[name].extra}\]") as refused:
            ask()
        assert refused.value.field == "engine"


def test_openvino_reports_to_nobody_that_it_is_used(tmp_path: Path) -> None:
    """Left alone it does so when it is imported, and keeps an id for it in the home folder."""
    available("openvino")
    ask = (
        "from inspectbus.inference import openvino_engine; from openvino.tools.ovc import telemetry_utils as found; "
        "print(found.tm.__name__)"
    )
    told = subprocess.run(
        [sys.executable, "-c", ask],
        env={"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert told.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("name", FORMS)
def test_a_device_that_is_not_there_is_refused(name: str, version: Path) -> None:
    for ask in (
        lambda: check_engine(name, "cuda"),
        lambda: open_engine(name, version, read_card(version), Place("cuda")),
    ):
        with pytest.raises(NotPossibleNow) as refused:
            ask()
        assert refused.value.field == "device"


def test_every_engine_can_be_asked_for_by_the_setting() -> None:
    asked = set(get_args(InferenceSettings.model_fields["engine"].annotation)) - {"auto"}
    assert asked == set(FORMS)


def test_a_name_nobody_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadField, match="onnxruntime") as refused:
        check_engine("onyx", "cpu")
    assert refused.value.field == "engine"


@pytest.mark.parametrize(
    ("place", "threads"), [(Place(), 0), (Place(threads=3), 3), (Place(streams=2, threads=3), 3), (Place(streams=2), 4)]
)
def test_streams_that_are_told_no_threads_share_the_processor(
    place: Place, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(9)))
    assert place.threads_each == threads
