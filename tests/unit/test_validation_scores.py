"""What a version keeps of its validation part comes back as it was, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inspectbus.errors import CorruptModel, NotPossibleNow
from inspectbus.training.validation import VALIDATION_FILE, read_validation, write_validation


def test_names_labels_and_scores_come_back_as_they_were(tmp_path: Path) -> None:
    names = ["good/1.png", 'a,b "c".png', "Zelle\u00a01\n.png", "\udcff.png"]
    scores = np.array([0.1 + 0.2, 1e-300, 1.0, np.nextafter(0.5, 1)])

    write_validation(tmp_path, names, np.array([0, 1, 1, 0]), scores)
    found = read_validation(tmp_path)

    assert found.names == (*names[:3], "\\udcff.png")
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert found.scores.tolist() == scores.tolist()
    lines = (tmp_path / VALIDATION_FILE).read_text().splitlines()
    assert lines[:2] == ["name,label,score", "good/1.png,good,0.30000000000000004"]


def test_a_version_made_before_they_were_kept_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotPossibleNow, match="train it again"):
        read_validation(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin with name,label,score"),
        (b"name,score\n", "does not begin"),
        (b"name,label,score\na,good,0.1\nb,bad,0.2\n", "after 1 images"),
        (b"name,label,score\na,good,high\n", "after 0 images"),
        (b"name,label,score\na,good\n", "after 0 images"),
        (b'name,label,score\n"a,good,0.1\n', "after 0 images"),
        (b"name,label,score\n\xff,good,0.1\n", "after 0 images"),
    ],
)
def test_what_is_no_such_file_is_refused_with_the_place(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / VALIDATION_FILE).write_bytes(content)

    with pytest.raises(CorruptModel, match=words):
        read_validation(tmp_path)
