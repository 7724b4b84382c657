"""A checkpoint: all that a training's next epoch depends on, so that one killed in the middle ends as if it never was.

tensors ─> epoch-00007.safetensors ─┐
figures, counters ──────────────────┴> checkpoint.json, which names that file and its sha256, and replaces the last

Each file is written under another name, brought to the disk and renamed: there is one whole checkpoint, or none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from inspectbus.errors import BadField, NotPossibleNow

log = structlog.get_logger(__name__)

FILE = "checkpoint.json"


class _Record(BaseModel):
    """checkpoint.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=1, ge=1, le=1)
    belongs_to: dict[str, str]
    """Of which training this is: plan, data, weights, code; the same words decide whether it may go on."""
    epoch: int = Field(ge=1)
    facts: dict[str, Any]
    tensors: Annotated[str, Field(pattern=r"^epoch-\d{5}\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Checkpoint:
    """The newest checkpoint of one training, in a folder of its own."""

    def __init__(self, folder: Path, belongs_to: Mapping[str, str]) -> None:
        self._folder = folder
        self._belongs_to = dict(belongs_to)

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Facts and tensors as they were saved; None when nothing was.

        Raises BadField naming each difference when the checkpoint is another training's, NotPossibleNow when it is
        damaged.
        """
        try:
            text = (self._folder / FILE).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._damaged(FILE, error.strerror or "cannot be read") from None
        try:
            record = _Record.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise self._damaged(FILE, f"{where}: {first['msg']}" if where else first["msg"]) from None
        self._check_belongs(record.belongs_to)
        try:
            data = (self._folder / record.tensors).read_bytes()
            if hashlib.sha256(data).hexdigest() != record.sha256:
                raise self._damaged(record.tensors, f"its sha256 is not the one that {FILE} names")
            return record.facts, load(data)
        except (OSError, SafetensorError) as error:
            raise self._damaged(record.tensors, str(error)) from None

    def save(self, epoch: int, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes the place of the checkpoint before. `facts` is plain JSON.

        Where it cannot be written, that is told in the log and the training goes on: a checkpoint only saves time.
        """
        data = save({name: value.contiguous() for name, value in tensors.items()})
        record = _Record(
            belongs_to=self._belongs_to,
            epoch=epoch,
            facts=dict(facts),
            tensors=f"epoch-{epoch:05d}.safetensors",
            sha256=hashlib.sha256(data).hexdigest(),
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(self._folder / record.tensors, data)
            # json's and not pydantic's: its floats come back bit by bit, those that are no numbers too.
            _write(self._folder / FILE, json.dumps(record.model_dump(), indent=1).encode())
            for other in self._folder.iterdir():
                if other.name not in (FILE, record.tensors):
                    other.unlink()
        except OSError as error:
            log.warning("a checkpoint could not be kept", folder=str(self._folder), epoch=epoch, error=str(error))

    def _check_belongs(self, there: Mapping[str, str]) -> None:
        here = self._belongs_to
        differing = [
            f"{name} is {here.get(name, 'not given')} here and {there.get(name, 'not given')} there"
            for name in sorted({*here, *there})
            if here.get(name) != there.get(name)
        ]
        if differing:
            raise BadField(
                f"the checkpoint in {self._folder} is another training's: {'; '.join(differing)}. Go on with what it "
                "was begun with, or remove the folder to begin anew",
                field="checkpoint",
            )

    def _damaged(self, file: str, why: str) -> NotPossibleNow:
        return NotPossibleNow(
            f"the checkpoint in {self._folder} is damaged, {file}: {why[:300]}; remove the folder to begin anew",
            field="checkpoint",
        )


def _write(file: Path, data: bytes) -> None:
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    part.replace(file)
    # The new name is the folder's matter.
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
