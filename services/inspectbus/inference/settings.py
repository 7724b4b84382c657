"""What the inference service may be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import SettingsConfigDict

from inspectbus.domain.model_version import PRODUCTION
from inspectbus.domain.names import Name
from inspectbus.runtime.settings import ServiceSettings

Seconds = Annotated[NonNegativeFloat, Field(le=600, allow_inf_nan=False)]
StationPath = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}/[a-z0-9][a-z0-9-]{0,62}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class InferenceSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="INSPECTBUS_INFERENCE_")

    port: NonNegativeInt = 50053
    """gRPC port; 0 takes a free one."""
    metrics_port: NonNegativeInt = 9103
    """Prometheus port; 0 takes a free one."""

    model: Name = "default"
    """Name of the model that is loaded first; calls that name none mean it."""
    model_alias: Name = PRODUCTION
    """Which version of a model calls mean, and is loaded at the start: the one this alias names."""
    models: tuple[Name, ...] = ()
    """Further models that are loaded at the start. Others are when a frame's recipe first asks for one."""
    models_limit: PositiveInt = Field(default=4, le=64)
    """Models that may be loaded at once, counted by name and alias as recipes ask for them; a canary and a shadow come
    beside. Frames of one more are held, unless another is idle."""
    model_idle_s: PositiveFloat = Field(default=600.0, le=30 * 86400, allow_inf_nan=False)
    """A model that no frame has asked for so long gives its place to one that is asked for; those told here keep it."""
    model_dir: Path | None = None
    """A version's folder, named by the version, to load instead of asking the model service. It is the only model."""
    models_address: str = Field(default="127.0.0.1:50054", min_length=1)
    """Where the model service says which version an alias names."""
    model_store_url: str = ""
    """Where model versions rest (file://, s3://); empty: the folder `models` in state_dir."""
    model_retry_s: PositiveFloat = Field(default=2.0, le=600, allow_inf_nan=False)
    """How often a service without a model looks for one."""
    model_patience_s: Seconds = 20.0
    """How long a frame from the bus may wait for its model to be loaded before it is held: services start in any order.
    And for a new version, when it was prepared for that one already."""
    model_poll_s: PositiveFloat = Field(default=10.0, le=3600, allow_inf_nan=False)
    """How often it is asked which version the alias names now: its change is news on the bus, and news can be lost."""
    preparation_stands_s: Seconds = 30.0
    """The version before stays beside a new one with another preparation until no frame that was prepared for it has
    come for so long."""
    refused_pause_s: PositiveFloat = Field(default=300.0, le=86400, allow_inf_nan=False)
    """After how long a new version that was refused is tried again while the alias still names it."""

    canary_share: Share = 0.0
    """Share of the frames of each model that the version judges which its alias `canary` names, chosen by frame id; a
    frame that comes again is chosen again, or again not. Its preparation must be production's."""
    canary_stations: tuple[StationPath, ...] = ()
    """Stations, as line/station, whose frames the canary judges all."""
    shadow_share: Share = 0.0
    """Share of the frames of each model that the version which its alias `shadow` names judges too, chosen by frame id,
    to be compared: nobody acts on what it says. Its preparation must be production's."""
    shadow_batch_size: PositiveInt = Field(default=1, le=512)
    """Frames per pass of a shadow. What production waits for one at most is such a pass."""
    shadow_queue_limit: PositiveInt = Field(default=16, le=4096)
    """Frames that may wait for a shadow; one more is dropped, and counted."""
    shadow_patience_s: PositiveFloat = Field(default=10.0, le=600, allow_inf_nan=False)
    """How long a frame may wait for its shadow before it is dropped, and counted."""

    engine: Literal["auto", "torch", "torch-bf16", "onnxruntime", "openvino", "openvino-bf16"] = "auto"
    """What runs the network; auto measures what is installed, once for each version, and takes the fastest that gives
    the version's pinned images their scores and, in half precision (bf16), their verdicts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; auto takes CUDA where the engine sees it."""
    streams: PositiveInt = Field(default=1, le=64)
    """Batches that are computed side by side: by one engine, and by the engines of all models together."""
    runs_ahead: NonNegativeInt = Field(default=1, le=4)
    """Batches that wait in an engine beside those it computes: its next begins when one ends, and not when a thread of
    ours has got Python's lock from those that answer calls. With 0 a third of two cores was idle under 32 callers."""
    threads: NonNegativeInt = Field(default=0, le=256)
    """Processor threads for each stream; 0 shares what the machine has."""

    max_batch_size: PositiveInt = Field(default=8, le=512)
    """Frames per forward pass; bounded by GPU memory at the largest input size."""
    max_batch_wait_s: Annotated[NonNegativeFloat, Field(le=1, allow_inf_nan=False)] = 0.0
    """How long a frame may wait for company on an idle engine, counted from its own arrival, and a call never so long
    that its deadline would be missed; 0 never waits."""
    queue_limit: PositiveInt = Field(default=128, le=65536)
    """Frames that may wait for the engine; a call that would be one more is told RESOURCE_EXHAUSTED. With prefetch and
    max_batch_size it bounds the memory of batches: prepared images, (queue_limit + 2 * prefetch) and some batches."""
    prefetch: PositiveInt = Field(default=32, le=4096)
    """Frames in hand from the bus. They are never refused, so it must be less than queue_limit."""
    call_patience_s: PositiveFloat = Field(default=30.0, le=600, allow_inf_nan=False)
    """How long a call that brings no deadline may wait for its answer."""

    rpc_waiting: NonNegativeInt = Field(default=48, le=4096)
    """Calls that may wait for one of `rpc_threads`; one more is told RESOURCE_EXHAUSTED, before its image is read. With
    as many threads as calls they hold each other up at three times what the engine can do: all were answered too late,
    where with these nine of ten that it could answer were in time."""

    frame_store_url: str = ""
    """Where evidence and claimed images rest (file://, s3://); empty: the folder `frames` in state_dir."""
    keep_evidence: bool = True
    """Keep original, prepared image and heatmap of every DEFECTIVE and HOLD frame."""
    evidence_share: Share = 0.0
    """Share of QUALIFIED frames whose images are kept too, chosen by frame id."""

    @property
    def has_canary(self) -> bool:
        return bool(self.canary_share or self.canary_stations)

    @property
    def has_shadow(self) -> bool:
        """Not where a suspicious message is worked on alone: a shadow that dies of it must not cost its decision."""
        return self.shadow_share > 0 and not self.bus_url.startswith("solo:")

    @model_validator(mode="after")
    def _a_folder_is_alone(self) -> Self:
        if self.model_dir is not None and (self.models or self.has_canary or self.shadow_share):
            raise ValueError(
                "model_dir is one version and all there is: models, canary_share, canary_stations and shadow_share "
                "need the model service"
            )
        return self

    @model_validator(mode="after")
    def _told_models_find_room(self) -> Self:
        if (told := len({self.model, *self.models})) > self.models_limit:
            raise ValueError(f"model and models name {told}, and models_limit is {self.models_limit}")
        return self

    @model_validator(mode="after")
    def _calls_find_room(self) -> Self:
        if self.prefetch >= self.queue_limit:
            raise ValueError("prefetch must be less than queue_limit, or the bus alone could fill the queue")
        return self
