"""Model versions: found by name and version, and trusted only as far as their hashes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from inspectbus.domain.model_version import CARD_FILE, WEIGHTS_FILE, Calibration
from inspectbus.domain.thresholds import Thresholds
from inspectbus.errors import BadField, CorruptModel, ModelNotReady, NotFound
from inspectbus.stores import models
from inspectbus.stores.models import ModelStore, read_card, write_card
from tests.doubles.tiny_model import tiny_version


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One version, made once. Nobody writes into it."""
    return tiny_version(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the version that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / made.name))


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStore:
    root = f"file://{tmp_path}/store" if request.param == "file" else f"memory://models-{tmp_path.name}"
    return ModelStore(root, tmp_path / "cache")


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def rewrite(folder: Path, **changes: object) -> None:
    """Writes a card with other entries, spelt as cards are."""
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps({**card, **changes}, separators=(",", ":")))


def test_a_written_card_is_read_back_and_its_version_is_the_hash_of_the_file(folder: Path) -> None:
    card = read_card(folder, folder.name)
    write_card(folder, card)
    assert read_card(folder, folder.name) == card
    assert card.version == folder.name


def test_a_card_from_before_there_were_exports_keeps_its_spelling_and_its_hash(folder: Path) -> None:
    written = (folder / CARD_FILE).read_text()
    assert "export" not in json.loads(written)
    assert read_card(folder, folder.name).export is None


def test_a_card_that_tells_of_an_export_must_name_its_file(folder: Path) -> None:
    rewrite(folder, export={"opset": 18, "heatmap": None, "images": 10, "deviation": 0.25})
    with pytest.raises(CorruptModel, match=r"no sha256 for model\.onnx"):
        read_card(folder)


@pytest.mark.parametrize("file", [CARD_FILE, WEIGHTS_FILE, "pinned/0.png", "pinned/1.png"])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.999])
def test_one_changed_byte_anywhere_is_refused_by_the_files_name(folder: Path, file: str, where: float) -> None:
    flip(folder / file, int((folder / file).stat().st_size * where))
    with pytest.raises(CorruptModel) as refused:
        read_card(folder, folder.name)
    assert refused.value.field == file


def test_wherever_the_card_is_changed_it_is_refused(folder: Path) -> None:
    whole = (folder / CARD_FILE).read_bytes()
    for at in range(0, len(whole), 7):
        flip(folder / CARD_FILE, at)
        with pytest.raises(CorruptModel):
            read_card(folder, folder.name)
        (folder / CARD_FILE).write_bytes(whole)


def test_a_card_with_another_threshold_is_another_version(folder: Path) -> None:
    other = read_card(folder).model_copy(update={"threshold": 0.25})
    write_card(folder, other)
    assert read_card(folder).version == other.version
    with pytest.raises(CorruptModel, match=other.version):
        read_card(folder, folder.name)


def test_a_card_written_before_calibrations_had_knots_is_still_that_version(folder: Path) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    assert card["calibration"] == {"temperature": 1.0, "bias": 0.0}


def test_a_card_without_a_band_is_spelt_as_before_there_were_bands(folder: Path) -> None:
    assert "qualified_below" not in json.loads((folder / CARD_FILE).read_text())
    assert not read_card(folder).thresholds.band


def test_a_card_keeps_its_band(folder: Path) -> None:
    write_card(folder, read_card(folder).model_copy(update={"qualified_below": 0.125}))
    assert read_card(folder).thresholds == Thresholds(0.125, 0.5)


def test_a_card_keeps_its_knots(folder: Path) -> None:
    calibration = Calibration(knots=((0, 0.1), (0.5, 0.2), (1, 0.7)))
    write_card(folder, read_card(folder).model_copy(update={"calibration": calibration}))
    assert read_card(folder).calibration == calibration


def test_a_card_that_was_made_pretty_by_hand_is_refused(folder: Path) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2))
    with pytest.raises(CorruptModel, match="rewritten"):
        read_card(folder)


@pytest.mark.parametrize("file", [WEIGHTS_FILE, "pinned/0.png"])
def test_truncated_and_missing_files_are_refused(folder: Path, file: str) -> None:
    os.truncate(folder / file, 100)
    with pytest.raises(CorruptModel, match=file):
        read_card(folder)
    (folder / file).unlink()
    with pytest.raises(CorruptModel, match="missing"):
        read_card(folder)


@pytest.mark.parametrize("extra", ["notes.txt", "pinned/9.png", "deep/er/weights.pkl", ".hidden"])
def test_a_file_that_is_not_on_the_card_is_refused(folder: Path, extra: str) -> None:
    (folder / extra).parent.mkdir(parents=True, exist_ok=True)
    (folder / extra).write_bytes(b"?")
    with pytest.raises(CorruptModel) as refused:
        read_card(folder)
    assert refused.value.field == extra


