"""Lets a CPU build of torch import the torchvision wheel of the package index.

That wheel's compiled operators want CUDA libraries, so beside a CPU torch they do not load. torchvision shrugs, and
fails on import all the same: it describes two operators, nms and qnms, that nobody declared. Declaring them by name
is enough for models and transforms. They still cannot be called: box suppression needs the compiled form.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []
"""Kept for the life of the process: a library that is collected takes its declarations along."""


def declare() -> None:
    """Declares the two operators where the compiled ones do not load; does nothing elsewhere, or a second time."""
    if _compiled_load() or _declared:
        return
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # torch is partly typed
    for name in ("nms", "qnms"):
        library.define(name + _SIGNATURE)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _compiled_load() -> bool:
    # The same load that torchvision does when imported; it must be tried first, because operators that we have
    # declared could no longer be defined by their library. Loading one library twice is harmless.
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or ():
        for library in Path(folder).glob("_C*"):
            try:
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
            except OSError:
                continue
            return True
    return False
