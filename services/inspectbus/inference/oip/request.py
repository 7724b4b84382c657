"""A ModelInferRequest becomes images, or is refused by the field at fault before its pixels are touched.

bytes ─ few words beside the pixels? ─> protobuf ─> parameters, outputs, the input's name, datatype and shape
                                                        └─> contents, raw or typed ─> one image each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError, Message

from inspectbus.api.oip.open_inference_pb2 import InferTensorContents, ModelInferRequest
from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import BadField, TooLarge
from inspectbus.imaging import Image
from inspectbus.inference.oip.tensors import IMAGES, UINT8, input_of, outputs_of
from inspectbus.runtime.loop_server import LARGE_BYTES

InputTensor: TypeAlias = ModelInferRequest.InferInputTensor


def _number(message: type[Message], field: str) -> int:
    return message.DESCRIPTOR.fields_by_name[field].number


WORDS_BYTES = LARGE_BYTES
"""Of all that a request says beside its pixels. What protobuf makes of it may take fifty times as much memory, and
nobody else runs in Python meanwhile."""

_Pixels: TypeAlias = Mapping[int, "_Pixels | None"]
_CONTENTS = ("bool_contents", "int_contents", "uint_contents", "fp32_contents", "fp64_contents")
"""That take four times their bytes at most."""
_PIXELS: _Pixels = {
    _number(ModelInferRequest, "raw_input_contents"): None,
    _number(ModelInferRequest, "inputs"): {
        _number(InputTensor, "contents"): {_number(InferTensorContents, name): None for name in _CONTENTS}
    },
}
"""Where they stand: by the numbers of fields, and of fields within those."""

PREPARATION_HASH = "preparation_hash"
"""The one parameter a request may have."""


class Asked(NamedTuple):
    """A ModelInferRequest, and what it took on its way."""

    message: ModelInferRequest
    size: int

    @property
    def small(self) -> bool:
        """Whether its images are made in less than a millisecond, whatever stands in it: of hundreds, or of pixels that
        are numbers, they take many."""
        return self.size <= LARGE_BYTES and len(self.message.raw_input_contents) > 0


def read(data: bytes) -> Asked:
    """Raises DecodeError when it is no such message, and TooLarge where it says too much beside its pixels."""
    if len(data) > WORDS_BYTES and _words(memoryview(data), _PIXELS) > WORDS_BYTES:
        raise TooLarge(
            f"the request says more than {WORDS_BYTES} bytes beside its pixels, which stand in raw_input_contents "
            "or in inputs[0].contents.uint_contents"
        )
    return Asked(ModelInferRequest.FromString(data), len(data))


def _words(data: memoryview, pixels: _Pixels) -> int:
    """How many bytes stand elsewhere than where `pixels` do, or more than may. Raises DecodeError.

    https://protobuf.dev/programming-guides/encoding: a field is its number and kind, and then a number, some bytes, or
    a length and as many bytes.
    """
    words = at = 0
    while at < len(data) and words <= WORDS_BYTES:
        begins = at
        tag, at = _varint(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == 2:
            size, at = _varint(data, at)
            words += at - begins
            if field not in pixels:
                words += size
            elif (within := pixels[field]) is not None:
                words += _words(data[at : at + size], within)
            at += size
            continue
        if kind == 0:
            _, at = _varint(data, at)
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            raise DecodeError("a kind of field that no message of this protocol has")
        words += at - begins
    return words


_FIXED_BYTES = {1: 8, 5: 4}


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number there, and where it ends. Raises DecodeError."""
    number = 0
    for count, byte in enumerate(data[at : at + 10]):
        number |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return number, at + count + 1
    raise DecodeError("a number that does not end")


def preparation_hash_of(request: ModelInferRequest) -> str:
    """The preparation its pixels went through; empty where the caller vouches for them.

    Raises BadField for any other parameter: one that is not known could mean anything, and be missed.
    """
    _refuse_parameters("parameters", set(request.parameters) - {PREPARATION_HASH}, f"{PREPARATION_HASH} alone is known")
    if PREPARATION_HASH not in request.parameters:
        return ""
    parameter = request.parameters[PREPARATION_HASH]
    if parameter.WhichOneof("parameter_choice") != "string_param":
        field = f"parameters[{PREPARATION_HASH}]"
        raise BadField(f"{field} is no string_param", field=field)
    return parameter.string_param


def output_names(request: ModelInferRequest, card: ModelCard) -> list[str]:
    """The outputs asked for, each once, in their order; empty where none is named. Raises BadField."""
    known = [output.name for output in outputs_of(card)]
    names: list[str] = []
    for position, output in enumerate(request.outputs):
        field = f"outputs[{position}]"
        if output.name not in known:
            raise BadField(
                f"{field}.name is {output.name!r}; {card.name} gives {', '.join(known)}", field=f"{field}.name"
            )
        if output.name in names:
            raise BadField(f"{field}.name is {output.name!r} again; each output is given once", field=f"{field}.name")
        _refuse_parameters(f"{field}.parameters", set(output.parameters), "none is known here")
        names.append(output.name)
    return names


