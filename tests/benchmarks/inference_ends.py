"""What bench_inference.py measures, each as a process of its own that does what its standard input says.

    raw:     the engine in a tight loop   stdin: BATCH STREAMS SECONDS ─> images a second, and what a pass took
    serve:   the inference service        stdout: where it listens; ends with its input (Mosec: mosec_end.py)
    clients: callers in a closed loop     stdin: CALLERS SECONDS ─> answers, what they took, and the CPU of the callers
    flood:   calls that come evenly       stdin: RATE PATIENCE_MS SECONDS ─> what became of them, and the CPU of it

One JSON line for each line of input. A closed loop: each caller asks again as soon as it is answered. A flood asks
however many are answered, so many times a second.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hpack
import numpy as np
from numpy.typing import NDArray

from inspectbus.api.v1.inference_pb2 import DESCRIPTOR, InferRequest, InferStreamRequest, InferStreamResponse
from inspectbus.imaging.pixels import to_pixels
from inspectbus.runtime.http2 import frames

RAMP_S = 0.4
"""Before anything is counted: until all callers have their first answer, and threads their caches."""
PATIENCE_S = 60.0


class Raw:
    """Full batches on all streams, nothing between them."""

    def __init__(self, version: str, engine: str, streams: str, threads: str) -> None:
        from inspectbus.inference.engine import Place, open_engine
        from inspectbus.stores.models import read_card

        card = read_card(Path(version))
        self._engine = open_engine(engine, Path(version), card, Place("cpu", int(threads), int(streams)))
        self._shape = (card.preparation.height, card.preparation.width, 3)

    def run(self, batch: int, streams: int, seconds: float) -> dict[str, Any]:
        batch = min(batch, self._engine.best_batch or batch)
        images = np.random.default_rng(0).integers(0, 256, (streams, batch, *self._shape), np.uint8)
        counted_from_s = time.perf_counter() + RAMP_S
        until_s = counted_from_s + seconds

        def passes(stream: int) -> list[float]:
            took_s: list[float] = []
            while (begun_s := time.perf_counter()) < until_s or not took_s:
                self._engine.infer(images[stream])
                if begun_s >= counted_from_s:
                    took_s.append(time.perf_counter() - begun_s)
            return took_s

        with ThreadPoolExecutor(streams) as pool:
            by_stream = list(pool.map(passes, range(streams)))
        # By what each pass took: how many of them fitted in would leave out a part of the last.
        rate = sum(batch / statistics.mean(took_s) for took_s in by_stream)
        return {"images_per_s": rate, "p50_s": statistics.median(s for took_s in by_stream for s in took_s)}


class Clients:
    """Callers of one service, on one channel."""

    def __init__(self, form: str, address: str, side: str) -> None:
        self._ask = ASKERS[form](address, int(side))

    def run(self, callers: int, seconds: float) -> dict[str, Any]:
        took_s: list[float] = []
        """Of each answer. The end of a list is the one thing that callers share; append is atomic."""
        failures: list[str] = []
        over = threading.Event()
        left = threading.Semaphore(0)

        def again() -> None:
            if over.is_set():
                left.release()
                return
            begun_s = time.perf_counter()

            def answered(outcome: str) -> None:
                took_s.append(time.perf_counter() - begun_s)
                if outcome != ANSWER:
                    failures.append(outcome)
                again()

            self._ask(PATIENCE_S, answered)

        for _ in range(callers):
            again()
        over.wait(RAMP_S)
        first, cpu_s, begun_s = len(took_s), time.process_time(), time.perf_counter()
        over.wait(seconds)
        while len(took_s) == first and time.perf_counter() < begun_s + PATIENCE_S:
            over.wait(0.01)  # on a machine that hardly lets us run
        last, used_s, wall_s = len(took_s), time.process_time() - cpu_s, time.perf_counter() - begun_s
        over.set()
        for _ in range(callers):
            assert left.acquire(timeout=PATIENCE_S), "a call was never answered"
        assert not failures, failures[0]
        return {"answers": took_s[first:last], "wall_s": wall_s, "cpu_s": used_s}


class Flood:
    """Calls at an even rate, each with a deadline."""

    def __init__(self, form: str, address: str, side: str) -> None:
        self._ask = ASKERS[form](address, int(side))

    def run(self, rate: int, patience_ms: int, seconds: float) -> dict[str, Any]:
        took_s: dict[str, list[float]] = {ANSWER: [], REFUSED: [], LATE: [], BEYOND: []}
        failures: list[str] = []
        over, patience_s, sent = threading.Event(), patience_ms / 1000, 0
        left = threading.Semaphore(0)

        def call() -> None:
            begun_s = time.perf_counter()

            def answered(outcome: str) -> None:
                if outcome in took_s:
                    took_s[outcome].append(time.perf_counter() - begun_s)
                else:
                    failures.append(outcome)
                left.release()

            self._ask(patience_s, answered)

        # By the time until the queue is full nothing can be told of what comes after.
        counted: dict[str, int] | None = None
        begun_s = counted_s = time.perf_counter()
        used_s = 0.0
        while (now_s := time.perf_counter() - begun_s) < 2 * patience_s + seconds:
            if counted is None and now_s >= 2 * patience_s:
                counted = {outcome: len(each) for outcome, each in took_s.items()}
                counted_s, used_s = time.perf_counter(), time.process_time()
            for _ in range(int(now_s * rate) - sent):
                call()
                sent += 1
            over.wait(0.001)
        last = {outcome: len(each) for outcome, each in took_s.items()}
        wall_s, used_s = time.perf_counter() - counted_s, time.process_time() - used_s
        for _ in range(sent):
            assert left.acquire(timeout=PATIENCE_S), "a call was never answered"
        assert not failures, f"{len(failures)} of {sent} calls: {failures[0]}"
        assert counted is not None
        found = {outcome: each[counted[outcome] : last[outcome]] for outcome, each in took_s.items()}
        return {**found, "wall_s": wall_s, "cpu_s": used_s}


ANSWER, REFUSED, LATE, BEYOND = "answers", "refused", "late", "beyond"
"""What becomes of a call; any other word is an error. Beyond are those that were more than a connection may have open,
which gRPC refuses itself."""

Asker = Callable[[float, Callable[[str], None]], None]
"""Asks once with so many seconds' patience, and later tells what became of it."""


