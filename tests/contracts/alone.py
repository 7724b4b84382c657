"""A service of one handler for two subscriptions, started by the ward's tests: `python -m tests.contracts.alone FD`."""

from __future__ import annotations

import signal
import sys
import threading
from concurrent.futures import Future

from inspectbus.bus import Delivery, connect
from inspectbus.bus.topics import DECISIONS, FRAMES, GATES
from inspectbus.errors import BadField, ModelNotReady


def main() -> None:
    with connect(f"solo://{sys.argv[1]}") as bus:

        def handle(delivery: Delivery) -> None:
            match delivery.message.body:
                case b"crash":
                    signal.raise_signal(signal.SIGSEGV)
                case b"hang":
                    threading.Event().wait()
                case b"bad":
                    raise BadField("no picture", field="image")
                case b"not yet":
                    raise ModelNotReady("loading")
                case _:
                    output: Future[None] = bus.publish(DECISIONS, delivery.message)
                    delivery.done(after=[output])

        bus.subscribe(FRAMES, "preprocessing", handle)
        bus.subscribe(GATES, "outcomes", handle)
        threading.Event().wait()


if __name__ == "__main__":
    main()
