"""`make image-test`: the images are built, run as strictly as a cluster would, and end as they should.

each service: built ─> serves health, without rights and on a read-only root ─> SIGTERM ─> drained, ended with 0
inference too: judges an image, and one that comes after SIGTERM on a stream that was open before it
"""

from __future__ import annotations

import argparse
import queue
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inspectbus.api.v1.inference_pb2 import InferStreamRequest, InferStreamResponse
from inspectbus.api.v1.inference_pb2_grpc import InferenceServiceStub
from inspectbus.api.v1.prepared_frame_pb2 import Pixels
from inspectbus.errors import InspectBusError
from inspectbus.line import SERVICES, settings_class
from inspectbus_client import Client
from inspectbus_client import Pixels as ClientPixels
from tests.doubles.children import lasting_port
from tests.doubles.tiny_model import BRIGHT, DARK, flat_image, tiny_version
from tests.images.workshop import ROOT, Workshop, missing, workshop

PATIENCE_S = 240.0
"""For a first start: nothing of the image is in memory yet, and inference races its engines."""
LEAVING_S = 10.0
"""What ending a process may take beyond its drain."""
SERVING = health_pb2.HealthCheckResponse.SERVING
TOOLS = ("gcc", "cc", "cc1", "g++", "clang", "make", "pip", "pip3")
"""Means to make or fetch programs, which an intruder would be glad of."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds images of services, runs them, and tells their sizes.")
    parser.add_argument("services", nargs="*", default=["inference"], help=", ".join(SERVICES))
    parser.add_argument("--base", help="An image to build on that podman can fetch; default: one made by debootstrap.")
    asked = parser.parse_args()
    unknown = sorted(set(asked.services) - set(SERVICES))
    lacks = [f"no service {name!r}: there are {', '.join(SERVICES)}" for name in unknown] + missing()
    if lacks:
        sys.exit("\n".join(["images cannot be tested here:", *(f"  {what}" for what in lacks)]))
    # Ended from outside, it still tidies up.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with workshop() as shop:
        began_s = time.monotonic()
        base = asked.base or shop.base()
        told(f"base: {time.monotonic() - began_s:.0f} s")
        for service in asked.services:
            tried(shop, base, service)
    told("all is well")


def tried(shop: Workshop, base: str, service: str) -> None:
    """Builds one image, runs it and drops it. Raises AssertionError at the first thing that is not as it should be."""
    arguments = {name: value for name, value in composed(service).items() if name != "PIP_ARGS"}
    began_s = time.monotonic()
    wheels = shop.wheels(f"{arguments['EXTRA']},{arguments['WITH']}")
    fetched_s = time.monotonic()
    image = shop.build(base, wheels, {**arguments, "REVISION": "image-test"})
    built_s = time.monotonic()
    told(
        f"{service}: {shop.size_bytes(image) / 1e6:.0f} MB, of which the base has {shop.size_bytes(base) / 1e6:.0f}; "
        f"fetched in {fetched_s - began_s:.0f} s, built in {built_s - fetched_s:.0f} s"
    )
    check_image(shop, image, base, service)
    run(shop, image, service)
    shop.drop(image)


def composed(service: str) -> Mapping[str, str]:
    """The build arguments by which compose.yaml makes it."""
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    arguments: Mapping[str, str] = services[service]["build"]["args"]
    return arguments


def check_image(shop: Workshop, image: str, base: str, service: str) -> None:
    config = shop.config(image)
    assert config["User"] == "1000:1000"
    assert config["StopSignal"] == "SIGTERM"
    labels = config["Labels"]
    assert isinstance(labels, dict)
    assert labels["org.opencontainers.image.title"] == f"inspectbus-{service}"
    assert labels["org.opencontainers.image.revision"] == "image-test"
    found = set(shop.files(image, TOOLS)) - set(shop.files(base, TOOLS))
    assert not found, f"the image has {', '.join(sorted(found))}, which its base has not"


def run(shop: Workshop, image: str, service: str) -> None:
    port = lasting_port()
    prefix = f"INSPECTBUS_{service.upper()}_"
    environment = {f"{prefix}PORT": str(port), f"{prefix}METRICS_PORT": "0"}
    with tempfile.TemporaryDirectory(prefix="inspectbus-model-") as folder, ExitStack() as house:
        # A new volume, as compose shares one between services.
        mounts = ["frames:/var/lib/inspectbus/frames"]
        if service == "inference":
            Path(folder).chmod(0o755)
            version = tiny_version(Path(folder), exported=True)
            mounts.append(f"{version}:/models/{version.name}:ro")
            environment |= {f"{prefix}MODEL": "tiny", f"{prefix}MODEL_DIR": f"/models/{version.name}"}
        container = shop.start(image, environment, mounts)
        try:
            channel = house.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
            seconds = await_health(channel)
            told(f"{service}: serves after {seconds:.1f} s")
            shop.inside(container, "inspectbus", "doctor", "--doors", service)
            shop.inside(container, "test", "-w", "/var/lib/inspectbus/frames")
            if service == "inference":
                judge(port)
            drain(shop, container, channel, service)
        except (AssertionError, InspectBusError, grpc.RpcError):
            told(shop.log(container))
            raise


def await_health(channel: grpc.Channel) -> float:
    """Seconds until the service said that it serves."""
    began_s = time.monotonic()
    # Its types leave the methods out.
    health: Any = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S, wait_for_ready=True)
    assert answer.status == SERVING
    return time.monotonic() - began_s


def judge(port: int) -> None:
    """By the client that others use: one image of each verdict."""
    with Client.connect({"inference": f"127.0.0.1:{port}"}, timeout_s=PATIENCE_S) as client:
        # Tried again, with its pauses, for as long as there is no model.
        verdicts = [client.infer(ClientPixels.of(flat_image(level))).verdict.name for level in (DARK, BRIGHT)]
        engine = client.engine()
    assert verdicts == ["QUALIFIED", "DEFECTIVE"]
    told(f"inference: judged {' and '.join(verdicts)} with {engine.engine} on {engine.device}")


def drain(shop: Workshop, container: str, channel: grpc.Channel, service: str) -> None:
    """SIGTERM in the middle of a stream: no new calls are taken, what is asked on the stream is still answered."""
    budget_s = settings_class(service).load().drain_s + LEAVING_S
    stream = Stream(channel) if service == "inference" else None
    if stream is not None:
        stream.ask(DARK)
    health: Any = health_pb2_grpc.HealthStub(channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    states = (answer.status for answer in watch)
    assert next(states) == SERVING

    began_s = time.monotonic()
    shop.terminate(container)

    assert next(states) != SERVING
    watch.cancel()
    if stream is not None:
        for level in (DARK, BRIGHT):
            stream.ask(level)
        stream.end()
    code = shop.await_exit(container, budget_s)
    seconds = time.monotonic() - began_s
    assert code == 0, f"{service} ended with {code}"
    assert seconds < budget_s
    told(f"{service}: drained in {seconds:.1f} s of {budget_s:.0f}, ended with 0")


class Stream:
    """An InferStream that is asked one image at a time."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._requests: queue.SimpleQueue[InferStreamRequest | None] = queue.SimpleQueue()
        self._answers: Iterator[InferStreamResponse] = InferenceServiceStub(channel).InferStream(
            self._sent(), timeout=PATIENCE_S
        )

    def ask(self, level: int) -> None:
        image = flat_image(level)
        pixels = Pixels(height=image.shape[0], width=image.shape[1], channels=3, data=image.tobytes())
        self._requests.put(InferStreamRequest(pixels=pixels))
        answer = next(self._answers)
        assert answer.WhichOneof("outcome") == "judgement", answer.refusal
        assert (answer.judgement.score > answer.judgement.threshold) == (level == BRIGHT)

    def end(self) -> None:
        """Raises AssertionError when the service has more to say."""
        self._requests.put(None)
        assert list(self._answers) == []

    def _sent(self) -> Iterator[InferStreamRequest]:
        while (request := self._requests.get(timeout=PATIENCE_S)) is not None:
            yield request


def told(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
