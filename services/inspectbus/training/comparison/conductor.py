"""The whole experiment, in an order that keeps the held-out part out of every choice.

train part ─> learn: images, features, searches, CNN trainings, widths, suspects ─> Lessons
held-out part, opened only now ─> examine: scores of every entrant, heatmaps ─> bootstrap ─> Comparison

`learn` is not given the held-out part, and `examine` chooses nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from inspectbus.domain.heat import calibrated_heat
from inspectbus.domain.preparation import Preparation
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.preparation import prepare
from inspectbus.networks.pretrained import load_pretrained
from inspectbus.stores.datasets import Dataset, Item, Split, cut, fingerprint, split
from inspectbus.stores.datasets.check import check_files, check_marks
from inspectbus.training.calibration import Floats, Labels
from inspectbus.training.comparison.bootstrap import Answers, Draws, draw
from inspectbus.training.comparison.contenders import ALL_DEFECTIVE, BASELINES, LIGHT, Contender
from inspectbus.training.comparison.dimensions import Narrowed, Point, narrow_all
from inspectbus.training.comparison.dimensions import examine as examine_widths
from inspectbus.training.comparison.heatmaps import Explained, Pointing, explained, masked, point
from inspectbus.training.comparison.images import Images, raw_light, raw_pixels, read_images
from inspectbus.training.comparison.inputs import Form, Projection, fitted_projection, frozen_features
from inspectbus.training.comparison.learning import Entrant, Inputs, Judge, Learning, Part
from inspectbus.training.comparison.measures import surest_errors
from inspectbus.training.comparison.network import TrainedNetwork, Trainings, train_network
from inspectbus.training.comparison.preprocessing import CONDITIONS, STEPS, Network, Row, preprocessing_table
from inspectbus.training.comparison.searches import search
from inspectbus.training.comparison.subsets import Subsets, find_subsets
from inspectbus.training.comparison.suspects import Suspicion, suspect
from inspectbus.training.comparison.terms import CNN, Terms, known_models
from inspectbus.training.evaluation import labels_of
from inspectbus.training.export import Deviation
from inspectbus.training.features import EXTRACT_BATCH, Cut, FeatureCache, cut_network
from inspectbus.training.plan import Cancelled, Progress
from inspectbus.training.trainer import ILLUMINATION, VALIDATION_SHARE, code_revision

OnProgress = Callable[[Progress], None]

TIMED_IMAGES = 16
"""Held-out images on which the way from file to input is timed, thrice; the median counts."""


HARDEST = 6
"""Images of each kind of error that are shown; the worst first."""


@dataclass(frozen=True)
class Key:
    """A model in one of its forms; for the CNN and the floors the form says what they see."""

    model: str
    form: Form | None
    """None for the CNN, which sees the picture."""

    @property
    def name(self) -> str:
        return f"{self.model}, {self.form}" if self.form else self.model


CNN_KEY = Key(CNN, None)
LIGHT_KEY, ALL_KEY = Key(LIGHT.name, "light"), Key(ALL_DEFECTIVE.name, "light")


@dataclass(frozen=True)
class Figures:
    """One model over all seeds."""

    answers: tuple[Answers, ...]
    """By seed."""
    fit_s: float
    """Median over the seeds."""
    predict_ms: float
    """Per image, from file to score."""
    settings: tuple[Mapping[str, float | int | str], ...]
    """By seed: what the search chose."""


@dataclass(frozen=True)
class Hard:
    """A held-out image that the shown model gets wrong."""

    item: Item
    score: float
    """Mean over the seeds."""
    explained: Explained | None
    """By the CNN of seed 0; None for other models, and for a network without heatmaps."""


@dataclass(frozen=True)
class Comparison:
    """All that the report tells."""

    terms: Terms
    data: str
    data_sha256: str
    words: str
    train: Images
    exam: Images
    figures: Mapping[Key, Figures]
    draws: Draws
    """By Key.name."""
    exports: Sequence[Deviation]
    """Of the CNN's exports on the held-out part, by seed; empty where there are none."""
    shown: Key
    """The model whose errors are shown: the CNN, or the best of the others where it was not asked for."""
    hardest: Sequence[Hard]
    """What that model gets most wrong: defective images passed, then good ones rejected."""
    pointing: Pointing | None
    """The CNN's heatmaps, of seed 0, against masks; None without masks, heatmaps or CNN."""
    subsets: Subsets
    points: Sequence[Point]
    preprocessing: Sequence[Row]
    preprocessed: Sequence[Item]
    """The held-out images the preprocessing table is made of."""
    suspicion: Suspicion | None
    code_revision: str
    took_s: float


