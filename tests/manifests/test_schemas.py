"""Every combination builds, and every object in it is what its API takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.manifests.combinations import ALL, COMPONENTS, TOGETHER
from tests.manifests.conftest import Rendered
from tests.manifests.schemas import CUSTOM, VERSIONS, custom_faults, faults, is_custom


@pytest.fixture(scope="session")
def objects(rendered: Rendered) -> list[dict[str, Any]]:
    """Each object of all combinations once."""
    found = {json.dumps(each, sort_keys=True): each for name in ALL for each in rendered(name).objects}
    return list(found.values())


@pytest.mark.parametrize("name", ALL)
def test_it_builds(rendered: Rendered, name: str) -> None:
    found = [(each["kind"], each["metadata"]["name"]) for each in rendered(name).objects]
    assert found
    assert len(found) == len(set(found))


def test_every_component_stands_alone_and_in_company() -> None:
    alone = {name for names in TOGETHER.values() if len(names) == 1 for name in names}
    company = {name for names in TOGETHER.values() if len(names) > 1 for name in names}
    # Definitions come with either broker.
    assert set(COMPONENTS) == alone
    assert set(COMPONENTS) - {"broker-definitions"} == company


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_own_objects_have_known_fields_only(objects: list[dict[str, Any]], version: str) -> None:
    own = [each for each in objects if not is_custom(each)]
    assert own
    assert [fault for each in own for fault in faults(each, version)] == []


def test_custom_objects_have_known_fields_only(objects: list[dict[str, Any]]) -> None:
    if not CUSTOM.is_dir():
        pytest.skip(f"no schemas of custom resources at {CUSTOM}")
    custom = [each for each in objects if is_custom(each)]
    assert custom
    assert [fault for each in custom for fault in custom_faults(each)] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_misspelt_field_and_an_unknown_kind_are_refused(rendered: Rendered, version: str) -> None:
    deployment = rendered("overlays/local").one("Deployment", "inference")
    assert list(faults(deployment, version)) == []
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    assert "enableServiceLink" in " ".join(faults(deployment, version))
    deployment["apiVersion"] = "apps/v0"
    assert "no schema" in " ".join(faults(deployment, version))


def test_a_misspelt_field_of_a_custom_kind_and_one_without_a_schema_are_refused(rendered: Rendered) -> None:
    if not CUSTOM.is_dir():
        pytest.skip(f"no schemas of custom resources at {CUSTOM}")
    scaled = rendered("overlays/plant").one("ScaledObject", "inference")
    assert list(custom_faults(scaled)) == []
    scaled["spec"]["maxReplicas"] = 3
    assert "maxReplicas" in " ".join(custom_faults(scaled))
    scaled["kind"] = "ScaledThing"
    assert "there is no keda.sh_ScaledThing_v1alpha1.json" in " ".join(custom_faults(scaled))
