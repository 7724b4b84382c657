"""Data sets: what a folder may look like, what is said about one that does not, and where cuts may run."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.stores.datasets import Dataset, Item, Label, cut, fingerprint, open_dataset, split
from inspectbus.stores.datasets import items as limits


def touch(root: Path, *names: str) -> Path:
    """Files that look like images to whoever only lists them."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return root


def numbered(folder: str, count: int) -> list[str]:
    return [f"{folder}/{number:03d}.png" for number in range(count)]


def write_manifest(root: Path, rows: list[dict[str, str]]) -> Path:
    with (root / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return root


def grouped_items(groups: int, each: int, defective_every: int = 3) -> list[Item]:
    return [
        Item(
            f"{group:03d}-{number}.png",
            Path(f"{group:03d}-{number}.png"),
            Label.DEFECTIVE if group % defective_every == 0 else Label.GOOD,
            group=f"part{group}",
        )
        for group in range(groups)
        for number in range(each)
    ]


# --- opening folders


@pytest.mark.parametrize(
    ("good", "defective"),
    [
        ("good", "defective"),
        ("OK", "NG"),
        ("ok_front", "def_front"),
        ("Non Defective", "Defect"),
        ("normal", "bad"),
    ],
)
def test_two_class_folders_are_a_data_set_whatever_the_plant_calls_them(
    tmp_path: Path, good: str, defective: str
) -> None:
    touch(tmp_path, f"{good}/a.png", f"{good}/b.JPG", f"{defective}/c.tiff")

    dataset = open_dataset(str(tmp_path))

    assert {item.name: item.label for item in dataset.items} == {
        f"{good}/a.png": Label.GOOD,
        f"{good}/b.JPG": Label.GOOD,
        f"{defective}/c.tiff": Label.DEFECTIVE,
    }
    assert dataset.name == tmp_path.name
    assert dataset.labelled


def test_items_come_in_the_order_of_their_names_and_read_as_they_lie(tmp_path: Path) -> None:
    touch(tmp_path, "good/b.png", "good/a.png", "defective/z.png", "defective/x.png")

    items = open_dataset(str(tmp_path)).items

    assert [item.name for item in items] == ["defective/x.png", "defective/z.png", "good/a.png", "good/b.png"]
    assert items[2].read() == b"good/a.png"


def test_folders_inside_a_class_name_the_kind(tmp_path: Path) -> None:
    touch(tmp_path, "good/a.png", "defective/scratch/b.png", "defective/dent/deep/c.png")

    kinds = {item.name: item.kind for item in open_dataset(str(tmp_path)).items}

    assert kinds == {"good/a.png": None, "defective/scratch/b.png": "scratch", "defective/dent/deep/c.png": "dent"}


def test_hidden_files_masks_and_files_that_are_no_images_do_not_belong_to_it(tmp_path: Path) -> None:
    touch(tmp_path, "good/a.png", "defective/b.png", "good/.a.png", ".cache/c.png", "masks/b.png", "good/notes.txt")

    assert [item.name for item in open_dataset(str(tmp_path)).items] == ["defective/b.png", "good/a.png"]


def test_halves_of_a_data_set_are_kept(tmp_path: Path) -> None:
    learnt = {"train/ok/a.png", "train/ng/b.png", "val/ok/e.png", "val/ng/f.png"}
    held_out = {"test/ok/c.png", "test/ng/d.png"}
    touch(tmp_path, *learnt, *held_out)

    parts = split(open_dataset(str(tmp_path)))

    assert {item.name for item in parts.train.items} == learnt
    assert {item.name for item in parts.held_out.items} == held_out
    assert "own train and test" in parts.train.words


def test_one_folder_of_images_is_a_data_set_without_labels(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a.jpeg", ".hidden.png", "readme.md")

    dataset = open_dataset(str(tmp_path))

    assert [(item.name, item.label) for item in dataset.items] == [("a.jpeg", None), ("b.png", None)]
    assert not dataset.labelled
    with pytest.raises(BadField, match="no label"):
        split(dataset)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "no images"),
        (["good/a.png"], "no defective images"),
        (["good/a.png", "defectve/b.png"], "defectve names no class: was 'defective' meant"),
        (["godo/a.png", "defective/b.png"], "godo names no class: was 'good' meant"),
        (["trian/good/a.png", "trian/ng/b.png"], "trian names no class: was 'train' meant"),
        (["tset/good/a.png", "tset/ng/a.png", "train/good/b.png", "train/ng/b.png"], "tset/: was 'test' meant"),
        (["train/good/a.png", "train/ng/b.png", "test/god/c.png", "test/ng/d.png"], "god names no class: was 'good'"),
        (["good/a.png", "defective/notes.txt"], "defective has no images"),
        (["good/a.png", "defective/b.png", "c.png"], "c.png lies beside"),
        (["line-1/a.png", "line-2/b.png"], "line-1 names no class"),
        (["train/good/a.png", "train/defective/b.png", "good/c.png"], "beside train/, good/"),
        (["train/good/a.png", "test/good/b.png", "test/defective/c.png"], "train: no defective images"),
        (["train/a.png", "test/good/b.png", "test/defective/c.png"], "no images in .*train"),
        (["train/good/a.png", "train/defective/b.png", "test/notes.txt"], "no images in .*test"),
        (["train/good/a.png", "train/ng/b.png", "test/good/c.txt", "test/ng/d.png"], "test/good has no images"),
    ],
)
def test_a_folder_that_is_no_data_set_is_told_what_is_wrong_and_where(
    tmp_path: Path, names: list[str], told: str
) -> None:
    touch(tmp_path, *names)

    with pytest.raises(BadField, match=told):
        open_dataset(str(tmp_path))