@dataclass(frozen=True)
class Lessons:
    """What was learnt from the train part; nothing of it changes any more."""

    images: Images
    cut: Cut
    preparation: Preparation
    entrants: Mapping[Key, Sequence[Entrant]]
    """By seed."""
    networks: Sequence[TrainedNetwork]
    narrowed: Sequence[Narrowed]
    suspicion: Suspicion | None


def compare(
    terms: Terms,
    data: Dataset,
    *,
    on_progress: OnProgress,
    cancel: threading.Event,
    cache_dir: Path,
    trainings_dir: Path,
    weights: Path | None = None,
) -> Comparison:
    """Splits `data`, learns, and examines.

    `cache_dir` and `weights` as for trainer.train; in `trainings_dir` the CNN's trainings are kept, so that the same
    comparison made again, or after it was interrupted, takes them from there. Raises BadField for a model nobody knows,
    data with one class or too few images, or many unreadable ones; Cancelled soon after `cancel` is set.
    """
    began = time.perf_counter()
    terms = terms.model_copy(update={"models": known_models(terms.models)})
    parts = _fewer(split(check_marks(check_files(data))), terms.images)
    way = _Way(on_progress, cancel)
    cache = FeatureCache(cache_dir)
    lessons = learn(terms, parts.train, way, cache, Trainings(trainings_dir), weights)
    return _examined(terms, lessons, parts, way, cache, began)


class _Way:
    """Where a comparison is: every step may be reported, and may be the last."""

    def __init__(self, on_progress: OnProgress, cancel: threading.Event) -> None:
        self.on_progress = on_progress
        self.cancel = cancel
        self._now = Progress()

    def stage(self, name: str, total: int) -> None:
        self._now = Progress(stage=name, total=total)
        self.on_progress(self._now)
        self.step(0)

    def step(self, done: int = 1) -> None:
        if self.cancel.is_set():
            raise Cancelled
        if done:
            self._now = self._now.model_copy(update={"done": self._now.done + done})
            self.on_progress(self._now)


def _fewer(parts: Split, images: int) -> Split:
    """About so many of both parts, in proportion; all of them for 0 or more than there are."""
    whole = len(parts.train.items) + len(parts.held_out.items)
    if not images or images >= whole:
        return parts
    sides = []
    for side in (parts.train, parts.held_out):
        kept = _thinned(side.items, images / whole)
        sides.append(replace(side, items=kept, words=f"{len(kept)} of {side.words}"))
    return Split(*sides)


def _thinned(items: Sequence[Item], share: float) -> tuple[Item, ...]:
    """About `share` of each class, drawn with a fixed seed, in their order.

    Not `cut`, which keeps groups together and so knows halves, thirds, quarters: here both sides of the split are
    apart already, and images of many parts say more than many of few.
    """
    labels = labels_of(items)
    rng = np.random.default_rng(0)
    kept: list[int] = []
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        kept += [int(row) for row in rows[: max(1, round(share * len(rows)))]]
    return tuple(items[row] for row in sorted(kept))


# --- learning


