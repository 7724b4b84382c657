"""Is an object what its API takes? Kubernetes' own by kubernetes-validate, custom ones by their projects' schemas.

    object ─> its group, kind and version ─> schema ─> faults

A field that is not known is a fault, and so is a kind without a schema.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from tests.manifests.kustomize import ROOT

VERSIONS = ("1.32", "1.37")
"""The oldest we support, and the newest there is a schema for."""
CUSTOM = Path(os.environ.get("INSPECTBUS_TEST_CRDS", ROOT.parent / "shared" / "crds"))


def is_custom(thing: dict[str, Any]) -> bool:
    """Kubernetes' own groups have no dot in them, or end in its name."""
    group = thing["apiVersion"].rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


def faults(thing: dict[str, Any], version: str) -> Iterator[str]:
    """Of one of Kubernetes' own kinds."""
    try:
        kubernetes_validate.validate(thing, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{named(thing)}: {'.'.join(map(str, error.path))}: {error.message[:300]}"
    except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError) as error:
        yield f"{named(thing)}: no schema in Kubernetes {version}: {error}"


def custom_faults(thing: dict[str, Any]) -> Iterator[str]:
    group, _, version = thing["apiVersion"].partition("/")
    file = CUSTOM / f"{group}_{thing['kind']}_{version}.json"
    if not file.exists():
        yield f"{named(thing)}: there is no {file.name} to check it by"
        return
    for error in _checker(file).iter_errors(thing):
        yield f"{named(thing)}: {error.json_path}: {error.message[:300]}"


def named(thing: dict[str, Any]) -> str:
    return f"{thing['kind']}/{thing['metadata']['name']}"


@cache
def _checker(file: Path) -> Any:
    return jsonschema.Draft202012Validator(json.loads(file.read_text(encoding="utf-8")))
