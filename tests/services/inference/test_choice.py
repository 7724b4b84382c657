"""With `auto` the fastest engine that passes the version's gate judges; the others say why not, and nothing is measured
twice.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inspectbus.api.v1.decision_pb2 import HOLD_REASON_NO_MODEL
from inspectbus.api.v1.inference_pb2 import InferRequest
from inspectbus.domain.model_version import EXPORT_FILE, ModelCard
from inspectbus.errors import CorruptModel, InspectBusError, NotPossibleNow
from inspectbus.imaging.pixels import to_pixels
from inspectbus.inference import choice as room
from inspectbus.inference.choice import (
    CHOICES_FILE,
    MOST_REMEMBERED,
    MOST_ROUNDS,
    Choice,
    check_engines,
    chosen_engine,
    race,
)
from inspectbus.inference.engine import FORMS, Engine, Images, Output, Place
from inspectbus.inference.settings import InferenceSettings
from inspectbus.stores.models import read_card
from tests.doubles.inference_service import Running
from tests.doubles.prepared_frames import prepared_frame
from tests.doubles.tiny_model import BRIGHT, DARK, flat_image, tiny_version

PATIENCE_S = 20.0
FULL, HALF = "onnxruntime", "openvino-bf16"


class Clock:
    """Seconds that pass only when an engine computes."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Paced:
    """An engine that gives the pinned images their scores, each in `image_s`; or scores so much `off`."""

    clock: Clock
    card: ModelCard
    image_s: float
    off: float = 0.0
    streams: int = 1
    name: str = "paced"
    device: str = "here"
    best_batch: int | None = None
    sizes: set[int] = field(default_factory=set)
    """Of the batches it was given."""

    def infer(self, images: Images) -> Output:
        self.sizes.add(len(images))
        self.clock.now_s += self.image_s * len(images)
        way = (images.reshape(len(images), -1).mean(1) - DARK) / (BRIGHT - DARK)
        dark, bright = (image.score for image in self.card.pinned)
        return Output((dark + way * (bright - dark) + self.off).astype(np.float32))


