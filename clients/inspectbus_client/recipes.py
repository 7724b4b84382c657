"""Recipes, and the preparation of one image by a recipe."""

from __future__ import annotations

from functools import cached_property

from inspectbus.api.v1 import preprocessing_pb2, preprocessing_pb2_grpc
from inspectbus_client.frames import ENVELOPE_BYTES, Image, image_bytes
from inspectbus_client.values import Prepared, RecipeVersion, StoredRecipe, read
from inspectbus_client.wire import Wire


class Recipes:
    """The part of the client that keeps recipes."""

    _wire: Wire

    def recipes(self, *, timeout_s: float | None = None) -> list[RecipeVersion]:
        """The newest version of each, by name."""
        request = preprocessing_pb2.ListRecipesRequest()
        method = self._preprocessing.ListRecipes
        answer = self._wire.ask("preprocessing", method, request, timeout_s=timeout_s, repeatable=True)
        return [read(RecipeVersion, recipe) for recipe in answer.recipes]

    def recipe(self, name: str, version: int = 0, *, timeout_s: float | None = None) -> RecipeVersion:
        """Version 0 is the newest."""
        request = preprocessing_pb2.GetRecipeRequest(name=name, version=version)
        method = self._preprocessing.GetRecipe
        answer = self._wire.ask("preprocessing", method, request, timeout_s=timeout_s, repeatable=True)
        return read(RecipeVersion, answer.recipe)

    def put_recipe(self, yaml: str, *, timeout_s: float | None = None) -> StoredRecipe:
        """Stores YAML text as the recipe's new version. Raises BadField naming the entry at fault.

        Not tried again by itself: between two tries somebody may have stored another version on top.
        """
        request = preprocessing_pb2.PutRecipeRequest(yaml=yaml)
        answer = self._wire.ask("preprocessing", self._preprocessing.PutRecipe, request, timeout_s=timeout_s)
        return read(StoredRecipe, answer)

    def prepare(self, image: Image, *, recipe: str, timeout_s: float | None = None) -> Prepared:
        """The pixels a network would see. Makes no frame and no record."""
        data = image_bytes(image, self._wire.max_message_bytes - ENVELOPE_BYTES)
        request = preprocessing_pb2.PrepareRequest(recipe=recipe, image=data)
        method = self._preprocessing.Prepare
        answer = self._wire.ask("preprocessing", method, request, timeout_s=timeout_s, repeatable=True)
        return read(Prepared, answer)

    @cached_property
    def _preprocessing(self) -> preprocessing_pb2_grpc.PreprocessingServiceStub:
        return preprocessing_pb2_grpc.PreprocessingServiceStub(self._wire.channel("preprocessing"))
