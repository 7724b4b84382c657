"""Images that a command fetches from the frame store, and files it leaves where the user said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inspectbus.cli.printing import plain

if TYPE_CHECKING:
    from inspectbus.stores.frames import FrameStore

Config = Annotated[Path | None, typer.Option(envvar="INSPECTBUS_PLANT", help="plant.yaml: where the frame store is.")]


def open_frame_store(config: Path | None) -> FrameStore:
    """The one inference is told of."""
    from inspectbus.line import read_plant, settings_class
    from inspectbus.stores.frames import FrameStore, default_url

    settings: Any = settings_class("inference").load(read_plant(config).get("inference", {}) if config else {})
    return FrameStore(settings.frame_store_url or default_url(settings.state_dir))


def save(file: Path, image: bytes) -> None:
    """Raises BadField naming the file."""
    from inspectbus.errors import BadField

    try:
        file.write_bytes(image)
    except OSError as error:
        raise BadField(f"{plain(str(file))} cannot be written: {error.strerror or error}", field="save") from None
