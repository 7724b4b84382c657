"""Settings: frozen values with a sentence per field, read once at start and handed inward.

    environment INSPECTBUS_<SERVICE>_<FIELD>  wins over
    plant.yaml  <service>: {<field>: ...}     wins over
    environment INSPECTBUS_<FIELD>            (bus, database and state folder, for all services at once) wins over
    the default

A variable under the product's prefix that no setting knows is refused by name: a misspelt limit must not be a silent
default.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from inspectbus.errors import BadField

PREFIX = "INSPECTBUS_"
SHARED_FIELDS = ("bus_url", "database_url", "frame_store_url", "state_dir", "models_address", "results_address")
"""Fields several services have, which one INSPECTBUS_<FIELD> variable may set for all of them."""
PROCESS_VARIABLES = (
    "INSPECTBUS_LOG_LEVEL",
    "INSPECTBUS_LOG_FORMAT",
    "INSPECTBUS_PLANT",
    "INSPECTBUS_ACQUISITION_ADDRESS",
    "INSPECTBUS_PREPROCESSING_ADDRESS",
    "INSPECTBUS_INFERENCE_ADDRESS",
)
"""Read by the command line itself; the addresses are those its commands call."""


class ServiceSettings(BaseSettings):
    """What each service may be told. A subclass sets `env_prefix` and its own `port`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    bus_url: str = "embedded://line"
    """Where the inspection bus is. embedded:// lives and dies with this process."""
    state_dir: Path = Path(".inspectbus")
    """Folder for everything this machine keeps: database, models, evidence, cursors."""
    host: str = "127.0.0.1"
    """Address the doors listen on."""
    port: NonNegativeInt = 0
    """gRPC port; 0 takes a free one."""
    metrics_port: NonNegativeInt = 0
    """Prometheus port; 0 takes a free one."""
    health_port: int | None = Field(default=None, ge=0, le=65535)
    """One more gRPC port, without TLS, that tells health and nothing else: for a cluster's probes."""
    allow_plaintext: bool = False
    """Listen beyond this machine without TLS. Everybody who can reach the port may then do everything."""
    max_message_bytes: PositiveInt = Field(default=32 * 1024 * 1024, le=512 * 1024 * 1024)
    """Largest gRPC message taken or sent."""
    rpc_threads: PositiveInt = Field(default=32, le=1024)
    """Calls served at once; one more is told RESOURCE_EXHAUSTED. An open stream counts as a call."""
    call_limit_s: float = Field(default=60.0, gt=0, le=3600, allow_inf_nan=False)
    """How long one step of work on one frame (preparing it, a pass of the network) may take. One that takes longer
    hangs, and the watchdog ends the process."""
    drain_s: float = Field(default=20.0, gt=0, le=600, allow_inf_nan=False)
    """How long work in hand may take to finish when the service stops."""

    @model_validator(mode="after")
    def _loopback_or_told(self) -> Self:
        if not is_loopback(self.host) and not self.allow_plaintext:
            raise ValueError(
                f"host {self.host} can be reached from other machines and there is no TLS: "
                "listen on 127.0.0.1, or set allow_plaintext to accept that"
            )
        return self

    @classmethod
    def load(cls, section: Mapping[str, Any] | None = None, **forced: Any) -> Self:
        """The settings of one service from environment and its YAML section. `forced` wins over both.

        Raises BadField naming the setting at fault.
        """
        shared = {name: value for name, value in EnvSettingsSource(_Shared)().items() if name in cls.model_fields}
        own = EnvSettingsSource(cls)()
        try:
            return cls(**{**shared, **(section or {}), **own, **forced})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(step) for step in first["loc"])
            prefix = str(cls.model_config.get("env_prefix", PREFIX))
            words = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                words = "there is no such setting"
            # Nested settings can only come from a file, whose words these are; the rest have a variable too.
            spelt = prefix + field.upper() if len(first["loc"]) == 1 else f"{_section(prefix)}.{field}"
            raise BadField(f"setting {spelt}: {words}" if field else words, field=field) from None


def _section(prefix: str) -> str:
    """INSPECTBUS_ACQUISITION_ is `acquisition:` in plant.yaml."""
    return prefix.removeprefix(PREFIX).strip("_").lower()


class _Shared(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX)

    bus_url: str | None = None
    database_url: str | None = None
    frame_store_url: str | None = None
    state_dir: str | None = None
    models_address: str | None = None
    results_address: str | None = None


def refuse_unknown(environ: Mapping[str, str], known: list[type[ServiceSettings]]) -> None:
    """Raises BadField for the first variable under our prefix that neither a service nor the process reads."""
    names = {PREFIX + field.upper() for field in SHARED_FIELDS} | set(PROCESS_VARIABLES)
    for settings in known:
        prefix = str(settings.model_config["env_prefix"])
        names |= {prefix + field.upper() for field in settings.model_fields}
    for variable in sorted(environ):
        if variable.upper().startswith(PREFIX) and variable.upper() not in names:
            raise BadField(f"environment variable {variable} is not a setting of InspectBus", field=variable)


def is_loopback(host: str) -> bool:
    """True when only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
