"""A camera of your own: render a part every moment and push it to a push station.

    python clients/examples/push_camera.py --line line-1 --station side --frames 100 --fps 10

A real camera puts its encoded image in place of `render`. What is decided comes to watch_line.py, not here.

With TLS and tokens set INSPECTBUS_TLS_CA and INSPECTBUS_TOKEN_FILE, as for the commands, and where doors ask for a
certificate INSPECTBUS_TLS_CERTIFICATE and INSPECTBUS_TLS_KEY.
"""

from __future__ import annotations

import argparse
import random
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

from inspectbus.errors import InspectBusError
from inspectbus_client import Access, Client, Label, Shot

SIDE = 128
"""Pixels."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acquisition", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--line", default="line-1")
    parser.add_argument("--station", default="side")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--fps", type=float, default=10.0, help="0: as fast as the line takes them")
    parser.add_argument("--scratched", type=float, default=0.1, help="share of scratched parts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    parts = camera(random.Random(options.seed), options.frames, options.fps, options.scratched)
    accepted = 0
    with Client(acquisition=options.acquisition, access=Access.from_environment()) as client:
        # The answers pull the frames: the camera is never further ahead than the line can bear.
        try:
            for published in client.publish_frames(parts, line=options.line, station=options.station, patience_s=10):
                if published.error is None:
                    accepted += 1
                else:
                    print(f"{published.shot.part_id} was refused: {published.error}")
        except InspectBusError as error:
            print(f"gave up: {error}")
    print(f"{accepted} of {options.frames} frames accepted")
    return 0 if accepted == options.frames else 1


def camera(dice: random.Random, frames: int, fps: float, share_scratched: float) -> Iterator[Shot]:
    pace = threading.Event()
    for number in range(frames):
        if fps and number:
            pace.wait(1 / fps)
        scratched = dice.random() < share_scratched
        yield Shot(
            render(dice, scratched),
            part_id=f"part-{number:06}",
            truth=Label.DEFECTIVE if scratched else Label.GOOD,
            captured_at=datetime.now(UTC),
        )


def render(dice: random.Random, scratched: bool) -> bytes:
    """A part as a BMP of 8 bit grey: a noisy disc on a dark belt, with or without a dark scratch across it."""
    rows = [bytearray(dice.randrange(28, 36) for _ in range(SIDE)) for _ in range(SIDE)]
    for y in range(SIDE):
        for x in range(SIDE):
            if (x - SIDE / 2) ** 2 + (y - SIDE / 2) ** 2 < (SIDE * 0.4) ** 2:
                rows[y][x] = dice.randrange(176, 184)
    if scratched:
        left, slope = dice.randrange(SIDE // 3, SIDE // 2), dice.uniform(-0.5, 0.5)
        for y in range(SIDE // 4, 3 * SIDE // 4):
            x = int(left + slope * (y - SIDE / 2))
            rows[y][x : x + 3] = bytes([60, 50, 60])
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    offset = 14 + 40 + len(palette)
    header = struct.pack("<2sIHHI", b"BM", offset + SIDE * SIDE, 0, 0, offset)
    # A negative height says that the rows run from top to bottom; a side divisible by four needs no padding.
    details = struct.pack("<IiiHHIIiiII", 40, SIDE, -SIDE, 1, 8, 0, SIDE * SIDE, 2835, 2835, 256, 0)
    return header + details + palette + b"".join(rows)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except InspectBusError as error:
        raise SystemExit(f"error: {error}") from None
