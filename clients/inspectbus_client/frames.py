"""Frames: one image inspected while you wait, many on one stream, and frames pushed from a camera of your own.

path or bytes ─> Shot, its frame id fixed ─> Inspect, InspectStream: a decision
                                          └─> PublishFrames: accepted; the decision comes to whoever watches
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from stat import S_ISREG

from google.protobuf.duration_pb2 import Duration

from inspectbus.api.v1 import acquisition_pb2, acquisition_pb2_grpc
from inspectbus.errors import BadField, InspectBusError, NotFound, UnreadableImage
from inspectbus_client.conversation import converse
from inspectbus_client.failures import from_refusal
from inspectbus_client.values import Decision, Label, number, read, timestamp
from inspectbus_client.wire import Wire

Image = Path | str | bytes
"""A file's path, or the bytes of an encoded image: PNG, JPEG, BMP or TIFF."""

INSPECT_S = 30.0
"""How long a decision may take, by default: a batch behind a queue, not a training."""
ENVELOPE_BYTES = 64 * 1024
"""Room for everything but the image in one message."""


@dataclass(frozen=True)
class Shot:
    """One image and what you know of its part. Sending the same shot again is safe: its frame is decided once."""

    image: Image = field(repr=False)
    source_item: str = ""
    """Its name in the records; empty: the file's name."""
    part_id: str = ""
    lot_id: str = ""
    product: str = ""
    truth: Label | None = None
    captured_at: datetime | None = None
    """None: the moment of arrival."""
    frame_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    sent_before: bool = False
    """You sent it, perhaps in a life before, and do not know its decision: what is recorded of it is the answer."""


@dataclass(frozen=True)
class Inspected:
    """Exactly one of `decision` and `error` is set."""

    shot: Shot
    decision: Decision | None
    error: InspectBusError | None


@dataclass(frozen=True)
class Published:
    """`error` is None when the frame was accepted."""

    shot: Shot
    error: InspectBusError | None


class Frames:
    """The part of the client that sends images."""

    _wire: Wire

    def inspect(
        self,
        image: Image | Shot,
        *,
        part_id: str = "",
        lot_id: str = "",
        product: str = "",
        line: str = "",
        station: str = "",
        recipe: str = "",
        timeout_s: float = INSPECT_S,
    ) -> Decision:
        """The decision on one image. Line and station empty: the service's own station for inspections.

        Raises UnreadableImage or NotFound for the file, TooLate when no decision came in time (it is still recorded,
        under the shot's frame id), and whatever the service refused it with.
        """
        shot = image if isinstance(image, Shot) else Shot(image, part_id=part_id, lot_id=lot_id, product=product)
        request = acquisition_pb2.InspectRequest(
            line=line, station=station, recipe=recipe, shot=_message(shot, self._wire.max_message_bytes)
        )
        answer = self._wire.ask(
            "acquisition", self._acquisition.Inspect, request, timeout_s=timeout_s, repeatable=True, again=_again
        )
        return read(Decision, answer.decision)

    def inspect_many(
        self,
        images: Iterable[Image | Shot],
        *,
        line: str = "",
        station: str = "",
        recipe: str = "",
        in_flight: int = 8,
        patience_s: float = INSPECT_S,
    ) -> Iterator[Inspected]:
        """Decisions as they fall, not in the order of images; an image that is refused ends nothing.

        At most `in_flight` images are read and not yet handed out. A stream that breaks is opened again and its
        unanswered images go again under their ids. Raises Unreachable when that fails for `patience_s`.
        """
        patience = Duration()
        patience.FromNanoseconds(int(patience_s * 1e9))

        def request_of(shot: Shot) -> acquisition_pb2.InspectStreamRequest:
            message = _message(shot, self._wire.max_message_bytes)
            return acquisition_pb2.InspectStreamRequest(
                line=line, station=station, recipe=recipe, shot=message, patience=patience
            )

        method = self._acquisition.InspectStream
        for shot, answer in converse(
            self._wire,
            "acquisition",
            method,
            _shots(images),
            request_of,
            again=_again,
            window=in_flight,
            patience_s=patience_s,
        ):
            if isinstance(answer, InspectBusError):
                yield Inspected(shot, None, answer)
            elif answer.HasField("decision"):
                yield Inspected(shot, read(Decision, answer.decision), None)
            else:
                yield Inspected(shot, None, from_refusal(answer.refusal))

    def publish_frames(
        self,
        frames: Iterable[Image | Shot],
        *,
        line: str,
        station: str,
        in_flight: int = 16,
        patience_s: float = INSPECT_S,
    ) -> Iterator[Published]:
        """Publishes frames of a push station, and says of each when it was accepted or why not, in any order.

        Nothing is sent until the answers are iterated. `frames` may go on for ever, such as a camera: it is read on a
        thread of its own and no further than `in_flight` ahead of the answers.
        """

        def request_of(shot: Shot) -> acquisition_pb2.PublishFramesRequest:
            message = _message(shot, self._wire.max_message_bytes)
            return acquisition_pb2.PublishFramesRequest(line=line, station=station, shot=message)

        method = self._acquisition.PublishFrames
        for shot, answer in converse(
            self._wire,
            "acquisition",
            method,
            _shots(frames),
            request_of,
            again=_again,
            window=in_flight,
            patience_s=patience_s,
        ):
            if isinstance(answer, InspectBusError):
                yield Published(shot, answer)
            else:
                yield Published(shot, from_refusal(answer.refusal) if answer.HasField("refusal") else None)

    @cached_property
    def _acquisition(self) -> acquisition_pb2_grpc.AcquisitionServiceStub:
        return acquisition_pb2_grpc.AcquisitionServiceStub(self._wire.channel("acquisition"))