def test_a_folder_nobody_may_look_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "good/a.png", "good/locked/b.png", "defective/c.png")
    look = os.scandir

    def refuse(folder: str) -> object:
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return look(folder)

    monkeypatch.setattr(os, "scandir", refuse)

    with pytest.raises(BadField, match="good/locked cannot be looked into: Permission denied"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("spec", ["", "/nowhere/at/all", "elpvv"])
def test_what_is_no_folder_is_refused_by_its_name(spec: str) -> None:
    with pytest.raises(BadField, match="neither a folder nor the data set 'elpv'") as refused:
        open_dataset(spec)
    assert refused.value.field == "data"


def test_more_images_than_a_data_set_may_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_IMAGES", 5)
    touch(tmp_path, *numbered("good", 3), *numbered("defective", 3))

    with pytest.raises(BadField, match="more than 5 images"):
        open_dataset(str(tmp_path))


def test_an_image_that_is_gone_or_too_large_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "good/a.png", "defective/b.png")
    good, defective = sorted(open_dataset(str(tmp_path)).items, key=lambda item: item.name, reverse=True)
    good.path.unlink()
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 3)

    with pytest.raises(BadField, match=r"good/a\.png cannot be read"):
        good.read()
    with pytest.raises(BadField, match=r"b\.png has 15 bytes, at most 3"):
        defective.read()