@pytest.mark.parametrize("file", [CARD_FILE, WEIGHTS_FILE, "pinned"])
def test_links_are_refused_even_to_the_right_bytes(folder: Path, tmp_path: Path, file: str) -> None:
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptModel) as refused:
        read_card(folder)
    assert refused.value.field == file


def test_a_pipe_in_a_files_place_is_refused_without_waiting_for_it(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    os.mkfifo(folder / WEIGHTS_FILE)
    with pytest.raises(CorruptModel, match="no plain file"):
        read_card(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"surprise": 1},
        {"format": 2},
        {"threshold": 1.5},
        {"threshold": None},
        {"qualified_below": 0.6},
        {"qualified_below": -0.1},
        {"threshold": 2, "qualified_below": 0.6},
        {"calibration": {"temperature": 1.0, "bias": 0.0, "knots": [[0, 0.5], [1, 0.4]]}},
        {"pinned": []},
        {"files": {}},
        {"files": {"../../etc/passwd": "0" * 64}},
        {"files": {"/etc/passwd": "0" * 64}},
        {"files": {"a/b/c": "0" * 64}},
        {"files": {"pinned/..": "0" * 64}},
        {"pinned": [{"file": "../0.png", "score": 0.5}]},
        {"pinned": [{"file": "pinned/7.png", "score": 0.5}]},
        {"name": "../other"},
        {"name": "Tiny"},
    ],
    ids=str,
)
def test_a_card_that_says_something_impossible_is_refused(folder: Path, changes: dict[str, object]) -> None:
    rewrite(folder, **changes)
    with pytest.raises(CorruptModel) as refused:
        read_card(folder)
    assert refused.value.field == CARD_FILE


@pytest.mark.parametrize("card", [b"", b"{", b"[]", b"\xff\xfe", b'{"threshold": NaN}', b"[" * 100_000])
def test_what_is_no_card_is_refused(folder: Path, card: bytes) -> None:
    (folder / CARD_FILE).write_bytes(card)
    with pytest.raises(CorruptModel):
        read_card(folder)


def test_an_endless_card_is_not_read_to_its_end(folder: Path) -> None:
    with (folder / CARD_FILE).open("r+b") as file:
        file.truncate(1024**4)  # a hole of a terabyte
    with pytest.raises(CorruptModel, match="larger than"):
        read_card(folder)


def test_a_folder_without_a_card_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_card(tmp_path)
    with pytest.raises(NotFound):
        read_card(tmp_path / "nowhere")


def test_a_published_version_is_fetched_whole(store: ModelStore, made: Path) -> None:
    card = store.publish(made)
    fetched = store.fetch(card.name, card.version)
    assert read_card(fetched, card.version) == card == read_card(made)


def test_publishing_twice_changes_nothing_and_mends_what_was_cut_off(made: Path, tmp_path: Path) -> None:
    store = ModelStore(f"file://{tmp_path}/store", tmp_path / "cache")
    card = store.publish(made)
    there = tmp_path / "store" / card.name / card.version
    before = {file: file.stat().st_mtime_ns for file in there.rglob("*") if file.is_file()}
    store.publish(made)
    assert {file: file.stat().st_mtime_ns for file in there.rglob("*") if file.is_file()} == before

    os.truncate(there / WEIGHTS_FILE, 10)
    (there / CARD_FILE).unlink()
    store.publish(made)
    assert read_card(there, card.version) == card


