"""report.json: the comparison in figures, for machines.

Comparison ─> {"data", "split", "models", "raw_models", "floors", "dimensions", "preprocessing", "pointing", ...}

A model's measures are {"mean", "low", "high", "spread"}: the mean over seeds, its 95 % bootstrap interval over the
examined images, and the standard deviation over seeds, 0 for one. `floor` is mean grey and its spread; it and calling
everything defective stand under `floors` too. `fit_s` are seconds, `predict_ms` milliseconds an
image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from inspectbus.training.calibration import Labels
from inspectbus.training.comparison.conductor import (
    ALL_KEY,
    CNN_KEY,
    LIGHT_KEY,
    TIMED_IMAGES,
    Comparison,
    Key,
)
from inspectbus.training.comparison.contenders import BASELINES
from inspectbus.training.comparison.inputs import Form
from inspectbus.training.comparison.measures import FIXED_OVERKILL, MEASURES, calibration_error, figures
from inspectbus.training.comparison.suspects import SUSPICIOUS
from inspectbus.training.evaluation import labels_of

SUBSET_MEASURES = ("precision", "recall", "f1")
NAMED_SUSPECTS = 50
"""Suspects named one by one, at most."""


def as_record(found: Comparison) -> dict[str, Any]:
    """All of it, ready for json.dumps."""
    frozen = {CNN_KEY.model: CNN_KEY, **{each.name: Key(each.name, "frozen") for each in BASELINES}, "floor": LIGHT_KEY}
    raw = {**{each.name: Key(each.name, "raw") for each in BASELINES}, "floor": LIGHT_KEY}
    labels = found.exam.labels
    return {
        "data": {"name": found.data, "sha256": found.data_sha256, "images": len(labels) + len(found.train.labels)},
        "split": {
            "words": found.words,
            "train": len(found.train.labels),
            "held_out": len(labels),
            "held_out_defective": int(labels.sum()),
            "seeds": found.terms.seeds,
        },
        "models": {name: _model(found, key) for name, key in frozen.items() if key in found.figures},
        "raw_models": {name: _model(found, key) for name, key in raw.items() if key in found.figures},
        "floors": {"light": _model(found, LIGHT_KEY), "all_defective": _model(found, ALL_KEY)},
        "dimensions": [asdict(point) for point in found.points],
        "preprocessing": [asdict(row) for row in found.preprocessing],
        "preprocessing_images": len(found.preprocessed),
        "preprocessing_floor": _floor(labels_of(found.preprocessed)),
        "subsets": subset_figures(found),
        "hardest": [
            {"file": each.item.name, "label": str(each.item.label), "score": each.score} for each in found.hardest
        ],
        "pointing": pointing(found),
        "export": export(found),
        "suspects": suspects(found),
        "fixed_overkill": FIXED_OVERKILL,
        "predict_timed_on": TIMED_IMAGES,
        "terms": found.terms.model_dump(mode="json"),
        "code_revision": found.code_revision,
        "took_s": found.took_s,
    }


def ordered(found: Comparison) -> list[Key]:
    """The CNN, the frozen form of the others, their raw form, the floors: the order of every table and figure."""
    forms: tuple[Form, ...] = ("frozen", "raw")
    order = [CNN_KEY, *(Key(contender.name, form) for form in forms for contender in BASELINES), LIGHT_KEY, ALL_KEY]
    return [key for key in order if key in found.figures]


def subset_figures(found: Comparison) -> dict[str, Any]:
    """Precision, recall and F1 of each model on each subset and, last, their plain average."""
    rows = []
    for key in ordered(found):
        each = found.figures[key]
        by_subset = {
            name: {
                measure: float(
                    np.mean(
                        [
                            figures(found.exam.labels[rows], answers.scores[rows], answers.threshold)[measure]
                            for answers in each.answers
                        ]
                    )
                )
                for measure in SUBSET_MEASURES
            }
            for name, rows in found.subsets.rows.items()
        }
        by_subset["average"] = {
            measure: float(np.mean([values[measure] for values in by_subset.values()])) for measure in SUBSET_MEASURES
        }
        rows.append({"model": key.model, "form": key.form, "subsets": by_subset})
    return {
        "words": found.subsets.words,
        "images": {name: len(each) for name, each in found.subsets.rows.items()},
        "models": rows,
    }


def pointing(found: Comparison) -> dict[str, Any] | None:
    """How the CNN's heatmaps agree with masks: pointing.Agreement, and the images whose masks could not be used.

    None where there are no masks or heatmaps; without figures where no mask could be used.
    """
    if found.pointing is None:
        return None
    agreement = found.pointing.agreement
    return {**(asdict(agreement) if agreement else {"images": 0}), "left_out": list(found.pointing.left_out)}


def export(found: Comparison) -> dict[str, Any] | None:
    """How far the exports of the CNN's versions lie from PyTorch on the held-out images, and verdicts that differ, of
    all seeds together; None where there is none."""
    if not found.exports:
        return None
    return {
        "images": len(found.exam.labels),
        "seeds": len(found.exports),
        "largest": max(each.largest for each in found.exports),
        "differing": sum(each.differing for each in found.exports),
    }


def suspects(found: Comparison) -> dict[str, Any] | None:
    """The images whose labels look most doubtful, worst first; None where there are too few to say."""
    if found.suspicion is None:
        return None
    rows = found.suspicion.suspects
    return {
        "share": SUSPICIOUS,
        "of": len(found.train.items),
        "count": len(rows),
        "images": [
            {
                "file": found.train.items[row].name,
                "label": str(found.train.items[row].label),
                "confidence": float(found.suspicion.confidence[row]),
            }
            for row in rows[:NAMED_SUSPECTS]
        ],
    }


def _floor(labels: Labels) -> dict[str, float]:
    """Of calling everything defective."""
    everything = figures(labels, np.ones(len(labels)), 0.5)
    return {name: everything[name] for name in ("accuracy", "f1", "average_precision")}


def _model(found: Comparison, key: Key) -> dict[str, Any]:
    each = found.figures[key]
    labels = found.exam.labels
    by_seed = [figures(labels, answers.scores, answers.threshold) for answers in each.answers]
    record: dict[str, Any] = {
        name: {**asdict(found.draws.interval(key.name, name)), "spread": _spread([seed[name] for seed in by_seed])}
        for name in MEASURES
    }
    record |= {
        "fit_s": each.fit_s,
        "predict_ms": each.predict_ms,
        "calibration_error": float(np.mean([calibration_error(labels, answers.scores) for answers in each.answers])),
        "thresholds": [answers.threshold for answers in each.answers],
        "settings": [dict(settings) for settings in each.settings],
    }
    if CNN_KEY in found.figures and key != CNN_KEY:
        record["cnn_less_this"] = _lead(found, key)
    return record


def _lead(found: Comparison, key: Key) -> Mapping[str, Any]:
    """The paired difference; the interval lies above 0 where the CNN is better beyond chance."""
    return {name: asdict(found.draws.difference(CNN_KEY.name, key.name, name)) for name in ("f1", "average_precision")}


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
