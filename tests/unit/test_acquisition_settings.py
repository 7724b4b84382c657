"""The plant's stations as settings: what is refused names its entry."""

from __future__ import annotations

from typing import Any

import pytest

from inspectbus.acquisition.settings import AcquisitionSettings, StationSettings
from inspectbus.domain.names import checked_name
from inspectbus.errors import BadField

PUSH = {"kind": "push"}


def plant(*names: str, line: str = "line-1", **station: Any) -> dict[str, Any]:
    return {"lines": [{"name": line, "stations": [{"name": name, "source": PUSH, **station} for name in names]}]}


@pytest.mark.parametrize("name", ["top.left", "top#1", "Top", "", "a" * 64, "top\n", "-top"])
def test_a_station_name_that_could_break_a_routing_key_is_refused_naming_it(name: str) -> None:
    with pytest.raises(BadField, match="is not a name") as refused:
        AcquisitionSettings.load(plant("side", name))

    assert repr(name[:80]) in refused.value.message
    assert refused.value.field == "lines.0.stations.1.name"


def test_a_line_name_is_checked_too() -> None:
    with pytest.raises(BadField, match=r"'line\.1' is not a name"):
        AcquisitionSettings.load(plant("top", line="line.1"))


def test_a_station_may_stand_in_the_plant_once() -> None:
    with pytest.raises(BadField, match="station line-1/top stands twice"):
        AcquisitionSettings.load(plant("top", "side", "top"))


def test_the_line_of_the_service_itself_is_taken() -> None:
    with pytest.raises(BadField, match="line 'inspect' belongs to the service"):
        AcquisitionSettings.load(plant("top", line="inspect"))


@pytest.mark.parametrize(
    ("station", "field"),
    [
        ({"fps": float("nan")}, "fps"),
        ({"fps": -1}, "fps"),
        ({"frames": -1}, "frames"),
        ({"frames": "twice"}, "frames"),
        ({"recipe": "a b"}, "recipe"),
        ({"source": {"kind": "camera"}}, "source"),
        ({"source": {"kind": "folder", "path": "x", "speed": 1}}, "source.folder.speed"),
        ({"source": {"kind": "dataset", "data": "elpv", "stride": 0}}, "source.dataset.stride"),
        ({"when_spool_full": "drop-newest"}, "when_spool_full"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_station_setting_is_refused_naming_it(station: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as refused:
        AcquisitionSettings.load(plant("top", **station))

    assert f"lines.0.stations.0.{field}" in refused.value.field


def test_an_image_must_fit_into_a_message() -> None:
    with pytest.raises(BadField, match="max_image_bytes must be smaller"):
        AcquisitionSettings.load({"max_message_bytes": 1024, "max_image_bytes": 1024})


@pytest.mark.parametrize("setting", ["spool_after_s", "spool_max_bytes", "spool_max_age_s"])
def test_a_spool_without_bounds_is_refused(setting: str) -> None:
    for value in (0, -1, float("inf")):
        with pytest.raises(BadField) as refused:
            AcquisitionSettings.load({setting: value})
        assert refused.value.field == setting


def test_a_station_spools_when_its_frames_come_at_a_pace_of_their_own() -> None:
    folder = {"name": "top", "source": {"kind": "folder", "path": "a"}}

    assert StationSettings.model_validate({"name": "top", "source": PUSH}).spools
    assert StationSettings.model_validate({**folder, "fps": 1}).spools
    assert not StationSettings.model_validate(folder).spools


def test_the_plan_changes_with_source_and_length_only() -> None:
    station = StationSettings.model_validate({"name": "top", "source": {"kind": "folder", "path": "a"}, "frames": 10})

    assert station.model_copy(update={"fps": 5.0, "recipe": "other", "name": "side"}).plan == station.plan
    assert station.model_copy(update={"frames": 11}).plan != station.plan
    other = StationSettings.model_validate({"name": "top", "source": {"kind": "folder", "path": "b"}, "frames": 10})
    assert other.plan != station.plan


def test_the_own_station_has_a_proper_name_on_every_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Pod_7.example.ORG" + "x" * 80)

    checked_name(AcquisitionSettings().inspect_station.name, "station")


@pytest.mark.parametrize(
    ("gate", "field"),
    [
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": float("inf")}, "deadline_s"),
        ({"fail_safe": "stop"}, "fail_safe"),
        ({"max_pending": 0}, "max_pending"),
        ({"outputs": [{"kind": "plc"}]}, "outputs.0"),
        ({"outputs": [{"kind": "file"}]}, "outputs.0.file.path"),
        ({"dead_line_s": 2}, "dead_line_s"),
    ],
)
def test_a_wrong_gate_is_refused_naming_it(gate: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as refused:
        AcquisitionSettings.load(plant("top", gate=gate))

    assert refused.value.field == f"lines.0.stations.0.gate.{field}"


def test_two_gates_never_write_one_file() -> None:
    gate = {"outputs": [{"kind": "file", "path": "/run/gate.jsonl"}]}

    with pytest.raises(BadField, match=r"two gates would write /run/gate\.jsonl"):
        AcquisitionSettings.load(plant("top", "side", gate=gate))
