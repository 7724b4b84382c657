"""What acquisition may be told: its doors and bounds, and the plant's lines with their stations.

acquisition:
  lines:
    - name: line-1
      stations:
        - {name: top, fps: 10, recipe: solar-cell, frames: 400, source: {kind: folder, path: /data/top}}
        - {name: side, source: {kind: push}, gate: {deadline_s: 0.5, outputs: [{kind: file, path: /run/side.gate}]}}
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


class LogOutputSettings(_Part):
    """A line in the service's log for each outcome."""

    kind: Literal["log"]


class FileOutputSettings(_Part):
    """JSON lines in a file, and the moment of the last heartbeat in PATH.heartbeat."""

    kind: Literal["file"]
    path: Path
    max_bytes: PositiveInt = Field(default=16 * 1024 * 1024, ge=4096)
    """A file that has grown so large becomes PATH.1, in place of the one before."""


OutputSettings = Annotated[LogOutputSettings | FileOutputSettings, Field(discriminator="kind")]


class GateSettings(_Part):
    """What becomes of the part when its decision comes, or does not."""

    deadline_s: float = Field(default=2.0, gt=0, le=3600, allow_inf_nan=False)
    """How long a part waits for its decision, from capture, by the station's own monotonic clock."""
    fail_safe: Literal["divert", "reject", "pass"] = "divert"
    """What is done with a part whose decision did not come by then. "pass" lets it through unjudged, told as late."""
    outputs: tuple[OutputSettings, ...] = ()
    """Who is told, beside those who call WatchGate."""
    heartbeat_s: float = Field(default=1.0, ge=0.05, le=60, allow_inf_nan=False)
    """Who moves the parts takes its fail-safe position when it has heard no heartbeat for so long; the gate beats three
    times as often."""
    max_pending: PositiveInt = Field(default=8192, le=1_000_000)
    """Frames that may wait for their outcome at once; the sender of one more is told RESOURCE_EXHAUSTED."""
    fsync: bool = False
    """Whether pending frames and outcomes survive a power cut too, at the price of a disk flush for each frame. Without
    it they survive the end of the process, kill -9 included."""
    journal_bytes: PositiveInt = Field(default=256 * 1024 * 1024, ge=16 * 1024 * 1024)
    """Largest journal: some 700,000 outcomes that the bus has not taken. Beyond, frames are refused."""


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
    gate: GateSettings = GateSettings()
    """What the station does with its parts."""
    when_spool_full: Literal["stop", "drop-oldest"] = "stop"
    """When frames have to rest on the station's disk and it takes no more. "stop" refuses new frames: a source waits, a
    sender is told. "drop-oldest" gives up the oldest, counted and told in the log: they will have no decision."""
    autostart: bool = True
    """Start, or go on with an unfinished run, when the service starts. A finished run is repeated only when told."""

    @property
    def spools(self) -> bool:
        """Its frames go to disk when the bus is away: a camera does not wait. A source read at the line's own speed
        does, and needs no disk."""
        return self.fps > 0 or self.source.kind == "push"

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
    spool_after_s: float = Field(default=2.0, gt=0, le=60, allow_inf_nan=False)
    """How long the bus may take for a frame before it goes to the station's disk instead."""
    spool_max_bytes: PositiveInt = 1024 * 1024 * 1024
    """Frames one station may have on disk while the bus is away; its files take up to an eighth more."""
    spool_max_age_s: float = Field(default=24 * 3600.0, gt=0, allow_inf_nan=False)
    """How old they may grow; a spool with older ones counts as full."""
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
    inspect_gate: GateSettings = GateSettings()
    """The gate of the service's own station."""
    max_inspections: PositiveInt = Field(default=256, le=65536)
    """Inspections that may wait for their decisions at once; one more is told RESOURCE_EXHAUSTED."""
    results_address: str = "127.0.0.1:50055"
    """ResultsService, asked when the news of a decision did not come; replicas as gRPC spells them, such as
    dns:///results:50055."""

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
    def _each_file_once(self) -> Self:
        stations = [station for line in self.lines for station in line.stations]
        seen: set[Path] = set()
        for gate in (*(station.gate for station in stations), self.inspect_gate):
            for output in gate.outputs:
                if isinstance(output, FileOutputSettings):
                    if output.path in seen:
                        raise ValueError(f"two gates would write {output.path}: each needs a file of its own")
                    seen.add(output.path)
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
            gate=self.inspect_gate,
        )
