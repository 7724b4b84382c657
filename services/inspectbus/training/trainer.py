"""A training, from labelled images to a model version.

items ─> read and checked ─> validation part cut off
      ─> features.extract, lower part frozen, cached (upper), or pixels.load (whole) ─> fitting.fit
      ─> weights written, read back ─> validation images judged from their pixels ─> calibration, threshold
      ─> exported, and proven on the same images
      ─> validation scores, pinned images, card ─> a version folder

It is given the training part only, so nothing can be chosen by the held-out part.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import structlog
import torch
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score

from inspectbus.domain.calibration import scored
from inspectbus.domain.model_version import (
    EXPORT_FILE,
    WEIGHTS_FILE,
    Calibration,
    DataFingerprint,
    Export,
    ModelCard,
    PinnedImage,
)
from inspectbus.domain.preparation import Preparation
from inspectbus.domain.thresholds import Thresholds
from inspectbus.errors import BadField, Internal
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.preparation import prepare
from inspectbus.networks.classifier import Classifier
from inspectbus.networks.pretrained import Pretrained, load_pretrained
from inspectbus.networks.trained import load_trained
from inspectbus.stores.datasets import Dataset, Item, cut, fingerprint
from inspectbus.stores.datasets.check import near_across, sketch
from inspectbus.stores.datasets.check.sketches import Sketch
from inspectbus.stores.models import read_card, write_card
from inspectbus.training.allocator import freed_memory_kept
from inspectbus.training.calibration import Floats, calibrate
from inspectbus.training.checkpoint import Checkpoint
from inspectbus.training.evaluation import confusion_of, judged, judged_by, labels_of, logits_of
from inspectbus.training.export import OPSET, check_export, deviation, export, open_export
from inspectbus.training.features import FeatureCache, cut_network, extract
from inspectbus.training.fitting import METHOD, WHOLE, Epoch, Source, Upper, fit
from inspectbus.training.pixels import from_pixels, load
from inspectbus.training.plan import Cancelled, Plan, Progress
from inspectbus.training.threshold import stable_threshold
from inspectbus.training.validation import write_validation

log = structlog.get_logger(__name__)

OnProgress = Callable[[Progress], None]

VALIDATION_SHARE = 0.2
ILLUMINATION: Literal["none", "flatten", "clahe"] = "none"
UNREADABLE_SHARE = 0.01
"""As many damaged images are left out and told of; more are a sign that something is wrong with the folder."""
MAPS = 12_000
"""Maps computed at most while an image still gets more than one view: many images vary by themselves."""
FLIP_VIEWS = {False: 2, True: 4}
"""Flips of an image, by whether it may be turned: left-right alone, or up-down too."""
PINNED = 6
COMPARED = 20_000
"""Images at most of which near copies are looked for; the time grows with the square, and this many take a minute."""
_SOURCES = (
    "domain/calibration.py",
    "imaging",
    "networks",
    "stores/datasets",
    *(
        f"training/{module}.py"
        for module in (
            "allocator",
            "augmentation",
            "calibration",
            "checkpoint",
            "evaluation",
            "export",
            "features",
            "fitting",
            "pixels",
            "plan",
            "precision",
            "threshold",
            "trainer",
            "validation",
        )
    ),
)
"""What decides which weights and figures come out, besides data and seed."""


def train(
    plan: Plan,
    data: Dataset,
    out_dir: Path,
    *,
    on_progress: OnProgress,
    cancel: threading.Event,
    cache_dir: Path,
    weights: Path | None = None,
    checkpoint_dir: Path | None = None,
) -> ModelCard:
    """Trains on `data`, every item of it labelled, and writes a whole version into the empty folder `out_dir`.

    `cache_dir` keeps features for the next training; `weights` is a file with the backbone's pretrained weights, or a
    folder that may have one. In `checkpoint_dir`, this training's own, every epoch is kept: called again with the same
    folder after its process died, it goes on from there and ends with the same weights. The caller removes the folder.

    Raises Cancelled soon after `cancel` is set, BadField for data or a backbone that cannot be trained, or a checkpoint
    of another training, NotPossibleNow when pretrained weights are not to be had or the checkpoint is damaged,
    StorageFull.
    """
    way = _Way(on_progress, cancel)
    pretrained = load_pretrained(plan.backbone, weights, plan.dropout, plan.views)
    way.step()
    preparation = Preparation(illumination=ILLUMINATION, width=plan.input_size, height=plan.input_size)
    checkpoint = _checkpoint(checkpoint_dir, plan, pretrained, data) if checkpoint_dir is not None else None
    readable = _readable(data, way)
    with freed_memory_kept():
        parts = _cut(readable, plan.seed)
        _fit(plan, pretrained, preparation, parts, FeatureCache(cache_dir), checkpoint, way)
        return _finish(plan, pretrained, preparation, data, parts, out_dir, way)


class _Way:
    """Where a training is: every step may be reported, and may be the last."""

    def __init__(self, on_progress: OnProgress, cancel: threading.Event) -> None:
        self._on_progress = on_progress
        self._cancel = cancel
        self._now = Progress()

    def stage(self, name: str, total: int) -> None:
        self.step()
        self._now = Progress(stage=name, total=total)
        self._on_progress(self._now)

    def step(self, done: int = 0, **figures: float) -> None:
        """`done` more steps; figures stay until newer ones come."""
        if self._cancel.is_set():
            raise Cancelled
        if done or figures:
            self._tell(done=self._now.done + done, figures={**self._now.figures, **figures}, step=0, steps=0)

    def within(self, step: int, steps: int) -> None:
        """So many steps of those that the next one is made of."""
        self.step()
        self._tell(step=step, steps=steps)

    def _tell(self, **now: object) -> None:
        self._now = self._now.model_copy(update=now)
        self._on_progress(self._now)


@dataclass(frozen=True)
class _Parts:
    """Items with the sha256 of their bytes."""

    train: list[tuple[Item, str]]
    validation: list[tuple[Item, str]]
    words: str


@dataclass(frozen=True)
class _Readable:
    """What decoded, in order, and what did not."""

    items: list[tuple[Item, str]]
    """With the sha256 of their bytes."""
    sketches: list[Sketch]
    """Of each; none where the images are more than COMPARED."""
    lost: list[Item]


def _readable(data: Dataset, way: _Way) -> _Readable:
    """Raises BadField when many images cannot be read."""
    way.stage("reading", len(data.items))
    readable: list[tuple[Item, str]] = []
    sketches: list[Sketch] = []
    lost: list[Item] = []
    why = ""
    for item in data.items:
        try:
            encoded = item.read()
            image = decode(encoded)
        except BadField as error:
            log.warning("an image is left out of the training", file=str(item.path), error=error.message)
            lost.append(item)
            why = why or error.message
        else:
            readable.append((item, hashlib.sha256(encoded).hexdigest()))
            if len(data.items) <= COMPARED:
                sketches.append(sketch(image))
        way.step(1, unreadable=len(lost))
    if len(lost) > UNREADABLE_SHARE * len(data.items):
        names = ", ".join(item.name for item in lost[:3]) + (", ..." if len(lost) > 3 else "")
        count = f"{len(lost)} of {len(data.items)}"
        raise BadField(f"{count} images cannot be read: {names}. The first: {why}", field="data")
    return _Readable(readable, sketches, lost)


def _cut(readable: _Readable, seed: int) -> _Parts:
    contents = {item.name: content for item, content in readable.items}
    rest, part, words = cut([item for item, _ in readable.items], VALIDATION_SHARE, seed)
    if readable.lost:
        words += f"; {len(readable.lost)} unreadable images left out"
    if readable.sketches:
        words += _leaked(readable, rest, part)
    return _Parts([(item, contents[item.name]) for item in rest], [(item, contents[item.name]) for item in part], words)


def _leaked(readable: _Readable, rest: Sequence[Item], part: Sequence[Item]) -> str:
    """Told loudly, because scores on copies of what was learnt flatter; in words for the card, empty without any."""
    sketch_of = {item.name: each for (item, _), each in zip(readable.items, readable.sketches, strict=True)}
    pairs = near_across([sketch_of[item.name] for item in rest], [sketch_of[item.name] for item in part])
    if not pairs:
        return ""
    likest = pairs[0]
    count = len({pair.second for pair in pairs})
    log.warning(
        "validation images look like training images: validation scores flatter; `inspectbus data check` lists the "
        "pairs, a manifest with groups keeps them together",
        images=count,
        of=len(part),
        likest=f"{part[likest.second].name} and {rest[likest.first].name}, likeness {likest.likeness:.2f}",
    )
    return f"; {count} of {len(part)} validation images look like training images"


def identity(plan: Plan, pretrained: Pretrained, data: Dataset) -> dict[str, str]:
    """By name, everything that a training's end follows from: with any other, it would not be the same."""
    return {
        **{f"plan.{name}": json.dumps(value) for name, value in plan.model_dump().items()},
        "data": fingerprint(data.items),
        "weights": pretrained.sha256,
        "code": code_revision(),
        "torch": torch.__version__,
    }


