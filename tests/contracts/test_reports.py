"""Reports of comparisons: whole in the store or not there at all, on every kind of store."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from inspectbus.errors import NotFound, StorageAway
from inspectbus.training.reports import PART_BYTES, Reports


@pytest.fixture(params=["file", "memory"])
def reports(request: pytest.FixtureRequest, tmp_path: Path) -> Reports:
    return Reports(f"file://{tmp_path}/store" if request.param == "file" else f"memory://reports-{tmp_path.name}")


def written(folder: Path, page: bytes) -> Path:
    folder.mkdir()
    (folder / "report.html").write_bytes(page)
    return folder


def page_of(parts: list[bytes]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as report:
        assert report.namelist() == ["report.html"]
        return report.read("report.html")


def test_a_report_is_read_as_it_was_put_and_another_attempts_takes_its_place(reports: Reports, tmp_path: Path) -> None:
    reports.publish("a-job", written(tmp_path / "first", b"first"))
    assert page_of(list(reports.read("a-job"))) == b"first"

    reports.publish("a-job", written(tmp_path / "second", b"second"))
    assert page_of(list(reports.read("a-job"))) == b"second"
    # Nothing is left beside what was published.
    assert sorted(folder.name for folder in tmp_path.iterdir() if folder.name != "store") == ["first", "second"]


def test_a_part_is_never_larger_than_a_part_may_be(reports: Reports, tmp_path: Path) -> None:
    page = np.random.default_rng(0).bytes(3 * PART_BYTES)
    reports.publish("a-job", written(tmp_path / "report", page))

    parts = list(reports.read("a-job"))

    assert page_of(parts) == page
    assert len(parts) > 3
    assert max(len(part) for part in parts) <= PART_BYTES


def test_a_job_without_a_report_is_not_found(reports: Reports) -> None:
    with pytest.raises(NotFound) as caught:
        list(reports.read("a-job"))
    assert caught.value.field == "job_id"


def test_what_was_cut_off_is_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports(f"file://{tmp_path}/store")

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(LocalFileSystem, "mv", fail)
        with pytest.raises(StorageAway, match="the disk is gone"):
            reports.publish("a-job", written(tmp_path / "report", b"page"))

    with pytest.raises(NotFound):
        list(reports.read("a-job"))
    reports.publish("a-job", tmp_path / "report")
    assert page_of(list(reports.read("a-job"))) == b"page"


def test_a_store_that_cannot_be_read_is_told_from_a_report_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "store/_reports/a-job.zip").mkdir(parents=True)

    with pytest.raises(StorageAway, match="cannot be read"):
        list(Reports(f"file://{tmp_path}/store").read("a-job"))