def test_nobody_waits_for_a_pipe_that_lies_where_an_image_should(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")

    with pytest.raises(BadField, match=r"a\.png is no file, nor a link to one"):
        Item("a.png", tmp_path / "a.png", None).read()


# --- MVTec AD's layout


def mvtec(root: Path) -> Path:
    kinds = {"scratch": 8, "bent_lead": 8}
    masks = [f"ground_truth/{kind}/{number:03d}_mask.png" for kind, count in kinds.items() for number in range(count)]
    touch(root, *numbered("train/good", 20), *numbered("test/good", 4), "license.txt", *masks)
    return touch(root, *(name for kind, count in kinds.items() for name in numbered(f"test/{kind}", count)))


def test_in_mvtec_layout_every_test_folder_but_good_is_a_kind_of_defect_with_masks(tmp_path: Path) -> None:
    mvtec(tmp_path)

    dataset = open_dataset(str(tmp_path))

    assert Counter((item.label, item.kind) for item in dataset.items) == {
        (Label.GOOD, None): 24,
        (Label.DEFECTIVE, "scratch"): 8,
        (Label.DEFECTIVE, "bent_lead"): 8,
    }
    masks = {item.name: item.mask for item in dataset.items}
    assert masks["test/scratch/003.png"] == tmp_path / "ground_truth/scratch/003_mask.png"
    assert masks["test/good/003.png"] is None


def test_mvtec_layout_is_cut_anew_because_its_train_half_has_no_defective_part(tmp_path: Path) -> None:
    parts = split(open_dataset(str(mvtec(tmp_path))))

    assert [parts.train.count(label) for label in Label] == [18, 12]
    assert Counter(item.kind for item in parts.held_out.items) == {None: 6, "scratch": 2, "bent_lead": 2}
    assert "own halves are not kept, because no defective part is in train" in parts.train.words


@pytest.mark.parametrize(
    ("moved", "to", "told"),
    [
        ("test/good", "test/godo", r"godo is no kind of defect, .*ground_truth/godo is missing: was 'good' meant"),
        ("test/scratch", "test/scrach", "scrach is no kind of defect"),
        (
            "ground_truth/scratch/003_mask.png",
            "ground_truth/scratch/3_mask.png",
            r"test/scratch/003\.png has no mask: there is no file .*003_mask\.png",
        ),
        ("ground_truth", "truth", "beside test/, truth/"),
    ],
)
def test_what_does_not_fit_mvtec_layout_is_named(tmp_path: Path, moved: str, to: str, told: str) -> None:
    root = mvtec(tmp_path)
    (root / moved).rename(root / to)

    with pytest.raises(BadField, match=told):
        open_dataset(str(root))


# --- manifests


def test_a_manifest_says_what_belongs_to_the_data_set_and_of_which_part(tmp_path: Path) -> None:
    touch(tmp_path, "good/a.png", "good/b.png", "defective/c.png", "good/left-out.png")
    write_manifest(
        tmp_path,
        [
            {"file": "good/b.png", "split": "test", "label": "good", "group": "p1", "kind": "none"},
            {"file": "good/a.png", "split": "train", "label": "OK", "group": "", "kind": ""},
            {"file": "defective/c.png", "split": "", "label": "defective", "group": "p2", "kind": "dent"},
        ],
    )

    assert open_dataset(str(tmp_path)).items == (
        Item("defective/c.png", tmp_path / "defective/c.png", Label.DEFECTIVE, group="p2", kind="dent"),
        Item("good/a.png", tmp_path / "good/a.png", Label.GOOD, half="train"),
        Item("good/b.png", tmp_path / "good/b.png", Label.GOOD, group="p1", kind="none", half="test"),
    )


def test_a_manifest_of_groups_alone_takes_labels_and_halves_from_the_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/a.png", "test/ng/b.png")
    write_manifest(tmp_path, [{"file": "train/good/a.png", "group": "p1"}, {"file": "test/ng/b.png", "group": "p2"}])

    found = [(item.label, item.half, item.group) for item in open_dataset(str(tmp_path)).items]

    assert found == [(Label.DEFECTIVE, "test", "p2"), (Label.GOOD, "train", "p1")]


@pytest.mark.parametrize(
    ("row", "told", "field"),
    [
        ({"file": "good/gone.png"}, r"line 3: file: there is no file .*gone\.png", "file"),
        ({"file": "../secret.png"}, "inside the data set", "file"),
        ({"file": "/etc/secret.png"}, "inside the data set", "file"),
        ({"file": ""}, "inside the data set", "file"),
        ({"file": "good/a.txt"}, "no image file", "file"),
        ({"file": "good/b.png", "label": "godo"}, "line 3: label 'godo' names no class: was 'good' meant", "label"),
        ({"file": "good/b.png", "mask": "masks/b.png"}, r"line 3: mask: there is no file .*masks/b\.png", "mask"),
        ({"file": "good/b.png", "mask": "../b.png"}, "line 3: mask '../b.png' must be a path inside", "mask"),
        ({"file": "good/b.png", "probability": "1.5"}, "line 3: probability '1.5' is no number", "probability"),
        ({"file": "good/b.png", "probability": "high"}, "line 3: probability 'high' is no number", "probability"),
        ({"file": "good/b.png", "split": "tset"}, "line 3: split 'tset'", "split"),
        ({"file": "good/a.png"}, r"names good/a\.png more than once", "manifest.csv"),
    ],
)
def test_a_wrong_row_of_a_manifest_is_named(tmp_path: Path, row: dict[str, str], told: str, field: str) -> None:
    touch(tmp_path, "good/a.png", "good/b.png", "good/a.txt")
    blank = {"file": "", "label": "good", "split": "", "mask": "", "probability": ""}
    write_manifest(tmp_path, [{**blank, "file": "good/a.png"}, {**blank, **row}])

    with pytest.raises(BadField, match=told) as refused:
        open_dataset(str(tmp_path))
    assert refused.value.field == field


FULL = {
    "file": "good/a.png",
    "label": "good",
    "split": "train",
    "group": "p1",
    "lot": "7",
    "kind": "mono",
    "mask": "masks/a.png",
    "probability": "0.25",
}


def test_a_manifest_of_json_lines_says_the_same_as_one_of_commas(tmp_path: Path) -> None:
    rows = [FULL, {**FULL, "file": "b.png", "label": "", "split": "", "mask": "", "group": "p2", "probability": "0.5"}]
    for name in ("commas", "lines"):
        touch(tmp_path / name, "good/a.png", "b.png", "masks/a.png")
    write_manifest(tmp_path / "commas", rows)
    objects = [{**row, "lot": 7, "probability": float(row["probability"]), "other": [1]} for row in rows]
    objects[1] |= {"label": None, "mask": None}
    text = "\n\n".join(json.dumps(each) for each in objects)
    (tmp_path / "lines" / "manifest.jsonl").write_text(text + "\n")

    commas, lines = (open_dataset(str(tmp_path / name)) for name in ("commas", "lines"))

    b, a = commas.items
    assert a == Item(
        "good/a.png",
        tmp_path / "commas/good/a.png",
        Label.GOOD,
        group="p1",
        probability=0.25,
        kind="mono",
        half="train",
        lot="7",
        mask=tmp_path / "commas/masks/a.png",
    )
    assert (b.label, b.half, b.mask) == (Label.DEFECTIVE, None, None)
    there = [replace(item, path=tmp_path / "commas" / item.name) for item in lines.items]
    assert [replace(item, mask=item.mask and tmp_path / "commas/masks/a.png") for item in there] == [b, a]


@pytest.mark.parametrize(
    ("line", "told", "field"),
    [
        ('{"file": "good/b.png", "label"', "line 2 is no JSON", "manifest.jsonl"),
        ("[" * 5000, "line 2 is no JSON", "manifest.jsonl"),
        ('["good/b.png"]', "line 2 is no JSON object with a field 'file'", "manifest.jsonl"),
        ('{"label": "good"}', "line 2 is no JSON object with a field 'file'", "manifest.jsonl"),
        ('{"file": ["good/b.png"]}', "line 2: file is .*, neither text nor a number", "file"),
        ('{"file": "good/b.png", "group": true}', "line 2: group is true, neither", "group"),
        ('{"file": "good/b.png", "gruop": "1"}', "line 2: there is no field 'gruop': was 'group' meant", "gruop"),
        ('{"file": "good/gone.png"}', r"line 2: file: there is no file .*gone\.png", "file"),
        ('{"file": "good/b.png", "probability": NaN}', "line 2: probability 'nan' is no number from 0", "probability"),
    ],
)
def test_a_broken_json_line_is_named_by_its_number(tmp_path: Path, line: str, told: str, field: str) -> None:
    touch(tmp_path, "good/a.png", "good/b.png")
    (tmp_path / "manifest.jsonl").write_text(f'{{"file": "good/a.png"}}\n{line}\n')

    with pytest.raises(BadField, match=told) as refused:
        open_dataset(str(tmp_path))
    assert refused.value.field == field


def test_two_manifests_are_one_too_many(tmp_path: Path) -> None:
    touch(tmp_path, "manifest.csv", "manifest.jsonl")

    with pytest.raises(BadField, match=r"both manifest\.csv and manifest\.jsonl"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"file,label\ngood/a.png,good,more\n", "line 2 has more cells than the header"),
        (b"file,lable\ngood/a.png,good\n", "no field 'lable': was 'label' meant"),
        (b"\xff\xfe\x00", "unreadable"),
        (b"image,label\n", "no column 'file'"),
        (b"file,label\n", "names no images"),
        (b"file,label\ngood/a.png,good\n", "no defective images among 1; both classes are needed"),
        (b"file,label\ngood/a.png,good\nb.png,\n", "1 of 2 images have no label"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    touch(tmp_path, "good/a.png", "b.png")
    (tmp_path / "manifest.csv").write_bytes(content)

    with pytest.raises(BadField, match=told):
        open_dataset(str(tmp_path))


# --- cutting


def test_a_folder_is_cut_three_to_one_with_both_classes_in_proportion(tmp_path: Path) -> None:
    touch(tmp_path, *numbered("good", 60), *numbered("defective", 20))

    parts = split(open_dataset(str(tmp_path)))

    assert [parts.train.count(label) for label in Label] == [45, 15]
    assert [parts.held_out.count(label) for label in Label] == [15, 5]
    assert not set(parts.train.items) & set(parts.held_out.items)
    assert split(open_dataset(str(tmp_path))) == parts


def test_a_replay_that_ends_early_has_met_both_classes(tmp_path: Path) -> None:
    for half in ("train", "test"):
        touch(tmp_path, *numbered(f"{half}/good", 40), *numbered(f"{half}/defective", 40))

    first = split(open_dataset(str(tmp_path))).held_out.items[:20]

    assert {item.label for item in first} == set(Label)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("groups", "each"), [(12, 5), (40, 3), (9, 1)])
def test_no_group_stands_on_both_sides_of_a_cut(groups: int, each: int, seed: int) -> None:
    items = grouped_items(groups, each)

    rest, part, words = cut(items, 0.25, seed)

    assert not {item.group for item in rest} & {item.group for item in part}
    assert Counter([*rest, *part]) == Counter(items)
    assert {item.label for item in rest} == {item.label for item in part} == set(Label)
    assert 0.1 < len(part) / len(items) < 0.45
    assert "by group" in words


def test_a_data_set_of_one_part_cannot_be_cut() -> None:
    items = [Item(f"{n}.png", Path(f"{n}.png"), label, group="the only") for n in range(9) for label in Label]

    with pytest.raises(BadField, match="1 groups cannot be cut"):
        cut(items, 0.25, 0)


def test_too_few_images_to_cut_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "good/a.png", "good/b.png", "good/c.png", "defective/d.png")

    with pytest.raises(BadField, match="3 good and 1 defective images are too few to set 25% apart"):
        split(open_dataset(str(tmp_path)))


