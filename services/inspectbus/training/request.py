"""From a caller's TrainingPlan to a Plan, and ComparisonPlan to Terms: every field checked, every default filled in.

A caller may name the data set "elpv" or a folder; a folder only inside the service's data root, so that nobody makes
the service read images from anywhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from inspectbus.api.v1.training_pb2 import ComparisonPlan, TrainingPlan
from inspectbus.domain.model_version import Architecture, Normalisation
from inspectbus.domain.names import checked_name, name_from
from inspectbus.errors import BadField
from inspectbus.networks.classifier import build
from inspectbus.stores.datasets import ELPV, Dataset, open_dataset
from inspectbus.stores.datasets.check import check_files, check_marks, check_spelling
from inspectbus.training.comparison.terms import Terms, compared_plan, known_models
from inspectbus.training.plan import Plan
from inspectbus.training.settings import TrainingSettings

_PLANS_OWN = ("batch", "precision", "views", "dropout")
"""Fields whose default is the same for every service."""


def to_plan(asked: TrainingPlan, settings: TrainingSettings) -> Plan:
    """Looks at the data and the backbone too. Raises BadField naming the field, such as 'plan.epochs'."""
    dataset = _dataset(asked.data, settings)
    depth = asked.depth or settings.depth
    try:
        plan = Plan.model_validate(
            {
                "data": asked.data,
                "model": checked_name(asked.model or name_from(dataset.name), "plan.model"),
                "backbone": asked.backbone or settings.backbone,
                "epochs": asked.epochs or (settings.whole_epochs if depth == "whole" else settings.epochs),
                "seed": asked.seed if asked.HasField("seed") else settings.seed,
                "input_size": asked.input_size or settings.input_size,
                "depth": depth,
                "augmentation": {field.name: value for field, value in asked.augmentation.ListFields()},
                **{field.name: value for field, value in asked.ListFields() if field.name in _PLANS_OWN},
            }
        )
    except ValidationError as error:
        raise _named(error) from None
    _check_backbone(plan.backbone)
    return plan


def to_terms(asked: ComparisonPlan, settings: TrainingSettings) -> Terms:
    """The same of a comparison, with the defaults of `inspectbus compare`."""
    _dataset(asked.data, settings)
    cnn: dict[str, Any] = {"backbone": settings.backbone}
    rest: dict[str, Any] = {}
    for field, value in asked.ListFields():
        if field.name != "quick":
            (rest if field.name in Terms.model_fields else cnn)[field.name] = value
    try:
        if asked.models:
            rest["models"] = known_models(asked.models)
        plan = compared_plan(**cnn)
        terms = (Terms.quick if asked.quick else Terms.full)(plan, **rest)
    except BadField as error:
        raise BadField(error.message, field=f"plan.{error.field}") from None
    except ValidationError as error:
        raise _named(error) from None
    _check_backbone(plan.backbone)
    return terms


def _dataset(data: str, settings: TrainingSettings) -> Dataset:
    try:
        dataset = open_dataset(data_source(data, settings.data_root))
        if not dataset.labelled:
            raise BadField(f"{data!r} holds images without labels, so there is nothing to learn")
        check_marks(check_files(dataset))
    except BadField as error:
        # The fault may lie in a file of the data set; the message names it, and the caller's field is this one.
        raise BadField(error.message, field="plan.data") from None
    return dataset


def _named(error: ValidationError) -> BadField:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return BadField(f"{where}: {first['msg']}", field=f"plan.{where}")


def data_source(data: str, data_root: Path) -> str:
    """What `open_dataset` takes: "elpv", or the path of the folder, when it lies inside the data root.

    Raises BadField.
    """
    if data == ELPV:
        return ELPV
    if not data:
        raise BadField(f"name a folder inside {data_root}, or the data set {ELPV!r}", field="data")
    try:
        # Resolved before it is judged, so that neither '..' nor a link leads out.
        folder = (data_root / data).resolve()
        is_folder = folder.is_dir()
    except (ValueError, OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "no path"
        raise BadField(f"{data[:200]!r} cannot be looked at: {reason}", field="data") from None
    check_spelling(folder)
    if not folder.is_relative_to(data_root.resolve()):
        raise BadField(
            f"{data[:200]!r} lies outside {data_root}, the folder this service reads training data from", field="data"
        )
    if not is_folder:
        raise BadField(f"{data[:200]!r} is neither a folder inside {data_root} nor the data set {ELPV!r}", field="data")
    return str(folder)


def _check_backbone(name: str) -> None:
    try:
        # On no device: only whether the libraries know the architecture and it can carry our head.
        with torch.device("meta"):
            build(Architecture(backbone=name), Normalisation(mean=(0, 0, 0), std=(1, 1, 1)))
    except BadField as error:
        raise BadField(error.message, field="plan.backbone") from None
