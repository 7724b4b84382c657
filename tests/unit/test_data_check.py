"""What is said of a data set before anybody trains on it: each kind of trouble by its name and its files."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from inspectbus.cli.training import own_data
from inspectbus.errors import BadField
from inspectbus.imaging import Image
from inspectbus.stores.datasets import Dataset, Item, Label, cut, open_dataset, split
from inspectbus.stores.datasets.check import Finding, Report, check_files, check_marks, cuts, survey
from inspectbus.stores.datasets.masks import read_mask
from inspectbus.training import trainer
from inspectbus.training.request import data_source
from inspectbus.training.settings import TrainingSettings
from tests.doubles.pictures import encoded, textured


def picture(seed: int, height: int = 60, width: int = 80) -> Image:
    return textured(height, width, seed)


def write(root: Path, name: str, image: Image | bytes) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(image if isinstance(image, bytes) else encoded(image))
    return file


def write_parts(root: Path, *folders: str, each: int = 10) -> Path:
    """No picture is like another."""
    for place, folder in enumerate(folders):
        for number in range(each):
            write(root, f"{folder}/{number:03d}.png", picture(1000 * place + number))
    return root


def write_rows(root: Path, rows: list[dict[str, str]]) -> None:
    with (root / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def checked(root: Path) -> Report:
    return survey(open_dataset(str(root)))


def only_finding(root: Path) -> Finding:
    (finding,) = checked(root).findings
    return finding


HALVES = ("train/good", "train/defective", "test/good", "test/defective")


# --- what is counted


def test_a_clean_set_is_counted_and_nothing_is_found(tmp_path: Path) -> None:
    write_parts(tmp_path, "good", "defective/dent", "defective/scratch", each=8)
    told: list[tuple[str, int, int]] = []

    report = survey(open_dataset(str(tmp_path)), lambda *step: told.append(step))

    assert report.findings == []
    assert (report.images, report.labels) == (24, {"good": 8, "defective": 16})
    assert report.kinds == {"dent": 8, "scratch": 8}
    assert report.sizes == {"80x60": {"good": 8, "defective": 16}}
    assert report.split == {"train": {"good": 6, "defective": 12}, "held out": {"good": 2, "defective": 4}}
    assert "stratified" in report.split_words
    assert any("4 defective images are held out: one of them moves the recall by 25 points" in n for n in report.notes)
    assert any("no groups are known" in note for note in report.notes)
    assert [step for step in told if step[0] == "reading"] == [("reading", number, 24) for number in range(1, 25)]
    assert told[-1] == ("comparing", 24, 24)


def test_one_class_far_larger_than_the_other_is_noted(tmp_path: Path) -> None:
    write_parts(tmp_path, "good", each=44)
    write_parts(tmp_path / "more", "defective", each=4)
    shutil.move(tmp_path / "more/defective", tmp_path / "defective")
    for number, file in enumerate((tmp_path / "defective").iterdir()):
        file.write_bytes(encoded(picture(5000 + number)))

    assert any("one class is 11 times as large as the other" in note for note in checked(tmp_path).notes)


def test_images_without_labels_are_looked_at_too(tmp_path: Path) -> None:
    write_parts(tmp_path, ".", each=9)
    write(tmp_path, "again.png", picture(3))
    write(tmp_path, "alike.jpg", encoded(picture(5), ".jpg"))

    report = checked(tmp_path)

    assert report.labels == {"none": 11}
    assert report.split == {}
    (finding,) = report.findings
    assert finding.says == "1 picture is there more than once, byte for byte, such as 003.png = again.png"
    assert any("005.png and alike.jpg" in note for note in report.notes)
    assert not any("side of the split" in note for note in report.notes)


# --- files


def test_an_unreadable_image_among_many_is_named_and_ends_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(1500):
        noise = random.integers(0, 256, (16, 16, 3), np.uint8)
        write(tmp_path, f"{'good' if number % 3 else 'defective'}/{number:04d}.png", noise)
    file = tmp_path / "good/0700.png"
    file.write_bytes(file.read_bytes()[:-20])

    report = checked(tmp_path)

    (finding,) = report.findings
    assert (finding.about, finding.files) == ("unreadable", ("good/0700.png",))
    assert "1 of 1500 files" in finding.says
    assert "cut short" in finding.says
    assert report.images == 1500


def test_the_same_bytes_on_both_sides_of_the_split_are_told_apart_from_copies_on_one_side(tmp_path: Path) -> None:
    write_parts(tmp_path, *HALVES)
    write(tmp_path, "test/good/copy.png", picture(3))  # as train/good/003.png
    write(tmp_path, "train/good/twice.png", picture(5))

    astride, beside = checked(tmp_path).findings

    assert (astride.about, set(astride.files)) == ("copies", {"train/good/003.png", "test/good/copy.png"})
    assert "1 picture is both learnt from and held out" in astride.says
    assert (beside.about, set(beside.files)) == ("copies", {"train/good/005.png", "train/good/twice.png"})


def test_one_picture_with_two_labels_is_a_conflict(tmp_path: Path) -> None:
    write_parts(tmp_path, *HALVES)
    write(tmp_path, "train/defective/copy.png", picture(3))

    findings = checked(tmp_path).findings

    assert findings[0].about == "labels"
    assert set(findings[0].files) == {"train/good/003.png", "train/defective/copy.png"}


def test_near_duplicates_across_the_split_are_found_and_shown(tmp_path: Path) -> None:
    write_parts(tmp_path, *HALVES)
    write(tmp_path, "test/good/again.jpg", encoded(picture(3), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 80))
    write(tmp_path, "test/defective/mirrored.png", np.ascontiguousarray(picture(1004)[:, ::-1]))
    write(tmp_path, "train/good/beside.png", cv2.convertScaleAbs(picture(7), alpha=0.95))

    report = checked(tmp_path)

    (finding,) = report.findings
    assert finding.about == "likeness"
    assert "2 pairs of near duplicates on both sides of the split (4 images)" in finding.says
    pairs = {each.files: (each.turn, each.astride) for each in report.alike}
    assert pairs == {
        ("test/good/again.jpg", "train/good/003.png"): ("", True),
        ("test/defective/mirrored.png", "train/defective/004.png"): ("mirrored", True),
        ("train/good/007.png", "train/good/beside.png"): ("", False),
    }
    assert any("1 pair of near duplicates on one side of the split" in note for note in report.notes)


def test_near_duplicates_of_one_group_are_what_groups_are_for(tmp_path: Path) -> None:
    write_parts(tmp_path, "good", "defective")
    write(tmp_path, "good/again.jpg", encoded(picture(3), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 80))
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.*"))]
    group = {"good/003.png": "p", "good/again.jpg": "p"}
    write_rows(tmp_path, [{"file": name, "group": group.get(name, name)} for name in names])

    report = checked(tmp_path)

    assert report.findings == []
    assert [(each.same_group, each.astride) for each in report.alike] == [(True, False)]


# --- groups, split, sizes, folders


def test_a_group_on_both_sides_names_all_its_files(tmp_path: Path) -> None:
    write_parts(tmp_path, *HALVES, each=3)
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.png"))]
    write_rows(tmp_path, [{"file": name, "group": "p" if name.endswith("good/001.png") else name} for name in names])

    finding = only_finding(tmp_path)

    assert (finding.about, finding.files) == ("groups", ("test/good/001.png", "train/good/001.png"))
    assert "group 'p' stands on both sides" in finding.says


def test_a_lot_in_both_halves_is_noted(tmp_path: Path) -> None:
    write_parts(tmp_path, *HALVES, each=6)
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.png"))]
    write_rows(tmp_path, [{"file": name, "lot": f"L{int(name[-5]) % 3}" if "good" in name else name} for name in names])

    report = checked(tmp_path)

    assert report.findings == []
    assert any(note.startswith("3 lots are in both of the set's own halves, such as 'L0'") for note in report.notes)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        (
            {"good": 4, "defective": 1},
            "4 good and 1 defective images cannot be cut into images to learn from and images to hold out: .*too few.* "
            "Add defective images: a set with 4 of each class can be cut",
        ),
        (
            {"good": 3, "defective": 3},
            "2 good and 2 defective images are left to learn from, too few for a training to validate with: .*too few"
            ".* Add good and defective images: a set with 4",
        ),
        (
            {"train/good": 12, "train/defective": 2, "test/good": 3, "test/defective": 3},
            "12 good and 2 defective images are left to learn from, .*no defective images among "
            ".* Add defective images",
        ),
    ],
)
def test_a_set_that_a_training_cannot_cut_is_told_with_its_counts_and_what_to_add(
    tmp_path: Path, counts: dict[str, int], says: str
) -> None:
    for place, (folder, count) in enumerate(counts.items()):
        for number in range(count):
            write(tmp_path, f"{folder}/{number:03d}.png", picture(1000 * place + number))

    finding = only_finding(tmp_path)

    assert finding.about == "split"
    assert re.match(says, finding.says), finding.says
    with pytest.raises(BadField):
        learn_from(tmp_path)


def test_a_half_without_a_class_is_told_with_both_ways_out(tmp_path: Path) -> None:
    write_parts(tmp_path, "good", "defective", each=6)
    rows = [{"file": f"{label}/{n:03d}.png", "split": "train"} for label in ("good", "defective") for n in range(6)]
    for row in rows[:2]:
        row["split"] = "test"
    write_rows(tmp_path, rows)

    finding = only_finding(tmp_path)

    assert finding.about == "split"
    assert finding.says.startswith("6 good and 6 defective images cannot be cut into images to learn from and")
    assert "no defective images among 2" in finding.says
    assert finding.says.endswith(
        "Have images of both classes in each half, or leave the halves out to have the set cut anew"
    )


def learn_from(root: Path) -> None:
    """As far as a training goes before it knows whether it can."""
    cut(
        split(open_dataset(str(root))).train.items,
        trainer.VALIDATION_SHARE,
        TrainingSettings.model_fields["seed"].default,
    )


def test_four_images_of_each_class_are_enough_and_what_is_found_is_what_a_training_meets(tmp_path: Path) -> None:
    assert trainer.VALIDATION_SHARE == cuts.VALIDATION_SHARE
    assert TrainingSettings.model_fields["seed"].default == cuts.SEED
    for good in (4, 5, 6, 7, 9, 30, 100):
        items = [Item(f"{n}.png", tmp_path, Label.GOOD if n < good else Label.DEFECTIVE) for n in range(good + 4)]
        dataset = Dataset("parts", tuple(items), tmp_path)

        assert cuts.no_validation(split(dataset).train, ()) == ""


def test_images_that_cannot_be_read_are_none_to_learn_from(tmp_path: Path) -> None:
    write_parts(tmp_path, "good", "defective", each=4)
    for file in (tmp_path / "good").iterdir():
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + file.name.encode())

    unreadable, too_few = checked(tmp_path).findings

    assert unreadable.about == "unreadable"
    assert too_few.says.startswith("0 good and 3 defective images are left to learn from")


def test_too_few_parts_for_the_cuts_say_that_other_parts_are_needed(tmp_path: Path) -> None:
    write_parts(tmp_path, "good", "defective", each=9)
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.png"))]
    write_rows(tmp_path, [{"file": name, "group": f"{name[0]}{int(name[-5]) % 3}"} for name in names])

    finding = only_finding(tmp_path)

    assert finding.about == "split"
    assert finding.says.startswith("6 good and 6 defective images are left to learn from, too few")
    assert finding.says.endswith("Add images of both classes from other parts or lots: those of one stay together")


def test_labels_that_their_probability_speaks_against_are_named_and_those_it_bears_out_are_not(tmp_path: Path) -> None:
    write_parts(tmp_path, "good", "defective", each=8)
    odd = {"good/000.png": "0.5", "good/003.png": "1", "defective/001.png": "0.49", "defective/005.png": "0"}
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.png"))]
    borne_out = {"good/001.png": "0.49", "defective/000.png": "0.5"}
    write_rows(tmp_path, [{"file": name, "probability": (odd | borne_out).get(name, "")} for name in names])

    finding = only_finding(tmp_path)

    assert (finding.about, set(finding.files)) == ("labels", set(odd))
    assert finding.says.startswith(
        "4 images are labelled against the probability of a defect, such as defective/001.png (defective at 0.49), "
        "defective/005.png (defective at 0), good/000.png (good at 0.5): correct one of the two"
    )
    learn_from(tmp_path)


def test_classes_that_differ_in_size_are_told(tmp_path: Path) -> None:
    write_parts(tmp_path, "good", each=8)
    for number in range(8):
        write(tmp_path, f"defective/{number}.png", picture(500 + number, 64, 64))

    finding = only_finding(tmp_path)

    assert finding.about == "sizes"
    assert "80x60 and 64x64" in finding.says


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("good/bad", "a folder 'bad', which is a name for defective parts, are labelled good, such as good/bad/x.png"),
        ("good/defectiv", "a folder 'defectiv', perhaps 'defective' misspelt"),
        ("defective/OK", "a folder 'OK', which is a name for good parts, are labelled defective"),
    ],
)
def test_a_folder_that_sounds_like_the_other_class_is_suspicious(tmp_path: Path, folder: str, told: str) -> None:
    write_parts(tmp_path, "good", "defective")
    write(tmp_path, f"{folder}/x.png", picture(900))

    finding = only_finding(tmp_path)

    assert (finding.about, finding.files) == ("folders", (f"{folder}/x.png",))
    assert told in finding.says


def test_images_that_no_layout_reaches_are_a_finding_and_a_note_where_a_manifest_leaves_them_out(
    tmp_path: Path,
) -> None:
    write_parts(tmp_path, ".", each=9)
    write(tmp_path, "defectiv/x.png", picture(900))
    assert only_finding(tmp_path).files == ("defectiv/x.png",)

    write_rows(tmp_path, [{"file": f"{number:03d}.png"} for number in range(9)])

    report = checked(tmp_path)
    assert report.findings == []
    assert any("1 images in the folder are not named by the manifest" in note for note in report.notes)


# --- masks


def test_masks_that_do_not_fit_are_told_each_with_its_reason(tmp_path: Path) -> None:
    write_parts(tmp_path, "good", "defective", each=12)
    marked = np.zeros((60, 80, 3), np.uint8)
    marked[10:20, 30:40] = 255
    masks: dict[str, Image | bytes] = {
        "fits": marked,
        "small": marked[:30],
        "broken": encoded(marked)[:-9],
        "empty": np.zeros_like(marked),
    }
    rows = [{"file": f"good/{number:03d}.png", "mask": ""} for number in range(12)]
    for number, (name, mask) in enumerate(masks.items()):
        write(tmp_path, f"masks/{name}.png", mask)
        rows.append({"file": f"defective/{number:03d}.png", "mask": f"masks/{name}.png"})
    write_rows(tmp_path, rows)

    report = checked(tmp_path)

    (finding,) = [each for each in report.findings if each.about == "masks"]
    assert finding.files == ("defective/001.png", "defective/002.png", "defective/003.png")
    assert "3 masks do not fit" in finding.says
    assert report.masks == 4
    items = {item.name: item for item in open_dataset(str(tmp_path)).items}
    assert np.argwhere(read_mask(items["defective/000.png"], 80, 60)).min(axis=0).tolist() == [10, 30]
    for number, words in enumerate(("80x30 pixels, its image defective/001.png 80x60", "cut short"), 1):
        with pytest.raises(BadField, match=words):
            read_mask(items[f"defective/00{number}.png"], 80, 60)


def test_a_mask_that_is_gone_or_was_never_there_names_its_file(tmp_path: Path) -> None:
    item = Item("a.png", tmp_path / "a.png", Label.DEFECTIVE, mask=tmp_path / "gone.png")

    with pytest.raises(BadField, match=r"mask .*gone\.png cannot be read"):
        read_mask(item, 80, 60)
    with pytest.raises(BadField, match=r"a\.png has no mask"):
        read_mask(replace(item, mask=None), 80, 60)


# --- real parts


def real_set(name: str) -> Path:
    data = Path(os.environ.get("INSPECTBUS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (data / name).is_dir():
        pytest.skip(f"no {name} in {data}; INSPECTBUS_TEST_DATA names the folder of image data")
    return data / name


def test_spindles_photographed_by_a_fixed_camera_raise_no_false_alarm() -> None:
    report = checked(real_set("ball_screw"))

    assert report.findings == []
    assert report.masks == 167


def test_commutators_that_came_twice_into_the_collection_are_found() -> None:
    """Seen with bare eyes: the same surface under two numbers, in train and in test."""
    report = checked(real_set("commutator"))

    pairs = {(Path(each.files[0]).stem, Path(each.files[1]).stem) for each in report.alike}
    assert pairs == {
        (f"kos_{one}", f"kos_{two}") for one, two in ((254, 237), (252, 235), (248, 236), (251, 231), (250, 238))
    }
    assert [finding.about for finding in report.findings] == ["likeness"]


# --- marks of one side


@pytest.mark.parametrize(
    ("marks", "says"),
    [
        ({"a": "test"}, "20 of 40 images are marked 'test' and none 'train'"),
        ({"a": "test", "b": "test"}, "40 of 40 images are marked 'test' and none 'train'"),
        ({"a": "train"}, "20 of 40 images are marked 'train' and none 'test'"),
        ({"a": "train", "b": "test"}, ""),
        ({"a": "train", "b": "train"}, ""),
        ({}, ""),
    ],
)
def test_marks_that_name_one_side_alone_are_not_passed_over(tmp_path: Path, marks: dict[str, str], says: str) -> None:
    rows = []
    for place, half in enumerate("ab"):
        for number in range(20):
            name = write(tmp_path, f"{half}{number}.png", picture(1000 * place + number)).name
            label = "good" if number % 2 else "defective"
            rows.append({"file": name, "label": label, "split": marks.get(half, "")})
    write_rows(tmp_path, rows)
    dataset = open_dataset(str(tmp_path))

    found = [finding.says for finding in survey(dataset).findings if finding.about == "split"]

    assert [each.partition(":")[0] for each in found] == ([says] if says else [])
    if says:
        with pytest.raises(BadField, match=says):
            check_marks(dataset)
    else:
        assert check_marks(dataset) is dataset


def test_a_pipe_among_the_images_is_told_and_waited_for_by_nobody(tmp_path: Path) -> None:
    write_parts(tmp_path, "good", "defective", each=4)
    os.mkfifo(tmp_path / "good" / "pipe.png")
    dataset = open_dataset(str(tmp_path))

    (finding,) = [finding for finding in survey(dataset).findings if finding.about == "unreadable"]

    assert finding.files == ("good/pipe.png",)
    with pytest.raises(BadField, match="no file") as refused:
        check_files(dataset)
    assert refused.value.field == "good/pipe.png"


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("nowhere"), os.mkfifo, Path.mkdir])
def test_a_manifest_that_cannot_be_read_is_not_passed_over(tmp_path: Path, make: Callable[[Path], None]) -> None:
    write_parts(tmp_path, "good", "defective", each=4)
    make(tmp_path / "manifest.csv")
    dataset = open_dataset(str(tmp_path))

    assert ("manifest", ("manifest.csv",)) in [(each.about, each.files) for each in survey(dataset).findings]
    with pytest.raises(BadField, match="no file") as refused:
        check_files(dataset)
    assert refused.value.field == "manifest.csv"


@pytest.mark.parametrize("asked", [own_data, lambda folder: data_source(".", Path(folder))])
def test_a_folder_whose_name_is_not_in_utf_8_is_refused_in_letters_that_can_be_sent(
    tmp_path: Path, asked: Callable[[str], str]
) -> None:
    folder = tmp_path / os.fsdecode(b"parts-\xff")
    folder.mkdir()

    with pytest.raises(BadField, match=r"parts-\? is no path in UTF-8") as refused:
        asked(str(folder))

    assert refused.value.field == "data"
    assert refused.value.message.isascii()
