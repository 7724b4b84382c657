"""Settings: which source wins, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from inspectbus.channels import Access, is_loopback
from inspectbus.errors import BadField
from inspectbus.runtime.settings import ServiceSettings, refuse_unknown


class BenchSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="INSPECTBUS_BENCH_")

    port: int = 50099
    results_address: str = "127.0.0.1:50055"
    limit: int = Field(default=8, ge=1)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "RESULTS_ADDRESS", "LIMIT", "STATE_DIR"):
        monkeypatch.delenv(f"INSPECTBUS_BENCH_{name}", raising=False)
        monkeypatch.delenv(f"INSPECTBUS_{name}", raising=False)


def test_each_source_wins_over_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BenchSettings.load().state_dir == Path(".inspectbus")

    monkeypatch.setenv("INSPECTBUS_STATE_DIR", "/shared")
    assert BenchSettings.load().state_dir == Path("/shared")

    assert BenchSettings.load({"state_dir": "/file"}).state_dir == Path("/file")

    monkeypatch.setenv("INSPECTBUS_BENCH_STATE_DIR", "/own")
    assert BenchSettings.load({"state_dir": "/file"}).state_dir == Path("/own")

    assert BenchSettings.load({"state_dir": "/file"}, state_dir=Path("/forced")).state_dir == Path("/forced")


def test_a_shared_variable_reaches_only_services_that_know_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECTBUS_MODELS_ADDRESS", "plant:1")
    monkeypatch.setenv("INSPECTBUS_RESULTS_ADDRESS", "plant:2")

    assert BenchSettings.load().results_address == "plant:2"


def test_a_port_for_all_services_at_once_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECTBUS_PORT", "1")

    assert BenchSettings.load().port == 50099
    with pytest.raises(BadField, match="INSPECTBUS_PORT"):
        refuse_unknown({"INSPECTBUS_PORT": "1"}, [BenchSettings])


@pytest.mark.parametrize(
    ("section", "variable"),
    [({"limit": 0}, "INSPECTBUS_BENCH_LIMIT"), ({"limitt": 9}, "INSPECTBUS_BENCH_LIMITT")],
)
def test_a_wrong_or_misspelt_entry_of_the_file_is_named(section: dict[str, object], variable: str) -> None:
    with pytest.raises(BadField, match=f"setting {variable}:") as caught:
        BenchSettings.load(section)
    assert caught.value.field == variable.removeprefix("INSPECTBUS_BENCH_").lower()


def test_a_value_of_the_environment_that_is_none_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECTBUS_BENCH_LIMIT", "s3cret")

    with pytest.raises(BadField, match="INSPECTBUS_BENCH_LIMIT") as caught:
        BenchSettings.load()
    assert "s3cret" not in caught.value.message


def test_a_misspelt_variable_is_refused_by_its_name() -> None:
    known = {"INSPECTBUS_BENCH_LIMIT": "9", "INSPECTBUS_STATE_DIR": "x", "INSPECTBUS_LOG_LEVEL": "info", "HOME": "/"}
    refuse_unknown(known, [BenchSettings])

    with pytest.raises(BadField, match="INSPECTBUS_BENCH_LIMITS is not a setting") as caught:
        refuse_unknown({**known, "INSPECTBUS_BENCH_LIMITS": "9"}, [BenchSettings])
    assert caught.value.field == "INSPECTBUS_BENCH_LIMITS"


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("INSPECTBUS_BENCH_LIMITS", "; do you mean INSPECTBUS_BENCH_LIMIT?"),
        ("INSPECTBUS_TLS_CERTIFICAT", "; do you mean INSPECTBUS_TLS_CERTIFICATE?"),
        ("INSPECTBUS_TRAINING_ADDRESS", "; do you mean INSPECTBUS_MODELS_ADDRESS?"),
        ("INSPECTBUS_COLOUR_OF_THE_DOOR", ""),
    ],
)
def test_a_variable_that_is_nearly_a_setting_is_answered_with_its_name(variable: str, says: str) -> None:
    with pytest.raises(BadField) as caught:
        refuse_unknown({variable: "9"}, [BenchSettings])

    assert caught.value.message == f"environment variable {variable} is not a setting of InspectBus{says}"


def test_a_variable_of_another_product_is_not_ours_to_judge() -> None:
    refuse_unknown({"INSPECTOR_LIMIT": "1", "BENCH_PORT": "tcp://10.0.0.1"}, [BenchSettings])


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5", "::", "plant.example", ""])
def test_a_door_to_other_machines_without_tls_is_refused_unless_told(host: str) -> None:
    with pytest.raises(BadField, match="allow_plaintext"):
        BenchSettings.load(host=host)
    assert BenchSettings.load(host=host, allow_plaintext=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost"])
def test_a_door_to_this_machine_needs_no_permission(host: str) -> None:
    assert is_loopback(host)
    assert BenchSettings.load(host=host).host == host


def test_settings_do_not_change_once_read() -> None:
    settings = BenchSettings.load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.limit = 9


TLS: dict[str, Any] = {"tls_certificate": "tls.crt", "tls_key": "tls.key"}


def test_a_door_to_other_machines_needs_tls_and_a_way_to_know_who_comes() -> None:
    with pytest.raises(BadField, match="nobody is identified there: set tokens or tls_client_ca"):
        BenchSettings.load(host="0.0.0.0", **TLS)
    ways: list[dict[str, Any]] = [{"tokens": "tokens.yaml"}, {"tls_client_ca": "ca.pem"}]
    for known_by in ways:
        assert BenchSettings.load(host="0.0.0.0", **TLS, **known_by).host == "0.0.0.0"
    with pytest.raises(BadField, match="there is no TLS"):
        BenchSettings.load(host="0.0.0.0", tokens="tokens.yaml")


@pytest.mark.parametrize("half", ["tls_certificate", "tls_key", "tls_client_ca"])
def test_half_of_what_tls_needs_is_refused(half: str) -> None:
    told: dict[str, Any] = {half: "file.pem"}
    with pytest.raises(BadField, match="tls_certificate"):
        BenchSettings.load(**told)


def test_certificates_are_shown_to_others_only_where_their_authority_is_known() -> None:
    assert BenchSettings.load(**TLS).access == Access()
    access = BenchSettings.load(**TLS, tls_ca="ca.pem", token_file="token").access
    assert (access.ca, access.certificate, access.token_file) == (Path("ca.pem"), Path("tls.crt"), Path("token"))
