"""One image file becomes prepared pixels, by the recipe it is meant for.

recipe name ─> recipe ─┬─ geometry, quality limits
image ─> decode ─> correct ─> measure ─> prepare ─> pixels, report, perhaps a HOLD
                       └─ model, alias ─> model directory ─> preparation
"""

from __future__ import annotations

from dataclasses import dataclass

from inspectbus.api.v1.decision_pb2 import Hold
from inspectbus.api.v1.prepared_frame_pb2 import QualityReport
from inspectbus.imaging import Image
from inspectbus.imaging.decoding import DecodeLimits, decode
from inspectbus.imaging.geometry import correct
from inspectbus.imaging.preparation import prepare
from inspectbus.imaging.quality import measure, violation
from inspectbus.preprocessing.metrics import PreprocessingMetrics
from inspectbus.preprocessing.recipes import Recipes, StoredRecipe
from inspectbus.runtime.watchdog import Watchdog
from inspectbus.stores.model_directory import ModelDirectory


@dataclass(frozen=True)
class Prepared:
    """One prepared image."""

    pixels: Image
    """(height, width, 3) uint8 RGB, of the preparation's size."""
    quality: QualityReport
    hold: Hold | None
    """Set when the recipe's limits make the image unusable."""
    stored: StoredRecipe
    preparation_hash: str


class Preparer:
    """Thread-safe; keeps nothing of an image."""

    def __init__(
        self,
        recipes: Recipes,
        models: ModelDirectory,
        limits: DecodeLimits,
        metrics: PreprocessingMetrics,
        watchdog: Watchdog,
    ) -> None:
        self._watchdog = watchdog
        self._recipes = recipes
        self._models = models
        self._limits = limits
        self._metrics = metrics

    def recipe(self, name: str) -> StoredRecipe:
        """The newest version. Raises BadField, NotFound, StorageAway."""
        return self._recipes.newest(name)

    def prepare(self, image: bytes, stored: StoredRecipe) -> Prepared:
        """Raises UnreadableImage, BadField when the geometry does not fit the picture, ModelNotReady."""
        with self._watchdog.watching(f"preparing an image of {len(image)} bytes by recipe {stored.recipe.name}"):
            return self._prepare(image, stored)

    def _prepare(self, image: bytes, stored: StoredRecipe) -> Prepared:
        recipe = stored.recipe
        with self._metrics.timed("decode"):
            picture = decode(image, self._limits)
        with self._metrics.timed("correct"):
            picture = correct(picture, recipe.geometry)
        with self._metrics.timed("measure"):
            quality = measure(picture)
        preparation = self._models.resolve(recipe.model, recipe.model_alias).preparation
        with self._metrics.timed("prepare"):
            pixels = prepare(picture, preparation)
        return Prepared(pixels, quality, violation(quality, recipe.quality), stored, preparation.hash)
