"""Do the services answer, do they know us, will they tomorrow, and what time is it there? gRPC health at the door, a
call that needs a role, the end of its certificate, the Date of the metrics port's answer."""

from __future__ import annotations

import http.client
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inspectbus.channels import NO_ACCESS, Access, open_channel
from inspectbus.doctor.clock import judged
from inspectbus.doctor.finding import Finding, State
from inspectbus.handshake import end_of_certificate, obstacle

PATIENCE_S = 4.0
DATE_STEP_S = 1.0
"""HTTP tells whole seconds."""
SOON = timedelta(days=7)
"""As the alert CertificateEnds."""
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
"""For who calls, and not for what."""
CALLS = {
    "acquisition": "AcquisitionService/ListStations",
    "preprocessing": "PreprocessingService/ListRecipes",
    "inference": "InferenceService/GetEngine",
    "training": "ModelService/ListModels",
    # Of no frame: it is let in or not, and found or not.
    "results": "ResultsService/GetDecision",
}
"""What a viewer may ask of each, and an empty request does."""


def look_at_door(service: str, address: str, access: Access = NO_ACCESS, *, knows_us: bool = False) -> list[Finding]:
    """Health is told to everybody; `knows_us` asks too whether this caller may come in."""
    about = f"{service} service"
    with open_channel(address, access) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                nobody = f"nobody answers at {address}: start it with `inspectbus serve {service}`"
                says = obstacle(address, access) or nobody
            elif error.code() in REFUSALS:
                says = _refused(address, error)
            else:
                says = f"what answers at {address} is no service of ours: {error.code().name}"
            return [Finding(about, State.FAIL, says)]
        refused = _refusal(channel, service, address) if knows_us else ""
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        return [Finding(about, State.WARN, f"answers at {address} that it does not serve: it is starting or stopping")]
    if refused:
        return [Finding(about, State.FAIL, refused)]
    return [Finding(about, State.OK, f"serves at {address}"), *_certificate(service, address, access)]


def _certificate(service: str, address: str, access: Access) -> list[Finding]:
    """Only of one that ends soon: who renews it should have done so long before."""
    ends = end_of_certificate(address, access)
    if ends is None or ends - datetime.now(UTC) > SOON:
        return []
    says = f"of {address} ends at {ends:%Y-%m-%d %H:%M} UTC: renew it before, it is read without a restart"
    return [Finding(f"certificate of {service}", State.WARN, says)]


def _refusal(channel: grpc.Channel, service: str, address: str) -> str:
    """What is said to whoever may not even look; empty for who may, whatever comes of the call itself."""
    call: Any = channel.unary_unary(f"/inspectbus.api.v1.{CALLS[service]}")
    try:
        call(b"", timeout=PATIENCE_S)
    except grpc.RpcError as error:
        if error.code() in REFUSALS:
            return _refused(address, error)
    return ""


def _refused(address: str, error: grpc.RpcError) -> str:
    """In the door's own words."""
    return f"serves at {address}, and refuses this caller: {error.details()} (INSPECTBUS_TOKEN_FILE names its token)"


def look_at_clock(service: str, host: str, port: int) -> list[Finding]:
    """By the answer's Date header, whatever the answer is."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    try:
        before_s = time.time()
        connection.request("GET", "/metrics")
        date = connection.getresponse().getheader("Date")
        after_s = time.time()
        theirs_s = parsedate_to_datetime(date or "").timestamp() + DATE_STEP_S / 2
    except (OSError, http.client.HTTPException, ValueError):
        says = f"cannot be asked: its metrics port {host}:{port} does not answer"
        return [Finding(f"clock of {service}", State.WARN, says)]
    finally:
        connection.close()
    return [judged(service, theirs_s - (before_s + after_s) / 2, (after_s - before_s + DATE_STEP_S) / 2)]