def learn(
    terms: Terms, data: Dataset, way: _Way, cache: FeatureCache, trainings: Trainings, weights: Path | None
) -> Lessons:
    """Everything that is fitted or chosen, from the train part `data`."""
    pretrained = load_pretrained(terms.plan.backbone, weights)
    side = terms.plan.input_size
    preparation = Preparation(illumination=ILLUMINATION, width=side, height=side)
    whole = cut_network(pretrained, preparation, whole=True)
    way.stage("reading", len(data.items))
    images = read_images(data.items, way.step)
    way.stage("features", len(images.items))
    features = frozen_features(images, whole, preparation, cache, way.step)
    forms: dict[Form, Inputs] = {"raw": images.pixels, "frozen": features, "light": images.light}

    entrants: dict[Key, list[Entrant]] = {}
    networks: list[TrainedNetwork] = []
    for seed in range(terms.seeds):
        rows = _cut_rows(images, seed)
        _learn_baselines(terms, forms, images.labels, rows, seed, entrants, way)
        if CNN in terms.models:
            networks.append(_learn_network(terms, data, images, seed, cache, trainings, weights, way))

    learning = _learning(features, images.labels, _cut_rows(images, 0))
    contenders = [
        (contender, entrants[Key(contender.name, "frozen")][0].settings)
        for contender in BASELINES
        if contender.name in terms.models
    ]
    widths = [width for width in terms.widths if width <= min(learning.train.inputs.shape)]
    way.stage("dimensions", len(widths) * len(terms.models))
    narrowed = narrow_all(
        learning, contenders, widths, cnn=CNN in terms.models, repeats=terms.repeats, seed=0, tell=way.step
    )
    way.stage("labels", 1)
    suspicion = suspect(features, images.labels, [item.group for item in images.items], seed=0)
    way.step()
    return Lessons(images, whole, preparation, entrants, networks, narrowed, suspicion)