def _checkpoint(folder: Path, plan: Plan, pretrained: Pretrained, data: Dataset) -> Checkpoint:
    checkpoint = Checkpoint(folder, identity(plan, pretrained, data))
    # Looked at now: one that will be refused must not cost the minutes until it is needed.
    checkpoint.load()
    return checkpoint


def _fit(
    plan: Plan,
    pretrained: Pretrained,
    preparation: Preparation,
    parts: _Parts,
    cache: FeatureCache,
    checkpoint: Checkpoint | None,
    way: _Way,
) -> None:
    """Trains the network of `pretrained`, in place."""
    whole = plan.depth == "whole"
    upper, train, validation = (_pixels if whole else _maps)(plan, pretrained, preparation, parts, cache, way)

    def told(epoch: Epoch) -> None:
        log.info("epoch", **vars(epoch))
        way.step(
            1,
            epoch=epoch.number,
            train_loss=epoch.train_loss,
            validation_loss=epoch.validation_loss,
            validation_ap=epoch.validation_ap,
            learning_rate=epoch.rate,
        )

    way.stage("training", plan.epochs)
    # Other threads of this process draw from torch's generator as they like; ours starts at the seed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        fit(
            upper,
            train,
            _targets(parts.train),
            validation,
            labels_of([item for item, _ in parts.validation]),
            epochs=plan.epochs,
            seed=plan.seed,
            after_epoch=told,
            after_step=way.within,
            method=replace(WHOLE if whole else METHOD, batch=plan.batch),
            precision="fp32" if plan.precision == "auto" and not whole else plan.precision,
            checkpoint=checkpoint,
        )


