"""What is wrong with a data set before anybody trains on it. Nothing here decides what a training makes.

Dataset ─> survey ─┬─ every file read once: size, sha256, sketch (sketches.py), mask
                   ├─ sketches ─> likeness ─> pictures of the same thing
                   ├─ split ─> on which side each stands; can a training cut it? (cuts.py)
                   └─ marks: what people say of that
        ─> Report ─> findings, in words

Whoever is about to read a set, or to cut it, asks `check_files` and `check_marks` first.
"""

from inspectbus.stores.datasets.check.files import check_files, check_spelling
from inspectbus.stores.datasets.check.likeness import Pair, alike, near_across
from inspectbus.stores.datasets.check.marks import check_marks
from inspectbus.stores.datasets.check.sketches import sketch
from inspectbus.stores.datasets.check.survey import Finding, Report, survey

__all__ = [
    "Finding",
    "Pair",
    "Report",
    "alike",
    "check_files",
    "check_marks",
    "check_spelling",
    "near_across",
    "sketch",
    "survey",
]
