"""Recipes, and the pixels an image comes to by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from inspectbus.errors import BadField
from inspectbus_client.values.decisions import Hold, Quality


@dataclass(frozen=True)
class RecipeVersion:
    name: str
    version: int
    yaml: str
    sha256: str
    created_at: datetime | None


@dataclass(frozen=True)
class StoredRecipe:
    recipe: RecipeVersion
    created: bool


@dataclass(frozen=True)
class Pixels:
    """uint8, row-major, channels last, RGB: `numpy.frombuffer(p.data, "uint8").reshape(p.height, p.width, -1)`."""

    height: int
    width: int
    channels: int
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, array: Any) -> Pixels:
        """From anything with a buffer, such as a NumPy array of uint8 (height, width, channels)."""
        view = memoryview(array)
        if view.format != "B" or view.ndim != 3:
            raise BadField("pixels are uint8 of shape (height, width, channels)", field="pixels")
        assert view.shape is not None
        height, width, channels = view.shape
        return cls(height, width, channels, view.tobytes())


@dataclass(frozen=True)
class Prepared:
    """`hold` is set when the recipe's limits call the image unusable; the pixels are there all the same."""

    pixels: Pixels
    quality: Quality
    hold: Hold | None
    recipe: str
    recipe_version: int
    model: str
    model_alias: str
    preparation_hash: str
