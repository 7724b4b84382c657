"""Callers who mean no good, beside others: the service, a process of its own, stays small and answers these as before.

others: two callers in a closed loop ─> what each call took, before and while a bad caller does its worst
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status

from inspectbus.api.v1.inference_pb2 import InferRequest, InferStreamRequest
from inspectbus.api.v1.inference_pb2_grpc import InferenceServiceStub
from inspectbus.imaging.pixels import to_pixels
from inspectbus.runtime.open_streams import places_of
from inspectbus.runtime.refusals import RETRY_HINT_S
from tests.doubles.children import lasting_port
from tests.doubles.marked_parts import DARK
from tests.doubles.service_process import ServiceProcess
from tests.doubles.silent_client import SilentClient
from tests.doubles.stub_model import NAME, stub_version

ROOT = Path(__file__).parents[3]
INFER, INFER_STREAM = "/inspectbus.api.v1.InferenceService/Infer", "/inspectbus.api.v1.InferenceService/InferStream"
OIP_INFER = "/inference.GRPCInferenceService/ModelInfer"
SIDE = 128
"""Pixels: an image is 48 KiB, so that few of them fill what flow control allows."""
RPC_THREADS = 32
"""The default."""
CALLERS, CALLS = 2, 200
"""Of the others: at once, and how many calls make a figure."""
BATCH_MS = 5
P99_FACTOR, P99_MORE_S = 3, 0.25
"""The p99 of others may become so many times what it was before, and so much more: what a machine that runs other tests
does by itself. Without a thread that is free for them they would wait for ever, or be refused."""
GROWTH_BYTES = 64 << 20
"""Of the service at its largest. Messages that nobody reads, of a dozen streams or of one gigabyte, would be more."""
SILENCE_S = 2.0
"""A server that has given no room for so long has stopped its sender."""
SILENT = 12
"""Clients that stream and never read."""
PATIENCE_S = 30.0


@dataclass
class Service:
    process: ServiceProcess
    address: str

    @property
    def peak_bytes(self) -> int:
        """The most it ever had resident."""
        (line,) = (
            line
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            if line.startswith("VmHWM:")
        )
        return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    version, _ = stub_version(folder, SIDE)
    port = lasting_port()
    told: dict[str, Any] = {"port": port, "metrics_port": 0, "model": NAME, "model_dir": str(version)}
    told |= {"rpc_threads": RPC_THREADS, "engine": "torch"}
    config = folder / "plant.yaml"
    config.write_text(json.dumps({"inference": told}))
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("INSPECTBUS_")},
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("services", "clients", ".")),
        "PYTHONUNBUFFERED": "1",
        "STUB_BATCH_MS": str(BATCH_MS),
        "INSPECTBUS_LOG_FORMAT": "json",
        "INSPECTBUS_STATE_DIR": str(folder / "state"),
    }
    command = [sys.executable, "-m", "tests.faults.serve", "serve", "inference", "--config", str(config)]
    with ServiceProcess("inference", command, environ, folder / "log") as process:
        process.await_event("model loaded")
        yield Service(process, f"127.0.0.1:{port}")


def request() -> InferStreamRequest:
    return InferStreamRequest(pixels=to_pixels(np.full((SIDE, SIDE, 3), DARK, np.uint8)))


class Others:
    """Callers in a closed loop, until left. One that is told to come again does, and its call has lasted so long."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._changed = threading.Condition()
        self._took_s: list[float] = []
        self._failures: list[str] = []
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(CALLERS, "others")

    def __enter__(self) -> Others:
        for _ in range(CALLERS):
            self._pool.submit(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()

    def p99_s(self, during: Callable[[], object] = lambda: None) -> float:
        """Of the calls that end from now on: all while something is done, and CALLS after that."""
        first = len(self._took_s)
        during()
        last = len(self._took_s) + CALLS
        with self._changed:
            ended = self._changed.wait_for(lambda: self._failures or len(self._took_s) >= last, PATIENCE_S)
        assert not self._failures, self._failures[0]
        assert ended, f"{len(self._took_s) - last + CALLS} calls of others ended in {PATIENCE_S} s"
        return float(np.percentile(self._took_s[first:], 99))

    def _call(self) -> None:
        asked = InferRequest(pixels=request().pixels)
        with grpc.insecure_channel(self._address) as channel:
            stub = InferenceServiceStub(channel)
            begun_s = time.perf_counter()
            while not self._over.is_set():
                try:
                    stub.Infer(asked, timeout=PATIENCE_S)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not self._over.wait(RETRY_HINT_S):
                        continue
                    with self._changed:
                        self._failures.append(f"{error.code()}: {error.details()}")
                        self._changed.notify_all()
                    return
                with self._changed:
                    self._took_s.append(time.perf_counter() - begun_s)
                    self._changed.notify_all()
                begun_s = time.perf_counter()


@pytest.fixture
def others(service: Service) -> Iterator[Others]:
    with Others(service.address) as others:
        yield others


def bear(service: Service, others: Others, doing: Callable[[], object]) -> None:
    """Others are answered as before while it is done and lasts, and the service stays small."""
    before_s, peak = others.p99_s(), service.peak_bytes
    during_s = others.p99_s(doing)
    grown = service.peak_bytes - peak
    words = f"p99 of others: {1000 * before_s:.0f} ms before, {1000 * during_s:.0f} ms during; {grown >> 20} MiB more"
    sys.stdout.write(f"\n{words}\n")
    assert during_s <= P99_FACTOR * before_s + P99_MORE_S, words
    assert grown <= GROWTH_BYTES, words


def one_image(service: Service) -> int:
    """How many answers a stream of one gets. Raises grpc.RpcError where it is refused."""
    with grpc.insecure_channel(service.address) as channel:
        return len(list(InferenceServiceStub(channel).InferStream(iter([request()]), timeout=PATIENCE_S)))


def streams_again(service: Service) -> bool:
    """Whether a stream finds a place, as soon as those that were left have given theirs back."""
    until_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while time.monotonic() < until_s:
        try:
            return one_image(service) == 1
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
        pause.wait(0.05)
    return False


def wait_ended(clients: list[SilentClient], count: int) -> None:
    """Until the server has ended so many of their streams."""
    with selectors.DefaultSelector() as ready:
        for client in clients:
            ready.register(client, selectors.EVENT_READ, client)
        while sum(len(client.ended) for client in clients) < count:
            found = ready.select(PATIENCE_S)
            assert found, f"{[len(client.ended) for client in clients]} streams were ended, of {count}"
            for key, _ in found:
                key.data.read_arrived()


@pytest.mark.parametrize("connections", [1, 20])
def test_a_thousand_open_streams_are_refused_beyond_the_limit_and_others_are_served(
    service: Service, others: Others, connections: int
) -> None:
    places = places_of(RPC_THREADS)
    with ExitStack() as house:
        clients = [house.enter_context(SilentClient(service.address)) for _ in range(connections)]

        def open_them() -> None:
            for _ in range(1000 // connections):
                for client in clients:
                    client.open(INFER_STREAM)
            wait_ended(clients, 1000 - places)

        bear(service, others, open_them)
        with pytest.raises(grpc.RpcError) as caught:
            one_image(service)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"{places} streams are open" in str(caught.value.details())
        assert "make single calls, or try again" in str(caught.value.details())
        assert rpc_status.from_call(caught.value) is not None  # type: ignore[arg-type]  # both error and call
    assert streams_again(service)


def test_clients_that_stream_and_never_read_are_stopped_and_cost_neither_others_nor_memory(
    service: Service, others: Others
) -> None:
    message = request().SerializeToString()
    sent: list[int] = []

    def send_for_ever(client: SilentClient) -> None:
        stream = client.open(INFER_STREAM)
        for number in range(2000):
            try:
                client.send(stream, message)
            except TimeoutError:
                return
            sent.append(number)
        raise AssertionError(f"{len(sent)} images were taken, and nobody was stopped")

    with ExitStack() as house, ThreadPoolExecutor(SILENT) as pool:
        clients = [house.enter_context(SilentClient(service.address, SILENCE_S)) for _ in range(SILENT)]
        bear(service, others, lambda: list(pool.map(send_for_ever, clients)))
        assert len(sent) >= SILENT, "none was taken"
        assert one_image(service) == 1
    assert streams_again(service)


@pytest.mark.parametrize("method", [INFER, INFER_STREAM, OIP_INFER])
def test_a_message_of_a_gigabyte_is_refused_when_it_is_announced(service: Service, others: Others, method: str) -> None:
    def send() -> None:
        for _ in range(10):
            with SilentClient(service.address) as client:
                stream = client.open(method)
                # As much as the server takes: it has its length, and never all of it.
                client.send(stream, bytes(16 << 20), said=1 << 30)
                client.wait_answered(stream)
                assert client.ended == {stream}

    bear(service, others, send)
