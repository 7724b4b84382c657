"""What bench_swaps.py measures, each as a process of its own that does what its standard input says.

    serve: the inference service, which follows an alias   stdin: a line is news of the alias ─> when it is published
    call:  calls that come evenly                          stdin: RATE, then 0 ─> each call, and what it was answered

One JSON line for each answer. Neither imports torch, unless the engine does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

import grpc
import numpy as np

from inspectbus.api.v1.inference_pb2_grpc import InferenceServiceStub
from inspectbus.domain.model_version import PRODUCTION

PATIENCE_S = 400.0
CALL_S = 300.0
"""Patience of a call: longer than any may take, so that none is refused or fails by its own clock."""
WAITING = 1024
"""Calls that may wait at once: none is to be refused."""


class Call(NamedTuple):
    """When it began and ended, on the monotonic clock, which all processes of a machine share."""

    begun_s: float
    ended_s: float
    version: str
    alias: str
    failure: str


def serve(models_address: str, store: str, model: str, engine: str, streams: str, batch: str) -> None:
    """Tells where it listens; a line is news of the alias."""
    from inspectbus.api.v1.model_pb2 import AliasChange
    from inspectbus.bus import Message, connect, topics
    from inspectbus.inference.service import open_service
    from inspectbus.inference.settings import InferenceSettings
    from inspectbus.runtime import logs

    logs.configure("warning")
    with tempfile.TemporaryDirectory(prefix="bench-") as state:
        settings = InferenceSettings.load(
            {
                "port": 0,
                "metrics_port": 0,
                "state_dir": state,
                "model": model,
                "models_address": models_address,
                "model_store_url": store,
                "model_poll_s": 3600,
                "engine": engine,
                "device": "cpu",
                "streams": int(streams),
                "threads": 1,
                "max_batch_size": int(batch),
                # What is measured is how long calls take, also where a busy machine makes many wait.
                "rpc_threads": WAITING,
                "queue_limit": WAITING,
            }
        )
        change = AliasChange(name=model, alias=PRODUCTION)
        news = Message(change.SerializeToString(), ("model", "alias-changed"), "bench")
        with connect("embedded://bench") as bus, open_service(settings, bus) as door:
            say({"address": door.address})
            for _ in sys.stdin:
                bus.publish(topics.EVENTS, news).result(PATIENCE_S)
                say({})


def call(address: str, side: str) -> None:
    """A line is how many calls to begin in a second, evenly, until one with 0 asks for what became of them."""
    from inspectbus.api.v1.inference_pb2 import InferRequest
    from inspectbus.imaging.pixels import to_pixels

    image = np.random.default_rng(0).integers(0, 256, (int(side), int(side), 3), np.uint8)
    request = InferRequest(pixels=to_pixels(image))
    say({})
    with grpc.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        for line in sys.stdin:
            over = threading.Event()
            calls: list[Call] = []
            source = threading.Thread(target=pour, args=(stub, request, float(line), over, calls))
            source.start()
            sys.stdin.readline()
            over.set()
            source.join()
            say({"calls": calls})


def pour(stub: InferenceServiceStub, request: Any, rate: float, over: threading.Event, calls: list[Call]) -> None:
    """Returns once all are answered."""
    begun_s, sent = time.monotonic(), 0
    left = threading.Semaphore(0)
    while not over.wait(max(0.0, begun_s + sent / rate - time.monotonic())):
        sent += 1
        at_s = time.monotonic()

        def done(ended: Any, at_s: float = at_s) -> None:
            now_s, error = time.monotonic(), ended.exception()
            judgement = None if error else ended.result().judgement
            version, alias = (judgement.model_version, judgement.model_alias) if judgement else ("", "")
            calls.append(Call(at_s, now_s, version, alias, str(error) if error else ""))
            left.release()

        stub.Infer.future(request, timeout=CALL_S).add_done_callback(done)
    for _ in range(sent):
        assert left.acquire(timeout=PATIENCE_S), "a call was never answered"


def say(words: dict[str, Any]) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])  # type: ignore[operator]  # each has its own arguments
