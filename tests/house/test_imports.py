"""Who may know whom: services never import each other, and light rooms stay light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "services" / "inspectbus"
CLIENT = ROOT / "clients" / "inspectbus_client"
SERVICES = ("acquisition", "preprocessing", "inference", "training", "results")
HEAVY = {"torch", "torchvision", "timm", "onnx", "mlflow", "sklearn", "scipy", "matplotlib", "pandas"}

CEILINGS = {
    # What a room may import of ours. Whatever stands below knows nothing of what stands above.
    "domain": {"domain", "errors", "api"},
    "bus": {"bus", "spans", "errors", "api"},
    "runtime": {"runtime", "domain", "channels", "spans", "carrying", "errors", "api"},
}


def imports_of(file: Path, package: Path, name: str) -> Iterator[str]:
    """Every module a file names in an import, wherever in the file, in its absolute form."""
    own = [name, *file.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = own[: -node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def rooms_of(module: str) -> str | None:
    """The room of ours a module belongs to: 'results' for inspectbus.results.ledger."""
    steps = module.split(".")
    return steps[1] if steps[0] == "inspectbus" and len(steps) > 1 else None


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service_and_not_the_command_line(service: str) -> None:
    forbidden = {*SERVICES, "cli", "line"} - {service}
    files = python_files(PACKAGE / service)
    assert files, f"there is no service {service}"
    found = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files
        for module in imports_of(file, PACKAGE, "inspectbus")
        if rooms_of(module) in forbidden
    ]
    assert found == []


@pytest.mark.parametrize("room", ["bus", "domain", "imaging", "networks", "runtime", "stores"])
def test_a_shared_room_knows_no_service(room: str) -> None:
    files = python_files(PACKAGE / room)
    assert files, f"there is no room {room}"
    found = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files
        for module in imports_of(file, PACKAGE, "inspectbus")
        if rooms_of(module) in {*SERVICES, "cli", "line"}
        or (room in CEILINGS and rooms_of(module) is not None and rooms_of(module) not in CEILINGS[room])
    ]
    assert found == []


def test_the_client_knows_contracts_and_errors_and_nothing_heavy() -> None:
    allowed = {"grpc", "grpc_status", "google", "opentelemetry", "inspectbus_client", *sys.stdlib_module_names}
    found = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in python_files(CLIENT)
        for module in imports_of(file, CLIENT, "inspectbus_client")
        if module.split(".")[0] not in allowed
        and rooms_of(module) not in {"api", "channels", "carrying", "errors", "handshake"}
        # `from inspectbus import errors` names the package on the way.
        and module != "inspectbus"
    ]
    assert found == []


def loaded_by(modules: str) -> set[str]:
    """The top-level packages a fresh interpreter has loaded after importing the modules."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print(*{{name.split('.')[0] for name in sys.modules}})"],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'clients'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        # A camera's computer: no network, no database, and no video library until there is a video.
        ("inspectbus.acquisition.service", HEAVY | {"sqlalchemy", "alembic", "cv2", "numpy"}),
        (
            "inspectbus.acquisition.sources.folder, inspectbus.acquisition.sources.dataset",
            HEAVY | {"sqlalchemy", "alembic", "cv2"},
        ),
        ("inspectbus.results.service", HEAVY | {"cv2"}),
        # Only the engine that is chosen loads its library, so a machine needs no other.
        ("inspectbus.inference.service", HEAVY | {"onnxruntime", "openvino", "sqlalchemy"}),
        # Who has another machine compare fetches a folder, and draws nothing.
        (
            "inspectbus.cli.compare, inspectbus.cli.training, inspectbus.training.comparison.folder",
            HEAVY | {"cv2", "numpy", "jinja2", "sqlalchemy"},
        ),
        ("inspectbus.line", HEAVY | {"sqlalchemy", "cv2", "numpy"}),
        (
            "inspectbus_client",
            HEAVY | {"numpy", "cv2", "sqlalchemy", "pydantic", "structlog", "typer", "prometheus_client", "yaml"},
        ),
    ],
    ids=[
        "acquisition",
        "its sources",
        "results",
        "inference",
        "a comparison elsewhere",
        "the line before it opens",
        "the client",
    ],
)
def test_a_light_room_loads_nothing_heavy(modules: str, absent: set[str]) -> None:
    loaded = loaded_by(modules)

    assert "grpc" in loaded
    assert loaded & absent == set()


def test_the_command_line_loads_nothing_heavy_before_a_command_needs_it() -> None:
    assert loaded_by("inspectbus.cli.app, inspectbus.cli.advise") & (HEAVY | {"numpy", "cv2", "sqlalchemy"}) == set()
