"""The report: one folder with report.html, which needs nothing beside it, the figures as PNG, and report.json.

Comparison ─> record ─┬─> report.json
                      ├─> pictures, *.png ─┐ inlined
                      └────────────────────┴─> report.html
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from inspectbus.errors import StorageFull
from inspectbus.training.comparison.conductor import Comparison
from inspectbus.training.comparison.folder import PAGE, RECORD
from inspectbus.training.comparison.pictures import TITLES, draw_all, title
from inspectbus.training.comparison.preprocessing import CONDITIONS, STEPS
from inspectbus.training.comparison.record import as_record
from inspectbus.training.pointing import TOLERANCE


def write_report(found: Comparison, folder: Path) -> dict[str, Any]:
    """Writes all of it and gives the record. Raises StorageFull where the disk takes no more."""
    record = as_record(found)
    pictures = dict(draw_all(found, record["subsets"]))
    try:
        for name, data in pictures.items():
            (folder / name).write_bytes(data)
        (folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(render(found, record, pictures), encoding="utf-8")
    except OSError as error:
        raise StorageFull(f"the report cannot be written to {folder}: {error.strerror}", field="out") from error
    return record


def render(found: Comparison, record: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """The page, whole."""
    house = Environment(
        loader=PackageLoader("inspectbus.training.comparison"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    house.filters["percent"] = lambda share: f"{100 * share:.1f}"
    cells = {(each["condition"], each["steps"], each["model"]): each for each in record["preprocessing"]}
    return house.get_template(PAGE).render(
        record=record,
        titles=TITLES,
        pictures={name: base64.b64encode(data).decode() for name, data in pictures.items()},
        models=[name for name in TITLES if name in record["models"]],
        conditions=list(CONDITIONS),
        steps=STEPS,
        cells=cells,
        tried=[name for name in ("svm", "knn", "cnn", "light") if any(model == name for _, _, model in cells)],
        first={name: _first(record, name) for name in ("f1", "average_precision")},
        shown=title(found.shown),
        heatmaps=any(each.explained for each in found.hardest),
        tolerance=TOLERANCE,
        seeds=found.terms.seeds,
        models_asked=found.terms.models,
    )


def _first(record: dict[str, Any], measure: str) -> str:
    """Who leads the table, in words."""
    rows = {
        TITLES[name] + (", raw pixels" if part == "raw_models" else ""): figures[measure]["mean"]
        for part in ("models", "raw_models")
        for name, figures in record[part].items()
        if name in TITLES
    }
    best = max(rows, key=lambda name: rows[name])
    return f"{best} ({100 * rows[best]:.1f})"