def images_of(request: ModelInferRequest, card: ModelCard, limit: int) -> list[Image]:
    """Each (H, W, 3) uint8 RGB: views of one copy of the message's bytes where contents are raw.

    Raises BadField naming the field, also for more than `limit` images, before any pixel is copied.
    """
    tensor = _only_input(request)
    count = _checked_count(tensor, card, limit)
    shape = (card.preparation.height, card.preparation.width, 3)
    if request.raw_input_contents:
        if tensor.HasField("contents"):
            raise BadField(
                "inputs[0].contents and raw_input_contents are both given; give one of them", field="inputs[0].contents"
            )
        return _from_raw(request.raw_input_contents, count, shape)
    if tensor.HasField("contents"):
        return _from_typed(tensor.contents, count, shape)
    raise BadField(
        "there are no pixels: give them as the one entry of raw_input_contents, or as inputs[0].contents.uint_contents",
        field="raw_input_contents",
    )


def _only_input(request: ModelInferRequest) -> InputTensor:
    for position, tensor in enumerate(request.inputs):
        if tensor.name != IMAGES:
            field = f"inputs[{position}].name"
            raise BadField(f"{field} is {tensor.name!r}; the one input is {IMAGES}", field=field)
    if len(request.inputs) != 1:
        raise BadField(f"inputs has {len(request.inputs)} tensors; the one input is {IMAGES}", field="inputs")
    tensor = request.inputs[0]
    # One could say that its pixels lie elsewhere, in shared memory.
    _refuse_parameters("inputs[0].parameters", set(tensor.parameters), "none is known here")
    return tensor


def _refuse_parameters(field: str, names: set[str], known: str) -> None:
    if names:
        name = min(names)
        raise BadField(f"{field} has {name!r}; {known}", field=field)


def _checked_count(tensor: InputTensor, card: ModelCard, limit: int) -> int:
    """How many images there are said to be."""
    if tensor.datatype != UINT8:
        raise BadField(f"inputs[0].datatype is {tensor.datatype!r}; {IMAGES} is {UINT8}", field="inputs[0].datatype")
    expected = list(input_of(card).shape)
    if len(tensor.shape) != len(expected) or list(tensor.shape[1:]) != expected[1:]:
        raise BadField(
            f"inputs[0].shape is {_spelt(tensor.shape)}; {card.name} takes {_spelt(expected)}, channels last",
            field="inputs[0].shape",
        )
    count = tensor.shape[0]
    if not 1 <= count <= limit:
        raise BadField(
            f"inputs[0].shape is {_spelt(tensor.shape)}; from 1 to {limit} images are judged by one call",
            field="inputs[0].shape",
        )
    return count


def _spelt(shape: Sequence[int]) -> str:
    """However many sides a caller sends, an error has room for few."""
    sides = [str(side) for side in shape[:8]] + ["..."] * (len(shape) > 8)
    return f"[{', '.join(sides)}]"


def _from_raw(contents: Sequence[bytes], count: int, shape: tuple[int, int, int]) -> list[Image]:
    if len(contents) != 1:
        raise BadField(f"raw_input_contents has {len(contents)} entries for one input", field="raw_input_contents")
    # Looked at once: each look at a message's bytes copies them.
    pixels = contents[0]
    expected = count * int(np.prod(shape))
    if len(pixels) != expected:
        field = "raw_input_contents[0]"
        raise BadField(f"{field} has {len(pixels)} bytes; {_spelt([count, *shape])} takes {expected}", field=field)
    return list(np.frombuffer(pixels, np.uint8).reshape(count, *shape))


def _from_typed(contents: InferTensorContents, count: int, shape: tuple[int, int, int]) -> list[Image]:
    field = "inputs[0].contents.uint_contents"
    for descriptor, _ in contents.ListFields():
        if descriptor.name != "uint_contents":
            name = f"inputs[0].contents.{descriptor.name}"
            raise BadField(f"{name} is set; elements of {UINT8} stand in {field}", field=name)
    elements, size = contents.uint_contents, int(np.prod(shape))
    if len(elements) != count * size:
        raise BadField(
            f"{field} has {len(elements)} elements; {_spelt([count, *shape])} takes {count * size}", field=field
        )
    # Image by image: all at once, the numbers of a large message would keep every other thread waiting.
    return [_image(elements[at : at + size], shape, field) for at in range(0, count * size, size)]


def _image(elements: list[int], shape: tuple[int, int, int], field: str) -> Image:
    try:
        return np.array(elements, np.uint8).reshape(shape)
    except OverflowError:
        raise BadField(f"{field} has {max(elements)}; {UINT8} ends at 255", field=field) from None
