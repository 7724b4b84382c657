"""`make image-test`: the images are built, run as strictly as a cluster would, and end as they should.

each service: built ─> serves health, without rights and on a read-only root ─> SIGTERM ─> drained, ended with 0
inference too: judges an image, and one that comes after SIGTERM on a stream that was open before it
training too:  a version of rendered parts, with all that a training writes
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inspectbus.api.v1.inference_pb2 import InferStreamRequest, InferStreamResponse
from inspectbus.api.v1.inference_pb2_grpc import InferenceServiceStub
from inspectbus.api.v1.prepared_frame_pb2 import Pixels
from inspectbus.bus.rabbitmq import topology
from inspectbus.errors import InspectBusError
from inspectbus.line import SERVICES, settings_class
from inspectbus_client import Client
from inspectbus_client import Pixels as ClientPixels
from tests.doubles.children import lasting_port
from tests.doubles.parts import write_set
from tests.doubles.tiny_model import BRIGHT, DARK, flat_image, tiny_version
from tests.images.workshop import ROOT, Workshop, missing, workshop

PATIENCE_S = 240.0
"""For a first start: nothing of the image is in memory yet, and inference races its engines."""
TRAINING_S = 600.0
LEAVING_S = 10.0
"""What ending a process may take beyond its drain."""
SERVING = health_pb2.HealthCheckResponse.SERVING
CARRIERS_OF_TORCH = {"training"}
"""Of the images that compose.yaml makes; that of inference for a GPU has it too."""
LARGEST = 6
"""Libraries that the table of sizes names."""
TOOLS = ("gcc", "cc", "cc1", "g++", "clang", "make", "pip", "pip3")
"""Means to make or fetch programs, which an intruder would be glad of."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds images of services, runs them, and tells their sizes.")
    parser.add_argument("services", nargs="*", default=list(SERVICES), help=", ".join(SERVICES))
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
        told(f"base: {shop.size_bytes(base) / 1e6:.0f} MB, made in {time.monotonic() - began_s:.0f} s")
        sizes = [tried(shop, base, service) for service in asked.services]
    told("\n".join(["", f"{'service':14} {'MB':>5}  largest libraries, MB", *sizes, "", "all is well"]))


def tried(shop: Workshop, base: str, service: str) -> str:
    """Builds one image, runs it and drops it; gives its line in the table of sizes. Raises AssertionError at the first
    thing that is not as it should be.
    """
    arguments = {name: value for name, value in composed(service)["build"]["args"].items() if name != "PIP_ARGS"}
    began_s = time.monotonic()
    wheels = shop.wheels(f"{arguments['EXTRA']},{arguments['WITH']}")
    fetched_s = time.monotonic()
    image = shop.build(base, wheels, {**arguments, "REVISION": "image-test"})
    built_s = time.monotonic()
    told(f"{service}: fetched in {fetched_s - began_s:.0f} s, built in {built_s - fetched_s:.0f} s")
    libraries = shop.libraries(image)
    check_image(shop, image, base, service)
    assert ("torch" in libraries) == (service in CARRIERS_OF_TORCH)
    run(shop, image, service)
    if service == "results":
        define(shop, image)
    megabytes = shop.size_bytes(image) / 1e6
    shop.drop(image)
    largest = sorted(libraries, key=libraries.__getitem__, reverse=True)[:LARGEST]
    named = ", ".join(f"{name} {libraries[name] / 1e6:.0f}" for name in largest)
    return f"{service:14} {megabytes:5.0f}  {named}"


def composed(service: str) -> dict[str, Any]:
    """What compose.yaml says of it."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"][service]
    return found


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
    with tempfile.TemporaryDirectory(prefix="inspectbus-given-") as given, ExitStack() as house:
        folder = Path(given)
        # A new volume, as compose shares one between services.
        mounts = ["frames:/var/lib/inspectbus/frames"]
        if service == "inference":
            version = tiny_version(folder, exported=True)
            mounts.append(f"{version}:/models/{version.name}:ro")
            environment |= {f"{prefix}MODEL": "tiny", f"{prefix}MODEL_DIR": f"/models/{version.name}"}
        if service == "training":
            mounts.append(f"{write_set(folder / 'plates')}:/data/plates:ro")
            environment[f"{prefix}DATA_ROOT"] = "/data"
        readable(folder)
        container = shop.start(image, environment, mounts)
        try:
            channel = house.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
            seconds = await_health(channel)
            told(f"{service}: serves after {seconds:.1f} s")
            shop.inside(container, "inspectbus", "doctor", "--doors", service)
            shop.inside(container, "test", "-w", "/var/lib/inspectbus/frames")
            if service == "inference":
                judge(port)
            if service == "training":
                train(port)
            drain(shop, container, channel, service)
            plain = [line for line in shop.log(container).splitlines() if not line.startswith("{")]
            assert plain == [], "not every line of its log is JSON"
        except (AssertionError, InspectBusError, grpc.RpcError):
            told(shop.log(container))
            raise


def readable(folder: Path) -> None:
    """By everybody: the container's user is not ours, for whom alone weights are written."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def define(shop: Workshop, image: str) -> None:
    """As compose begins: this image makes the broker's definitions, with hashes of the passwords it is told."""
    service = composed("definitions")
    assert service["image"] == "inspectbus-results"
    words = {name: f"word-of-{name}" for name in service["environment"]}
    (script,) = service["command"]
    # Compose makes one $ of two.
    made = shop.once(image, service["entrypoint"], [script.replace("$$", "$") + "\ncat bus.json\n"], words)
    assert {user["name"] for user in json.loads(made)["users"]} == {user.name for user in topology.users()}
    assert [word for word in words.values() if word in made] == []
    told("results: made the broker's definitions")


def await_health(channel: grpc.Channel) -> float:
    """Seconds until the service said that it serves."""
    began_s = time.monotonic()
    # Its types leave the methods out.
    health: Any = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S, wait_for_ready=True)
    assert answer.status == SERVING
    return time.monotonic() - began_s


def judge(port: int) -> None:
    """By the client that others use: one image of each verdict. Each engine for processors has passed its gate."""
    with Client.connect({"inference": f"127.0.0.1:{port}"}, timeout_s=PATIENCE_S) as client:
        # Tried again, with its pauses, for as long as there is no model.
        verdicts = [client.infer(ClientPixels.of(flat_image(level))).verdict.name for level in (DARK, BRIGHT)]
        engine = client.engine()
    assert verdicts == ["QUALIFIED", "DEFECTIVE"]
    refused = {candidate.name: candidate.reason for candidate in engine.candidates if candidate.reason}
    assert not refused.keys() & {"onnxruntime", "openvino"}, refused
    told(f"inference: judged {' and '.join(verdicts)} with {engine.engine} on {engine.device}")


def train(port: int) -> None:
    """By the same client: a version of rendered parts, of the default network with its weights."""
    began_s = time.monotonic()
    with Client.connect({"training": f"127.0.0.1:{port}"}, timeout_s=PATIENCE_S) as client:
        job = client.train("plates", epochs=1, input_size=64)
        with client.watch_job(job.job_id) as watch, ended_after(TRAINING_S, watch.close):
            for seen in watch:
                job = seen
    assert job.state.name == "SUCCEEDED", f"{job.state.name} {job.error}"
    told(f"training: made {job.model}/{job.model_version} in {time.monotonic() - began_s:.0f} s")


@contextmanager
def ended_after(limit_s: float, end: Callable[[], object]) -> Iterator[None]:
    timer = threading.Timer(limit_s, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


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
