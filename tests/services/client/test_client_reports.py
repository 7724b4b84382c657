"""Comparisons asked for by the client, and their reports: fetched whole, and unpacked only where nothing leads out."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from inspectbus.api.v1 import training_pb2
from inspectbus.errors import BadField, ModelNotReady, NotFound, NotPossibleNow
from inspectbus_client import Client, ComparisonPlan, JobState, reports
from inspectbus_client import jobs as client_jobs
from tests.doubles.plant import Plant

FILES = [("report.html", b"<p>A page.</p>" * 100), ("report.json", b"{}"), ("scores.png", bytes(range(256)) * 10)]


def packed(files: Sequence[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as report, warnings.catch_warnings():
        # Two files of one name are what a test may want.
        warnings.simplefilter("ignore", UserWarning)
        for name, content in files:
            report.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def job_id(client: Client, plant: Plant) -> str:
    plant.report = packed(FILES)
    return client.compare_models("parts").job_id


def test_a_comparison_is_asked_for_followed_and_told_from_a_training(client: Client, plant: Plant) -> None:
    job = client.compare_models("parts", models=["cnn", "svm"], seeds=3, quick=True, images=90, turns=False)

    assert job.comparison == ComparisonPlan("parts", ("cnn", "svm"), 3, True, 90, "", 0, 0, "", False)
    *_, last = client.watch_job(job.job_id)
    assert (last.state, last.model_version) == (JobState.SUCCEEDED, "")
    assert client.train("elpv").comparison is None
    # And what is left open is left to the service.
    client.compare_models("parts")
    request = plant.jobs["job-2"][0].comparison
    assert request == training_pb2.ComparisonPlan(data="parts")


def test_asking_for_a_comparison_is_not_tried_again(client: Client, plant: Plant) -> None:
    plant.refuse("CompareModels", ModelNotReady("restarting"))
    with pytest.raises(ModelNotReady):
        client.compare_models("parts")
    assert plant.calls["CompareModels"] == 1


def test_a_report_comes_whole_into_a_new_folder(client: Client, job_id: str, tmp_path: Path) -> None:
    files = client.read_report(job_id, tmp_path / "new/report")

    assert [(file.name, file.read_bytes()) for file in files] == FILES
    assert {file.parent for file in files} == {tmp_path / "new/report"}


def test_a_stream_that_breaks_is_read_again_from_its_beginning(
    client: Client, plant: Plant, job_id: str, tmp_path: Path
) -> None:
    plant.break_stream("ReadReport", after=2)

    files = client.read_report(job_id, tmp_path / "report")

    assert plant.calls["ReadReport"] == 2
    assert [file.read_bytes() for file in files] == [content for _, content in FILES]


def test_a_job_without_a_report_is_told_in_the_services_words(client: Client, plant: Plant, tmp_path: Path) -> None:
    plant.refuse("ReadReport", NotPossibleNow("is running", field="job_id"))
    with pytest.raises(NotPossibleNow, match="is running"):
        client.read_report("job-0", tmp_path / "report")
    with pytest.raises(NotFound, match="no job nobody's"):
        client.read_report("nobody's", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_report_is_never_written_over_another(client: Client, job_id: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("an older one")

    with pytest.raises(BadField, match="is there already"):
        client.read_report(job_id, tmp_path)

    assert (tmp_path / "report.html").read_text() == "an older one"


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (b"", "no report"),
        (b"no zip file" * 100, "no report"),
        (packed(FILES)[:-30], "no report"),
        (packed([]), "it is empty"),
        (packed([("../out.html", b"x")]), "is no name of a file"),
        (packed([("/tmp/out.html", b"x")]), "is no name of a file"),
        (packed([("deep/out.html", b"x")]), "is no name of a file"),
        (packed([("..\\out.html", b"x")]), "is no name of a file"),
        (packed([("C:out.html", b"x")]), "is no name of a file"),
        (packed([(".bashrc", b"x")]), "is no name of a file"),
        (packed([("a.png", b"x"), ("a.png", b"y")]), "of different names"),
        (packed([(f"{number}.png", b"x") for number in range(201)]), "201 files"),
    ],
)
def test_what_is_no_report_is_refused_before_a_file_is_written(
    client: Client, plant: Plant, job_id: str, tmp_path: Path, report: bytes, words: str
) -> None:
    plant.report = report

    with pytest.raises(NotPossibleNow, match=words):
        client.read_report(job_id, tmp_path / "in/report")

    assert not list(tmp_path.rglob("*"))


def test_a_report_that_is_too_large_is_refused_packed_or_unpacked(
    client: Client, plant: Plant, job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_REPORT_BYTES", 5000)
    plant.report = packed([("bomb.png", bytes(5001))], zipfile.ZIP_DEFLATED)
    assert len(plant.report) < 500
    with pytest.raises(NotPossibleNow, match="unpacked it has 5001 bytes"):
        client.read_report(job_id, tmp_path / "report")

    monkeypatch.setattr(client_jobs, "MAX_REPORT_BYTES", 600)
    plant.report = packed([("large.png", bytes(4000))])
    with pytest.raises(NotPossibleNow, match="larger than 600 bytes"):
        client.read_report(job_id, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_file_that_unpacks_to_more_than_its_list_tells_stops_there(
    client: Client, plant: Plant, job_id: str, tmp_path: Path
) -> None:
    honest = packed([("bomb.png", bytes(100_000))], zipfile.ZIP_DEFLATED)
    plant.report = honest.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert plant.report != honest

    with pytest.raises(NotPossibleNow, match="no report"):
        client.read_report(job_id, tmp_path / "report")

    assert (tmp_path / "report/bomb.png").stat().st_size <= 10