def _maps(
    plan: Plan, pretrained: Pretrained, preparation: Preparation, parts: _Parts, cache: FeatureCache, way: _Way
) -> tuple[Upper, Source, Source]:
    """The network above the cut, and the maps of what lies below."""
    allowed = FLIP_VIEWS[plan.augmentation.turns] if plan.augmentation.flips else 1
    views = next((views for views in (4, 2) if views <= allowed and views * len(parts.train) <= MAPS), 1)
    way.stage("features", views * len(parts.train) + len(parts.validation))
    network = cut_network(pretrained, preparation)
    train = extract(parts.train, views, network, preparation, cache, way.step)
    validation = extract(parts.validation, 1, network, preparation, cache, way.step)
    return Upper(pretrained.network, network.upper), train, validation


def _pixels(
    plan: Plan, pretrained: Pretrained, preparation: Preparation, parts: _Parts, cache: FeatureCache, way: _Way
) -> tuple[Upper, Source, Source]:
    """The whole network, and the prepared images, in files where the cache's lie."""
    way.stage("preparing", len(parts.train) + len(parts.validation))
    train, validation = (
        load(items, preparation, plan.augmentation, cache.folder, way.step) for items in (parts.train, parts.validation)
    )
    return Upper(pretrained.network, from_pixels(pretrained.network)), train, validation


def _targets(items: Sequence[tuple[Item, str]]) -> Floats:
    """Where people were in doubt, the target is less than certain too."""
    labels = labels_of([item for item, _ in items])
    said = [item.probability for item, _ in items]
    sure = np.array([label if p is None else p for p, label in zip(said, labels, strict=True)], dtype=np.float64)
    return METHOD.label_weight * labels + (1 - METHOD.label_weight) * sure


