"""The Open Inference Protocol's client from PyPI, unchanged, in a process of its own.

Both it and the service bring the contract `inference`, and one interpreter takes one copy only.

call ─> pipe ─> child: tritonclient ─> the service under test
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import multiprocessing
import queue
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray

from tests.doubles.servers import missing

PATIENCE_S = 60.0
"""The child's first call imports the client."""

Fields: TypeAlias = dict[str, tuple[int, int, bool, str]]
"""Of a message, by name: number, type, whether repeated, and the message it holds."""


class RefusedError(Exception):
    """The client's InferenceServerException."""

    def __init__(self, status: str | None, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Answer(NamedTuple):
    """An InferResult: its message as a dictionary, and its tensors as the client reads them."""

    message: dict[str, Any]
    tensors: dict[str, NDArray[Any]]


class TritonClient:
    """Use as a context. Its child ends with it, and with this process. A refused call raises RefusedError."""

    def __enter__(self) -> Self:
        if importlib.util.find_spec("tritonclient") is None:
            missing("tritonclient", "pip install 'tritonclient[grpc]'")
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._child = spawn.Process(target=_serve, args=(theirs,), name="tritonclient", daemon=True)
        self._child.start()
        theirs.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pipe.close()
        self._child.join(PATIENCE_S)
        assert self._child.exitcode == 0

    def contract(self) -> tuple[dict[str, Fields], list[str]]:
        """The fields of each message, and the names of the calls, that the client was made for."""
        return self._call(_contract)  # type: ignore[no-any-return]

    def ask(self, address: str, method: str, *arguments: str) -> Any:
        """A call without pixels: its message as a dictionary, or what the client makes of it."""
        return self._call(_ask, address, method, arguments)

    def infer(self, address: str, images: NDArray[Any], **how: Any) -> Answer:
        """By ModelInfer. See `_infer` for what may be told."""
        return self._call(_infer, address, images, how)  # type: ignore[no-any-return]

    def open_stream(self, address: str) -> None:
        """Of ModelStreamInfer, and waits for what its callback is told."""
        self._call(_open_stream, address)

    def run(self, program: str, **names: Any) -> str:
        """What a program prints that finds these names."""
        return self._call(_run, program, names)  # type: ignore[no-any-return]

    def _call(self, call: Callable[..., Any], *arguments: Any) -> Any:
        self._pipe.send((call, arguments))
        assert self._pipe.poll(PATIENCE_S), "the client's process does not answer"
        answer, refused = self._pipe.recv()
        if refused is not None:
            raise RefusedError(*refused)
        return answer


def fields_of(contract: FileDescriptor) -> dict[str, Fields]:
    """The fields of every message, nested ones too, by the message's full name."""
    found: dict[str, Fields] = {}
    waiting: list[Descriptor] = list(contract.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        waiting.extend(message.nested_types)
        found[message.full_name] = {
            field.name: (
                field.number,
                field.type,
                field.is_repeated,
                field.message_type.full_name if field.message_type else "",
            )
            for field in message.fields
        }
    return found


def _serve(pipe: Connection) -> None:
    from tritonclient.utils import InferenceServerException

    while True:
        try:
            call, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((call(*arguments), None))
        except InferenceServerException as error:
            pipe.send((None, (error.status(), error.message())))


def _contract() -> tuple[dict[str, Fields], list[str]]:
    from tritonclient.grpc import service_pb2

    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    return fields_of(service_pb2.DESCRIPTOR), [method.full_name for method in service.methods]


def _ask(address: str, method: str, arguments: tuple[str, ...]) -> Any:
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(address) as client:
        answer = getattr(client, method)(*arguments)
    return answer if isinstance(answer, bool) else MessageToDict(answer, preserving_proto_field_name=True)


def _infer(address: str, images: NDArray[Any], how: dict[str, Any]) -> Answer:
    """`how`: model, name, datatype and shape of the input, the outputs' names, and what else `infer` takes."""
    from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

    model = how.pop("model", "tiny")
    pixels = InferInput(how.pop("name", "images"), list(images.shape), how.pop("datatype", "UINT8"))
    pixels.set_data_from_numpy(images)
    if (shape := how.pop("shape", None)) is not None:
        pixels.set_shape(shape)
    if (region := how.pop("shared_memory", None)) is not None:
        pixels.set_shared_memory(region, images.nbytes)
    outputs = [InferRequestedOutput(name, **more) for name, more in how.pop("outputs", {}).items()]
    with InferenceServerClient(address) as client:
        return _answer(client.infer(model, [pixels], outputs=outputs or None, **how))


def _open_stream(address: str) -> None:
    from tritonclient.grpc import InferenceServerClient

    told: queue.Queue[Any] = queue.Queue()
    with InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: told.put(error))
        if error := told.get(timeout=PATIENCE_S):
            raise error


def _run(program: str, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "program", "exec"), names)
    return printed.getvalue()


def _answer(result: Any) -> Answer:
    message = result.get_response()
    tensors = {output.name: np.array(result.as_numpy(output.name)) for output in message.outputs}
    return Answer(MessageToDict(message, preserving_proto_field_name=True), tensors)