def image_bytes(image: Image, max_bytes: int) -> bytes:
    """The bytes to send. Raises NotFound or UnreadableImage naming the file, before anything travels.

    Whether the content can be decoded is for the service to say; that it begins like none of the four formats is not.
    """
    if isinstance(image, bytes):
        name, data = "image", image
    else:
        name = _name(str(image))
        try:
            if not S_ISREG(Path(image).stat().st_mode):  # a pipe would be waited for, for ever
                raise UnreadableImage(f"{name}: is no file, nor a link to one", field=name)
            with Path(image).open("rb") as file:
                data = file.read(max_bytes + 1)
        except FileNotFoundError:
            raise NotFound(f"{name}: there is no such file", field=name) from None
        except OSError as error:
            raise UnreadableImage(f"{name}: cannot be read: {error.strerror or error}", field=name) from None
    if not data:
        raise UnreadableImage(f"{name}: is empty", field=name)
    if len(data) > max_bytes:
        raise UnreadableImage(f"{name}: has more than the {max_bytes} bytes one message may carry", field=name)
    if not data.startswith(_SIGNATURES):
        raise UnreadableImage(f"{name}: is not a PNG, JPEG, BMP or TIFF image", field=name)
    return data


_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def _name(path: str) -> str:
    """The path as text that any message and terminal can carry; file systems allow more."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in path)


def _shots(images: Iterable[Image | Shot]) -> Iterator[Shot]:
    for image in images:
        yield image if isinstance(image, Shot) else Shot(image)


def _message(shot: Shot, max_message_bytes: int) -> acquisition_pb2.Shot:
    source_item = shot.source_item or ("" if isinstance(shot.image, bytes) else _name(Path(shot.image).name))
    message = acquisition_pb2.Shot(
        image=image_bytes(shot.image, max_message_bytes - ENVELOPE_BYTES),
        frame_id=_checked_id(shot.frame_id),
        source_item=source_item,
        part_id=shot.part_id,
        lot_id=shot.lot_id,
        product=shot.product,
        sent_before=shot.sent_before,
    )
    if shot.truth is not None:
        message.truth = number(message, "truth", shot.truth)  # type: ignore[assignment] # enums are ints on the wire
    if shot.captured_at is not None:
        message.captured_at.CopyFrom(timestamp(shot.captured_at, "captured_at"))
    return message


def _again(
    request: acquisition_pb2.InspectRequest
    | acquisition_pb2.InspectStreamRequest
    | acquisition_pb2.PublishFramesRequest,
) -> None:
    """It goes once more under its id, perhaps to another replica: the decision of the first try may stand by then."""
    request.shot.sent_before = True


def _checked_id(frame_id: str) -> str:
    # Without an id of its own a repeated try would make a second frame.
    try:
        return str(uuid.UUID(frame_id))
    except ValueError:
        raise BadField(f"{frame_id[:80]!r} is not a UUID", field="frame_id") from None
