"""What plants call their class folders and halves, and which name was probably meant by one that is none of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

from inspectbus.stores.datasets.items import Label

CLASS_NAMES: dict[str, Label] = {
    **dict.fromkeys(("good", "ok", "ok-front", "pass", "passed", "normal", "non-defective", "qualified"), Label.GOOD),
    **dict.fromkeys(
        ("defective", "defect", "defects", "def", "def-front", "bad", "ng", "nok", "not-ok"), Label.DEFECTIVE
    ),
    **dict.fromkeys(("fail", "failed", "faulty", "broken", "damaged", "anomaly", "anomalous"), Label.DEFECTIVE),
}
"""What class folders may be called, in any case, with '_', '-' or a space between words."""
HALVES: dict[str, Literal["train", "test"]] = {
    **dict.fromkeys(("train", "training", "val", "valid", "validation"), "train"),
    **dict.fromkeys(("test", "testing", "held-out"), "test"),
}
GROUND_TRUTH = "ground-truth"
BESIDE = frozenset({"mask", "masks", GROUND_TRUTH})
"""Folders that source data sets keep beside the classes and that hold no photographs."""
_LIKENESS = 0.7
"""Of two words, by difflib: one letter dropped, doubled or swapped in a word of four still counts."""


def plain(word: str) -> str:
    """The one spelling of 'OK_front', 'ok front' and 'ok-front'."""
    return re.sub(r"[\s_-]+", "-", word.strip()).casefold()


def class_words() -> str:
    names = {label: [name for name, of in CLASS_NAMES.items() if of is label] for label in Label}
    return "; ".join(f"{label} parts are called {', '.join(names[label])}" for label in Label)


def closest(word: str, known: Iterable[str], likeness: float = _LIKENESS) -> str | None:
    """The known word that is most like this one, if any is: 1 is the same, by difflib's ratio."""
    return next(iter(get_close_matches(plain(word), list(known), n=1, cutoff=likeness)), None)


def meant(word: str, known: Iterable[str]) -> str:
    """ ": was 'defective' meant?" for 'defectiv', where a known word is like it; else nothing."""
    found = closest(word, known)
    return f": was {found!r} meant?" if found else ""
