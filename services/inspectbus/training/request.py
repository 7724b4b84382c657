"""From a caller's TrainingPlan to what the trainer takes: every field checked, every default filled in."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from inspectbus.api.v1.training_pb2 import TrainingPlan
from inspectbus.domain.model_version import Architecture, Normalisation
from inspectbus.domain.names import name_from
from inspectbus.domain.preparation import Preparation
from inspectbus.errors import BadField
from inspectbus.networks.classifier import build
from inspectbus.stores.datasets import ELPV, open_dataset
from inspectbus.training.plan import Plan


def checked(asked: TrainingPlan, data_root: Path) -> TrainingPlan:
    """The plan as it will be carried out. Raises BadField naming the field, such as 'plan.epochs'."""
    try:
        source = data_source(asked.data, data_root)
        dataset = open_dataset(source)
        if not dataset.labelled:
            raise BadField(f"{asked.data!r} holds images without labels; there is nothing to learn", field="data")
        plan = to_plan(asked, model=asked.model or name_from(dataset.name))
        _checked_backbone(plan.backbone)
    except BadField as error:
        raise BadField(error.message, field=f"plan.{error.field or 'data'}") from None
    return TrainingPlan(
        data=asked.data,
        model=plan.model,
        backbone=plan.backbone,
        epochs=plan.epochs,
        seed=plan.seed,
        input_size=plan.preparation.width,
    )


def data_source(data: str, data_root: Path) -> str:
    """What `open_dataset` takes: "elpv", or the folder, when it lies inside the data root. Raises BadField."""
    if data == ELPV:
        return ELPV
    if not data:
        raise BadField(f"name a folder inside {data_root}, or the data set {ELPV!r}", field="data")
    try:
        # Resolved first, so that neither '..' nor a link leads out.
        folder = (data_root / data).resolve()
    except (ValueError, OSError, RuntimeError) as error:
        raise BadField(f"{data[:200]!r} is not a path: {error}", field="data") from None
    if not folder.is_relative_to(data_root.resolve()):
        raise BadField(
            f"{data[:200]!r} lies outside {data_root}, the folder this service may read training data from", field="data"
        )
    if not folder.is_dir():
        raise BadField(f"{data[:200]!r} is neither a folder inside {data_root} nor the data set {ELPV!r}", field="data")
    return str(folder)


def to_plan(asked: TrainingPlan, *, model: str) -> Plan:
    """Fields left at zero take the plan's defaults. Raises BadField."""
    told: dict[str, object] = {"model": model}
    if asked.backbone:
        told["backbone"] = asked.backbone
    if asked.epochs:
        told["epochs"] = asked.epochs
    if asked.HasField("seed"):
        told["seed"] = asked.seed
    if asked.input_size:
        try:
            told["preparation"] = Preparation(width=asked.input_size, height=asked.input_size)
        except ValidationError:
            raise BadField(f"input_size is {asked.input_size}, it must lie in 32 to 2048", field="input_size") from None
    return Plan(**told)  # type: ignore[arg-type]  # the names above are the plan's own


def _checked_backbone(name: str) -> None:
    # Without memory or arithmetic: only whether the libraries know the architecture and it can carry our head.
    with torch.device("meta"):
        build(Architecture(backbone=name), Normalisation(mean=(0, 0, 0), std=(1, 1, 1)))
