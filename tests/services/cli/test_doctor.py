"""The doctor: a plant that is well, one of which nothing runs, and what is wrong in between."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest
from typer.testing import Result

from inspectbus.api.v1.inference_pb2 import EngineCandidate, GetEngineResponse
from inspectbus.bus.rabbitmq import addresses, topology
from inspectbus.doctor.clock import judged
from inspectbus.doctor.database import look_at_database
from inspectbus.doctor.finding import Check, Finding, State, examine
from inspectbus.doctor.storage import look_at_frame_store, look_at_served, look_at_state
from inspectbus.errors import BadField
from inspectbus.stores.database import open_database
from tests.doubles.plant import open_plant

if TYPE_CHECKING:
    from tests.doubles.rabbitmq import Broker

Inspectbus = Callable[..., Result]


def told(result: Result) -> dict[str, tuple[str, str]]:
    """What is said about each thing."""
    findings = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return {each["about"]: (each["state"], each["says"]) for each in findings}


def plant_file(folder: Path, **sections: dict[str, Any]) -> Path:
    file = folder / "plant.yaml"
    file.write_text(json.dumps(sections))
    return file


def test_with_everything_away_each_thing_is_named_within_twenty_seconds(
    inspectbus: Inspectbus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    away = {"bus_url": "amqp://u:s3cret@192.0.2.1/plant", "port": 1, "metrics_port": 1}
    database = {"database_url": "postgresql://u:s3cret@192.0.2.1/plant"}
    file = plant_file(
        tmp_path,
        results={**away, **database},
        training={**away, **database},
        preprocessing={**away, **database, "models_address": "127.0.0.1:1"},
        inference={**away, "models_address": "127.0.0.1:1"},
        acquisition={**away, "results_address": "127.0.0.1:1"},
    )
    begun_s = time.monotonic()

    result = inspectbus("doctor", "--config", file, "--json")

    assert time.monotonic() - begun_s < 20
    assert result.exit_code == 2
    found = told(result)
    services = {f"{name} service" for name in ("results", "training", "preprocessing", "inference", "acquisition")}
    failed = {about for about, (state, _) in found.items() if state == "fail"}
    assert failed == {"broker", "database", "model default@production", *services}
    assert "s3cret" not in result.stdout + result.stderr


def test_a_plant_that_is_well_is_told_so(
    inspectbus: Inspectbus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frames").mkdir()
    with open_plant() as plant:
        address = plant.addresses["acquisition"]
        monkeypatch.setenv("INSPECTBUS_ACQUISITION_ADDRESS", address)
        file = plant_file(tmp_path, acquisition={"state_dir": str(tmp_path), "metrics_port": 0})

        result = inspectbus("doctor", "acquisition", "--config", file, "--json")

    assert told(result)["acquisition service"] == ("ok", f"serves at {address}")
    assert {state for state, _ in told(result).values()} == {"ok"}
    assert result.exit_code == 0


def test_a_health_check_asks_whether_the_service_answers_and_nothing_else(
    inspectbus: Inspectbus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No broker answers there, which must not make a healthy service restart.
    file = plant_file(tmp_path, acquisition={"bus_url": "amqp://u:p@127.0.0.1:1/", "state_dir": str(tmp_path)})
    with open_plant() as plant:
        monkeypatch.setenv("INSPECTBUS_ACQUISITION_ADDRESS", plant.addresses["acquisition"])
        well = inspectbus("doctor", "--doors", "acquisition", "--config", file, "--json")
    gone = inspectbus("doctor", "--doors", "acquisition", "--config", file, "--json")

    assert {about: state for about, (state, _) in told(well).items()} == {"acquisition service": "ok"}
    assert {about: state for about, (state, _) in told(gone).items()} == {"acquisition service": "fail"}
    assert (well.exit_code, gone.exit_code) == (0, 2)


@pytest.mark.parametrize("folder", [False, True], ids=["any model", "one folder"])
def test_recipes_are_there_and_ask_for_a_model_that_inference_can_load(
    inspectbus: Inspectbus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    names = ("right", "another", "unknown", "none")
    stations = [{"name": name, "recipe": name, "source": {"kind": "push"}} for name in names]
    acquisition = {"lines": [{"name": "line-1", "stations": stations}], "inspect_recipe": "right"}
    section = {"state_dir": str(tmp_path), "metrics_port": 0}
    with open_plant() as plant:
        monkeypatch.setenv("INSPECTBUS_PREPROCESSING_ADDRESS", plant.addresses["preprocessing"])
        inference = {"model": "parts", "models_address": plant.addresses["training"]}
        inference |= {"model_dir": str(tmp_path)} if folder else {}
        file = plant_file(tmp_path, acquisition=acquisition, inference=inference, preprocessing=section)
        for name, model in (("right", "parts"), ("another", "elpv"), ("unknown", "mvtec")):
            recipe = tmp_path / f"{name}.yaml"
            recipe.write_text(f"name: {name}\nmodel: {model}\n")
            assert inspectbus("recipes", "put", recipe).exit_code == 0

        found = told(inspectbus("doctor", "preprocessing", "--config", file, "--json"))
    monkeypatch.setenv("INSPECTBUS_PREPROCESSING_ADDRESS", "127.0.0.1:1")
    away = told(inspectbus("doctor", "preprocessing", "--config", file, "--json"))

    assert found["recipe right"][0] == "ok"
    assert found["recipe unknown"][0] == found["recipe none"][0] == "fail"
    if folder:
        assert found["recipe another"][0] == "fail"
        assert "model elpv, inference is set to parts" in found["recipe another"][1]
    else:
        assert found["recipe another"][0] == "ok"
        assert "elpv@production, version 1b2c1b2c1b2c1b2c" in found["recipe another"][1]
        assert "mvtec@production, which names no version" in found["recipe unknown"][1]
    assert "line-1/none" in found["recipe none"][1]
    assert "inspectbus recipes put none.yaml" in found["recipe none"][1]
    assert away["recipes"][0] == "warn"


@pytest.mark.parametrize(
    ("served", "detail", "state", "words"),
    [
        ("1b2c1b2c1b2c1b2c", "", "ok", "version 1b2c1b2c1b2c1b2c"),
        ("0f3a0f3a0f3a0f3a", "", "warn", "it is taken within seconds"),
        ("0f3a0f3a0f3a0f3a", "it is refused", "warn", "elpv@production is version 1b2c1b2c1b2c1b2c: it is refused"),
        ("", "no such file", "fail", "loaded none, and frames are held: no such file"),
    ],
)
def test_the_version_that_judges_is_compared_with_the_one_in_production(
    served: str, detail: str, state: str, words: str
) -> None:
    with open_plant() as plant:
        plant.engine = GetEngineResponse(ready=bool(served), model="elpv", model_version=served, detail=detail)
        training, inference = plant.addresses["training"], plant.addresses["inference"]

        (found,) = look_at_served("elpv", "production", training, inference)

    assert (found.state, words in found.says) == (state, True)


def test_the_engine_that_judges_is_told_with_the_others_speed_and_why_some_may_not() -> None:
    with open_plant() as plant:
        plant.engine = GetEngineResponse(
            ready=True,
            model="elpv",
            model_version="1b2c1b2c1b2c1b2c",
            engine="openvino 2026.4.1, bf16",
            device="cpu",
            candidates=[
                EngineCandidate(name="torch", images_per_s=18.2, deviation=0),
                EngineCandidate(name="onnxruntime", reason="it is not installed"),
                EngineCandidate(name="openvino-bf16", chosen=True, images_per_s=164.8, deviation=0.004),
            ],
        )
        _, found = look_at_served("elpv", "production", plant.addresses["training"], plant.addresses["inference"])

    assert (found.about, found.state) == ("engine", "ok")
    assert found.says == (
        "openvino 2026.4.1, bf16 on cpu judges; images/s: openvino-bf16 165, torch 18; "
        "left out: onnxruntime: it is not installed"
    )


def test_a_warning_alone_is_exit_code_1(
    inspectbus: Inspectbus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_plant() as plant:
        monkeypatch.setenv("INSPECTBUS_ACQUISITION_ADDRESS", plant.addresses["acquisition"])
        file = plant_file(tmp_path, acquisition={"state_dir": str(tmp_path / "new"), "metrics_port": 0})

        result = inspectbus("doctor", "acquisition", "--config", file)

    assert result.exit_code == 1
    assert "is not there yet" in result.stdout


@pytest.mark.rabbitmq
def test_a_broker_is_looked_at_from_the_handshake_to_the_dead_letters(
    rabbitmq: Broker, rabbitmq_url: str, inspectbus: Inspectbus, tmp_path: Path
) -> None:
    def broker(url: str) -> dict[str, tuple[str, str]]:
        section = {"bus_url": url, "state_dir": str(tmp_path), "metrics_port": 0, "port": 1}
        return told(
            inspectbus("doctor", "acquisition", "--config", plant_file(tmp_path, acquisition=section), "--json")
        )

    bare = broker(rabbitmq_url)
    topology.declare(addresses.parse(rabbitmq_url))
    declared = broker(rabbitmq_url)
    read = [queue.name for queue in topology.queues() if not queue.name.endswith((".retry", ".quarantine"))]
    with pika.BlockingConnection(list(addresses.parse(rabbitmq_url).parameters)) as connection:
        for name in set(read) - {"inspectbus.dead"}:
            connection.channel().basic_consume(name, lambda *_: None)
        attended = broker(rabbitmq_url)
    wrong = broker(rabbitmq.url("/", "guest", "s3cret"))
    nowhere = broker(rabbitmq.url("no-such-vhost"))

    assert bare["broker"][0] == "ok"
    assert bare["topology"][0] == "fail"
    assert "inspectbus bus declare" in bare["topology"][1]
    assert bare["topology"][1].startswith("33 of 33 exchanges and queues are missing in vhost ")
    assert "queues" not in bare
    assert {attended[about][0] for about in ("broker", "topology", "dead letters", "queues", "alarms")} == {"ok"}
    assert declared["queues"][0] == "warn"
    assert "nobody reads inspectbus.preprocessing.live, inspectbus.preprocessing.backlog, " in declared["queues"][1]
    assert wrong["broker"] == ("fail", "the broker refuses user 'guest': wrong name or password")
    assert nowhere["broker"] == ("fail", "the broker has no vhost 'no-such-vhost' for user 'guest'")


@pytest.mark.rabbitmq
def test_looking_makes_nothing_and_names_other_arguments(
    rabbitmq_url: str, inspectbus: Inspectbus, tmp_path: Path
) -> None:
    where = addresses.parse(rabbitmq_url)
    with pika.BlockingConnection(list(where.parameters)) as connection:
        arguments = {"x-queue-type": "quorum", "x-overflow": "drop-head"}
        connection.channel().queue_declare("inspectbus.dead", durable=True, arguments=arguments)
        section = {"bus_url": rabbitmq_url, "state_dir": str(tmp_path), "metrics_port": 0, "port": 1}
        file = plant_file(tmp_path, acquisition=section)

        result = inspectbus("doctor", "acquisition", "--config", file)

        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
            connection.channel().queue_declare("inspectbus.results", passive=True)
    assert any("x-overflow" in line and "inspectbus.dead" in line for line in result.stdout.splitlines())


@pytest.mark.rabbitmq
def test_a_broker_in_alarm_is_told(rabbitmq: Broker, rabbitmq_url: str, inspectbus: Inspectbus, tmp_path: Path) -> None:
    topology.declare(addresses.parse(rabbitmq_url))
    section = {"bus_url": rabbitmq_url, "state_dir": str(tmp_path), "metrics_port": 0, "port": 1}
    rabbitmq.memory_alarm(True)
    try:
        result = inspectbus("doctor", "acquisition", "--config", plant_file(tmp_path, acquisition=section), "--json")
    finally:
        rabbitmq.memory_alarm(False)

    assert told(result)["alarms"][0] == "fail"
    assert "memory or disk alarm" in told(result)["alarms"][1]


def test_a_database_is_looked_at_and_not_migrated(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/plant.db"
    absent = look_at_database(url, ["results"])
    made = (tmp_path / "plant.db").exists()
    sqlite3.connect(tmp_path / "plant.db").close()
    empty = look_at_database(url, ["results"])
    open_database(url, "results").dispose()
    newest = look_at_database(url, ["results", "training"])
    with sqlite3.connect(tmp_path / "plant.db") as database:
        database.execute("update alembic_results set version_num = 'from-the-future'")
    newer = look_at_database(url, ["results"])

    assert ([each.state for each in absent], made) == ([State.WARN], False)
    assert [each.state for each in empty] == [State.OK, State.WARN]
    assert [each.state for each in newest] == [State.OK, State.OK, State.WARN]
    assert newer[1].state is State.FAIL
    assert "newer InspectBus" in newer[1].says


def test_a_database_url_that_is_none_is_told_without_its_password() -> None:
    with pytest.raises(BadField) as refused:
        look_at_database("postgresql//u:s3cret@host", ["results"])

    assert "s3cret" not in refused.value.message


def test_the_frame_store_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    found = look_at_frame_store(f"file://{tmp_path}")

    assert found[0].state is State.OK
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_a_state_folder_that_cannot_be_made_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    (found,) = look_at_state(tmp_path / "file" / "state")

    assert found.state is State.FAIL


@pytest.mark.parametrize(
    ("ahead_s", "doubt_s", "state"),
    [(0.4, 0.5, "ok"), (-2.4, 0.5, "ok"), (-3.0, 0.5, "warn"), (61.0, 0.5, "fail"), (-3600.0, 0.0, "fail")],
)
def test_a_clock_is_judged_beyond_the_doubt_of_its_measure(ahead_s: float, doubt_s: float, state: str) -> None:
    assert judged("results", ahead_s, doubt_s).state == state


def test_a_check_that_hangs_or_breaks_is_a_finding_and_keeps_nobody_waiting() -> None:
    import threading

    free = threading.Event()

    def hangs() -> list[Finding]:
        free.wait(30)
        return []

    def breaks() -> list[Finding]:
        raise ValueError("what\nnobody expected")

    found = examine([Check("one", hangs), Check("two", breaks)], limit_s=0.2)
    free.set()

    assert [(each.about, each.state) for each in found] == [("one", State.FAIL), ("two", State.FAIL)]
    assert found[1].says == "ValueError: what"


def test_the_doctor_loads_no_library_before_a_check_needs_it() -> None:
    code = "import sys, inspectbus.doctor.plan; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )

    assert {"pika", "sqlalchemy", "alembic", "fsspec", "torch", "cv2"} & set(done.stdout.split()) == set()
