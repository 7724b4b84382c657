"""A request's pixels read in place, against protobuf, which reads any message."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from inspectbus.api.v1.frame_pb2 import Claim
from inspectbus.api.v1.inference_pb2 import InferRequest, InferStreamRequest
from inspectbus.api.v1.prepared_frame_pb2 import Pixels
from inspectbus.errors import BadField
from inspectbus.imaging import Image
from inspectbus.imaging.pixels import from_pixels, to_pixels
from inspectbus.inference.request import Request, read

SIDES = st.integers(0, 40)
WORDS = st.text(max_size=40)


@st.composite
def messages(draw: st.DrawFn) -> InferRequest | InferStreamRequest:
    """Sound ones, and such whose sizes do not agree."""
    height, width, channels = draw(SIDES), draw(SIDES), draw(st.sampled_from([3, 3, 3, 1, 4, 0]))
    count = height * width * channels + draw(st.sampled_from([0, 0, 0, 1, -1]))
    pixels = Pixels(height=height, width=width, channels=channels, data=draw(st.randoms()).randbytes(max(0, count)))
    if draw(st.booleans()):
        pixels.claim.CopyFrom(Claim())
    if draw(st.booleans()):
        return InferRequest(pixels=pixels, preparation_hash=draw(WORDS), model=draw(WORDS))
    return InferStreamRequest(pixels=pixels, preparation_hash=draw(WORDS), model=draw(WORDS))


def same(data: bytes) -> Request:
    """What was read, once protobuf has read the same, or refused it with the same words."""
    message = InferRequest.FromString(data)
    request = read(data)
    assert (request.preparation_hash, request.model) == (message.preparation_hash, message.model)
    expected, image = outcome(lambda: from_pixels(message.pixels)), outcome(request.image)
    np.testing.assert_equal(image, expected)
    if isinstance(image, np.ndarray):
        assert not image.flags.writeable
    return request


def outcome(read_image: Callable[[], Image]) -> Image | tuple[str, str]:
    try:
        return read_image()
    except BadField as error:
        return error.message, error.field


@given(messages())
def test_every_message_is_read_as_protobuf_reads_it(message: InferRequest | InferStreamRequest) -> None:
    same(message.SerializeToString())


@given(messages(), messages())
def test_of_what_is_said_twice_the_last_counts_as_protobuf_has_it(first: InferRequest, then: InferRequest) -> None:
    same(first.SerializeToString() + then.SerializeToString())


@given(messages(), st.data())
def test_bytes_that_were_cut_or_changed_are_read_or_refused_as_by_protobuf(
    message: InferRequest, data: st.DataObject
) -> None:
    sent = bytearray(message.SerializeToString())
    if not sent:
        return
    for _ in range(data.draw(st.integers(0, 3))):
        # Where the sizes are said, mostly.
        sent[data.draw(st.integers(0, min(len(sent) - 1, 16)))] = data.draw(st.integers(0, 255))
    received = bytes(sent[: data.draw(st.integers(0, len(sent)))])
    try:
        InferRequest.FromString(received)
    except DecodeError:
        with pytest.raises(DecodeError):
            read(received)
    else:
        same(received)


def test_pixels_written_as_every_library_does_are_not_copied() -> None:
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    data = InferStreamRequest(pixels=to_pixels(image), preparation_hash="1f00", model="m").SerializeToString()

    request = same(data)

    assert isinstance(request.pixels, np.ndarray)
    assert np.shares_memory(request.image(), np.frombuffer(data, np.uint8))


def test_both_requests_have_one_layout() -> None:
    single, streamed = (
        [(field.name, field.number, field.type, field.message_type) for field in message.DESCRIPTOR.fields]
        for message in (InferRequest, InferStreamRequest)
    )

    assert single == streamed
