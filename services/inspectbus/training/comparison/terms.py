"""Terms: what a comparison is told, with every number that decides how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from inspectbus.errors import BadField
from inspectbus.training.augmentation import Augmentation
from inspectbus.training.comparison.contenders import BASELINES
from inspectbus.training.plan import Plan

CNN = "cnn"
MODELS = (CNN, *(contender.name for contender in BASELINES))
FULL_WIDTHS = (*range(1, 12), 16, 32, 64, 128, 256)
QUICK_WIDTHS = (1, 2, 4, 8, 11, 32)
QUICK_IMAGES = 240
"""Images that a quick comparison takes of a larger set."""
QUICK_EPOCHS = 2


def compared_plan(*, turns: bool = True, **asked: object) -> Plan:
    """How the CNN is trained where nothing else is asked: as well as we know, so that it stands for what it can do.

    Raises pydantic's ValidationError.
    """
    best = {"model": "compared", "seed": 0, "depth": "whole", "epochs": 14, "input_size": 300}
    # What is turned while it is learnt from is judged in four views; a part with an up only in its mirror image.
    best |= {"views": 4 if turns else 2, "augmentation": Augmentation(turns=turns)}
    return Plan.model_validate({**best, **asked})


class Terms(BaseModel):
    """One comparison. The defaults are those of a full one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    plan: Plan
    """How the CNN is trained; its seed is replaced by each of the comparison's."""
    models: tuple[str, ...] = MODELS
    seeds: int = Field(default=1, ge=1, le=100)
    """Seeds 0, 1, ...: each cuts its own validation part and draws its own candidates and first weights."""
    images: int = Field(default=0, ge=0)
    """Images taken of the whole set, both classes in proportion; 0 takes all."""
    candidates: int = Field(default=12, ge=1, le=1000)
    """Settings each baseline's search compares, for each form and seed."""
    rounds: int = Field(default=2000, ge=100, le=100_000)
    """Draws of the bootstrap."""
    widths: tuple[int, ...] = FULL_WIDTHS
    """Feature dimensions of Figures 7 and 8; those above what images and network give are left out."""
    repeats: int = Field(default=3, ge=1, le=100)
    """Fits timed for each width, of which the median counts."""
    spoiled: int = Field(default=200, ge=10)
    """Held-out images, at most, that the preprocessing table is made of."""
    shortened: bool = False
    """These are the terms of `quick`."""

    @classmethod
    def full(cls, plan: Plan, **asked: object) -> Self:
        return cls.model_validate({"plan": plan, **asked})

    @classmethod
    def quick(cls, plan: Plan, **asked: object) -> Self:
        """Minutes instead of a quarter of an hour: shows that everything works, and roughly how it comes out."""
        brief = {
            "images": QUICK_IMAGES,
            "candidates": 3,
            "rounds": 500,
            "widths": QUICK_WIDTHS,
            "repeats": 1,
            "spoiled": 24,
            "shortened": True,
        }
        shorter = plan.model_copy(update={"epochs": min(plan.epochs, QUICK_EPOCHS)})
        return cls.model_validate({"plan": shorter, **brief, **asked})


def known_models(names: Sequence[str]) -> tuple[str, ...]:
    """The models meant, each once, in the order of the table. Raises BadField naming one that nobody knows."""
    if strange := [name for name in names if name not in MODELS]:
        raise BadField(f"no model is called {strange[0]!r}; known are {', '.join(MODELS)}", field="models")
    return tuple(name for name in MODELS if name in names)