@dataclass
class Machine:
    """What is installed on it, and what was opened so far."""

    folder: Path
    card: ModelCard
    state: Path
    clock: Clock
    engines: dict[str, Engine | Exception]
    opened: list[str]

    def has(self, name: str, image_s: float, off: float = 0.0) -> None:
        self.engines[name] = Paced(self.clock, self.card, image_s, off)

    def choose(self, engine: Any = "auto", alike: Choice | None = None, **how: Any) -> Choice:
        self.opened.clear()
        settings = InferenceSettings(**{"state_dir": self.state, "engine": engine, "max_batch_size": 8, **how})
        return chosen_engine(settings, self.folder, self.card, self.clock, alike=alike)[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_version(tmp_path_factory.mktemp("exported"), exported=True)


@pytest.fixture
def machine(version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(version, read_card(version), tmp_path / "state", Clock(), {}, [])

    def open_here(name: str, folder: Path, card: ModelCard, place: Place) -> Engine:
        machine.opened.append(name)
        found = machine.engines.get(name, NotPossibleNow(f"{name} is not installed", field="engine"))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(room, "open_engine", open_here)
    return machine


def reasons(choice: Choice) -> dict[str, str]:
    return {each.name: each.reason for each in choice.candidates}


def speeds(choice: Choice) -> dict[str, float | None]:
    return {each.name: each.images_per_s for each in choice.candidates if not each.reason}


def test_the_fastest_is_taken_and_each_says_its_figures(machine: Machine) -> None:
    machine.has("torch", 0.02)
    machine.has("onnxruntime", 0.005)
    machine.has("openvino-bf16", 0.002, off=0.001)

    choice = machine.choose()

    assert choice.chosen == "openvino-bf16"
    assert speeds(choice) == {"torch": 50, "onnxruntime": 200, "openvino-bf16": 500}
    assert choice.measured_at_s is not None
    deviations = {each.name: each.deviation for each in choice.candidates if each.deviation is not None}
    assert deviations == pytest.approx({"torch": 0, "onnxruntime": 0, "openvino-bf16": 0.001}, abs=1e-6)
    assert reasons(choice)["openvino"] == "openvino is not installed"
    assert "not offered" in reasons(choice)["openvino-int8"]
    assert set(reasons(choice)) == {*FORMS, "openvino-int8"}


def test_of_two_that_are_alike_the_one_in_full_precision_is_taken(machine: Machine) -> None:
    machine.has(FULL, 0.00103)
    machine.has(HALF, 0.001)
    assert machine.choose().chosen == FULL


def test_a_race_is_of_batches_that_end_soon_and_leaves_no_thread_behind(machine: Machine) -> None:
    machine.has("torch", 0.001)
    machine.has("onnxruntime", 0.001)
    assert set(speeds(machine.choose(max_batch_size=500)).values()) == {1000}
    # The gate runs a whole batch and the eight smallest of each, and the race rounds of 32 images by two engines
    assert machine.clock.now_s == pytest.approx(2 * (0.502 + 0.036) + MOST_ROUNDS * 2 * 0.032)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("race-")]


@pytest.mark.parametrize(("device", "sizes"), [("here", {1, 2, 3, 4, 5, 6}), ("cuda:0", {1, 2, 4, 6})])
def test_an_engine_has_met_each_size_of_batch_before_it_judges(machine: Machine, device: str, sizes: set[int]) -> None:
    engine = Paced(machine.clock, machine.card, 0.001, device=device)
    machine.engines[FULL] = engine

    machine.choose(engine=FULL, max_batch_size=6)

    assert engine.sizes == sizes


def test_one_alone_is_not_measured(machine: Machine) -> None:
    machine.has("torch", 0.02)
    choice = machine.choose()
    assert (choice.chosen, choice.measured_at_s) == ("torch", None)
    assert speeds(choice) == {"torch": None}


def test_what_was_measured_is_remembered_and_the_gate_is_passed_all_the_same(machine: Machine) -> None:
    machine.has(FULL, 0.002)
    machine.has(HALF, 0.001)
    first = machine.choose()
    assert machine.opened == list(FORMS)
    before_s = machine.clock.now_s

    again = machine.choose()

    assert again == first
    assert machine.opened == [HALF]
    assert machine.clock.now_s > before_s


@pytest.mark.parametrize(
    "change",
    [
        lambda machine, patch: patch.setattr(room, "_installed", lambda library: "another release"),
        lambda machine, patch: patch.setattr(room, "_machine", lambda: {"processor": "another"}),
        lambda machine, patch: setattr(machine, "card", machine.card.model_copy(update={"seed": 7})),
    ],
    ids=["library", "machine", "version"],
)
def test_another_library_machine_or_version_is_measured_anew(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, change: Callable[[Machine, pytest.MonkeyPatch], None]
) -> None:
    machine.has(FULL, 0.002)
    machine.has(HALF, 0.001)
    machine.choose()

    change(machine, monkeypatch)
    machine.has(FULL, 0.0001)

    assert machine.choose().chosen == FULL


def test_other_streams_threads_or_batches_are_measured_anew(machine: Machine) -> None:
    machine.has(FULL, 0.002)
    machine.has(HALF, 0.001)
    machine.choose()
    for how in ({"streams": 2}, {"threads": 2}, {"device": "cpu"}):
        machine.choose(**how)
        assert FULL in machine.opened


def test_beside_a_version_of_the_same_network_its_engine_is_taken_unmeasured_once_it_passes(machine: Machine) -> None:
    # given an engine that was chosen for one version
    machine.has("torch", 0.02)
    machine.has(FULL, 0.002)
    machine.has(HALF, 0.001, off=0.001)
    before = machine.choose()
    # when another version of the network comes beside it
    machine.card = machine.card.model_copy(update={"seed": 7})
    machine.has(HALF, 0.001, off=0.002)
    beside = machine.choose(alike=before)
    # then that one alone is tried, and nothing is said of the others' scores
    assert machine.opened == [HALF]
    assert beside.chosen == HALF
    assert speeds(beside) == {HALF: 1000}
    deviations = {each.name: each.deviation for each in beside.candidates if each.deviation is not None}
    assert deviations == pytest.approx({HALF: 0.002}, abs=1e-6)
    assert "not tried" in reasons(beside)[FULL]
    assert "not offered" in reasons(beside)["openvino-int8"]
    # and the next start, when no line waits, measures
    machine.choose()
    assert FULL in machine.opened


def test_an_engine_that_another_version_may_not_be_judged_by_leaves_it_to_a_race(machine: Machine) -> None:
    machine.has(FULL, 0.002)
    machine.has(HALF, 0.001)
    before = machine.choose()
    machine.card = machine.card.model_copy(update={"seed": 7})
    machine.has(HALF, 0.001, off=0.1)
    assert machine.choose(alike=before).chosen == FULL


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00", b'{"choices": {"a": {"chosen": 3}}}', b'{"choices": []}'])
def test_a_damaged_memory_costs_a_race_and_is_written_anew(machine: Machine, damage: bytes) -> None:
    machine.has(FULL, 0.002)
    machine.has(HALF, 0.001)
    choice = machine.choose()
    (machine.state / CHOICES_FILE).write_bytes(damage)

    assert machine.choose().chosen == choice.chosen
    assert FULL in machine.opened
    machine.choose()
    assert machine.opened == [HALF]


def test_a_state_folder_that_cannot_be_written_costs_a_race_each_time(machine: Machine) -> None:
    machine.has(FULL, 0.002)
    machine.has(HALF, 0.001)
    machine.state.write_text("a file in the folder's place")
    for _ in range(2):
        assert machine.choose().chosen == HALF
        assert FULL in machine.opened


def test_the_memory_is_bounded_and_leaves_nothing_else_behind(machine: Machine) -> None:
    machine.has("torch", 0.001)
    seeds = range(MOST_REMEMBERED + 3)
    for seed in seeds:
        machine.card = machine.card.model_copy(update={"seed": seed})
        machine.choose()

    assert [file.name for file in machine.state.iterdir()] == [CHOICES_FILE]
    machine.has(FULL, 1)
    machine.choose()
    assert machine.opened == ["torch"], "the newest is remembered"
    machine.card = machine.card.model_copy(update={"seed": 0})
    machine.choose()
    assert FULL in machine.opened, "the oldest is not"


def test_one_that_may_not_judge_any_more_makes_room_for_another(machine: Machine) -> None:
    machine.has(FULL, 0.002)
    machine.has(HALF, 0.001)
    machine.choose()

    machine.has(HALF, 0.001, off=0.1)
    choice = machine.choose()

    assert choice.chosen == FULL
    assert "pinned image" in reasons(choice)[HALF]
    machine.choose()
    assert machine.opened == [FULL]


def test_a_fast_engine_with_other_scores_is_refused_by_the_image(machine: Machine) -> None:
    machine.has("torch", 0.02)
    machine.has("openvino", 0.0001, off=0.05)
    choice = machine.choose()
    assert choice.chosen == "torch"
    assert machine.card.pinned[0].file in reasons(choice)["openvino"]


def test_half_precision_that_turns_a_verdict_is_refused_and_float32_so_near_is_not(machine: Machine) -> None:
    bright = machine.card.pinned[1].score
    machine.card = machine.card.model_copy(update={"threshold": bright - 0.002})
    machine.has("torch", 0.02)
    machine.has("openvino", 0.01, off=-0.004)
    machine.has("openvino-bf16", 0.001, off=-0.004)

    choice = machine.choose()

    assert choice.chosen == "openvino"
    assert "another verdict" in reasons(choice)["openvino-bf16"]


def test_an_engine_that_raises_while_it_is_opened_or_checked_is_left_out_with_its_words(machine: Machine) -> None:
    class Raising(Paced):
        def infer(self, images: Images) -> Output:
            raise RuntimeError("no such kernel")

    machine.has("torch", 0.02)
    machine.engines["onnxruntime"] = RuntimeError("symbol not found")
    machine.engines["openvino"] = Raising(machine.clock, machine.card, 0.001)

    choice = machine.choose()

    assert choice.chosen == "torch"
    assert reasons(choice)["onnxruntime"] == "RuntimeError: symbol not found"
    assert reasons(choice)["openvino"] == "RuntimeError: no such kernel"


def test_a_broken_file_is_refused_whatever_other_engines_could_do_without_it(machine: Machine) -> None:
    machine.has("torch", 0.02)
    machine.engines["onnxruntime"] = CorruptModel("model.onnx cannot be read", field=EXPORT_FILE)
    with pytest.raises(CorruptModel) as refused:
        machine.choose()
    assert refused.value.field == EXPORT_FILE


def test_a_version_that_no_engine_passes_is_refused_by_the_image(machine: Machine) -> None:
    machine.has("torch", 0.02, off=0.05)
    machine.has("onnxruntime", 0.02, off=0.06)
    with pytest.raises(CorruptModel) as refused:
        machine.choose()
    assert refused.value.field == machine.card.pinned[0].file
    assert not (machine.state / CHOICES_FILE).exists()


def test_without_any_engine_the_reasons_of_all_are_told(machine: Machine) -> None:
    with pytest.raises(NotPossibleNow, match=r"torch is not installed; .*onnxruntime is not installed") as refused:
        machine.choose()
    assert refused.value.field == "engine"


def test_one_that_is_asked_for_by_name_is_taken_unmeasured_or_refused(machine: Machine) -> None:
    machine.has("torch", 0.001)
    machine.has("openvino", 0.02)
    choice = machine.choose("openvino")
    assert (choice.chosen, machine.opened, choice.measured_at_s) == ("openvino", ["openvino"], None)
    with pytest.raises(NotPossibleNow, match="not installed"):
        machine.choose("onnxruntime")
    machine.has("openvino-bf16", 0.02, off=0.05)
    with pytest.raises(CorruptModel, match=r"^openvino-bf16 gives pinned image pinned/0.png the score "):
        machine.choose("openvino-bf16")


def test_all_run_by_turns_and_the_slow_one_leaves_after_three() -> None:
    clock, order = Clock(), list[str]()

    def run(name: str, takes_s: float) -> Callable[[], None]:
        def running() -> None:
            order.append(name)
            clock.now_s += takes_s

        return running

    took = race({"a": run("a", 0.1), "b": run("b", 0.15), "c": run("c", 0.9)}, clock, race_s=3.8)

    assert took == pytest.approx({"a": 0.1, "b": 0.15, "c": 0.9})
    assert order == ["a", "b", "c"] * 3 + ["a", "b"] * 2


@pytest.mark.parametrize(("run_s", "rounds"), [(0.5, 3), (1.2, 3), (1.6, 2), (5, 1)])
def test_a_race_on_a_busy_machine_has_three_rounds_and_one_of_slow_networks_ends_sooner(
    run_s: float, rounds: int
) -> None:
    clock = Clock()

    def slow() -> None:
        clock.now_s += run_s

    assert race({"a": slow, "b": slow}, clock, race_s=2, longest_s=6) == pytest.approx({"a": run_s, "b": run_s})
    assert clock.now_s == pytest.approx(2 * run_s * rounds)


def test_one_slow_run_does_not_decide_a_race() -> None:
    clock, passes = Clock(), [0.5, *[0.1] * 50]

    def stumbling() -> None:
        clock.now_s += passes.pop(0)

    def steady() -> None:
        clock.now_s += 0.11

    took = race({"steady": steady, "stumbling": stumbling}, clock, race_s=3)

    assert took["stumbling"] == pytest.approx(0.1)


def test_an_engine_of_several_streams_is_measured_with_as_many_threads(machine: Machine) -> None:
    class Together(Paced):
        def infer(self, images: Images) -> Output:
            both.wait(PATIENCE_S)  # broken, and so an error, unless the other comes too
            return super().infer(images)

    both = threading.Barrier(2)
    engine = Together(machine.clock, machine.card, 0.001, streams=2)
    batch = np.full((4, 32, 32, 3), DARK, np.uint8)
    with ThreadPoolExecutor(2) as threads:
        outputs: Any = room._run(engine, batch, threads)()
    assert [len(output.scores) for output in outputs] == [4, 4]


def test_a_missing_library_is_a_reason_and_no_error(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the real engines, on a machine without OpenVINO
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "inspectbus.inference.openvino_engine", raising=False)
    settings = InferenceSettings(state_dir=tmp_path, threads=1, device="cpu")

    engine, choice = chosen_engine(settings, exported, read_card(exported))

    assert choice.chosen in ("torch", "onnxruntime")
    assert engine.name.startswith(choice.chosen)
    assert "install inspectbus[openvino]" in reasons(choice)["openvino"]
    assert set(speeds(choice)) == {"torch", "onnxruntime"}
    check_engines("auto", "cpu")
    with pytest.raises(NotPossibleNow, match=r"install inspectbus\[openvino\]"):
        check_engines("openvino", "cpu")


def test_a_truncated_export_is_refused_by_name_under_auto_too(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "cut"))
    card = read_card(folder)
    (folder / EXPORT_FILE).write_bytes((exported / EXPORT_FILE).read_bytes()[:-1000])
    with pytest.raises(InspectBusError) as refused:
        chosen_engine(InferenceSettings(state_dir=tmp_path, threads=1, device="cpu"), folder, card)
    assert refused.value.field == EXPORT_FILE


