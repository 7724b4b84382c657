"""A job of the training service as the command line shows it: the bars that follow it, and what came of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from inspectbus.cli.doors import access
from inspectbus.cli.live import ended_by, stage_bar
from inspectbus.domain.model_version import PRODUCTION
from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.line import open_records
from inspectbus.stores.datasets import ELPV
from inspectbus_client import Client, Job, JobState, Model


def watched(console: Console, client: Client, job: Job, stop: threading.Event) -> Model:
    """Shows the way of a training job, one that was joined too, and gives the version it made; tells whether that is in
    production. Setting `stop` cancels the job.

    Raises NotPossibleNow with the job's own words when it failed, or when `stop` cancelled it.
    """
    word = "going on with the training of" if job.attempts else "training"
    console.print(f"{word} {job.plan.model} on {job.plan.data} (job {job.job_id})")
    job = _followed(console, client, job, stop, "training", "nothing was registered")
    made = client.model(job.model, version=job.model_version)
    scores = "  ".join(f"{name} {value:.3f}" for name, value in made.card["validation_scores"].items())
    console.print(f"model {made.name}/{made.version}, on validation: {scores}")
    if not job.not_promoted:
        history = f"`inspectbus models history {made.name}` tells what it followed, where a training service runs"
        console.print(f"in production: {history}", markup=False)
        newest = next(iter(client.alias_history(made.name, PRODUCTION, page_size=1)), None)
        if newest is not None and newest.previous and newest.version == made.version:
            console.print(f"  {newest.reason}", markup=False)
    else:
        console.print(f"not in production: {job.not_promoted}", style="yellow", markup=False)
        console.print(f"see `inspectbus models {made.name}` and `inspectbus models set-alias --help`", markup=False)
    return made


def compared(console: Console, client: Client, job: Job, stop: threading.Event, out: Path) -> None:
    """Shows the way of a comparison, and puts its report into the folder `out`. Setting `stop` cancels the job.

    Raises NotPossibleNow with the job's own words when it failed, or when `stop` cancelled it; else as `read_report`.
    """
    console.print(f"comparing on {job.plan.data} (job {job.job_id})")
    _followed(console, client, job, stop, "comparison", "there is no report")
    client.read_report(job.job_id, out)


def _followed(console: Console, client: Client, job: Job, stop: threading.Event, kind: str, left: str) -> Job:
    """The job, once it has succeeded; `left` says in words what one that was interrupted leaves."""
    with client.watch_job(job.job_id) as watch, ended_by(stop, watch), stage_bar(console) as show:
        for seen in watch:
            job, progress = seen, seen.progress
            if progress and progress.stage:
                figures = "  ".join(f"{name} {value:.3g}" for name, value in progress.figures.items())
                within = progress.step / progress.steps if progress.steps else 0.0
                show(progress.stage, progress.done + within, progress.total, figures)
    if stop.is_set() and not job.state.ended:
        client.cancel_job(job.job_id)
        raise NotPossibleNow(f"the {kind} was interrupted; {left}")
    if job.state is not JobState.SUCCEEDED:
        raise NotPossibleNow(f"the {kind} {job.state.lower()}: {job.error or 'no reason given'}")
    return job


def own_data(data: str) -> str:
    """DATA as a service of this command takes it: a whole path. The service joins a path to its data root, and a job
    that is joined may have been asked for from another working folder. Raises BadField for what is no folder, and for a
    path that no message carries.
    """
    if data in ("", ELPV):
        return data
    if not Path(data).expanduser().is_dir():
        raise BadField(f"{data!r} is neither a folder nor the data set {ELPV!r}", field="data")
    # Here, because it loads OpenCV, which asking a service elsewhere does not need.
    from inspectbus.stores.datasets.check import check_spelling

    return check_spelling(Path(data).expanduser().resolve())


@contextmanager
def training_door(state: Path, data: str, address: str = "", *, takes_jobs: bool = True) -> Iterator[Client]:
    """The service at the address, or one of this command's own."""
    if address:
        with Client.connect({"training": address}, access=access()) as client:
            yield client
        return
    with (
        open_records(state, Path() if data == ELPV else Path(own_data(data)), takes_jobs=takes_jobs) as records,
        Client.connect(records) as client,
    ):
        yield client
