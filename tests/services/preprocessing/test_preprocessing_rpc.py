"""Does the gRPC door prepare images and keep recipes?"""

from __future__ import annotations

from typing import cast

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from inspectbus.api.v1 import preprocessing_pb2 as pb
from inspectbus.domain.recipe import Recipe
from inspectbus.imaging.pixels import from_pixels
from inspectbus.imaging.preparation import prepare
from tests.doubles.pictures import encoded, header_bomb, textured
from tests.services.preprocessing.conftest import PATIENCE_S, PREPARATION, Line


def test_an_image_is_prepared_while_the_caller_waits_and_leaves_no_trace(line: Line) -> None:
    line.put_recipe()
    picture = textured()

    answer = line.stub.Prepare(pb.PrepareRequest(recipe="cells", image=encoded(picture)), timeout=PATIENCE_S)

    np.testing.assert_array_equal(from_pixels(answer.pixels), prepare(picture, PREPARATION))
    assert answer.preparation_hash == PREPARATION.hash
    assert (answer.recipe, answer.recipe_version, answer.model, answer.model_alias) == (
        "cells",
        1,
        "cells",
        "production",
    )
    assert not answer.HasField("hold")
    assert line.prepared.empty()
    assert line.decisions.empty()


def test_an_unusable_image_is_answered_with_its_hold_and_its_pixels(line: Line) -> None:
    line.put_recipe()
    black = encoded(np.zeros((50, 50, 3), np.uint8))

    answer = line.stub.Prepare(pb.PrepareRequest(recipe="cells", image=black), timeout=PATIENCE_S)

    assert (answer.hold.measure, answer.hold.value, answer.hold.limit) == ("brightness", 0, 10)
    assert from_pixels(answer.pixels).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "empty"),
        (b"hello", "not a PNG"),
        (encoded(textured(), ".jpg")[:900], "cut short"),
        (encoded(np.zeros((1, 1, 3), np.uint8)), "1x1"),
        (header_bomb(), "30000x30000"),
    ],
    ids=["empty", "text", "truncated", "one-pixel", "bomb"],
)
def test_an_unreadable_image_is_an_invalid_argument_that_names_its_field(line: Line, image: bytes, words: str) -> None:
    line.put_recipe()

    with pytest.raises(grpc.RpcError) as failed:
        line.stub.Prepare(pb.PrepareRequest(recipe="cells", image=image), timeout=PATIENCE_S)

    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in str(failed.value.details())
    assert _details(failed.value) == ("UnreadableImage", "image")


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("unheard-of", grpc.StatusCode.NOT_FOUND, "NotFound"),
        ("cells.top", grpc.StatusCode.INVALID_ARGUMENT, "BadField"),
        ("cells#", grpc.StatusCode.INVALID_ARGUMENT, "BadField"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "BadField"),
    ],
)
def test_an_unknown_recipe_is_refused(line: Line, name: str, code: grpc.StatusCode, reason: str) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        line.stub.Prepare(pb.PrepareRequest(recipe=name, image=encoded(textured())), timeout=PATIENCE_S)
    assert failed.value.code() == code
    assert _details(failed.value) == (reason, "recipe")

    with pytest.raises(grpc.RpcError) as failed:
        line.stub.GetRecipe(pb.GetRecipeRequest(name=name), timeout=PATIENCE_S)
    assert failed.value.code() == code
    assert _details(failed.value) == (reason, "name")


def test_while_no_model_is_ready_the_caller_is_told_to_come_back(line: Line) -> None:
    line.put_recipe("name: cells\nmodel: unborn\n")

    with pytest.raises(grpc.RpcError) as failed:
        line.stub.Prepare(pb.PrepareRequest(recipe="cells", image=encoded(textured())), timeout=PATIENCE_S)

    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
    assert _details(failed.value)[0] == "ModelNotReady"


def test_a_recipe_is_stored_in_versions_with_every_default_written_out(line: Line) -> None:
    first = line.put_recipe("name: cells\nmodel: cells\n")
    second = line.put_recipe("name: cells\nmodel: cells\nthreshold: 0.4\n")

    assert (first.version, second.version) == (1, 2)
    assert "min_brightness: 10.0" in first.yaml
    assert first.sha256 == Recipe.from_yaml(first.yaml).sha256
    assert first.created_at.ToMicroseconds() > 0
    assert _get(line, "cells") == second
    assert _get(line, "cells", 1) == first
    with pytest.raises(grpc.RpcError, match="version 3"):
        _get(line, "cells", 3)


def test_the_same_content_again_keeps_the_version(line: Line) -> None:
    first = line.put_recipe("name: cells\nmodel: cells\n")

    again = line.stub.PutRecipe(
        pb.PutRecipeRequest(yaml="# another layout\n{model: cells, name: cells, threshold: null}"), timeout=PATIENCE_S
    )

    assert not again.created
    assert again.recipe == first


def test_an_older_content_again_is_a_new_version(line: Line) -> None:
    for threshold in (0.4, 0.6, 0.4):
        last = line.put_recipe(f"name: cells\nmodel: cells\nthreshold: {threshold}\n")

    assert last.version == 3


def test_recipes_are_listed_by_name_newest_version_only(line: Line) -> None:
    line.put_recipe("name: wafers\nmodel: cells\n")
    line.put_recipe("name: cells\nmodel: cells\n")
    line.put_recipe("name: wafers\nmodel: cells\nthreshold: 0.1\n")

    listed = line.stub.ListRecipes(pb.ListRecipesRequest(), timeout=PATIENCE_S).recipes

    assert [(recipe.name, recipe.version) for recipe in listed] == [("cells", 1), ("wafers", 2)]


@pytest.mark.parametrize(
    ("yaml", "field"),
    [
        ("", "yaml"),
        ("name: [", "yaml"),
        ("name: cells\n", "model"),
        ("name: cells.top\nmodel: cells\n", "name"),
        ("name: 'cells#'\nmodel: cells\n", "name"),
        ("name: cells\nmodel: cells\nquality: {min_sharpness: .nan}\n", "quality.min_sharpness"),
        ("name: cells\nmodel: cells\ngeometry: {crop: {x: 0, y: 0, width: 0, height: 5}}\n", "geometry.crop.width"),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_entry_and_not_stored(line: Line, yaml: str, field: str) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        line.put_recipe(yaml)

    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert _details(failed.value) == ("BadField", field)
    assert not line.stub.ListRecipes(pb.ListRecipesRequest(), timeout=PATIENCE_S).recipes


def test_the_service_says_it_is_well(line: Line) -> None:
    with grpc.insecure_channel(line.door.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="inspectbus.api.v1.PreprocessingService")
        answer = health.Check(request, timeout=PATIENCE_S)  # type: ignore[attr-defined] # its stubs lack the calls

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def _get(line: Line, name: str, version: int = 0) -> pb.RecipeVersion:
    return line.stub.GetRecipe(pb.GetRecipeRequest(name=name, version=version), timeout=PATIENCE_S).recipe


def _details(error: grpc.RpcError) -> tuple[str, str]:
    """Kind and field, as the rich status names them."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    assert status is not None
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(request)
    return info.reason, request.field_violations[0].field if request.field_violations else ""
