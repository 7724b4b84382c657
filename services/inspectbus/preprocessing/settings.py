"""What preprocessing may be told."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic_settings import SettingsConfigDict

from inspectbus.runtime.settings import ServiceSettings
from inspectbus.stores.frames import INLINE_MAX_BYTES


class PreprocessingSettings(ServiceSettings):
    """INSPECTBUS_PREPROCESSING_*."""

    model_config = SettingsConfigDict(env_prefix="INSPECTBUS_PREPROCESSING_")

    port: NonNegativeInt = 50052
    """gRPC port; 0 takes a free one."""
    metrics_port: NonNegativeInt = 9102
    """Prometheus port; 0 takes a free one."""
    database_url: str = ""
    """The SQL database that holds the recipes; empty is a SQLite file in the state folder."""
    frame_store_url: str = ""
    """Where images rest (file://, s3://): originals that came by claim, those of held frames, and prepared pixels too
    large for a message. Empty is the folder `frames` in state_dir; the same for all services of a line."""
    frame_store_fsync: bool = False
    """Bring each object of a folder to the disk itself before its message goes, for power cuts; milliseconds each."""
    inline_max_bytes: PositiveInt = INLINE_MAX_BYTES
    """Prepared pixels larger than this rest in the frame store, and their message carries only their key."""
    models_address: str = Field(default="127.0.0.1:50054", min_length=1)
    """host:port of the ModelService, which knows the preparation a recipe's model expects."""
    workers: PositiveInt = Field(default=2, le=256)
    """Frames prepared at once. OpenCV lets go of Python's lock, so each keeps a core busy."""
    prefetch: PositiveInt = Field(default=32, le=4096)
    """Frames taken from the bus and not confirmed yet, those waiting for a worker included; bounds memory. Several
    batches of inference must fit, because a frame is confirmed late on a bus that confirms whole chains."""
    opencv_threads: PositiveInt = Field(default=1, le=256)
    """Threads OpenCV uses within one step, in this whole process. More than 1 pays for few large images only."""
    recipe_fresh_s: float = Field(default=2.0, ge=0, le=3600, allow_inf_nan=False)
    """How soon a recipe stored by another replica is used here; what this one stored is used at once."""
    max_image_bytes: PositiveInt = 64 * 1024 * 1024
    """Largest image file that is decoded."""
    max_image_pixels: PositiveInt = 64 * 1000 * 1000
    """Most pixels, width times height, that are decoded; about ten bytes of memory each while a frame is prepared."""