def _ask_by_call(address: str, side: int) -> Asker:
    import grpc

    # Bytes that were made once, as over HTTP: no message is made or parsed here for each call.
    infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = grpc.insecure_channel(address).unary_unary(
        f"/{DESCRIPTOR.services_by_name['InferenceService'].full_name}/Infer",
        request_serializer=None,
        response_deserializer=None,
    )
    request = InferRequest(pixels=to_pixels(_image(side))).SerializeToString()

    outcomes = {
        grpc.StatusCode.RESOURCE_EXHAUSTED: REFUSED,
        grpc.StatusCode.DEADLINE_EXCEEDED: LATE,
        # By a server whose clock was first: nobody here cancels.
        grpc.StatusCode.CANCELLED: LATE,
        grpc.StatusCode.UNAVAILABLE: BEYOND,
    }

    def ask(patience_s: float, answered: Callable[[str], None]) -> None:
        call = infer.future(request, timeout=patience_s)

        def done(ended: grpc.Future[bytes]) -> None:
            error = ended.exception()
            answered(ANSWER if error is None else outcomes.get(error.code(), str(error)))  # type: ignore[attr-defined]

        call.add_done_callback(done)

    return ask


def _ask_by_stream(address: str, side: int) -> Asker:
    """As many streams as callers, each open until this process ends, and one thread for all of them."""
    import grpc

    method = f"/{DESCRIPTOR.services_by_name['InferenceService'].full_name}/InferStream"
    request = InferStreamRequest(pixels=to_pixels(_image(side))).SerializeToString()
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="streams", daemon=True).start()

    async def opened() -> grpc.aio.StreamStreamMultiCallable[bytes, bytes]:
        return grpc.aio.insecure_channel(address).stream_stream(method, None, None)

    infer_stream = asyncio.run_coroutine_threadsafe(opened(), loop).result(PATIENCE_S)
    idle: deque[grpc.aio.StreamStreamCall[bytes, bytes]] = deque()
    running: set[asyncio.Task[None]] = set()
    """An event loop itself forgets them."""

    async def once(answered: Callable[[str], None]) -> None:
        stream = idle.pop() if idle else infer_stream()
        try:
            await stream.write(request)
            answer = await stream.read()
        except grpc.aio.AioRpcError as error:
            answered(str(error))
            return
        idle.append(stream)
        words = InferStreamResponse.FromString(answer) if isinstance(answer, bytes) else "the stream was ended"
        good = isinstance(words, InferStreamResponse) and words.HasField("judgement")
        answered(ANSWER if good else str(words))

    def begin(answered: Callable[[str], None]) -> None:
        task = loop.create_task(once(answered))
        running.add(task)
        task.add_done_callback(running.discard)

    def ask(_patience_s: float, answered: Callable[[str], None]) -> None:
        if threading.current_thread().name == "streams":
            begin(answered)
        else:
            loop.call_soon_threadsafe(begin, answered)

    return ask


