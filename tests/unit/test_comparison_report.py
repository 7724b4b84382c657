"""The report folder: one page that needs nothing, figures that are pictures, and a record machines can read."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from inspectbus.errors import BadField, StorageFull
from inspectbus.imaging.decoding import decode
from inspectbus.training.comparison.bootstrap import Answers
from inspectbus.training.comparison.conductor import Comparison
from inspectbus.training.comparison.pictures import hardest_images
from inspectbus.training.comparison.report import empty_folder, write_report
from tests.doubles.compared import CompareBench

NEEDED = {
    "scores.png",
    "figure_4_precision.png",
    "figure_5_recall.png",
    "figure_6_f1.png",
    "figure_7_accuracy.png",
    "figure_8_run_time.png",
    "confusion.png",
    "roc.png",
    "precision_recall.png",
    "reliability.png",
    "suspects.png",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    torch.set_num_threads(1)
    return CompareBench(tmp_path_factory.mktemp("compared"), good=40, defective=24).compare(seeds=2)


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_network_no_script_and_no_file_beside_it(found: Comparison, tmp_path: Path) -> None:
    write_report(found, tmp_path)

    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert "://" not in re.sub(r"data:image/png;base64,[^\"]+", "", html)
    assert not re.search(r"url\(|@import", html)
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    inlined = {base64.b64decode(source.partition(",")[2]) for source in sources}
    assert inlined == {file.read_bytes() for file in tmp_path.glob("*.png")}
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_every_figure_is_a_picture(found: Comparison, tmp_path: Path) -> None:
    write_report(found, tmp_path)

    assert {file.name for file in tmp_path.glob("*.png")} >= NEEDED
    for file in tmp_path.glob("*.png"):
        picture = decode(file.read_bytes())
        assert picture.std() > 1, file.name


def test_the_record_on_disk_is_the_one_given(found: Comparison, tmp_path: Path) -> None:
    record = write_report(found, tmp_path)

    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(record))


def test_floors_stand_in_every_table_of_models(found: Comparison, tmp_path: Path) -> None:
    write_report(found, tmp_path)

    html = (tmp_path / "report.html").read_text()
    tables = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    of_models = [table for table in tables if "AUROC" in table or "CNN leads" in table]
    assert len(of_models) == 3
    (of_steps,) = (table for table in tables if "denoise" in table)
    assert "all defective" in of_steps
    assert all("all defective" in table and "grey and spread" in table for table in of_models)
    assert all(name in of_models[0] for name in ("CNN", "SVM", "KNN", "BPN", "MLP"))


def test_a_file_name_cannot_write_the_page(found: Comparison, tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>.png"
    items = tuple(replace(item, name=nasty) for item in found.train.items)

    write_report(replace(found, train=replace(found.train, items=items)), tmp_path)

    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert nasty in page.text


def test_the_hardest_images_are_the_surest_errors_of_the_cnn(found: Comparison) -> None:
    # given a CNN that is sure of the opposite for one of each class, and right elsewhere
    labels = found.exam.labels
    scores = 0.1 + 0.8 * labels.astype(float)
    missed, rejected = int(labels.argmax()), int(labels.argmin())
    scores[missed], scores[rejected] = 0.01, 0.99
    key = next(key for key in found.figures if key.model == "cnn")
    figures = {**found.figures, key: replace(found.figures[key], answers=(Answers(scores, 0.5),))}

    items, words = hardest_images(replace(found, figures=figures))

    assert items == [found.exam.items[missed], found.exam.items[rejected]]
    assert words == ["defective, score 0.01", "good, score 0.99"]


def test_a_report_without_a_cnn_or_errors_still_stands(found: Comparison, tmp_path: Path) -> None:
    figures = {key: each for key, each in found.figures.items() if key.model != "cnn"}

    write_report(replace(found, figures=figures, suspicion=None, points=[], preprocessing=[]), tmp_path)

    names = {file.name for file in tmp_path.iterdir()}
    assert not names & {"figure_7_accuracy.png", "figure_8_run_time.png", "suspects.png"}
    assert "CNN leads" not in (tmp_path / "report.html").read_text()


def test_a_folder_that_has_gone_is_told(found: Comparison, tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="cannot be written"):
        write_report(found, tmp_path / "gone")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")

    with pytest.raises(BadField, match="is not empty"):
        empty_folder(tmp_path / "full")

    assert (tmp_path / "full/notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(BadField, match="file/report cannot be written"):
        empty_folder(tmp_path / "file/report")
