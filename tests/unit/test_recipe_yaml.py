"""Does every recipe survive its YAML, and is every wrong one refused by the entry at fault?"""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectbus.domain.recipe import Crop, Geometry, Lens, Perspective, QualityLimits, Recipe
from inspectbus.errors import BadField

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
limit = st.none() | finite
lenses = st.builds(
    Lens,
    camera_matrix=st.tuples(
        st.tuples(st.floats(0.1, 1e5), st.just(0.0), finite),
        st.tuples(st.just(0.0), st.floats(0.1, 1e5), finite),
        st.just((0.0, 0.0, 1.0)),
    ),
    distortion=st.sampled_from([4, 5, 8, 12, 14]).flatmap(
        lambda n: st.lists(finite, min_size=n, max_size=n).map(tuple)
    ),
    size=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
)
sides = st.integers(8, 16384)
quads = st.builds(
    Perspective, corners=st.just(((0.0, 0.0), (9.5, 1.0), (9.0, 9.0), (0.5, 8.0))), width=sides, height=sides
)
crops = st.builds(Crop, x=st.integers(0, 99), y=st.integers(0, 99), width=sides, height=sides)
recipes = st.builds(
    Recipe,
    name=names,
    description=st.text(st.characters(exclude_categories=["Cs"]), max_size=500),
    model=names,
    model_alias=names,
    geometry=st.builds(Geometry, lens=st.none() | lenses, perspective=st.none() | quads, crop=st.none() | crops),
    quality=st.builds(QualityLimits, min_sharpness=limit, max_glare=limit, max_noise=limit),
    threshold=st.just(None) | st.floats(0.5, 1),
) | st.builds(
    Recipe, name=names, model=names, threshold=st.floats(0.5, 1), qualified_below=st.none() | st.floats(0, 0.5)
)

SMALL = {"name": "cells", "model": "elpv"}


@settings(max_examples=100, deadline=None)
@given(recipes)
def test_every_recipe_comes_back_from_its_yaml_with_the_same_hash(recipe: Recipe) -> None:
    again = Recipe.from_yaml(recipe.to_yaml())

    assert again == recipe
    assert again.sha256 == recipe.sha256


def test_a_recipe_without_a_band_is_written_as_before_there_were_bands() -> None:
    assert "qualified_below" not in Recipe(name="cells", model="elpv", threshold=0.4).to_yaml()


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.text("{}[]&*!|>-:? \n'\"ab1~.", max_size=60)
)
def test_any_text_is_a_recipe_or_refused_with_a_field(text: str) -> None:
    try:
        Recipe.from_yaml(text)
    except BadField as refused:
        assert refused.field  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "cells.top"}, "name"),
        ({"name": "cells#1"}, "name"),
        ({"name": "cells\n"}, "name"),
        ({"name": "Cells"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "c" * 64}, "name"),
        ({"model": "*"}, "model"),
        ({"model_alias": "prod.eu"}, "model_alias"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"threshold": 1.5, "qualified_below": 0.2}, "threshold"),
        ({"threshold": 0.5, "qualified_below": 0.6}, "qualified_below"),
        ({"threshold": 0.5, "qualified_below": float("nan")}, "qualified_below"),
        ({"threshold": 0.5, "qualified_below": -0.1}, "qualified_below"),
        ({"qualified_below": 0.2}, "qualified_below"),
        ({"quality": {"min_sharpness": float("nan")}}, "quality.min_sharpness"),
        ({"quality": {"max_noise": float("inf")}}, "quality.max_noise"),
        ({"quality": {"max_glare": True}}, "quality.max_glare"),
        ({"quality": {"max_blur": 3}}, "quality.max_blur"),
        ({"geometry": {"crop": {"x": -1, "y": 0, "width": 9, "height": 9}}}, "geometry.crop.x"),
        ({"geometry": {"lens": {"camera_matrix": [[1, 0, float("nan")], [0, 1, 0], [0, 0, 1]]}}}, "geometry.lens"),
        (
            {"geometry": {"perspective": {"corners": [[0, 0], [0, 9], [9, 9], [9, 0]], "width": 9, "height": 9}}},
            "geometry.perspective",
        ),
        ({"threshhold": 0.5}, "threshhold"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_entry_is_refused_by_its_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(BadField) as refused:
        Recipe.from_yaml(yaml.safe_dump(SMALL | change))
    assert refused.value.field.startswith(field)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: *x", "anchors"),
        ("&-a [*-a]", "anchors"),
        ("[" * 60_000, "deep"),
        ("name: cells\nmodel: [2026", "valid YAML"),
        ("name: cells\nmodel: elpv\nthreshold: " + "9" * 5000, "valid YAML"),
        ("!!python/object/apply:os.getcwd []", "valid YAML"),
        ("name: cells\nmodel: elpv\ndescription: " + "x" * 70_000, "at most"),
        ("- cells", "mapping"),
    ],
)
def test_yaml_that_is_dangerous_or_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadField, match=words) as refused:
        Recipe.from_yaml(text)
    assert refused.value.field == "yaml"


def test_stars_and_ampersands_in_a_description_are_no_anchors() -> None:
    assert Recipe.from_yaml("name: cells\nmodel: elpv\ndescription: R&D says *careful* &c.").description.endswith("&c.")
