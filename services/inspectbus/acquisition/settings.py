"""What acquisition may be told: its doors and bounds, and the plant's lines with their stations.

acquisition:
  lines:
    - name: line-1
      stations:
        - {name: top, fps: 10, recipe: solar-cell, frames: 400, source: {kind: folder, path: /data/top}}
        - {name: side, source: {kind: push}}
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from pydantic_settings import SettingsConfigDict

from inspectbus.domain.names import checked_name, name_from
from inspectbus.errors import BadField
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.stores.frames import INLINE_MAX_BYTES

INSPECT_LINE = "inspect"
"""The line of the service's own station; no line of the plant may take its name."""


def _spoken_name(value: str) -> str:
    # Unlike the pattern of domain.names.Name this names the value: a plant.yaml has many stations.
    try:
        return checked_name(value, "name")
    except BadField as error:
        raise ValueError(error.message) from None


PlantName = Annotated[str, AfterValidator(_spoken_name)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FolderSource(_Part):
    """The image files of a folder and the folders in it, in natural order of their names."""

    kind: Literal["folder"]
    path: Path


class DatasetSource(_Part):
    """A replay of a data set; each frame carries the item's label as ground truth."""

    kind: Literal["dataset"]
    data: str = Field(min_length=1, max_length=4096)
    """The data set: "elpv", or a folder with one folder per class."""
    part: Literal["held-out", "all"] = "held-out"
    """held-out: only what no training ever sees; all there is when the images have no labels to learn from."""
    items: tuple[str, ...] = ()
    """Only these, by name and in this order, whatever the part; empty takes all of the part."""
    offset: NonNegativeInt = 0
    """First item, counted from 0."""
    stride: PositiveInt = 1
    """Every how many items: four stations with offsets 0 to 3 and stride 4 share one part and no image."""


class VideoSource(_Part):
    """The pictures of a video file, each sent as PNG."""

    kind: Literal["video"]
    path: Path


class PushSource(_Part):
    """No source of its own: the camera's computer calls PublishFrames."""

    kind: Literal["push"]


Source = Annotated[FolderSource | DatasetSource | VideoSource | PushSource, Field(discriminator="kind")]


class StationSettings(_Part):
    """One camera position."""

    name: PlantName
    source: Source
    fps: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)
    """Frames per second; 0 is as fast as the line takes them."""
    recipe: PlantName = "default"
    """The recipe that prepares and judges the station's frames."""
    frames: NonNegativeInt | Literal["once", "endless"] = "once"
    """Length of a run. A number counts frames, and the source begins again when it has fewer images; "once" ends with
    the source; "endless" begins again until the station is stopped."""
    autostart: bool = True
    """Start, or go on with an unfinished run, when the service starts. A finished run is repeated only when told."""

    @property
    def plan(self) -> str:
        """Hash of what decides which image stands at which position of a run. A run never goes on under another plan;
        rate and recipe may change."""
        return hashlib.sha256(self.model_dump_json(include={"source", "frames"}).encode()).hexdigest()[:16]


class LineSettings(_Part):
    """One production line."""

    name: PlantName
    stations: tuple[StationSettings, ...]


class AcquisitionSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="INSPECTBUS_ACQUISITION_")

    port: int = Field(default=50051, ge=0, le=65535)
    """gRPC port; 0 takes a free one."""
    metrics_port: int = Field(default=9101, ge=0, le=65535)
    """Prometheus port; 0 takes a free one."""
    lines: tuple[LineSettings, ...] = ()
    """The plant. The service's own station for inspections stands beside it and needs no entry."""
    window: PositiveInt = Field(default=32, le=4096)
    """Frames of one station, or of one stream of pushed frames, that may be under way at once. Larger keeps a long line
    busy; smaller keeps a frame's wait short when cameras are faster than the line."""
    max_image_bytes: PositiveInt = 24 * 1024 * 1024
    """Largest encoded image taken; below max_message_bytes, so that a refusal can name the field."""
    inline_max_bytes: PositiveInt = INLINE_MAX_BYTES
    """An image larger than this rests in the frame store, and its message carries only its key."""
    frame_store_url: str = ""
    """Where large images rest (file://, s3://), the same for all services of a line; empty: the folder `frames` in
    state_dir."""
    frame_store_fsync: bool = False
    """Bring each object of a folder to the disk itself before its message goes, for power cuts; milliseconds each."""
    inspect_recipe: PlantName = "default"
    """Recipe of an inspection that names neither a station nor a recipe."""
    inspect_patience_s: float = Field(default=30.0, gt=0, le=600, allow_inf_nan=False)
    """How long an inspection without a deadline of its own waits for its decision."""
    max_inspections: PositiveInt = Field(default=256, le=65536)
    """Inspections that may wait for their decisions at once; one more is told RESOURCE_EXHAUSTED."""
    results_address: str = "127.0.0.1:50055"
    """ResultsService, asked when the news of a decision did not come."""

    @model_validator(mode="after")
    def _each_station_once(self) -> Self:
        seen: set[tuple[str, str]] = set()
        for line in self.lines:
            if line.name == INSPECT_LINE:
                raise ValueError(f"line {INSPECT_LINE!r} belongs to the service's own station")
            for station in line.stations:
                if (line.name, station.name) in seen:
                    raise ValueError(f"station {line.name}/{station.name} stands twice in the plant")
                seen.add((line.name, station.name))
        return self

    @model_validator(mode="after")
    def _images_fit_messages(self) -> Self:
        if self.max_image_bytes >= self.max_message_bytes:
            raise ValueError("max_image_bytes must be smaller than max_message_bytes: a message is more than its image")
        return self

    @property
    def inspect_station(self) -> StationSettings:
        """The station of inspections that name none: one per machine, so that no two services share it."""
        return StationSettings(
            name=name_from(f"inspect-{socket.gethostname()}"),
            source=PushSource(kind="push"),
            recipe=self.inspect_recipe,
        )