def test_a_version_can_be_found_only_once_it_is_whole(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a publisher that dies after some of the files
    store = ModelStore(f"file://{tmp_path}/store", tmp_path / "cache")
    card = read_card(made)
    put = store._files.put_file

    def dies_at_the_card(source: str, path: str) -> None:
        if CARD_FILE in path:
            raise OSError("power cut")
        put(source, path)

    monkeypatch.setattr(store._files, "put_file", dies_at_the_card)
    with pytest.raises(OSError, match="power cut"):
        store.publish(made)
    # then nobody finds it, until a second attempt has finished
    monkeypatch.undo()
    with pytest.raises(NotFound):
        store.fetch(card.name, card.version)
    store.publish(made)
    assert store.fetch(card.name, card.version).is_dir()


def test_a_damaged_folder_is_not_published(store: ModelStore, folder: Path) -> None:
    flip(folder / WEIGHTS_FILE, 5000)
    with pytest.raises(CorruptModel):
        store.publish(folder)


def test_a_version_damaged_in_the_store_is_refused_and_leaves_nothing_in_the_cache(made: Path, tmp_path: Path) -> None:
    store = ModelStore(f"file://{tmp_path}/store", tmp_path / "cache")
    card = store.publish(made)
    there = tmp_path / "store" / card.name / card.version
    flip(there / WEIGHTS_FILE, 5000)
    with pytest.raises(CorruptModel) as refused:
        store.fetch(card.name, card.version)
    assert refused.value.field == WEIGHTS_FILE
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    # and one whose file is gone names it too
    (there / "pinned/0.png").unlink()
    (there / WEIGHTS_FILE).write_bytes((made / WEIGHTS_FILE).read_bytes())
    with pytest.raises(CorruptModel, match=r"0\.png"):
        store.fetch(card.name, card.version)


def test_the_cache_serves_while_the_store_is_away_and_is_mended_when_it_is_back(made: Path, tmp_path: Path) -> None:
    store = ModelStore(f"file://{tmp_path}/store", tmp_path / "cache")
    card = store.publish(made)
    cached = store.fetch(card.name, card.version)
    (tmp_path / "store").rename(tmp_path / "away")
    assert store.fetch(card.name, card.version) == cached

    # A damaged copy is never served, store or not.
    flip(cached / WEIGHTS_FILE, 5000)
    with pytest.raises(NotFound):
        store.fetch(card.name, card.version)
    (tmp_path / "away").rename(tmp_path / "store")
    assert read_card(store.fetch(card.name, card.version), card.version) == card


def test_a_store_that_cannot_be_read_is_told_from_a_version_that_is_not_there(made: Path, tmp_path: Path) -> None:
    store = ModelStore(f"file://{tmp_path}/store", tmp_path / "cache")
    card = store.publish(made)
    there = tmp_path / "store" / card.name / card.version
    shutil.rmtree(there)
    there.write_text("a file where a folder was")
    with pytest.raises(ModelNotReady):
        store.fetch(card.name, card.version)
    with pytest.raises(NotFound):
        store.fetch("another", card.version)


def test_a_version_under_another_models_name_is_refused(made: Path, tmp_path: Path) -> None:
    store = ModelStore(f"file://{tmp_path}/store", tmp_path / "cache")
    card = store.publish(made)
    shutil.copytree(tmp_path / "store" / card.name, tmp_path / "store" / "another")
    with pytest.raises(CorruptModel, match="not of another"):
        store.fetch("another", card.version)


@pytest.mark.parametrize(
    ("name", "version"),
    [("../tiny", "0" * 16), ("tiny/x", "0" * 16), ("tiny", "../../../etc"), ("tiny", "0" * 16 + "\n"), ("tiny", "")],
)
def test_names_and_versions_that_are_none_are_refused(store: ModelStore, name: str, version: str) -> None:
    with pytest.raises(BadField):
        store.fetch(name, version)


def test_a_file_in_the_store_that_never_ends_does_not_fill_the_disk(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(f"file://{tmp_path}/store", tmp_path / "cache")
    card = store.publish(made)
    monkeypatch.setattr(models, "MAX_FILE_BYTES", 1000)
    with pytest.raises(CorruptModel, match="larger than 1000"):
        store.fetch(card.name, card.version)


def test_what_lies_in_the_store_is_verified_whatever_the_cache_holds(made: Path, tmp_path: Path) -> None:
    # given a version that this machine has fetched
    store = ModelStore(f"file://{tmp_path}/store", tmp_path / "cache")
    card = store.publish(made)
    store.fetch(card.name, card.version)
    assert store.verify(card.name, card.version) == card

    # when, then
    for file in (WEIGHTS_FILE, "pinned/0.png", CARD_FILE):
        there = tmp_path / "store" / card.name / card.version / file
        whole = there.read_bytes()
        flip(there, len(whole) // 2)
        with pytest.raises(CorruptModel) as refused:
            store.verify(card.name, card.version)
        assert refused.value.field == file
        if file in card.files:
            with pytest.raises(CorruptModel, match="not the file that was tested"):
                store.read(card, file, len(whole))
        there.unlink()
        with pytest.raises(NotFound if file == CARD_FILE else CorruptModel) as missing:
            store.verify(card.name, card.version)
        assert missing.value.field == file
        there.write_bytes(whole)
    shutil.copytree(tmp_path / "store" / card.name, tmp_path / "store/other")
    with pytest.raises(CorruptModel, match="is of tiny, not of other"):
        store.verify("other", card.version)


def test_one_file_of_a_version_is_read_and_checked(made: Path, store: ModelStore) -> None:
    card = store.publish(made)

    assert store.read(card, "pinned/0.png", 100_000) == (made / "pinned/0.png").read_bytes()
    with pytest.raises(NotFound, match="has no nothing"):
        store.read(card, "nothing", 100)
    with pytest.raises(CorruptModel, match="larger than 10 bytes"):
        store.read(card, "pinned/0.png", 10)