def _finish(
    plan: Plan,
    pretrained: Pretrained,
    preparation: Preparation,
    data: Dataset,
    parts: _Parts,
    out_dir: Path,
    way: _Way,
) -> ModelCard:
    """Everything the card says is measured on the written weights, from the images' own pixels."""
    way.stage("threshold", len(parts.validation))
    out_dir.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in pretrained.network.state_dict().items()}
    save_file(state, out_dir / WEIGHTS_FILE)
    network = load_trained(out_dir, pretrained.architecture, pretrained.normalisation)
    items = [item for item, _ in parts.validation]
    labels = labels_of(items)
    found = []
    for _, logit in judged(network, preparation, items):
        found.append(logit)
        way.step(1)
    logits = np.array(found)
    if not np.isfinite(logits).all():
        raise Internal("the trained network gives scores that are no numbers; train with another seed or backbone")
    calibration = calibrate(labels, logits, plan.seed)
    scores = scored(logits, calibration)
    threshold = stable_threshold(labels, scores, plan.seed)
    thresholds = Thresholds(threshold, threshold)
    confusion = confusion_of(labels, scores, thresholds)

    way.stage("exporting", len(items))
    backbone, file = pretrained.architecture.backbone, out_dir / EXPORT_FILE
    heatmap = export(network, backbone, calibration, preparation, file)
    exported = []
    for _, score in judged_by(open_export(file), preparation, items):
        exported.append(score)
        way.step(1)
    proof = deviation(scores, np.array(exported), [thresholds.qualified_below, thresholds.defective_from])
    check_export(proof, backbone)

    way.stage("registering", PINNED)
    pinned = []
    for number, row in enumerate(_spread(scores, PINNED)):
        pinned.append(_pin(out_dir, number, items[row], preparation, network, calibration))
        way.step(1)
    write_validation(out_dir, parts.validation, labels, scores)
    trained_on = labels_of([item for item, _ in parts.train])
    card = ModelCard(
        name=plan.model,
        architecture=pretrained.architecture,
        preparation=preparation,
        normalisation=pretrained.normalisation,
        calibration=calibration,
        threshold=threshold,
        validation_scores={
            "precision": confusion.precision or 0.0,
            "recall": confusion.recall or 0.0,
            "f1": confusion.f1 or 0.0,
            "average_precision": float(average_precision_score(labels, scores)),
        },
        data=DataFingerprint(
            name=data.name[:200],
            sha256=fingerprint(data.items),
            train_good=int((trained_on == 0).sum()),
            train_defective=int((trained_on == 1).sum()),
            validation_good=int((labels == 0).sum()),
            validation_defective=int((labels == 1).sum()),
            split=f"{data.words}; validation: {parts.words}"[:500],
        ),
        seed=plan.seed,
        code_revision=code_revision(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files={
            file.relative_to(out_dir).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(out_dir.rglob("*"))
            if file.is_file()
        },
        pinned=tuple(pinned),
        export=Export(opset=OPSET, heatmap=heatmap, images=proof.images, deviation=proof.largest),
    )
    write_card(out_dir, card)
    return read_card(out_dir, card.version)


def _spread(scores: Floats, count: int) -> list[int]:
    """Rows from the lowest score to the highest, evenly by rank: a fault that only bites at one end is met."""
    ranks = np.linspace(0, len(scores) - 1, min(count, len(scores))).round().astype(int)
    return [int(row) for row in np.argsort(scores, kind="stable")[ranks]]


def _pin(
    out_dir: Path, number: int, item: Item, preparation: Preparation, network: Classifier, calibration: Calibration
) -> PinnedImage:
    """Writes the prepared image, and scores what stands in the file."""
    name = f"pinned/{number}.png"
    file = out_dir / name
    file.parent.mkdir(exist_ok=True)
    written, encoded = cv2.imencode(".png", cv2.cvtColor(prepare(decode(item.read()), preparation), cv2.COLOR_RGB2BGR))
    if not written:
        raise Internal(f"OpenCV could not write {name}")
    file.write_bytes(encoded.tobytes())
    logits = logits_of(network, decode(file.read_bytes())[None])
    return PinnedImage(file=name, score=float(scored(logits, calibration)[0]))


def code_revision() -> str:
    """The package's version, and a hash of the sources that decide what a training makes."""
    package = Path(str(files("inspectbus")))
    digest = hashlib.sha256()
    for source in _SOURCES:
        for file in sorted((package / source).glob("*.py")) or [package / source]:
            digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    try:
        release = version("inspectbus")
    except PackageNotFoundError:  # run from its sources
        release = "unreleased"
    return f"{release}+{digest.hexdigest()[:12]}"
