"""What results may be told."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic_settings import SettingsConfigDict

from inspectbus.runtime.settings import ServiceSettings


class ResultsSettings(ServiceSettings):
    """INSPECTBUS_RESULTS_*."""

    model_config = SettingsConfigDict(env_prefix="INSPECTBUS_RESULTS_")

    port: NonNegativeInt = 50055
    """gRPC port; 0 takes a free one."""
    metrics_port: NonNegativeInt = 9105
    """Prometheus port; 0 takes a free one."""
    rpc_threads: PositiveInt = Field(default=64, le=1024)
    """Calls served at once, watchers included; one more is told RESOURCE_EXHAUSTED."""
    database_url: str = ""
    """The ledger's SQL database; empty is a SQLite file in the state folder."""
    frame_store_url: str = ""
    """Where images rest that travelled by claim (file://, s3://); empty: the folder `frames` in state_dir."""
    claim_grace_s: float = Field(default=86400.0, ge=0, le=90 * 86400, allow_inf_nan=False)
    """How long an image that travelled by claim is kept after the last decision on its frame, when it is no evidence:
    longer than any message may wait in a queue, or a frame delivered again would miss it and be held."""
    sweep_period_s: float = Field(default=60.0, gt=0, le=86400, allow_inf_nan=False)
    """Pause between two sweeps of such images."""
    sweep_batch_size: PositiveInt = Field(default=500, le=10_000)
    """Images deleted between two looks into the database."""
    shadows_kept_s: float = Field(default=90 * 86400.0, gt=0, le=3650 * 86400, allow_inf_nan=False)
    """How long what shadows said is kept; decisions are kept for ever."""
    max_batch_size: PositiveInt = Field(default=256, le=1000)
    """Decisions recorded by one transaction. A busy bus fills it, an idle one never waits for it."""
    prefetch: PositiveInt = Field(default=512, le=10_000)
    """Decisions taken from the bus and not recorded yet; all of them wait in memory while the database is full."""
    max_watchers: PositiveInt = Field(default=48, le=1024)
    """WatchDecisions streams at once. Kept below `rpc_threads`, so that watchers cannot lock out other calls."""
    watch_poll_s: float = Field(default=1.0, gt=0, le=60, allow_inf_nan=False)
    """How soon a watcher learns what another replica recorded; what this one recorded it learns at once."""