def test_a_machine_without_scikit_learn_is_told_what_cutting_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *numbered("good", 8), *numbered("defective", 8))
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)

    with pytest.raises(NotPossibleNow, match=r"inspectbus\[training\]"):
        split(open_dataset(str(tmp_path)))


def test_a_group_on_both_sides_of_the_sets_own_halves_is_refused_with_its_files(tmp_path: Path) -> None:
    names = ["train/good/a.png", "train/ng/b.png", "test/good/c.png", "test/ng/d.png"]
    touch(tmp_path, *names)
    write_manifest(tmp_path, [{"file": name, "group": "p" if "good" in name else name} for name in names])
    dataset = open_dataset(str(tmp_path))

    told = r"group 'p' stands on both sides .*: train/good/a\.png in train, test/good/c\.png in test"
    with pytest.raises(BadField, match=told):
        split(dataset)


def test_a_half_without_one_of_the_classes_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    halves = [("a.png", "good", "train"), ("b.png", "defective", "train"), ("c.png", "good", "test")]
    write_manifest(tmp_path, [{"file": file, "label": label, "split": half} for file, label, half in halves])

    with pytest.raises(BadField, match="held out: 1 of the data set's own train and test: no defective images among 1"):
        split(open_dataset(str(tmp_path)))


def test_a_lot_holds_parts_together_whose_group_nobody_knows() -> None:
    items = [replace(item, group=None, lot=item.group) for item in grouped_items(12, 5)]

    rest, part, words = cut(items, 0.25, seed=0)

    assert not {item.lot for item in rest} & {item.lot for item in part}
    assert "by lot" in words