class _Frames:
    """What a stream of gRPC costs its caller at least: a message whose frames were made once, a connection for each
    call under way, and one thread that reads the answers. As `_Http`, for our service.

    Of HTTP/2 (RFC 9113) it does what a server may rely on: it keeps to the windows, and answers settings and pings.
    """

    def __init__(self, address: str, method: str, message: bytes) -> None:
        host, _, port = address.rpartition(":")
        self._at = (host, int(port))
        self._message = b"\0" + len(message).to_bytes(4) + message
        headers = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", address)]
        headers += [("content-type", "application/grpc"), ("te", "trailers")]
        self._greeting = (
            frames.PREFACE
            + frames.written(frames.Kind.SETTINGS, frames.Setting.INITIAL_WINDOW_SIZE.to_bytes(2) + _ROOM.to_bytes(4))
            + frames.written(frames.Kind.WINDOW_UPDATE, (_ROOM - _FIRST_ROOM).to_bytes(4))
            + frames.written(frames.Kind.HEADERS, hpack.Encoder().encode(headers), 1, frames.Flag.END_HEADERS)
        )
        self._idle: deque[_Connection] = deque()
        self._connections: dict[int, _Connection] = {}
        """By their numbers."""
        self._epoll = select.epoll()
        threading.Thread(target=self._read, name="frames", daemon=True).start()

    def ask(self, patience_s: float, answered: Callable[[str], None]) -> None:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = _Connection(self._at, self._greeting, self._message, patience_s)
            self._connections[connection.socket.fileno()] = connection
            self._epoll.register(connection.socket, select.EPOLLIN)
        connection.answered = answered
        connection.send()

    def _read(self) -> None:
        while True:
            for number, _ in self._epoll.poll():
                connection = self._connections[number]
                if (outcome := connection.heard()) is not None:
                    self._idle.append(connection)
                    connection.answered(outcome)


