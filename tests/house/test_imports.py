"""Who may import what: a camera's computer needs no network, database or video library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def imported_by(module: str) -> set[str]:
    """The top-level packages a fresh interpreter has loaded after importing the module."""
    script = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(ROOT / "services")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(answer.stdout.split())


def test_acquisition_reaches_no_network_database_or_video_library() -> None:
    loaded = imported_by("inspectbus.acquisition.service")

    assert "inspectbus" in loaded
    assert not loaded & {"torch", "torchvision", "timm", "sqlalchemy", "alembic", "cv2", "sklearn", "numpy"}


def test_a_folder_and_a_data_set_need_no_video_library() -> None:
    loaded = imported_by("inspectbus.acquisition.sources.folder, inspectbus.acquisition.sources.dataset")

    assert not loaded & {"torch", "torchvision", "timm", "sqlalchemy", "alembic", "cv2", "sklearn"}