def test_parts_of_one_lot_may_stand_on_both_sides_where_the_part_is_known_or_all_are_of_that_lot() -> None:
    known = [replace(item, lot=f"lot{number % 3}") for number, item in enumerate(grouped_items(12, 4))]
    alone = [replace(item, group=None, lot="the only") for item in known]

    for items, by in ((known, "by group"), (alone, "stratified, seed")):
        rest, part, words = cut(items, 0.25, seed=0)
        assert {item.lot for item in rest} & {item.lot for item in part}
        assert by in words
        assert "lot" not in words


def test_two_lots_cannot_be_cut_in_four(tmp_path: Path) -> None:
    items = [replace(item, group=None, lot=f"lot{number % 2}") for number, item in enumerate(grouped_items(12, 4))]

    with pytest.raises(BadField, match="48 images in 2 lots cannot be cut"):
        cut(items, 0.25, seed=0)


def test_the_fingerprint_moves_with_all_that_decides_a_training_and_with_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "b.png").write_bytes(b"2")
    a = Item("a.png", tmp_path / "a.png", Label.GOOD)
    b = Item("b.png", tmp_path / "b.png", Label.DEFECTIVE)
    prints = [
        fingerprint([a, b]),
        fingerprint([a]),
        fingerprint([replace(a, label=Label.DEFECTIVE), b]),
        fingerprint([replace(a, name="c.png"), b]),
        fingerprint([replace(a, path=b.path), b]),
        fingerprint([replace(a, path=tmp_path / "gone.png"), b]),
        fingerprint([replace(a, group="1"), b]),
        fingerprint([replace(a, lot="1"), b]),
        fingerprint([replace(a, kind="1"), b]),
        fingerprint([replace(a, half="train"), b]),
        fingerprint([replace(a, probability=0.25), b]),
        fingerprint([a, replace(b, half="train")]),
    ]

    assert len(set(prints)) == len(prints)
    assert fingerprint([b, replace(a, mask=tmp_path / "a-mask.png")]) == prints[0]


