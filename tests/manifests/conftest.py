"""Each combination is rendered once for all tests that look at it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest

from tests.manifests.combinations import TOGETHER, folders_of
from tests.manifests.kustomize import Manifests, render, render_base_with

Rendered = Callable[[str], Manifests]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """By name; see combinations.py. A copy, which a test may break."""

    @cache
    def once(name: str) -> Manifests:
        folders = folders_of(name)
        if folders:
            return Manifests([each for folder in folders for each in render(folder).objects])
        own = tmp_path_factory.mktemp("kustomization") / "base"
        return render_base_with(TOGETHER[name.removeprefix("with ")], own)

    def copy(name: str) -> Manifests:
        return Manifests(deepcopy(once(name).objects))

    return copy
