"""AcquisitionService: stations, pushed frames, and inspection of an image while you wait."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import TypeVar

import grpc
import structlog

from inspectbus.acquisition.conversation import LOOK_UP_S, Conversation
from inspectbus.acquisition.inspections import Inspection, Inspections
from inspectbus.acquisition.plant import Plant
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.acquisition.station import Station
from inspectbus.api.v1 import acquisition_pb2, acquisition_pb2_grpc, frame_pb2
from inspectbus.domain.frame import checked_frame_id
from inspectbus.domain.names import checked_name
from inspectbus.errors import BadField, BusClosed, InspectBusError, Internal, NotPossibleNow, TooLate
from inspectbus.runtime.identity import caller
from inspectbus.runtime.refusals import refusal

Request = TypeVar("Request")
Response = TypeVar("Response")

log = structlog.get_logger(__name__)

MAX_TEXT_CHARS = 500
"""For what a sender may call its part or its image; longer is a mistake, and would stand in every record."""
ANSWER_MARGIN_S = 0.05
"""How long before the caller's deadline an inspection gives up, so that TooLate arrives with the frame's id."""
MAX_PATIENCE_S = 3600.0
"""A longer deadline is as good as none."""
FAULT_S = 5.0

_LATEST_S = 253402300799
"""The last second a protobuf Timestamp may hold: 9999-12-31T23:59:59Z."""


class AcquisitionRpc(acquisition_pb2_grpc.AcquisitionServiceServicer):
    """Streams end early when `closing` is set: they could outlast any patience."""

    def __init__(
        self, plant: Plant, inspections: Inspections, settings: AcquisitionSettings, closing: threading.Event
    ) -> None:
        self._plant = plant
        self._inspections = inspections
        self._settings = settings
        self._closing = closing

    def ListStations(
        self, request: acquisition_pb2.ListStationsRequest, context: grpc.ServicerContext
    ) -> acquisition_pb2.ListStationsResponse:
        return acquisition_pb2.ListStationsResponse(stations=[station.status() for station in self._plant])

    def GetStation(
        self, request: acquisition_pb2.GetStationRequest, context: grpc.ServicerContext
    ) -> acquisition_pb2.GetStationResponse:
        station = self._plant.station(request.line, request.station)
        return acquisition_pb2.GetStationResponse(station=station.status())

    def StartStation(
        self, request: acquisition_pb2.StartStationRequest, context: grpc.ServicerContext
    ) -> acquisition_pb2.StartStationResponse:
        station = self._plant.station(request.line, request.station)
        if self._closing.is_set():
            raise NotPossibleNow("the service is stopping")
        station.start()
        station.confirm_started()
        return acquisition_pb2.StartStationResponse(station=station.status())

    def StopStation(
        self, request: acquisition_pb2.StopStationRequest, context: grpc.ServicerContext
    ) -> acquisition_pb2.StopStationResponse:
        station = self._plant.station(request.line, request.station)
        station.ask_to_stop()
        if not station.stopped(_patience_s(context, self._settings.drain_s)):
            raise TooLate(f"{station} takes no more frames, but some are still in flight", field="station")
        return acquisition_pb2.StopStationResponse(station=station.status())

    def PublishFrames(
        self, request_iterator: Iterator[acquisition_pb2.PublishFramesRequest], context: grpc.ServicerContext
    ) -> Iterator[acquisition_pb2.PublishFramesResponse]:
        sender = caller.get()

        def begin(
            position: int,
            request: acquisition_pb2.PublishFramesRequest,
            answer: Callable[[acquisition_pb2.PublishFramesResponse | None], None],
        ) -> None:
            # Outside of what is refused frame by frame: a sender that speaks for another's station ends its stream.
            sender.check_speaks_for(request.line, request.station)
            response = acquisition_pb2.PublishFramesResponse(position=position, frame_id=request.shot.frame_id[:64])

            def accepted(future: Future[None]) -> None:
                error = future.exception()
                if error is not None:
                    response.refusal.CopyFrom(refusal(_told(error)))
                answer(None if self._stopped_by(error) else response)

            try:
                station = self._station(request)
                if not station.takes_pushes:
                    raise NotPossibleNow(f"{station} reads its own source; push to a push station", field="station")
                frame = station.frame(self._checked(request.shot))
                response.frame_id = frame.frame_id
                station.publish(frame).add_done_callback(accepted)
            except InspectBusError as error:
                response.refusal.CopyFrom(refusal(error))
                answer(None if self._stopped_by(error) else response)

        yield from self._conversation(begin, context).hold(request_iterator)

    def Inspect(
        self, request: acquisition_pb2.InspectRequest, context: grpc.ServicerContext
    ) -> acquisition_pb2.InspectResponse:
        caller.get().check_speaks_for(request.line, request.station)
        patience_s = _patience_s(context, self._settings.inspect_patience_s)
        inspection = self._inspect(request, patience_s)

        def give_up() -> None:
            inspection.cancel()

        # A caller that has gone gives its place to another.
        if not context.add_callback(give_up):
            give_up()
        try:
            # The deadline is kept by the inspection; ours is for a fault there.
            decision = inspection.result(patience_s + FAULT_S)
        except CancelledError:
            raise TooLate("the caller has gone") from None
        return acquisition_pb2.InspectResponse(decision=decision)

    def InspectStream(
        self, request_iterator: Iterator[acquisition_pb2.InspectStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[acquisition_pb2.InspectStreamResponse]:
        open_inspections: set[Inspection] = set()
        sender = caller.get()

        def begin(
            position: int,
            request: acquisition_pb2.InspectStreamRequest,
            answer: Callable[[acquisition_pb2.InspectStreamResponse | None], None],
        ) -> None:
            sender.check_speaks_for(request.line, request.station)
            response = acquisition_pb2.InspectStreamResponse(position=position)

            def decided(inspection: Inspection) -> None:
                open_inspections.discard(inspection)
                if inspection.cancelled():
                    return
                error = inspection.exception()
                if error is None:
                    response.decision.CopyFrom(inspection.result())
                else:
                    response.refusal.CopyFrom(refusal(_told(error)))
                answer(None if self._stopped_by(error) else response)

            try:
                inspection = self._inspect(request, self._patience_of(request))
            except InspectBusError as error:
                response.refusal.CopyFrom(refusal(error))
                answer(None if self._stopped_by(error) else response)
            else:
                open_inspections.add(inspection)
                inspection.add_done_callback(decided)

        try:
            yield from self._conversation(begin, context).hold(request_iterator)
        finally:
            for inspection in list(open_inspections):
                inspection.cancel()

    def WatchGate(
        self, request: acquisition_pb2.WatchGateRequest, context: grpc.ServicerContext
    ) -> Iterator[acquisition_pb2.WatchGateResponse]:
        with self._station(request).gate.watch() as watcher:
            while context.is_active():
                event = watcher.next(LOOK_UP_S)
                if event is not None:
                    yield event
                elif self._closing.is_set():
                    raise BusClosed("the service is stopping: take the fail-safe position")

    def _conversation(
        self, begin: Callable[[int, Request, Callable[[Response | None], None]], None], context: grpc.ServicerContext
    ) -> Conversation[Request, Response]:
        return Conversation(begin, context, self._closing, window=self._settings.window, drain_s=self._settings.drain_s)

    def _stopped_by(self, error: BaseException | None) -> bool:
        """The service ends, and nothing else is wrong: the stream's end tells its sender, who sends it elsewhere."""
        return isinstance(error, BusClosed) and self._closing.is_set()

    def _inspect(
        self, request: acquisition_pb2.InspectRequest | acquisition_pb2.InspectStreamRequest, patience_s: float
    ) -> Inspection:
        station = self._station(request)
        recipe = checked_name(request.recipe, "recipe") if request.recipe else ""
        frame = station.frame(self._checked(request.shot), recipe)
        return self._inspections.begin(
            frame.frame_id,
            lambda: station.publish(frame, may_spool=False),
            patience_s,
            own_id=bool(request.shot.frame_id),
            sent_before=bool(request.shot.frame_id) and request.shot.sent_before,
        )

    def _station(
        self,
        request: acquisition_pb2.PublishFramesRequest
        | acquisition_pb2.InspectRequest
        | acquisition_pb2.InspectStreamRequest
        | acquisition_pb2.WatchGateRequest,
    ) -> Station:
        if not request.line and not request.station:
            return self._plant.inspect_station
        return self._plant.station(request.line, request.station)

    def _checked(self, shot: acquisition_pb2.Shot) -> acquisition_pb2.Shot:
        """The shot with its id in canonical form. Raises BadField naming the field."""
        if not shot.image:
            raise BadField("shot.image is empty", field="shot.image")
        limit = self._settings.max_image_bytes
        if len(shot.image) > limit:
            raise BadField(f"shot.image has {len(shot.image)} bytes, at most {limit} are taken", field="shot.image")
        if shot.frame_id:
            shot.frame_id = checked_frame_id(shot.frame_id, "shot.frame_id")
        for name in ("source_item", "part_id", "lot_id", "product"):
            text = getattr(shot, name)
            if len(text) > MAX_TEXT_CHARS or not text.isprintable():
                raise BadField(
                    f"shot.{name} must be printable text of at most {MAX_TEXT_CHARS} characters", field=f"shot.{name}"
                )
        if shot.truth not in frame_pb2.Label.values():
            raise BadField(f"shot.truth: there is no label {shot.truth}", field="shot.truth")
        moment = shot.captured_at
        if not (0 <= moment.seconds <= _LATEST_S and 0 <= moment.nanos < 1_000_000_000):
            raise BadField("shot.captured_at is no moment between 1970 and 9999", field="shot.captured_at")
        return shot

    def _patience_of(self, request: acquisition_pb2.InspectStreamRequest) -> float:
        if not request.HasField("patience"):
            return self._settings.inspect_patience_s
        patience_s = request.patience.seconds + request.patience.nanos / 1e9
        if not 0 < patience_s <= MAX_PATIENCE_S:
            raise BadField(f"patience must be above 0 and at most {MAX_PATIENCE_S:.0f} s", field="patience")
        return patience_s


def _patience_s(context: grpc.ServicerContext, default_s: float) -> float:
    """How long the caller waits, less a margin for the answer's way back. Raises TooLate when that is over."""
    left_s = context.time_remaining()
    # A call without a deadline says so by None or by centuries.
    if left_s is None or left_s > MAX_PATIENCE_S:
        return default_s
    if left_s <= ANSWER_MARGIN_S:
        raise TooLate("the call's deadline had passed before it was begun; nothing was published")
    return left_s - ANSWER_MARGIN_S


def _told(error: BaseException) -> InspectBusError:
    if isinstance(error, InspectBusError):
        return error
    incident = uuid.uuid4().hex[:12]
    log.error("publishing failed", incident=incident, error=repr(error))
    return Internal(f"a fault in the service; its log has the details under incident {incident}")
