"""The gRPC door: prepare one image while you wait, and keep recipes."""

from __future__ import annotations

import grpc

from inspectbus.api.v1 import preprocessing_pb2 as pb
from inspectbus.api.v1.preprocessing_pb2_grpc import PreprocessingServiceServicer
from inspectbus.errors import BadField
from inspectbus.imaging.pixels import to_pixels
from inspectbus.preprocessing.preparer import Preparer
from inspectbus.preprocessing.recipes import Recipes, StoredRecipe

NAME = pb.DESCRIPTOR.services_by_name["PreprocessingService"].full_name


class PreprocessingRpc(PreprocessingServiceServicer):
    def __init__(self, preparer: Preparer, recipes: Recipes) -> None:
        self._preparer = preparer
        self._recipes = recipes

    def Prepare(self, request: pb.PrepareRequest, context: grpc.ServicerContext) -> pb.PrepareResponse:
        stored = self._preparer.recipe(request.recipe)
        prepared = self._preparer.prepare(request.image, stored)
        return pb.PrepareResponse(
            pixels=to_pixels(prepared.pixels),
            quality=prepared.quality,
            hold=prepared.hold,
            recipe=stored.recipe.name,
            recipe_version=stored.version,
            model=stored.recipe.model,
            model_alias=stored.recipe.model_alias,
            preparation_hash=prepared.preparation_hash,
        )

    def ListRecipes(self, request: pb.ListRecipesRequest, context: grpc.ServicerContext) -> pb.ListRecipesResponse:
        return pb.ListRecipesResponse(recipes=[_message(stored) for stored in self._recipes.all_newest()])

    def GetRecipe(self, request: pb.GetRecipeRequest, context: grpc.ServicerContext) -> pb.GetRecipeResponse:
        return pb.GetRecipeResponse(recipe=_message(self._recipes.get(request.name, request.version, field="name")))

    def PutRecipe(self, request: pb.PutRecipeRequest, context: grpc.ServicerContext) -> pb.PutRecipeResponse:
        if not request.yaml.strip():
            raise BadField("yaml is empty: a recipe needs at least a name and a model", field="yaml")
        stored, created = self._recipes.put(request.yaml)
        return pb.PutRecipeResponse(recipe=_message(stored), created=created)


def _message(stored: StoredRecipe) -> pb.RecipeVersion:
    message = pb.RecipeVersion(name=stored.recipe.name, version=stored.version, yaml=stored.yaml, sha256=stored.sha256)
    message.created_at.FromMicroseconds(stored.created_at_us)
    return message
