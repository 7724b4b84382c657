"""Pictures of parts whose verdict is known by their name, and of parts that make the service that works them fail.

part-00007-bright.png ─> DEFECTIVE      part-00008-dark.png ─> QUALIFIED

A mark for preprocessing stands behind the image file's end; one for inference is the picture's colour.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
from numpy.typing import NDArray

DARK, BRIGHT = 40, 215
"""Grey levels of parts the stub engine is sure about: QUALIFIED and DEFECTIVE."""
GRAIN = 12
"""Grey levels of noise: no two parts are one file."""
SIDE = 64
"""Pixels. A picture takes about three bytes for each."""


class Fault(StrEnum):
    """What a marked part does to whoever works it."""

    RAISE = "raise"
    CRASH = "crash"
    HANG = "hang"
    HANG_LOCKED = "hang-locked"
    """As inside a library that never comes back and holds the interpreter's lock."""


_COLOURS = {
    # Whether red, green and blue shine: none of a grey part's channels stands out.
    (True, False, False): Fault.RAISE,
    (False, True, False): Fault.CRASH,
    (False, False, True): Fault.HANG,
    (True, True, False): Fault.HANG_LOCKED,
}
_MARK = b"FAULT:"


def name(number: int, bright: bool) -> str:
    return f"part-{number:05}-{'bright' if bright else 'dark'}.png"


def picture(number: int, bright: bool, side: int = SIDE) -> bytes:
    """PNG of about 3 * side * side bytes when the side is large."""
    return _png(np.full((side, side, 3), BRIGHT if bright else DARK, np.uint8), number)


def fails_preprocessing(fault: Fault, number: int = 0) -> bytes:
    """A good picture, but for the mark in its file."""
    return picture(number, bright=False) + _MARK + fault.encode()


def fails_inference(fault: Fault, number: int = 0) -> bytes:
    """A good file, but for the colour of its picture."""
    shines = next(colour for colour, meant in _COLOURS.items() if meant is fault)
    return _png(np.full((SIDE, SIDE, 3), [BRIGHT if each else DARK // 2 for each in shines], np.uint8), number)


def write_parts(folder: Path, count: int, side: int = SIDE) -> list[str]:
    """So many parts, every fourth of them bright, for a station's folder; gives their names in order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        bright = number % 4 == 3
        names.append(name(number, bright))
        (folder / names[-1]).write_bytes(picture(number, bright, side))
    return names


def fault_of_file(image: bytes) -> Fault | None:
    _, mark, fault = image[-32:].rpartition(_MARK)
    return Fault(fault.decode()) if mark else None


def fault_of_pixels(pixels: NDArray[np.uint8]) -> Fault | None:
    """`pixels` is (H, W, 3) RGB."""
    red, green, blue = (bool(level > 128) for level in pixels.reshape(-1, 3).mean(axis=0))
    return _COLOURS.get((red, green, blue))


def suffer(fault: Fault | None) -> None:
    """Does it."""
    match fault:
        case Fault.RAISE:
            raise RuntimeError("this part is marked to fail")
        case Fault.CRASH:
            # Not os.kill, which may strike another thread, while this one goes on and publishes.
            signal.raise_signal(signal.SIGSEGV)
        case Fault.HANG:
            _wait_forever()
        case Fault.HANG_LOCKED:
            # PyDLL, unlike CDLL, keeps the lock.
            while True:
                ctypes.PyDLL(None).sleep(1000)


def _wait_forever() -> NoReturn:
    while True:
        threading.Event().wait()


def _png(flat: NDArray[np.uint8], number: int) -> bytes:
    grain = np.random.default_rng(number).integers(-GRAIN, GRAIN + 1, flat.shape)
    written, data = cv2.imencode(".png", np.clip(flat + grain, 0, 255).astype(np.uint8)[:, :, ::-1])
    assert written
    return data.tobytes()
