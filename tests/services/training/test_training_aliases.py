"""Who pointed an alias where, when and why; what production refuses; the way back."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import create_engine, text

from inspectbus.api.v1 import model_pb2
from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.domain.model_version import PRODUCTION
from inspectbus.stores.database import open_database, reading, writing
from inspectbus.stores.models import ModelStore
from inspectbus.training.aliases import Aliases, Moved
from inspectbus.training.registry import Registry
from inspectbus.training.validation import VALIDATION_FILE
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.tiny_model import tiny_version
from tests.doubles.training_service import PATIENCE_S, Service, named_fields

Train = Callable[..., pb.Job]


@pytest.fixture
def train(service: Service, training: ScriptedTraining, tmp_path: Path) -> Train:
    """Runs a training to its end, which makes a version that misjudges so many of its validation images."""
    numbers = itertools.count()

    def run(misjudged: int = 0, images: str = "flat images") -> pb.Job:
        seed = next(numbers)
        training.give(tiny_version(tmp_path / f"made-{seed}", "parts", seed=seed, misjudged=misjudged, images=images))
        job = service.outcome(service.start().job_id)
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
        return job

    return run


# --- what a training does to production


def test_the_first_version_goes_into_production_however_good_it_is(service: Service, train: Train) -> None:
    job = train(misjudged=15)

    assert job.not_promoted == ""
    assert service.model("parts", alias="production").version == job.model_version


def test_a_version_as_good_as_production_takes_its_place(service: Service, train: Train) -> None:
    train()
    job = train()

    assert job.not_promoted == ""
    assert service.model("parts", alias="production").version == job.model_version


def test_a_version_that_is_worse_is_registered_and_production_stays(service: Service, train: Train) -> None:
    # given
    good = train()

    # when
    job = train(misjudged=10)

    # then
    assert service.model("parts", alias="production").version == good.model_version
    assert service.model("parts", version=job.model_version).aliases == []
    assert f"{job.model_version} is worse than {good.model_version}, which is in production" in job.not_promoted
    assert "both judged the same 40 validation images" in job.not_promoted
    assert len(service.alias_history()) == 1


def test_a_version_that_judged_other_images_is_compared_and_told_so(service: Service, train: Train) -> None:
    train()

    assert train(misjudged=1, images="other images").not_promoted == ""
    why = train(misjudged=15, images="new images").not_promoted
    assert "on different validation images, 40 of new images (data " in why
    assert ") against 40 of other images (data " in why


def test_what_cannot_be_compared_is_registered_and_production_stays(
    service: Service, train: Train, store: Path
) -> None:
    good = train()
    (store / "parts" / good.model_version / VALIDATION_FILE).write_text("another file")

    job = train()

    assert service.model("parts", alias="production").version == good.model_version
    assert f"cannot be compared with {good.model_version} in production" in job.not_promoted
    assert f"model file {VALIDATION_FILE} is not the file that was tested" in job.not_promoted


def test_a_version_that_came_into_production_meanwhile_is_the_one_to_compare_with(
    database_url: str, tmp_path: Path
) -> None:
    # given a version compared with nothing, because nothing was in production
    engine = open_database(database_url, "training")
    store = ModelStore(f"file://{tmp_path / 'store'}", tmp_path / "cache")
    registry, aliases = Registry(engine, store), Aliases(engine, store)
    poor, good = (
        registry.publish(tiny_version(tmp_path / str(missed), "parts", misjudged=missed)) for missed in (15, 0)
    )
    standing = aliases.standing(poor)
    with writing(engine) as connection:
        registry.record(connection, good)
        registry.record(connection, poor)
    aliases.set("parts", PRODUCTION, good.version, "somebody")

    # when, then
    with pytest.raises(Moved), writing(engine) as connection:
        aliases.promote(connection, standing, "a training", "")
    assert aliases.standing(poor).objection is not None
    engine.dispose()


# --- SetAlias


def test_an_alias_is_set_and_its_history_says_who_when_and_why(service: Service, train: Train) -> None:
    # given
    older, newer = train(), train()
    begun = datetime.now(UTC)

    # when
    change = service.set_alias("canary", newer.model_version, reason="a week on line 2")
    service.set_alias("canary", older.model_version)

    # then
    assert (change.name, change.alias, change.version, change.previous) == ("parts", "canary", newer.model_version, "")
    assert (change.by, change.reason, change.forced, change.rollback) == ("local", "a week on line 2", False, False)
    assert begun <= change.changed_at.ToDatetime(tzinfo=UTC) <= datetime.now(UTC)
    history = service.alias_history(alias="canary")
    assert history[1] == change
    assert (history[0].version, history[0].previous) == (older.model_version, newer.model_version)
    assert sorted(service.model("parts", version=newer.model_version).aliases) == ["production"]
    told = service.alias_history()
    assert [each.alias for each in told] == ["canary", "canary", "production", "production"]
    assert told[2].reason.startswith(f"training {newer.job_id}: average precision ")
    assert "both judged the same 40 validation images" in told[2].reason
    assert told[3].reason == f"training {older.job_id}"


def test_setting_what_is_set_already_writes_nothing(service: Service, train: Train) -> None:
    version = train().model_version

    assert service.set_alias("production", version) == model_pb2.AliasChange()
    assert len(service.alias_history()) == 1


def test_production_refuses_a_version_that_is_worse_and_takes_it_when_forced_with_a_reason(
    service: Service, train: Train
) -> None:
    # given
    good, poor = train(), train(misjudged=10)

    # when it is set, then it is refused with figures, and other aliases take it
    refusal = _refusal(lambda: service.set_alias("production", poor.model_version))
    assert refusal.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert f"{poor.model_version} is worse than {good.model_version}" in str(refusal.details())
    assert "F1 0.667 against 1.000 (difference -0.333, 95 % interval -0." in str(refusal.details())
    assert service.set_alias("shadow", poor.model_version).version == poor.model_version

    # when it is forced
    change = service.set_alias("production", poor.model_version, force=True, reason="the good one burns the GPU")

    # then
    assert (change.forced, change.previous) == (True, good.model_version)
    assert service.model("parts", alias="production").version == poor.model_version


@pytest.mark.parametrize("reason", ["", "  \t"])
def test_forcing_without_a_reason_is_refused(service: Service, train: Train, reason: str) -> None:
    train()
    poor = train(misjudged=10).model_version

    refusal = _refusal(lambda: service.set_alias("production", poor, force=True, reason=reason))

    assert (refusal.code(), named_fields(refusal)) == (grpc.StatusCode.INVALID_ARGUMENT, ["reason"])


def test_an_alias_to_a_missing_version_is_refused(service: Service, train: Train) -> None:
    train()

    for version in ("0123456789abcdef", "", "x" * 10_000, "../../etc"):
        refusal = _refusal(lambda version=version: service.set_alias("canary", version))  # type: ignore[misc]
        assert (refusal.code(), named_fields(refusal)) == (grpc.StatusCode.NOT_FOUND, ["version"])
    assert [each.alias for each in service.alias_history()] == ["production"]


@pytest.mark.parametrize("damage", ["changed", "missing", "card"])
@pytest.mark.parametrize("force", [False, True])
def test_an_alias_to_a_version_that_the_store_has_not_whole_is_refused_by_its_file(
    service: Service, train: Train, store: Path, damage: str, force: bool
) -> None:
    # given a version that this machine has in its cache, and that was changed in the store afterwards
    version = train().model_version
    service.set_alias("canary", version)
    file = store / "parts" / version / ("model.json" if damage == "card" else "pinned/1.png")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b" ")

    # when
    refusal = _refusal(lambda: service.set_alias("shadow", version, force=force, reason="because"))

    # then
    assert refusal.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert named_fields(refusal) == ["version"]
    said = refusal.details() or ""
    assert said.startswith(f"version {version}: ")
    assert ("model.json" if damage == "card" else "pinned/1.png") in said
    assert [each.alias for each in service.alias_history()] == ["canary", "production"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (model_pb2.SetAliasRequest(name="parts", alias="Production", version="0" * 16), "alias"),
        (model_pb2.SetAliasRequest(name="parts", version="0" * 16), "alias"),
        (model_pb2.SetAliasRequest(alias="production", version="0" * 16), "name"),
        (model_pb2.SetAliasRequest(name="parts", alias="canary", version="0" * 16, reason="x" * 501), "reason"),
        (model_pb2.SetAliasRequest(name="parts", alias="canary", version="0" * 16, reason="\0"), "reason"),
    ],
)
def test_a_wrong_wish_is_refused_by_its_field(
    service: Service, request_: model_pb2.SetAliasRequest, field: str
) -> None:
    refusal = _refusal(lambda: service.models.SetAlias(request_, timeout=PATIENCE_S))
    assert (refusal.code(), named_fields(refusal)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


def test_of_many_that_set_an_alias_at_once_each_change_follows_from_the_one_before(
    service: Service, train: Train
) -> None:
    versions = [train().model_version for _ in range(3)]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda version: service.set_alias("shadow", version), versions * 4))

    history = service.alias_history(alias="shadow")
    assert history[-1].previous == ""
    assert all(newer.previous == older.version for newer, older in itertools.pairwise(history))
    assert service.model("parts", alias="shadow").version == history[0].version


# --- the way back


def test_a_rollback_goes_back_one_and_again_one_further_never_to_what_was_rolled_back(
    service: Service, train: Train
) -> None:
    first, second, third = (train().model_version for _ in range(3))

    back = service.rollback(reason="false alarms on line 1")
    assert (back.version, back.previous, back.rollback, back.by) == (second, third, True, "local")
    assert service.model("parts", alias="production").version == second
    assert service.rollback().version == first

    refusal = _refusal(service.rollback)
    assert refusal.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "named no version before" in str(refusal.details())


def test_a_version_set_after_a_rollback_goes_back_to_where_that_led(service: Service, train: Train) -> None:
    first, second, third = (train().model_version for _ in range(3))
    service.rollback()  # to the second
    service.set_alias("production", third)

    assert [service.rollback().version, service.rollback().version] == [second, first]


def test_a_rollback_does_not_ask_how_good_a_version_is(service: Service, train: Train) -> None:
    poor, good = train(misjudged=10).model_version, train().model_version
    assert service.model("parts", alias="production").version == good

    assert service.rollback().version == poor


def test_a_rollback_without_history_is_refused(service: Service, train: Train) -> None:
    train()

    once = _refusal(service.rollback)
    never = _refusal(lambda: service.rollback("canary"))
    unknown = _refusal(lambda: service.rollback(name="nothing"))

    assert (once.code(), named_fields(once)) == (grpc.StatusCode.FAILED_PRECONDITION, ["alias"])
    assert "nothing to go back to" in str(once.details())
    assert (never.code(), unknown.code()) == (grpc.StatusCode.NOT_FOUND,) * 2


def test_a_rollback_to_a_version_that_is_damaged_is_refused(service: Service, train: Train, store: Path) -> None:
    first, second = train().model_version, train().model_version
    shutil.rmtree(store / "parts" / first / "pinned")

    refusal = _refusal(service.rollback)

    assert named_fields(refusal) == ["alias"]
    said = refusal.details() or ""
    assert said.startswith(f"version {first}: ")
    assert "pinned/0.png" in said
    assert service.model("parts", alias="production").version == second


# --- what was, and when


def test_which_version_was_live_at_a_moment_is_one_call(service: Service, train: Train) -> None:
    versions = [train().model_version for _ in range(3)]
    changes = list(reversed(service.alias_history()))

    for change, version in zip(changes, versions, strict=True):
        assert service.model("parts", alias="production", at=change.changed_at).version == version
    just_before = Timestamp()
    just_before.FromMicroseconds(changes[2].changed_at.ToMicroseconds() - 1)
    assert service.model("parts", alias="production", at=just_before).version == versions[1]
    assert service.model("parts", alias="production", at=Timestamp(seconds=4_000_000_000)).version == versions[2]

    before_all = _refusal(lambda: service.model("parts", alias="production", at=Timestamp(seconds=1)))
    assert (before_all.code(), named_fields(before_all)) == (grpc.StatusCode.NOT_FOUND, ["at"])


def test_a_moment_that_makes_no_sense_is_refused(service: Service) -> None:
    for which in ({"alias": "production", "at": Timestamp(seconds=2**62)}, {"version": "0" * 16, "at": Timestamp()}):
        refusal = _refusal(lambda which=which: service.model("parts", **which))  # type: ignore[misc]
        assert (refusal.code(), named_fields(refusal)) == (grpc.StatusCode.INVALID_ARGUMENT, ["at"])


def test_the_history_comes_in_pages(service: Service, train: Train) -> None:
    versions = [train().model_version for _ in range(3)]

    pages, token = [], ""
    while True:
        request = model_pb2.ListAliasHistoryRequest(name="parts", alias="production", page_size=2, page_token=token)
        answer = service.models.ListAliasHistory(request, timeout=PATIENCE_S)
        pages.append([change.version for change in answer.changes])
        token = answer.next_page_token
        if not token:
            break

    assert pages == [versions[:0:-1], versions[:1]]


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"page_token": "nobody gave this"}, grpc.StatusCode.INVALID_ARGUMENT, "page_token"),
        ({"page_token": "-1"}, grpc.StatusCode.INVALID_ARGUMENT, "page_token"),
        ({"page_token": "9" * 19}, grpc.StatusCode.INVALID_ARGUMENT, "page_token"),
        ({"page_size": 1001}, grpc.StatusCode.INVALID_ARGUMENT, "page_size"),
        ({"alias": "No Name"}, grpc.StatusCode.INVALID_ARGUMENT, "alias"),
        ({"name": "nothing"}, grpc.StatusCode.NOT_FOUND, "name"),
    ],
)
def test_a_history_that_cannot_be_given_is_refused_by_its_field(
    service: Service, train: Train, fields: dict[str, str | int], code: grpc.StatusCode, field: str
) -> None:
    train()

    refusal = _refusal(lambda: service.alias_history(**fields))  # type: ignore[arg-type]

    assert (refusal.code(), named_fields(refusal)) == (code, [field])


def test_a_history_from_before_the_columns_is_given_its_previous_versions(database_url: str) -> None:
    # given a database as the first migration left it, with three settings of two aliases
    open_database(database_url, "training").dispose()
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for column in ("previous", "forced", "restored"):
            connection.execute(text(f"ALTER TABLE model_alias_history DROP COLUMN {column}"))
        for column in ("not_promoted", "attempts", "comparison"):
            connection.execute(text(f"ALTER TABLE training_jobs DROP COLUMN {column}"))
        connection.execute(text("UPDATE alembic_training SET version_num = '0001'"))
        for alias, version in (("production", "a"), ("canary", "b"), ("production", "c")):
            connection.execute(
                text(
                    'INSERT INTO model_alias_history (name, alias, version, set_at, "by", reason) '
                    f"VALUES ('parts', '{alias}', '{version}', 1, 'somebody', '')"
                )
            )
    engine.dispose()

    # when
    migrated = open_database(database_url, "training")

    # then
    with reading(migrated) as connection:
        rows = connection.execute(text("SELECT version, previous FROM model_alias_history ORDER BY number")).all()
    migrated.dispose()
    assert [tuple(row) for row in rows] == [("a", ""), ("b", ""), ("c", "a")]


@pytest.fixture
def store(service: Service) -> Path:
    """The folder of the model store."""
    return service.settings.state_dir / "models"


def _refusal(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value