def _cut_rows(images: Images, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the train and validation part: the very cut that a training with this seed makes of these items."""
    row_of = {item.name: row for row, item in enumerate(images.items)}
    rest, part, _ = cut(images.items, VALIDATION_SHARE, seed)
    return np.array([row_of[item.name] for item in rest]), np.array([row_of[item.name] for item in part])


def _learning(inputs: Inputs, labels: Labels, rows: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Learning:
    train, validation = rows
    return Learning(Part(inputs[train], labels[train]), Part(inputs[validation], labels[validation]))


def _learn_baselines(
    terms: Terms,
    forms: Mapping[Form, Inputs],
    labels: Labels,
    rows: tuple[NDArray[np.int64], NDArray[np.int64]],
    seed: int,
    entrants: dict[Key, list[Entrant]],
    way: _Way,
) -> None:
    chosen = [contender for contender in BASELINES if contender.name in terms.models]
    tasks: list[tuple[Contender, Form, int]] = [
        (contender, form, terms.candidates) for form in ("raw", "frozen") for contender in chosen
    ]
    tasks += [(LIGHT, "light", 1), (ALL_DEFECTIVE, "light", 1)]
    way.stage(f"baselines, seed {seed}", sum(count for _, _, count in tasks))
    for form in dict.fromkeys(form for _, form, _ in tasks):
        project = fitted_projection(form, forms[form][rows[0]], seed)
        learning = _learning(project(forms[form]), labels, rows)
        for contender in (contender for contender, wanted, _ in tasks if wanted == form):
            count = terms.candidates if contender in chosen else 1
            found = search(contender, learning, seed=seed, count=count, tell=way.step)
            whole = replace(found, judge=partial(_projected, project, found.judge))
            entrants.setdefault(Key(contender.name, form), []).append(whole)


def _projected(project: Projection, judge: Judge, inputs: Inputs) -> Floats:
    return judge(project(inputs))


def _learn_network(
    terms: Terms,
    data: Dataset,
    images: Images,
    seed: int,
    cache: FeatureCache,
    trainings: Trainings,
    weights: Path | None,
    way: _Way,
) -> TrainedNetwork:
    def told(progress: Progress) -> None:
        way.on_progress(progress.model_copy(update={"stage": f"cnn, seed {seed}: {progress.stage}"}))

    return train_network(
        terms.plan.model_copy(update={"seed": seed}),
        # Without those that cannot be read, so that it cuts its validation part where the others did.
        replace(data, items=images.items),
        trainings,
        on_progress=told,
        cancel=way.cancel,
        cache_dir=cache.folder,
        weights=weights,
    )


# --- examining


def _examined(terms: Terms, lessons: Lessons, parts: Split, way: _Way, cache: FeatureCache, began: float) -> Comparison:
    way.stage("held-out part", len(parts.held_out.items))
    exam = read_images(parts.held_out.items, way.step)
    way.stage("held-out features", len(exam.items))
    features = frozen_features(exam, lessons.cut, lessons.preparation, cache, way.step)
    forms: dict[Form, Inputs] = {"raw": exam.pixels, "frozen": features, "light": exam.light}

    figures = {key: _answers(key, seeds, forms, exam, lessons) for key, seeds in lessons.entrants.items()}
    if lessons.networks:
        way.stage("held-out part, cnn", len(exam.items) * len(lessons.networks))
        figures[CNN_KEY] = _network_answers(lessons.networks, terms.plan.epochs, exam, way)
    exports = _exports(lessons.networks, figures[CNN_KEY].answers, exam, way) if lessons.networks else []
    way.stage("bootstrap", 1)
    draws = draw(
        exam.labels,
        {key.name: each.answers for key, each in figures.items()},
        [item.group for item in exam.items],
        rounds=terms.rounds,
        seed=0,
    )
    way.step()
    shown = _shown(figures, draws)
    hardest, pointing = _explained(figures[shown].answers, lessons.networks, exam, way)
    points = examine_widths(lessons.narrowed, features, exam.labels)
    preprocessing, preprocessed = _preprocessing(terms, lessons, exam, way)
    lost = len(exam.lost) + len(lessons.images.lost)
    words = f"{parts.train.words}; {parts.held_out.words}" + (f"; {lost} unreadable images left out" if lost else "")
    return Comparison(
        terms=terms,
        data=parts.train.name,
        data_sha256=fingerprint([*parts.train.items, *parts.held_out.items]),
        words=words,
        train=lessons.images,
        exam=exam,
        figures=figures,
        draws=draws,
        exports=exports,
        shown=shown,
        hardest=hardest,
        pointing=pointing,
        subsets=find_subsets(exam.items, exam.labels),
        points=points,
        preprocessing=preprocessing,
        preprocessed=preprocessed,
        suspicion=lessons.suspicion,
        code_revision=code_revision(),
        took_s=time.perf_counter() - began,
    )


def _answers(
    key: Key, seeds: Sequence[Entrant], forms: Mapping[Form, Inputs], exam: Images, lessons: Lessons
) -> Figures:
    assert key.form is not None
    inputs = forms[key.form]
    times, answers = [], []
    for entrant in seeds:
        began = time.perf_counter()
        answers.append(Answers(entrant.scores(inputs), entrant.threshold))
        times.append((time.perf_counter() - began) / len(inputs))
    return Figures(
        tuple(answers),
        fit_s=median(entrant.fit_s for entrant in seeds),
        predict_ms=1000 * median(times) + _input_ms(key.form, exam, lessons),
        settings=tuple(entrant.settings for entrant in seeds),
    )


def _input_ms(form: Form, exam: Images, lessons: Lessons) -> float:
    """Milliseconds an image takes from its file to the form."""
    items = exam.items[:TIMED_IMAGES]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        if form == "frozen":
            for start in range(0, len(items), EXTRACT_BATCH):
                pictures = [
                    prepare(decode(item.read()), lessons.preparation) for item in items[start : start + EXTRACT_BATCH]
                ]
                with torch.inference_mode():
                    lessons.cut.lower(torch.from_numpy(np.stack(pictures)))
        else:
            plain = raw_pixels if form == "raw" else raw_light
            for item in items:
                plain(decode(item.read()))
        times.append(time.perf_counter() - began)
    return 1000 * median(times) / len(items)


def _network_answers(networks: Sequence[TrainedNetwork], epochs: int, exam: Images, way: _Way) -> Figures:
    answers, times = [], []
    for trained in networks:
        began = time.perf_counter()
        answers.append(Answers(trained.scores(exam.items, way.step), trained.card.threshold))
        times.append((time.perf_counter() - began) / len(exam.items))
    return Figures(
        tuple(answers),
        fit_s=median(trained.fit_s for trained in networks),
        predict_ms=1000 * median(times),
        settings=tuple({"version": each.card.version, "epochs at most": epochs} for each in networks),
    )


def _exports(
    networks: Sequence[TrainedNetwork], answers: Sequence[Answers], exam: Images, way: _Way
) -> list[Deviation]:
    way.stage("held-out part, exported cnn", len(exam.items) * len(networks))
    found = [
        trained.export_deviation(exam.items, each.scores, way.step)
        for trained, each in zip(networks, answers, strict=True)
    ]
    return [each for each in found if each is not None]


def _shown(figures: Mapping[Key, Figures], draws: Draws) -> Key:
    if CNN_KEY in figures:
        return CNN_KEY
    return max(figures, key=lambda key: draws.plain[key.name]["average_precision"])


def _explained(
    answers: Sequence[Answers], networks: Sequence[TrainedNetwork], exam: Images, way: _Way
) -> tuple[list[Hard], Pointing | None]:
    """The errors of the model that gave `answers`, which is the CNN where there are networks."""
    scores: Floats = np.mean([each.scores for each in answers], axis=0)
    threshold = float(np.mean([each.threshold for each in answers]))
    rows = surest_errors(exam.labels, scores, threshold, HARDEST)
    looks: list[Explained | None] = [None] * len(rows)
    pointing: Pointing | None = None
    if networks and (network := networks[0].network()).explains:
        preparation, marked = networks[0].card.preparation, masked(exam.items)
        way.stage("heatmaps", len(rows) + len(marked))

        def as_scored(look: Explained) -> Explained:
            return replace(look, heatmap=calibrated_heat(look.heatmap, networks[0].card.calibration))

        looks = [as_scored(look) for look in explained(network, preparation, [exam.items[row] for row in rows])]
        way.step(len(rows))
        if marked:
            pointing = point(network, preparation, marked, way.step)
            shown = [replace(each, explained=as_scored(each.explained)) for each in pointing.shown]
            pointing = replace(pointing, shown=shown)
    hardest = [Hard(exam.items[row], float(scores[row]), look) for row, look in zip(rows, looks, strict=True)]
    return hardest, pointing


def _preprocessing(terms: Terms, lessons: Lessons, exam: Images, way: _Way) -> tuple[list[Row], Sequence[Item]]:
    items: Sequence[Item] = exam.items
    if len(items) > terms.spoiled:
        items = _thinned(exam.items, terms.spoiled / len(exam.items))
    entrants = {
        name: lessons.entrants[Key(name, "frozen")][0]
        for name in ("svm", "knn")
        if Key(name, "frozen") in lessons.entrants
    }
    cnn = None
    if lessons.networks:
        card = lessons.networks[0].card
        cnn = Network(lessons.networks[0].network(), card.calibration, card.threshold)
    way.stage("preprocessing", len(CONDITIONS) * len(STEPS))
    floor = lessons.entrants[LIGHT_KEY][0]
    rows = preprocessing_table(items, lessons.cut, lessons.preparation, entrants, floor, cnn, way.step)
    return rows, items
