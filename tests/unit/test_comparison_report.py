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
from inspectbus.training.comparison.conductor import Comparison, Hard, Key
from inspectbus.training.comparison.folder import empty_folder
from inspectbus.training.comparison.heatmaps import Pointing
from inspectbus.training.comparison.report import write_report
from inspectbus.training.export import Deviation
from inspectbus.training.pointing import Agreement, Mean
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
    "pointing.png",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    torch.set_num_threads(1)
    return CompareBench(tmp_path_factory.mktemp("compared"), good=40, defective=24, marked=True).compare(seeds=2)


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
    assert "grey and spread" in of_steps
    assert all("all defective" in table and "grey and spread" in table for table in of_models)
    assert any("by chance" in table for table in tables)
    assert all(name in of_models[0] for name in ("CNN", "SVM", "KNN", "BPN", "MLP"))


def test_a_file_name_cannot_write_the_page(found: Comparison, tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>.png"
    items = tuple(replace(item, name=nasty) for item in found.train.items)

    write_report(replace(found, train=replace(found.train, items=items)), tmp_path)

    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert nasty in page.text


def hard_of(found: Comparison, explained: bool) -> list[Hard]:
    """Some marked images, as if they had been passed."""
    assert found.pointing is not None
    looks = [each.explained for each in found.pointing.shown[:2]]
    return [Hard(look.item, 0.01, look if explained else None) for look in looks]


def test_the_hardest_images_have_their_heatmaps_below(found: Comparison, tmp_path: Path) -> None:
    heights = {}
    for explained in (True, False):
        folder = tmp_path / str(explained)
        folder.mkdir()
        record = write_report(replace(found, hardest=hard_of(found, explained)), folder)
        heights[explained] = decode((folder / "hardest.png").read_bytes()).shape[0]
        assert ("with its heatmap" in Page((folder / "report.html").read_text()).text) is explained
        assert record["hardest"] == [
            {"file": hard.item.name, "label": "defective", "score": 0.01} for hard in hard_of(found, explained)
        ]
    assert heights[True] == pytest.approx(2 * heights[False], abs=1)


def pointing_of(found: Comparison, hits: float, left_out: tuple[str, ...] = ()) -> Pointing:
    """Heatmaps that hit so often, with an interval of five points to each side, where chance hits 25 in 100."""
    assert found.pointing is not None
    agreement = Agreement(40, Mean(hits, hits - 0.05, hits + 0.05), 0.25, Mean(0.345, 0.3, 0.4), 0.125)
    return replace(found.pointing, agreement=agreement, left_out=left_out)


@pytest.mark.parametrize(
    ("hits", "words", "others"),
    [(0.755, "Hits lie above chance", "Hits do not lie"), (0.285, "Hits do not lie above chance", "Hits lie")],
)
def test_whether_heatmaps_fall_on_the_defect_is_told_beside_chance(
    found: Comparison, tmp_path: Path, hits: float, words: str, others: str
) -> None:
    write_report(replace(found, pointing=pointing_of(found, hits, ("lost.png",))), tmp_path)

    html = (tmp_path / "report.html").read_text()
    (table,) = (table for table in re.findall(r"<table>.*?</table>", html, re.DOTALL) if "by chance" in table)
    of_hits = [f"{100 * each:.1f}" for each in (hits, hits - 0.05, hits + 0.05, 0.25)]
    assert re.findall(r"\d+\.\d", table) == [*of_hits, "34.5", "30.0", "40.0", "12.5"]
    text = Page(html).text
    assert words in text
    assert others not in text
    assert "A model can be right for a wrong reason. On the 40 held-out" in text
    assert "lost.png" in text


def test_masks_of_which_none_could_be_used_are_named_without_figures(found: Comparison, tmp_path: Path) -> None:
    assert found.pointing is not None
    nothing = replace(found.pointing, agreement=None, shown=[], left_out=("lost.png",))

    record = write_report(replace(found, pointing=nothing), tmp_path)

    assert record["pointing"] == {"images": 0, "left_out": ["lost.png"]}
    assert not (tmp_path / "pointing.png").exists()
    assert "lost.png" in Page((tmp_path / "report.html").read_text()).text


def test_the_exports_deviation_and_verdicts_are_told(found: Comparison, tmp_path: Path) -> None:
    for folder, differing, words in (("a", 0, "no verdict differs"), ("b", 3, "3 verdicts differ")):
        (tmp_path / folder).mkdir()
        exports = [Deviation(16, 2.5e-6, 0), Deviation(16, 1e-7, differing)]

        record = write_report(replace(found, exports=exports), tmp_path / folder)

        assert record["export"] == {"images": 16, "seeds": 2, "largest": 2.5e-6, "differing": differing}
        text = Page((tmp_path / folder / "report.html").read_text()).text
        assert f"at most 2.5e-06; {words}" in text


def test_a_report_without_a_cnn_or_errors_still_stands(found: Comparison, tmp_path: Path) -> None:
    figures = {key: each for key, each in found.figures.items() if key.model != "cnn"}

    bare = replace(found, figures=figures, shown=Key("svm", "frozen"), suspicion=None, points=[], preprocessing=[])

    write_report(replace(bare, exports=[], hardest=[], pointing=None), tmp_path)

    names = {file.name for file in tmp_path.iterdir()}
    assert not names & {"figure_7_accuracy.png", "figure_8_run_time.png", "suspects.png", "hardest.png", "pointing.png"}
    page = (tmp_path / "report.html").read_text()
    assert not any(words in page for words in ("CNN leads", "Heatmaps", "ONNX"))


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