# --- the solar cells


def elpv() -> Dataset:
    pytest.importorskip("elpv_dataset", reason="the data set comes with the extra 'demo'")
    return open_dataset("elpv")


def test_the_solar_cells_are_read_with_their_probabilities() -> None:
    dataset = elpv()

    assert len(dataset.items) == 2624
    assert dataset.count(Label.DEFECTIVE) == 821
    assert Counter(item.kind for item in dataset.items) == {"mono": 1074, "poly": 1550}
    assert all((item.probability or 0) >= 0.5 for item in dataset.items if item.label is Label.DEFECTIVE)
    assert dataset.items[0].read().startswith(b"\x89PNG")


def test_the_solar_cells_are_held_out_as_published() -> None:
    from sklearn.model_selection import train_test_split

    dataset = elpv()
    strata = [f"{item.probability:.2f}{item.kind}" for item in dataset.items]
    train, held_out = train_test_split(range(2624), test_size=0.25, random_state=20260101, stratify=strata)

    parts = split(dataset)

    assert parts.train.items == tuple(dataset.items[i] for i in train)
    assert parts.held_out.items == tuple(dataset.items[i] for i in held_out)


def test_solar_cells_that_are_not_installed_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(BadField, match=r"pip install 'inspectbus\[demo\]'"):
        open_dataset("elpv")


# --- real parts


def real_set(name: str) -> Dataset:
    data = Path(os.environ.get("INSPECTBUS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (data / name).is_dir():
        pytest.skip(f"no {name} in {data}; INSPECTBUS_TEST_DATA names the folder of image data")
    return open_dataset(str(data / name))


@pytest.mark.parametrize("name", ["casting_impeller", "commutator", "ball_screw"])
def test_real_parts_never_stand_on_two_sides(name: str) -> None:
    parts = split(real_set(name))
    rest, validation, _ = cut(parts.train.items, 0.2, seed=0)

    sides = [{item.group for item in side} for side in (rest, validation, parts.held_out.items)]

    assert None not in set().union(*sides)
    assert sum(map(len, sides)) == len(set().union(*sides))