class _Connection:
    """With one stream."""

    answered: Callable[[str], None]
    """Is told what became of the call under way."""

    def __init__(self, at: tuple[str, int], greeting: bytes, message: bytes, patience_s: float) -> None:
        self.socket = socket.create_connection(at, patience_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(greeting)
        self._size = len(message)
        self._received = b""
        self._rooms = {0: _FIRST_ROOM, 1: _FIRST_ROOM}
        """Of the connection, and of its stream."""
        self._most = 16 << 10
        while not self._request_fits():
            assert self.heard() is None
        parts = [message[at : at + self._most] for at in range(0, self._size, self._most)]
        self._request = b"".join(frames.written(frames.Kind.DATA, part, 1) for part in parts)

    def _request_fits(self) -> bool:
        return min(self._rooms.values()) >= self._size

    def send(self) -> None:
        assert self._request_fits(), "the server gives no room for a message when it has answered the one before"
        for each in self._rooms:
            self._rooms[each] -= self._size
        self.socket.sendall(self._request)

    def heard(self) -> str | None:
        """What became of the call, where that was told."""
        received = self._received + self.socket.recv(1 << 16)
        outcome, at = None, 0
        while len(received) >= at + frames.HEAD_BYTES:
            end = at + frames.HEAD_BYTES + int.from_bytes(received[at : at + 3])
            if len(received) < end:
                break
            kind, flags, number = received[at + 3], received[at + 4], int.from_bytes(received[at + 5 : at + 9])
            outcome = self._hear(kind, flags, number, received[at + frames.HEAD_BYTES : end]) or outcome
            at = end
        self._received = received[at:]
        return outcome

    def _hear(self, kind: int, flags: int, number: int, payload: bytes) -> str | None:
        if kind == frames.Kind.DATA:
            answer = InferStreamResponse.FromString(payload[5:])
            return ANSWER if answer.HasField("judgement") else str(answer)
        if kind == frames.Kind.WINDOW_UPDATE:
            self._rooms[number] += int.from_bytes(payload)
        elif kind == frames.Kind.SETTINGS and not flags & frames.Flag.ACK:
            told = dict(frames.settings_of(number, payload, flags))
            self._rooms[1] += told.get(frames.Setting.INITIAL_WINDOW_SIZE, _FIRST_ROOM) - _FIRST_ROOM
            self._most = told.get(frames.Setting.MAX_FRAME_SIZE, self._most)
            self.socket.sendall(frames.written(frames.Kind.SETTINGS, flags=frames.Flag.ACK))
        elif kind == frames.Kind.PING and not flags & frames.Flag.ACK:
            self.socket.sendall(frames.written(frames.Kind.PING, payload, flags=frames.Flag.ACK))
        ends = kind == frames.Kind.HEADERS and flags & frames.Flag.END_STREAM
        if ends or kind in (frames.Kind.GOAWAY, frames.Kind.RST_STREAM):
            return f"the stream was ended: {payload!r}"
        return None


_ROOM = (1 << 31) - 1
"""For more answers than anybody measures."""
_FIRST_ROOM = (1 << 16) - 1
"""Of every connection and stream until more is told."""


def _ask_by_frames(address: str, side: int) -> Asker:
    request = InferStreamRequest(pixels=to_pixels(_image(side))).SerializeToString()
    return _Frames(address, f"/{DESCRIPTOR.services_by_name['InferenceService'].full_name}/InferStream", request).ask


class _Http:
    """What a call over HTTP costs at least: a request that was made once, a connection for each call under way, and one
    thread that reads the answers."""

    def __init__(self, address: str, body: bytes) -> None:
        host, _, port = address.rpartition(":")
        self._at = (host, int(port))
        head = f"POST /inference HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self._idle: deque[socket.socket] = deque()
        self._calls: dict[int, tuple[socket.socket, Callable[[str], None]]] = {}
        """By the number of the connection."""
        self._epoll = select.epoll()
        threading.Thread(target=self._read, name="http", daemon=True).start()

    def ask(self, patience_s: float, answered: Callable[[str], None]) -> None:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = socket.create_connection(self._at, patience_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._epoll.register(connection, select.EPOLLIN)
        self._calls[connection.fileno()] = (connection, answered)
        connection.sendall(self._request)

    def _read(self) -> None:
        while True:
            for number, _ in self._epoll.poll():
                connection, answered = self._calls.pop(number)
                answer = connection.recv(4096)
                self._idle.append(connection)
                # Head and body of a few bytes come at once; a head alone is no answer.
                good = answer.startswith(b"HTTP/1.1 200 ") and not answer.endswith(b"\r\n")
                answered(ANSWER if good else f"over HTTP came {answer!r}")


def _ask_mosec(address: str, side: int) -> Asker:
    return _Http(address, _image(side).tobytes()).ask


def _image(side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


ASKERS: dict[str, Callable[[str, int], Asker]] = {
    "calls": _ask_by_call,
    "streams": _ask_by_stream,
    "frames": _ask_by_frames,
    "mosec": _ask_mosec,
}


def serve(version: str, engine: str, streams: str, threads: str, batch: str, rpc_threads: str) -> None:
    from inspectbus.bus import connect
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
                "model_dir": version,
                "engine": engine,
                "device": "cpu",
                "streams": int(streams),
                "threads": int(threads),
                "max_batch_size": int(batch),
                "rpc_threads": int(rpc_threads),
            }
        )
        with connect("embedded://bench") as bus, open_service(settings, bus) as door:
            say({"address": door.address})
            sys.stdin.read()


def say(words: dict[str, Any]) -> None:
    print(json.dumps(words), flush=True)


def main(role: str, *how: str) -> None:
    if role == "serve":
        serve(*how)
        return
    run: Callable[..., dict[str, Any]] = {"raw": Raw, "clients": Clients, "flood": Flood}[role](*how).run
    say({})
    for line in sys.stdin:
        *numbers, seconds = line.split()
        say(run(*map(int, numbers), float(seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
