"""Settings: frozen values with a sentence per field, read once at start and handed inward.

    environment INSPECTBUS_<SERVICE>_<FIELD>  wins over
    plant.yaml  <service>: {<field>: ...}     wins over
    environment INSPECTBUS_<FIELD>            (bus, database, certificates: for all services at once) wins over
    the default

A variable under the product's prefix that no setting knows is refused by name: a misspelt limit must not be a silent
default. One that is nearly a setting's name is answered with that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from inspectbus.channels import Access, is_loopback
from inspectbus.errors import BadField

PREFIX = "INSPECTBUS_"
SHARED_FIELDS = (
    *("bus_url", "database_url", "frame_store_url", "state_dir", "models_address", "results_address"),
    *("tls_certificate", "tls_key", "tls_client_ca", "tls_ca", "tokens", "token_file", "reflection"),
)
"""Fields several services have, which one INSPECTBUS_<FIELD> variable may set for all of them."""
PROCESS_VARIABLES = (
    "INSPECTBUS_LOG_LEVEL",
    "INSPECTBUS_LOG_FORMAT",
    "INSPECTBUS_PLANT",
    "INSPECTBUS_TOKEN",
    "INSPECTBUS_ACQUISITION_ADDRESS",
    "INSPECTBUS_PREPROCESSING_ADDRESS",
    "INSPECTBUS_INFERENCE_ADDRESS",
)
"""Read by the command line itself; the addresses are those its commands call."""
_OTHER_NAMES = {PREFIX + "TRAINING_ADDRESS": PREFIX + "MODELS_ADDRESS"}
"""What is guessed by analogy with other services, but bears the name of what is asked for: models."""
_ALIKE = 0.85
"""Of difflib's ratio, without our prefix: a letter or two in a word, and not another word."""


class ServiceSettings(BaseSettings):
    """What each service may be told. A subclass sets `env_prefix` and its own `port`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    bus_url: str = "embedded://line"
    """Where the inspection bus is. embedded:// lives and dies with this process."""
    state_dir: Path = Path(".inspectbus")
    """Folder for everything this machine keeps: database, models, evidence, cursors."""
    host: str = "127.0.0.1"
    """Address the doors listen on."""
    port: NonNegativeInt = Field(default=0, le=65535)
    """gRPC port; 0 takes a free one."""
    metrics_port: NonNegativeInt = Field(default=0, le=65535)
    """Prometheus port; 0 takes a free one."""
    health_port: int | None = Field(default=None, ge=0, le=65535)
    """One more gRPC port, without TLS, that tells health and nothing else: for a cluster's probes."""
    allow_plaintext: bool = False
    """Listen beyond this machine without TLS or without knowing who calls, and show other machines `token_file`'s token
    without TLS. Everybody on the way may then read everything, and do everything where there is no `tokens` file."""
    tls_certificate: Path | None = None
    """This service's certificate with its chain (PEM), for its gRPC door and for calls to services that ask for one. It
    and the next two are read anew when they change."""
    tls_key: Path | None = None
    """The key of tls_certificate (PEM, no passphrase)."""
    tls_client_ca: Path | None = None
    """Only clients with a certificate of these authorities (PEM) are answered at all."""
    tls_ca: Path | None = None
    """The authorities (PEM) that vouch for the services this one calls; unset calls them without TLS."""
    tokens: Path | None = None
    """Who is known here, with roles (YAML, see runtime/tokens.py); read anew when it changes. Unset, a caller on this
    machine is the local administrator, others are anonymous, and all may do everything."""
    token_file: Path | None = None
    """The token this service shows to those it calls; read anew when it changes."""
    identity_calls_per_s: float = Field(default=500.0, ge=0, le=1e6, allow_inf_nan=False)
    """Calls, and messages within streams, that one caller may send. A call more is told RESOURCE_EXHAUSTED and when to
    come again, a stream is read no faster. 0 is no limit, and there is none for the local administrator."""
    identity_bytes_per_s: float = Field(default=256.0 * 1024 * 1024, ge=0, allow_inf_nan=False)
    """The same for the bytes of its messages."""
    reflection: bool = True
    """Tell clients by gRPC reflection which calls there are."""
    max_message_bytes: PositiveInt = Field(default=32 * 1024 * 1024, le=512 * 1024 * 1024)
    """Largest gRPC message taken or sent."""
    rpc_threads: PositiveInt = Field(default=32, le=1024)
    """Calls served at once: each has a thread, or at inference, which serves all on one, its turn. With `rpc_waiting`
    more in hand, the next is told RESOURCE_EXHAUSTED. An open stream counts as a call; streams have three quarters of
    the places at most, and all but the local administrator at most half of those for each caller."""
    rpc_waiting: NonNegativeInt = Field(default=0, le=4096)
    """Calls that may wait, unread, for one of those places."""
    call_limit_s: float = Field(default=60.0, gt=0, le=3600, allow_inf_nan=False)
    """How long one step of work on one frame (preparing it, a pass of the network) may take. One that takes longer
    hangs, and the watchdog ends the process."""
    drain_s: float = Field(default=20.0, gt=0, le=600, allow_inf_nan=False)
    """How long work in hand may take to finish when the service stops."""

    @model_validator(mode="after")
    def _loopback_or_told(self) -> Self:
        if is_loopback(self.host) or self.allow_plaintext:
            return self
        if self.tls_certificate is None:
            raise ValueError(
                f"host {self.host} can be reached from other machines and there is no TLS: listen on 127.0.0.1, "
                "set tls_certificate and tls_key, or set allow_plaintext to accept that"
            )
        if self.tokens is None and self.tls_client_ca is None:
            raise ValueError(
                f"host {self.host} can be reached from other machines and nobody is identified there: "
                "set tokens or tls_client_ca, or set allow_plaintext to accept that everybody may do everything"
            )
        return self

    @model_validator(mode="after")
    def _certificates_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: set both or none")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key: without TLS nobody shows a certificate")
        return self

    @property
    def access(self) -> Access:
        """How this service calls others."""
        with_tls = self.tls_ca is not None
        return Access(
            ca=self.tls_ca,
            certificate=self.tls_certificate if with_tls else None,
            key=self.tls_key if with_tls else None,
            token_file=self.token_file,
            allow_plaintext=self.allow_plaintext,
        )

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
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    tls_ca: str | None = None
    tokens: str | None = None
    token_file: str | None = None
    reflection: str | None = None


def refuse_unknown(environ: Mapping[str, str], known: list[type[ServiceSettings]]) -> None:
    """Raises BadField for the first variable under our prefix that neither a service nor the process reads."""
    names = {PREFIX + field.upper() for field in SHARED_FIELDS} | set(PROCESS_VARIABLES)
    for settings in known:
        prefix = str(settings.model_config["env_prefix"])
        names |= {prefix + field.upper() for field in settings.model_fields}
    for variable in sorted(environ):
        if variable.upper().startswith(PREFIX) and variable.upper() not in names:
            near = _OTHER_NAMES.get(variable.upper()) or _nearest(variable.upper(), names)
            hint = f"; do you mean {near}?" if near else ""
            raise BadField(f"environment variable {variable} is not a setting of InspectBus{hint}", field=variable)


def _nearest(variable: str, names: set[str]) -> str:
    short = [name.removeprefix(PREFIX) for name in sorted(names)]
    return next((PREFIX + near for near in get_close_matches(variable.removeprefix(PREFIX), short, 1, _ALIKE)), "")
