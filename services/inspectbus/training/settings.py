"""What the training service may be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic_settings import SettingsConfigDict

from inspectbus.runtime.settings import ServiceSettings


class TrainingSettings(ServiceSettings):
    """Jobs, the registry of model versions, and the records of runs."""

    model_config = SettingsConfigDict(env_prefix="INSPECTBUS_TRAINING_")

    port: NonNegativeInt = 50054
    """gRPC port; 0 takes a free one."""
    metrics_port: NonNegativeInt = 9104
    """Prometheus port; 0 takes a free one."""
    database_url: str = ""
    """SQLAlchemy URL of the database; empty: a SQLite file in the state folder."""
    model_store_url: str = ""
    """fsspec URL where model versions rest; empty: a folder in the state folder."""
    tracking_url: str = ""
    """MLflow's store, a SQLAlchemy URL or a tracking server's; empty: a SQLite file in the state folder."""
    data_root: Path = Path()
    """Folder that training data must lie in; callers cannot make the service read images from anywhere else."""
    backbone: str = Field(default="tf_efficientnet_lite0", min_length=1, max_length=100)
    """A timm or torchvision architecture, for plans that name none."""
    weights: Path | None = None
    """Pretrained weights: a file, or a folder that may hold one called as the backbone; else a package or a hub."""
    epochs: int = Field(default=7, ge=1, le=1000)
    """For plans that name none; early stopping may end sooner."""
    depth: Literal["upper", "whole"] = "upper"
    """How much of the network learns, for plans that do not say: the upper part in minutes, the whole judges better."""
    whole_epochs: int = Field(default=14, ge=1, le=1000)
    """As `epochs`, for plans that train the whole network."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """For plans that name none."""
    input_size: int = Field(default=224, ge=32, le=2048)
    """Side of the square input for plans that name none, pixels."""
    max_queued: PositiveInt = Field(default=20, le=10_000)
    """Jobs that may wait; one more is told RESOURCE_EXHAUSTED."""
    threads: NonNegativeInt = Field(default=0, le=1024)
    """Processor threads torch may use for training; 0 leaves the choice to torch."""
    lease_s: float = Field(default=30.0, ge=0.1, le=3600, allow_inf_nan=False)
    """A running job whose worker gave no sign of life for this long is taken from it and begun again by another."""
    max_attempts: PositiveInt = Field(default=3, le=100)
    """How often a job is begun whose process dies; then it has failed."""
    role: Literal["all", "door", "worker"] = "all"
    """"door" answers calls and leaves jobs to workers elsewhere; "worker" takes jobs, its port tells health alone."""
