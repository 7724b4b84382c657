"""Which engine judges: the one that the setting names, or with `auto` the fastest of those that pass a version's gate.

every form ─ open ─> gate: the pinned images ─> race: full batches on all streams, by turns ─> the fastest
               └ absent, or refused: the reason                   └ kept by version, machine, libraries and settings

The choice is remembered in the state folder. The gate is passed again at each load; only the race is not run again. Nor
is it run beside an engine that judges, where that one runs the same network with other weights: it would take the
processor from a line for seconds, to find what is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import CorruptModel, InspectBusError, NotPossibleNow
from inspectbus.inference.engine import FORMS, Device, Engine, Images, Place, check_engine, open_engine
from inspectbus.inference.pinned import check_pinned, pinned_images
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.slots import batch_sizes

log = structlog.get_logger(__name__)

AUTO = "auto"
CHOICES_FILE = "engines.json"
RACE_S = 2.0
LONGEST_RACE_S = 6.0
"""A race ends with the round in which the first has passed and FAIR_ROUNDS are run, or the second has passed."""
MOST_ROUNDS = 15
LARGEST_BATCH = 32
"""More images at once change no order, but make each turn longer."""
FAIR_ROUNDS = 3
OUT_OF_REACH = 2.0
"""Whose quickest run of three took this many times the leader's middle one leaves the race: its turns would take most
of the time. One run alone may have met something else that the machine does."""
TIE = 1.05
"""Nearer than this two speeds are alike on a machine that does other things too. Then the form that stands first in
FORMS wins: those in full precision do."""
WARMED = 8
"""Sizes of batches, the smallest, that are run before a frame is. Of a larger batch it would be a small part."""
MOST_REMEMBERED = 64
MAX_CHOICES_BYTES = 1024 * 1024

LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino")
PROCESSOR_WORDS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),  # how ARM spells them
)

INT8 = (
    "is not offered: int8 must first keep what the version said of its validation images, and a version holds their "
    "scores, not the images"
)


class Candidate(BaseModel):
    """What became of one engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """As the setting `engine` spells it."""
    reason: str = ""
    """Why it may not judge; empty where it may."""
    deviation: float | None = None
    """The largest difference of a pinned image's score from the recorded one."""
    images_per_s: float | None = None
    """In batches, on all streams together; None where there was nobody to race with."""


class Choice(BaseModel):
    """Made once for a version on a machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chosen: str
    candidates: tuple[Candidate, ...]
    measured_at_s: float | None = None
    """Seconds since the epoch; None where nothing was measured."""


def check_engines(setting: str, device: Device) -> None:
    """What can be told without a model. Raises NotPossibleNow when the engine of that name is not there, or with `auto`
    none, and says why the first is not.
    """
    fault: NotPossibleNow | None = None
    for name in FORMS if setting == AUTO else (setting,):
        try:
            check_engine(name, device)
        except NotPossibleNow as error:
            fault = fault or error
        else:
            return
    if fault is not None:
        raise fault


def chosen_engine(
    settings: InferenceSettings,
    folder: Path,
    card: ModelCard,
    clock: Callable[[], float] = time.perf_counter,
    *,
    alike: Choice | None = None,
) -> tuple[Engine, Choice]:
    """A warm engine that passed the version's gate, and how it came to be the one.

    With `auto`, what was chosen for a version of the same network (`alike`) is taken unmeasured if it passes the gate.

    Raises what `open_engine` and `check_pinned` raise. With `auto`: CorruptModel where a file of the version is broken
    or no engine passes the gate, NotPossibleNow when none is there.
    """
    if settings.engine != AUTO:
        engine = open_engine(settings.engine, folder, card, _place(settings))
        deviation = _gate(settings.engine, engine, folder, card, settings)
        return engine, Choice(
            chosen=settings.engine, candidates=(Candidate(name=settings.engine, deviation=deviation),)
        )
    memory, key = _Memory(settings.state_dir / CHOICES_FILE), _key(settings, card)
    remembered = memory.get(key)
    if (known := remembered or alike) is not None:
        try:
            engine = open_engine(known.chosen, folder, card, _place(settings))
            deviation = _gate(known.chosen, engine, folder, card, settings)
        except Exception as error:  # whatever it is, measuring anew finds it again, and perhaps another engine
            log.warning("the engine of last time may not judge any more", engine=known.chosen, reason=_words(error))
        else:
            return engine, remembered or _carried_over(known, deviation)
    engine, choice = _measured(settings, folder, card, clock)
    memory.put(key, choice)
    return engine, choice


def _carried_over(choice: Choice, deviation: float) -> Choice:
    """As it holds for another version of the network: speeds do, what the others' scores were does not."""
    not_tried = f"not tried: {choice.chosen} was the fastest for a version of the same network"

    def carried(each: Candidate) -> Candidate:
        if each.reason == INT8:
            return each
        if each.name == choice.chosen:
            return each.model_copy(update={"deviation": deviation})
        return Candidate(name=each.name, reason=not_tried, images_per_s=each.images_per_s)

    return choice.model_copy(update={"candidates": tuple(map(carried, choice.candidates))})


