"""The other commands: recipes, stations, models, decisions, scores; and how any command ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import Result

from inspectbus.api.v1 import acquisition_pb2
from inspectbus.api.v1.decision_pb2 import VERDICT_QUALIFIED
from inspectbus.api.v1.gate_pb2 import GATE_ACTION_REJECT, GATE_REASON_DEADLINE, GateOutcome
from inspectbus.cli import advise, doors
from inspectbus.cli.recipes import EXAMPLE_RECIPE
from inspectbus.errors import WorseModel
from inspectbus.stores.frames import FrameStore, evidence_key
from tests.doubles.plant import Plant, open_plant

Inspectbus = Callable[..., Result]
ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "inspectbus"]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("INSPECTBUS_")},
    "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'clients'}",
}


def decide(plant: Plant, name: str, line: str = "line-1", truth: int = 0) -> str:
    shot = acquisition_pb2.Shot(source_item=name, frame_id=str(uuid.uuid4()), part_id=f"p-{name}")
    shot.truth = truth  # type: ignore[assignment] # enums are ints on the wire
    return plant.decide(shot, line, "top").frame_id


def test_the_recipe_shown_in_help_can_be_stored_listed_and_shown(
    inspectbus: Inspectbus, plant: Plant, tmp_path: Path
) -> None:
    file = tmp_path / "cells.yaml"
    file.write_text(EXAMPLE_RECIPE)
    door = ("--address", plant.addresses["preprocessing"])

    assert inspectbus("recipes", "put", file, *door).stdout == "cells stored as version 1\n"
    assert inspectbus("recipes", "put", file, *door).stdout == "cells is already version 1\n"
    assert inspectbus("recipes", "list", *door).stdout.splitlines()[1].split()[:2] == ["cells", "1"]
    shown = inspectbus("recipes", "show", "cells", *door).stdout
    assert "threshold: 0.45" in shown
    file.write_text(shown)
    assert json.loads(inspectbus("recipes", "put", file, "--json", *door).stdout)["created"] is False


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "is not text"),
        (b"name: cells\nmodel: elpv\nthreshold: .nan\n", "threshold"),
        (b"x" * 1_100_000, "too long"),
    ],
)
def test_a_recipe_that_is_none_is_one_line_and_exit_code_2(
    inspectbus: Inspectbus, plant: Plant, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "recipe.yaml"
    if content is not None:
        file.write_bytes(content)

    result = inspectbus("recipes", "put", file, "--address", plant.addresses["preprocessing"])

    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_stations_are_listed_started_and_stopped(inspectbus: Inspectbus, plant: Plant) -> None:
    door = ("--address", plant.addresses["acquisition"])

    assert inspectbus("stations", "list", *door).stdout.splitlines()[1].split()[:2] == ["line-1/top", "STOPPED"]
    behind = inspectbus("stations", "list", *door).stdout.splitlines()[2]
    assert "12 frames, 0:03:20" in behind
    assert json.loads(inspectbus("stations", "list", "--json", *door).stdout.splitlines()[1])["behind"] == 200.5
    assert json.loads(inspectbus("stations", "start", "line-1/top", "--json", *door).stdout)["state"] == "RUNNING"
    assert "STOPPED" in inspectbus("stations", "stop", "line-1/top", *door).stdout
    unknown = inspectbus("stations", "start", "line-9/top", *door)
    assert (unknown.exit_code, unknown.stderr) == (2, "error: there is no station line-9/top\n")
    assert inspectbus("stations", "start", "line-1", *door).exit_code == 2


def test_models_show_aliases_and_scores(inspectbus: Inspectbus, plant: Plant) -> None:
    door = ("--address", plant.addresses["training"])

    lines = inspectbus("models", *door).stdout.splitlines()
    newest = json.loads(inspectbus("models", "elpv", "--json", *door).stdout.splitlines()[0])

    assert lines[1].split()[:6] == ["elpv", "1b2c1b2c1b2c1b2c", "production", "0.770", "0.800", "-"]
    assert newest["card"]["threshold"] == 0.41
    assert "card_json" not in newest


def test_a_model_is_shown_by_alias_and_by_version(inspectbus: Inspectbus, plant: Plant) -> None:
    door = ("--address", plant.addresses["training"])

    shown = inspectbus("models", "show", "elpv", *door).stdout
    older = json.loads(inspectbus("models", "show", "elpv", "--version", "0f3a0f3a0f3a0f3a", "--json", *door).stdout)
    unknown = inspectbus("models", "show", "elpv", "--alias", "canary", *door)

    assert "elpv/1b2c1b2c1b2c1b2c" in shown
    assert "0.410" in shown
    assert (older["version"], older["aliases"], older["card"]["threshold"]) == ("0f3a0f3a0f3a0f3a", [], 0.41)
    assert (unknown.exit_code, unknown.stderr) == (2, "error: there is no such model version\n")


def test_values_stand_beside_their_names_however_long_one_of_them_is(inspectbus: Inspectbus, plant: Plant) -> None:
    card = {"threshold": 0.41, "data": {"train_good": 12, "split": "by part, " * 20}}
    plant.models[0].card_json = json.dumps(card)

    shown = inspectbus("models", "show", "elpv", "--address", plant.addresses["training"]).stdout

    lines = {
        name: line
        for name in ("version", "f1", "threshold", "data train_good", "data split")
        for line in shown.splitlines()
        if line.startswith(name)
    }
    first = lines["version"].index("elpv/")
    assert first < 20
    assert [lines[name][first:].rstrip() for name in ("f1", "threshold", "data train_good")] == ["-", "0.410", "12"]
    assert lines["data split"][first:].startswith("by part, by part")
    assert shown.splitlines()[0].startswith("version"), "there are no columns to be named"


def test_a_model_shows_what_its_card_holds_of_network_and_input_and_nothing_else(
    inspectbus: Inspectbus, plant: Plant
) -> None:
    card = {
        "threshold": 0.41,
        "qualified_below": 0.25,
        "architecture": {"backbone": "tf_efficientnet_lite0", "dropout": 0.3, "views": 4},
        "preparation": {"illumination": "clahe", "width": 300, "height": 260},
        "seed": 7,
    }
    plant.models[0].card_json = json.dumps(card)

    shown = inspectbus("models", "show", "elpv", "--address", plant.addresses["training"]).stdout
    older = inspectbus(
        "models", "show", "elpv", "--version", "0f3a0f3a0f3a0f3a", "--address", plant.addresses["training"]
    ).stdout

    told = dict(line.rsplit(maxsplit=1) for line in shown.splitlines())
    assert {name.strip(): value for name, value in told.items()}.items() >= {
        "qualified_below": "0.250",
        "backbone": "tf_efficientnet_lite0",
        "dropout": "0.300",
        "views": "4",
        "preparation illumination": "clahe",
        "preparation width": "300",
        "preparation height": "260",
        "seed": "7",
    }.items()
    for absent in ("backbone", "views", "preparation", "qualified_below", "seed"):
        assert absent not in older


@pytest.mark.parametrize("command", [("models",), ("models", "--json"), ("models", "show")])
def test_a_model_there_is_not_is_told_with_those_there_are(
    inspectbus: Inspectbus, plant: Plant, command: tuple[str, ...]
) -> None:
    door = ("--address", plant.addresses["training"])

    unknown = inspectbus(*command, "nope", *door)
    plant.models.clear()
    none = inspectbus(*command, "elpv", *door)

    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr == "error: no model 'nope': there are elpv\n"
    assert none.stderr == "error: no model 'elpv': there is none yet: train one with `inspectbus train DATA`\n"
    assert inspectbus("models", *door).exit_code == 0, "nothing was asked for by name"


def test_an_alias_is_set_rolled_back_and_its_history_told(inspectbus: Inspectbus, plant: Plant) -> None:
    door = ("--address", plant.addresses["training"])
    older = "0f3a0f3a0f3a0f3a"

    set_ = inspectbus("models", "set-alias", "elpv", "production", older, "--reason", "a trial", *door)
    again = inspectbus("models", "set-alias", "elpv", "production", older, *door)
    back = inspectbus("models", "rollback", "elpv", "--reason", "false alarms", "--json", *door)
    history = inspectbus("models", "history", "elpv", "production", *door).stdout.splitlines()
    newest = inspectbus("models", "history", "elpv", "--limit", "1", "--json", *door).stdout.splitlines()

    assert set_.stdout == f"elpv@production names {older}, before 1b2c1b2c1b2c1b2c\n"
    assert again.stdout == f"elpv@production names {older} already\n"
    assert json.loads(back.stdout)["previous"] == older
    assert history[0].split() == ["when", "alias", "from", "to", "who", "why"]
    assert "rollback: false alarms" in history[1]
    assert history[2].split()[2:] == ["production", "1b2c1b2c1b2c1b2c", older, "local", "a", "trial"]
    assert [json.loads(line)["rollback"] for line in newest] == [True]


def test_a_training_says_why_its_version_is_not_in_production(inspectbus: Inspectbus, plant: Plant) -> None:
    door = ("--address", plant.addresses["training"])
    plain = inspectbus("train", "elpv", *door)
    plant.not_promoted = "1b2c is worse than [0f3a], which is in production"

    told = inspectbus("train", "parts", *door)

    assert (plain.exit_code, told.exit_code) == (0, 0)
    assert "not in production" not in plain.stdout
    assert "not in production: 1b2c is worse than [0f3a], which is in production" in told.stdout


def test_a_training_tells_how_its_version_compares_with_the_one_it_followed(
    inspectbus: Inspectbus, plant: Plant
) -> None:
    door = ("--address", plant.addresses["training"])
    alone = inspectbus("train", "elpv", *door)
    made = re.search(r"model elpv/(\w+)", alone.stdout)
    assert made is not None
    inspectbus("models", "set-alias", "elpv", "production", "0f3a0f3a0f3a0f3a", *door)
    scores = "training 7: f1 0.667 against 0.909"
    inspectbus("models", "set-alias", "elpv", "production", made[1], "--reason", scores, *door)

    told = inspectbus("train", "parts", *door)

    assert "against" not in alone.stdout
    assert scores in told.stdout


def test_a_refused_alias_is_one_line_and_exit_code_2(inspectbus: Inspectbus, plant: Plant) -> None:
    plant.refuse("SetAlias", WorseModel("0f3a is worse than 1b2c: force it with a reason", field="version"))
    door = ("--address", plant.addresses["training"])

    refused = inspectbus("models", "set-alias", "elpv", "production", "0f3a0f3a0f3a0f3a", *door)

    assert (refused.exit_code, refused.stderr) == (2, "error: 0f3a is worse than 1b2c: force it with a reason\n")
    assert inspectbus("models", "rollback", "elpv", *door).exit_code == 2


def test_decisions_are_listed_by_filter_and_shown_whole(inspectbus: Inspectbus, plant: Plant) -> None:
    decide(plant, "good")
    held = decide(plant, "dark")
    decide(plant, "dark", line="line-2")
    door = ("--address", plant.addresses["results"])

    listed = inspectbus("decisions", "list", "--line", "line-1", "--verdict", "hold", "--json", *door)
    (record,) = map(json.loads, listed.stdout.splitlines())
    assert record["decision"]["frame_id"] == held
    assert record["recorded_at"].startswith("2023-11-14T22:13:22")
    assert len(inspectbus("decisions", "list", "--limit", "2", *door).stdout.splitlines()) == 3
    shown = inspectbus("decisions", "show", held, *door).stdout
    assert "UNUSABLE_IMAGE: too dark" in shown
    assert inspectbus("decisions", "list", "--since", "2030-01-01", "--json", *door).stdout == ""


def test_the_images_behind_a_decision_are_named_and_saved(
    inspectbus: Inspectbus, plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECTBUS_FRAME_STORE_URL", f"file://{tmp_path}/frames")
    (tmp_path / "frames").mkdir()
    store = FrameStore(f"file://{tmp_path}/frames")
    bare, kept = decide(plant, "good"), decide(plant, "scratched")
    evidence = plant.records[1].decision.evidence
    for part in ("original", "prepared", "heatmap"):
        key = evidence_key("line-1", "top", kept, part, "png")
        store.put(key, part.encode())
        setattr(evidence, f"{part}_key", key)
    door = ("--address", plant.addresses["results"])

    shown = inspectbus("decisions", "show", kept, "--save", tmp_path / "a/part", *door)
    none = inspectbus("decisions", "show", bare, "--save", tmp_path / "b", *door)
    store.delete(evidence.heatmap_key)
    missing = inspectbus("decisions", "show", kept, "--save", tmp_path / "c", *door)
    (tmp_path / "file").write_text("")
    nowhere = inspectbus("decisions", "show", kept, "--save", tmp_path / "file", *door)

    assert shown.exit_code == 0
    assert f"{kept}-heatmap.png" in "".join(shown.stdout.split())
    saved = {file.name: file.read_bytes() for file in (tmp_path / "a/part").iterdir()}
    assert saved == {f"{kept}-{part}.png": part.encode() for part in ("original", "prepared", "heatmap")}
    for refused, word in ((none, "no images were kept"), (missing, "heatmap.png"), (nowhere, "is no folder")):
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.output
        assert word in refused.stderr
    assert not (tmp_path / "b").exists()


def test_what_the_gate_did_and_later_decisions_are_shown(inspectbus: Inspectbus, plant: Plant) -> None:
    held = decide(plant, "dark")
    record = plant.records[0]
    record.gate.CopyFrom(GateOutcome(frame_id=held, action=GATE_ACTION_REJECT, reason=GATE_REASON_DEADLINE))
    record.late = True
    record.revisions.add(frame_id=held, revision=1, verdict=VERDICT_QUALIFIED, model_version="2c2c2c2c2c2c2c2c")
    door = ("--address", plant.addresses["results"])

    assert "REJECT late" in inspectbus("decisions", "list", *door).stdout
    shown = inspectbus("decisions", "show", held, *door).stdout
    assert "REJECT late" in shown
    assert "QUALIFIED by 2c2c2c2c2c2c2c2c" in next(line for line in shown.splitlines() if "revision 1" in line)
    told = json.loads(inspectbus("decisions", "show", held, "--json", *door).stdout)
    assert (told["gate"]["reason"], told["late"], told["revisions"][0]["revision"]) == ("DEADLINE", True, 1)


def test_a_verdict_that_is_none_is_told_the_words_there_are(inspectbus: Inspectbus, plant: Plant) -> None:
    result = inspectbus("decisions", "list", "--verdict", "fine", "--address", plant.addresses["results"])

    assert result.exit_code == 2
    assert "QUALIFIED, DEFECTIVE, HOLD" in result.stderr


def test_a_watch_prints_a_line_for_each_decision(inspectbus: Inspectbus, plant: Plant) -> None:
    for name in ("good", "scratched", "dark"):
        decide(plant, name)
    watch = ("decisions", "watch", "--after", "0", "--limit", "3", "--address", plant.addresses["results"])

    words = [line.split() for line in inspectbus(*watch).stdout.splitlines()]

    assert [(line[0], line[6]) for line in words] == [("1", "QUALIFIED"), ("2", "DEFECTIVE"), ("3", "HOLD")]
    assert json.loads(inspectbus(*watch, "--json").stdout.splitlines()[2])["cursor"] == 3


def test_scores_have_a_row_for_each_and_one_overall(inspectbus: Inspectbus, plant: Plant) -> None:
    decide(plant, "scratched", truth=2)
    decide(plant, "dark", line="line-2")
    door = ("--address", plant.addresses["results"])

    lines = inspectbus("scores", "--by", "line", *door).stdout.splitlines()

    assert lines[0].split()[:5] == ["group", "decisions", "held", "no", "truth"]
    assert [line.split()[:5] for line in lines[1:]] == [
        ["line-1", "1", "0", "0", "1"],
        ["line-2", "1", "1", "1", "0"],
        ["overall", "2", "1", "1", "1"],
    ]
    assert json.loads(inspectbus("scores", "--json", *door).stdout)["scores"]["f1"] == 1.0


def test_a_models_shadow_is_compared_by_station_and_frame_by_frame_where_they_differ(
    inspectbus: Inspectbus, plant: Plant
) -> None:
    door = ("--address", plant.addresses["results"])
    for name, part_id in (("a", ""), ("b", "differs"), ("c", "differs")):
        plant.decide(acquisition_pb2.Shot(source_item=name, part_id=part_id), "line-1", "top")

    lines = inspectbus("models", "agreement", "elpv", *door).stdout.splitlines()
    row = json.loads(inspectbus("models", "agreement", "elpv", "--json", *door).stdout)
    differing = inspectbus("models", "agreement", "elpv", "--differing", "1", *door).stdout.splitlines()
    each = json.loads(
        inspectbus("models", "agreement", "elpv", "--differing", "9", "--json", *door).stdout.splitlines()[1]
    )

    assert lines[0].split()[:7] == ["station", "version", "shadow", "frames", "agree", "Q/Q", "Q/D"]
    assert lines[1].split() == ["line-1/top", "0f3a0f3a0f3a0f3a", "5ad0", "3", "0.333", "1", "2", *["0"] * 7]
    assert (row["frames"], row["agreeing"]) == (3, 1)
    assert {(pair["decided"], pair["shadow"]) for pair in row["pairs"]} == {
        ("QUALIFIED", "QUALIFIED"),
        ("QUALIFIED", "DEFECTIVE"),
    }
    assert len(differing) == 2
    assert differing[1].split()[1:6] == ["line-1/top", "QUALIFIED", "0.000", "DEFECTIVE", "0.750"]
    assert (each["frame_id"], each["truth"]) == (plant.records[2].decision.frame_id, None)
    assert inspectbus("models", "agreement", "elpv", "--line", "line-2", *door).stdout.splitlines()[1:] == []


@pytest.mark.parametrize(
    ("service", "command"),
    [
        ("training", ("models",)),
        ("training", ("advise", "elpv", "--escape-ppm", "50000")),
        ("training", ("train", "elpv")),
        ("training", ("compare", "elpv", "--out", "report")),
        ("preprocessing", ("recipes", "list")),
        ("results", ("decisions", "list")),
        ("results", ("scores",)),
        ("acquisition", ("stations", "list")),
        ("acquisition", ("inspect", "part.png", "--timeout", "0.5")),
    ],
)
def test_nobody_at_the_address_is_one_line_that_says_how_to_start_the_service(
    inspectbus: Inspectbus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service: str, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "part.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"1" * 64)
    monkeypatch.setattr(doors, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(advise, "TIMEOUT_S", 0.5)
    with open_plant(services=[service]) as gone:
        address = gone.addresses[service]

    result = inspectbus(*command, "--address", address)

    # Logs that no service configured go there too.
    (told,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert result.exit_code == 2
    assert told.startswith(f"error: nobody answers at the {service} service, {address}: ")
    assert f"start it with `inspectbus serve {service}`" in told


def test_a_variable_that_nothing_reads_is_refused_by_name(
    inspectbus: Inspectbus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECTBUS_INFERENCE_MAX_BATHC_SIZE", "8")

    result = inspectbus("models")

    assert result.exit_code == 2
    assert (
        result.stderr
        == "error: environment variable INSPECTBUS_INFERENCE_MAX_BATHC_SIZE is not a setting of InspectBus; "
        "do you mean INSPECTBUS_INFERENCE_MAX_BATCH_SIZE?\n"
    )


def test_the_version_is_the_packages_whatever_the_environment_says(
    inspectbus: Inspectbus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECTBUS_INFERENCE_MAX_BATHC_SIZE", "8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    result = inspectbus("--version")

    assert (result.exit_code, result.stdout) == (0, f"inspectbus {project['version']}\n")


def test_a_program_that_is_not_installed_says_so_in_place_of_its_version(
    inspectbus: Inspectbus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)

    assert inspectbus("--version").stdout == "inspectbus unreleased\n"


def test_every_command_shows_an_example(inspectbus: Inspectbus) -> None:
    commands = [
        *(["inspect"], ["models"], ["scores"], ["recipes"], ["stations"], ["decisions"]),
        *(["recipes", verb] for verb in ("list", "show", "put")),
        *(["models", verb] for verb in ("list", "show", "set-alias", "rollback", "history")),
        *(["stations", verb] for verb in ("list", "start", "stop")),
        *(["decisions", verb] for verb in ("list", "show", "watch")),
    ]
    for command in commands:
        result = inspectbus(*command, "--help")
        assert result.exit_code == 0
        assert "xample" in result.stdout or "model_alias" in result.stdout, command


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    script = (
        "import sys; sys.argv = ['inspectbus', '--help']\n"
        "from inspectbus.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True
    )
    heavy = {"torch", "cv2", "numpy", "sqlalchemy", "alembic", "mlflow", "timm", "pandas", "sklearn", "fsspec"}
    assert heavy.isdisjoint(done.stderr.split())


def test_a_reader_that_leaves_early_is_no_error(plant: Plant) -> None:
    for number in range(300):
        decide(plant, f"good-{number}")
    listing = subprocess.Popen(
        [*COMMAND, "decisions", "list", "--json", "--limit", "300", "--address", plant.addresses["results"]],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert listing.stdout is not None
    listing.stdout.readline()
    listing.stdout.close()

    assert listing.stderr is not None
    assert listing.stderr.read() == b""
    assert listing.wait(30) == 141
    listing.stderr.close()


def test_ctrl_c_ends_a_watch_quietly_with_the_shells_code(plant: Plant) -> None:
    decide(plant, "good")
    # As a terminal begins it: whoever runs the tests in the background may ignore the signal.
    heard = ("env", "--default-signal=INT")
    watch = subprocess.Popen(
        [*heard, *COMMAND, "decisions", "watch", "--after", "0", "--address", plant.addresses["results"]],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    assert "QUALIFIED" in watch.stdout.readline()

    watch.send_signal(signal.SIGINT)
    _, errors = watch.communicate(timeout=30)

    assert (watch.returncode, errors) == (130, "")


def test_a_fault_of_ours_is_not_mistaken_for_defective_parts() -> None:
    script = (
        "import sys; sys.argv = ['inspectbus', 'models']\n"
        "from inspectbus.cli import models\n"
        "models.client_of = lambda *_: 1 / 0\n"
        "from inspectbus.__main__ import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "ZeroDivisionError" in done.stderr
