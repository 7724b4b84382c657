"""Mosec (PyPI `mosec`) with one of our engines, as bench_inference.py runs it beside our service.

    python -m tests.benchmarks.mosec_end VERSION ENGINE STREAMS THREADS BATCH WAIT_MS

pixels over HTTP ─> Mosec's front (Rust) ─> batches by a unix socket ─> a worker process for each stream ─> its score

The first line of standard output is JSON with its address; it ends with its input. A worker's engine has one stream:
for all of them together the processor's threads are what our service has. Its answers are shorter than ours, a score
and the worker's number, and its images come as bytes alone, with no message about them: what can only help it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inspectbus.inference.engine import Place, open_engine
from inspectbus.stores.models import read_card

# It reads this when it is imported.
os.environ["MOSEC_LOG_LEVEL"] = "warning"
from mosec import Server, Worker

VERSION, ENGINE, THREADS = "BENCH_VERSION", "BENCH_ENGINE", "BENCH_THREADS"
"""Variables of a worker's environment: it is made without arguments."""
HOST = "127.0.0.1"
PATIENCE_MS = 60_000


class Judge(Worker):
    def __init__(self) -> None:
        folder = Path(os.environ[VERSION])
        card = read_card(folder)
        self._shape = (card.preparation.height, card.preparation.width, 3)
        self._engine = open_engine(os.environ[ENGINE], folder, card, Place("cpu", int(os.environ[THREADS]), 1))
        self._batch = np.empty((1, *self._shape), np.uint8)
        self._engine.infer(self._batch)  # the first pass takes long

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes | Sequence[bytes]) -> float | Sequence[float]:
        # Without batches Mosec gives an image, and not a list of one.
        if self.max_batch_size == 1:
            return self._scores([data])[0]  # type: ignore[list-item]
        return self._scores(data)  # type: ignore[arg-type]

    def serialize(self, data: float) -> bytes:
        return f"{data} {self.worker_id}".encode()

    def _scores(self, images: Sequence[bytes]) -> list[float]:
        if len(images) > len(self._batch):
            self._batch = np.empty((self.max_batch_size, *self._shape), np.uint8)
        for place, image in zip(self._batch, images, strict=False):
            np.copyto(place, np.frombuffer(image, np.uint8).reshape(self._shape))
        scores: list[float] = self._engine.infer(self._batch[: len(images)]).scores.tolist()
        return scores


def main(version: str, engine: str, streams: str, threads: str, batch: str, wait_ms: str) -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    # Its settings are those of its command line.
    told = {"address": HOST, "port": port, "timeout": PATIENCE_MS}
    sys.argv[1:] = [f"--{name}={value}" for name, value in told.items()]
    server = Server()
    server.append_worker(
        Judge,
        num=int(streams),
        max_batch_size=int(batch),
        max_wait_time=int(wait_ms),
        # It warns of every batch beyond a megabyte.
        env=[{VERSION: version, ENGINE: engine, THREADS: threads, "PYTHONWARNINGS": "ignore"}] * int(streams),
    )
    print(json.dumps({"address": f"{HOST}:{port}"}), flush=True)
    os.dup2(2, 1)  # its front logs to standard output
    threading.Thread(target=_end_with_input, daemon=True).start()
    server.run()


def _end_with_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