def race(
    runs: Mapping[str, Callable[[], object]],
    clock: Callable[[], float],
    race_s: float = RACE_S,
    longest_s: float = LONGEST_RACE_S,
) -> dict[str, float]:
    """Median seconds of a run of each. They run by turns, so that what else the machine does meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    racing = list(runs)
    begun = clock()
    for rounds in range(1, MOST_ROUNDS + 1):
        for name in racing:
            at = clock()
            runs[name]()
            taken[name].append(clock() - at)
        lead = min(statistics.median(taken[name]) for name in racing)
        if rounds >= FAIR_ROUNDS:
            racing = [name for name in racing if min(taken[name]) <= OUT_OF_REACH * lead]
        if len(racing) == 1 or clock() - begun >= (race_s if rounds >= FAIR_ROUNDS else longest_s):
            break
    return {name: statistics.median(times) for name, times in taken.items()}


def _measured(
    settings: InferenceSettings, folder: Path, card: ModelCard, clock: Callable[[], float]
) -> tuple[Engine, Choice]:
    engines: dict[str, Engine] = {}
    found: dict[str, Candidate] = {}
    fault: CorruptModel | None = None
    for name in FORMS:
        try:
            engine = open_engine(name, folder, card, _place(settings))
        except CorruptModel:
            raise  # a broken file is the version's fault, and no engine that can do without it makes up for that
        except Exception as error:  # a library may raise anything; it concerns this engine and no other
            found[name] = Candidate(name=name, reason=_words(error))
            continue
        try:
            found[name] = Candidate(name=name, deviation=_gate(name, engine, folder, card, settings))
            engines[name] = engine
        except Exception as error:  # as above
            found[name] = Candidate(name=name, reason=_words(error))
            fault = fault or (error if isinstance(error, CorruptModel) else None)
    if not engines:
        reasons = "; ".join(f"{name}: {each.reason}" for name, each in found.items())
        raise fault or NotPossibleNow(f"no engine runs this version here: {reasons}", field="engine")
    for name, speed in _speeds(engines, pinned_images(folder, card), settings, clock).items():
        found[name] = found[name].model_copy(update={"images_per_s": round(speed, 1)})
    best = max((found[name].images_per_s or 0.0) for name in engines)
    chosen = next(name for name in engines if (found[name].images_per_s or 0.0) * TIE >= best)
    for name, each in found.items():
        log.info("engine measured", engine=name, chosen=name == chosen, **each.model_dump(exclude={"name"}))
    candidates = (*found.values(), Candidate(name="openvino-int8", reason=INT8))
    measured_at_s = time.time() if len(engines) > 1 else None
    return engines[chosen], Choice(chosen=chosen, candidates=candidates, measured_at_s=measured_at_s)


def _speeds(
    engines: Mapping[str, Engine], pinned: Images, settings: InferenceSettings, clock: Callable[[], float]
) -> dict[str, float]:
    """Images per second of each, where there are several."""
    if len(engines) == 1:
        return {}
    sizes = {name: min(LARGEST_BATCH, largest_batch(engine, settings)) for name, engine in engines.items()}
    with ExitStack() as stack:
        runs: dict[str, Callable[[], object]] = {}
        for name, engine in engines.items():
            threads = stack.enter_context(ThreadPoolExecutor(engine.streams, f"race-{name}"))
            runs[name] = _run(engine, np.resize(pinned, (sizes[name], *pinned.shape[1:])), threads)  # repeats them
            if engine.streams > 1:
                # The gate has warmed one stream. The others begin here, and not on the clock.
                runs[name]()
        return {name: sizes[name] * engines[name].streams / max(s, 1e-9) for name, s in race(runs, clock).items()}


def _run(engine: Engine, batch: Images, threads: ThreadPoolExecutor) -> Callable[[], object]:
    return lambda: list(threads.map(engine.infer, [batch] * engine.streams))


def _place(settings: InferenceSettings) -> Place:
    return Place(settings.device, settings.threads, settings.streams)


def _gate(name: str, engine: Engine, folder: Path, card: ModelCard, settings: InferenceSettings) -> float:
    deviation = check_pinned(
        lambda images: engine.infer(images).scores,
        folder,
        card,
        largest_batch(engine, settings),
        verdicts=FORMS[name].reduced,
        engine="the network" if settings.engine == AUTO else name,  # with `auto` its name stands before each reason
    )
    # An engine prepares itself for each size of batch when it first meets it, and no frame shall wait for that.
    largest = largest_batch(engine, settings)
    sizes = batch_sizes(engine.device, largest) or range(1, largest + 1)
    for size in sizes[:WARMED]:
        engine.infer(np.zeros((size, card.preparation.height, card.preparation.width, 3), np.uint8))
    return deviation


def largest_batch(engine: Engine, settings: InferenceSettings) -> int:
    """Images at once that it is ever given."""
    return min(settings.max_batch_size, engine.best_batch or settings.max_batch_size)


def _words(error: Exception) -> str:
    return error.message if isinstance(error, InspectBusError) else f"{type(error).__name__}: {error}"[:500]


def _key(settings: InferenceSettings, card: ModelCard) -> str:
    """Changes with all that could make another engine the fastest, or let it pass."""
    how = (settings.device, settings.threads, settings.streams, settings.max_batch_size)
    parts = (card.version, how, _machine(), {name: _installed(name) for name in LIBRARIES})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _machine() -> dict[str, object]:
    """Processor, cores that are ours, and graphics cards with their driver."""
    first = _text(Path("/proc/cpuinfo")).split("\n\n")[0]
    words = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    known = {word.strip(): value.strip() for word, value in words.items() if word.strip() in PROCESSOR_WORDS}
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return {
        "processor": known or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "cards": [_text(Path("/proc/driver/nvidia/version")), *map(_text, cards)],
    }


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


class _Choices(BaseModel):
    choices: dict[str, Choice] = {}
    """The newest last."""


class _Memory:
    """The file of choices. One that is damaged or cannot be written costs a race, and nothing else."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def get(self, key: str) -> Choice | None:
        return self._read().choices.get(key)

    def put(self, key: str, choice: Choice) -> None:
        choices = {**{other: made for other, made in self._read().choices.items() if other != key}, key: choice}
        newest = dict(list(choices.items())[-MOST_REMEMBERED:])
        part = self._file.with_name(f".{self._file.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(_Choices(choices=newest).model_dump_json())
            part.replace(self._file)
        except OSError as error:
            log.warning("could not remember which engine is the fastest", file=str(self._file), error=str(error))
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _read(self) -> _Choices:
        try:
            with self._file.open("rb") as file:
                return _Choices.model_validate_json(file.read(MAX_CHOICES_BYTES))
        except FileNotFoundError:
            return _Choices()
        except (OSError, ValidationError) as error:
            log.warning("what was remembered of engines cannot be read", file=str(self._file), error=str(error)[:200])
            return _Choices()
