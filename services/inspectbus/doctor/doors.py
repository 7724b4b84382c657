"""Do the services answer, and what time is it there? gRPC health at the door, the Date of the metrics port's answer."""

from __future__ import annotations

import http.client
import time
from email.utils import parsedate_to_datetime
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inspectbus.channels import NO_ACCESS, Access, open_channel
from inspectbus.doctor.clock import judged
from inspectbus.doctor.finding import Finding, State

PATIENCE_S = 4.0
DATE_STEP_S = 1.0
"""HTTP tells whole seconds."""


def look_at_door(service: str, address: str, access: Access = NO_ACCESS) -> list[Finding]:
    about = f"{service} service"
    with open_channel(address, access) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                says = f"nobody answers at {address}: start it with `inspectbus serve {service}`"
            else:
                says = f"what answers at {address} is no service of ours: {error.code().name}"
            return [Finding(about, State.FAIL, says)]
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        return [Finding(about, State.WARN, f"answers at {address} that it does not serve: it is starting or stopping")]
    return [Finding(about, State.OK, f"serves at {address}")]


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