def test_the_service_tells_its_choice_with_figures_and_reasons_and_keeps_it(
    exported: Path, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = start(model_dir=exported, streams=2).wait_ready()

    (chosen,) = [each for each in told.candidates if each.chosen]
    assert told.engine.startswith(chosen.name.split("-")[0])
    assert told.streams == 2
    raced = [each for each in told.candidates if not each.reason]
    assert {"torch", "onnxruntime", chosen.name} <= {each.name for each in raced}
    assert all(each.images_per_s > 0 and each.deviation < 0.02 for each in raced)
    assert max(raced, key=lambda each: each.images_per_s).images_per_s <= chosen.images_per_s * room.TIE
    assert "int8" in next(each.reason for each in told.candidates if each.name == "openvino-int8")
    # And another start measures nothing
    monkeypatch.setattr(room, "_measured", None)
    assert start(model_dir=exported, streams=2).wait_ready().measured_at == told.measured_at


@pytest.mark.parametrize("name", FORMS)
def test_both_doors_give_the_same_whichever_engine_is_asked_for(
    name: str, exported: Path, start: Callable[..., Running]
) -> None:
    try:
        check_engines(name, "auto")
    except NotPossibleNow as error:
        pytest.skip(error.message)
    line = start(model_dir=exported, engine=name)

    decisions = line.judge(*(prepared_frame(level) for level in (DARK, 127, BRIGHT)))
    requests = [InferRequest(pixels=to_pixels(flat_image(level))) for level in (DARK, 127, BRIGHT)]
    judged = [line.stub.Infer(request, timeout=PATIENCE_S).judgement for request in requests]

    assert [each.verdict for each in decisions] == [each.verdict for each in judged]
    assert [each.score for each in decisions] == pytest.approx([each.score for each in judged], abs=1e-5)
    told = line.engine()
    assert told.engine.startswith(name.split("-")[0])
    assert [(each.name, each.chosen) for each in told.candidates] == [(name, True)]
    assert not told.HasField("measured_at")


def test_a_service_whose_engine_is_not_installed_does_not_start(
    exported: Path, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "inspectbus.inference.openvino_engine", raising=False)
    with pytest.raises(NotPossibleNow, match=r"install inspectbus\[openvino\]") as refused:
        start(model_dir=exported, engine="openvino-bf16")
    assert refused.value.field == "engine"


def test_a_version_that_the_engine_asked_for_cannot_run_is_named_to_whoever_asks(
    version: Path, start: Callable[..., Running]
) -> None:
    # Given a version without an export, and an engine that runs nothing else
    line = start(model_dir=version, engine="onnxruntime", model_patience_s=0.5)
    (held,) = line.judge(prepared_frame(DARK))
    assert held.hold.reason == HOLD_REASON_NO_MODEL
    assert f"{version.name} was made before versions had model.onnx" in line.engine().detail


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_auto_on_a_device_that_is_not_there_is_refused_before_any_model() -> None:
    with pytest.raises(NotPossibleNow, match="cuda") as refused:
        check_engines("auto", "cuda")
    assert refused.value.field == "device"
