"""Where bytes rest: frame store, state folder, and the model that inference is to load."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from inspectbus.channels import NO_ACCESS, Access
from inspectbus.doctor.finding import Finding, State
from inspectbus.errors import InspectBusError, NotFound, TooLate, Unreachable

if TYPE_CHECKING:
    from inspectbus_client import Engine

ROOM_SHARE = 0.05
"""Of a disk that should be free, at least."""
ROOM_BYTES = 1 << 30
PATIENCE_S = 4.0


def look_at_frame_store(url: str) -> list[Finding]:
    """Raises InspectBusError or what the storage raises."""
    from inspectbus.stores.frames import FrameStore

    if url.startswith("file://"):
        folder = Path(url.removeprefix("file://"))
        if not folder.exists():
            return [Finding("frame store", State.WARN, f"{folder} is not there yet: the first image kept makes it")]
    store = FrameStore(url)
    key, data = f"doctor/probe/{uuid.uuid4().hex}", uuid.uuid4().bytes
    store.put(key, data)
    try:
        same = store.get(key) == data
    finally:
        store.delete(key)
    if not same:
        return [Finding("frame store", State.FAIL, f"{url} gives back other bytes than it was given")]
    found = [Finding("frame store", State.OK, f"{url} keeps and gives back")]
    if url.startswith("file://"):
        found.append(_room("frame store's disk", folder))
    return found


def look_at_state(folder: Path) -> list[Finding]:
    about = "state folder"
    if not folder.exists():
        above = next((parent for parent in folder.absolute().parents if parent.exists()), Path("/"))
        if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
            return [Finding(about, State.WARN, f"{folder} is not there yet: the first start of a service makes it")]
        return [
            Finding(
                about, State.FAIL, f"{folder} is not there, and {above} is not writable: make it, or choose another"
            )
        ]
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"doctor")
            probe.flush()
    except OSError as error:
        return [Finding(about, State.FAIL, f"{folder} cannot be written: {error.strerror}")]
    return [Finding(about, State.OK, f"{folder} can be written"), _room("state folder's disk", folder)]


def look_at_model(
    name: str, alias: str, address: str, store_url: str, cache: Path, access: Access = NO_ACCESS
) -> list[Finding]:
    """What name@alias is now, and whether all its files can be had."""
    from inspectbus_client import Client

    about = f"model {name}@{alias}"
    try:
        with Client.connect({"training": address}, timeout_s=PATIENCE_S, access=access) as client:
            version = client.model(name, alias=alias).version
    except NotFound:
        says = "is no version yet, and frames are held: train one with `inspectbus train`, or set inference.model"
        return [Finding(about, State.FAIL, says)]
    except Unreachable:
        return [Finding(about, State.FAIL, f"nobody at {address} can say which version it is: is training started?")]
    try:
        return [Finding(about, State.OK, f"is version {version}, whole {_files(name, version, store_url, cache)}")]
    except (InspectBusError, OSError) as error:
        return [Finding(about, State.FAIL, f"is version {version}, whose files are not to be had: {error}")]


def look_at_served(
    name: str, alias: str, models_address: str, address: str, access: Access = NO_ACCESS
) -> list[Finding]:
    """Is the version that inference serves the one that name@alias names? Nothing is said when either cannot be asked:
    the checks of the model and of the door say that."""
    from inspectbus_client import Client

    try:
        addresses = {"training": models_address, "inference": address}
        with Client.connect(addresses, timeout_s=PATIENCE_S, access=access) as client:
            version, engine = client.model(name, alias=alias).version, client.engine()
    except (NotFound, Unreachable, TooLate):
        return []
    if not engine.ready:
        return [Finding("served model", State.FAIL, f"inference has loaded none, and frames are held: {engine.detail}")]
    if (engine.model, engine.model_version) == (name, version):
        says = f"inference judges with {name}@{alias}, version {version}"
        return [Finding("served model", State.OK, says), *_engines(engine)]
    why = engine.detail or "it is taken within seconds; if not, does inference ask the same models_address?"
    says = (
        f"inference judges with {engine.model}/{engine.model_version}, and {name}@{alias} is version {version}: {why}"
    )
    return [Finding("served model", State.WARN, says), *_engines(engine)]


def _engines(engine: Engine) -> list[Finding]:
    """Which was chosen, how fast the others are, and why some may not judge. A service of before tells none."""
    if not engine.candidates:
        return []
    ready = [each for each in engine.candidates if not each.reason]
    raced = sorted(
        (each for each in ready if each.images_per_s is not None), key=lambda each: -(each.images_per_s or 0)
    )
    says = f"{engine.engine} on {engine.device} judges"
    if raced:
        says += "; images/s: " + ", ".join(f"{each.name} {each.images_per_s:.0f}" for each in raced)
    left_out = "; ".join(f"{each.name}: {each.reason}" for each in engine.candidates if each.reason)
    return [Finding("engine", State.OK, f"{says}; left out: {left_out}" if left_out else says)]


def _files(name: str, version: str, store_url: str, cache: Path) -> str:
    """Where they are. Raises NotFound, CorruptModel, OSError."""
    import fsspec

    from inspectbus.domain.model_version import CARD_FILE, ModelCard
    from inspectbus.stores.models import read_card

    try:
        read_card(cache / name / version, version)
    except (InspectBusError, OSError):
        files, root = fsspec.core.url_to_fs(store_url)
        folder = f"{root}/{name}/{version}"
        if not files.exists(f"{folder}/{CARD_FILE}"):
            raise NotFound(f"{store_url} has no {name}/{version}") from None
        card = ModelCard.model_validate_json(files.cat_file(f"{folder}/{CARD_FILE}"))
        for file in card.files:
            if not files.exists(f"{folder}/{file}"):
                raise NotFound(f"{store_url}: {name}/{version} lacks {file}") from None
        return f"in {store_url}"
    return "in this machine's cache"


def look_at_model_folder(folder: Path) -> list[Finding]:
    from inspectbus.stores.models import read_card

    card = read_card(folder, version=folder.name)
    return [Finding(f"model {card.name}", State.OK, f"version {card.version} is whole in {folder}")]


def _room(about: str, folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    says = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.1f} GB are free"
    if usage.free >= min(ROOM_BYTES, usage.total * ROOM_SHARE):
        return Finding(about, State.OK, says)
    return Finding(about, State.WARN, f"{says}: delete what is old, or give it a larger disk")
