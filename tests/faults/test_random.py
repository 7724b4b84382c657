"""Everything that can go wrong goes wrong, at random and for minutes, while parts arrive all the time."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from inspectbus.bus.rabbitmq import topology
from inspectbus.bus.rabbitmq.addresses import parse
from tests.doubles.line_processes import SERVICES
from tests.doubles.marked_parts import Fault, fails_inference, fails_preprocessing
from tests.doubles.postgres import Postgres
from tests.doubles.rabbitmq import Broker
from tests.doubles.tcp_proxy import TcpProxy
from tests.faults.scenario import SHORT_PATIENCE, Scenario
from tests.faults.test_broker import let_pass

SOAK_S = float(os.environ.get("SOAK_S", "300"))
FPS = 3.0
"""Of each camera: something is always under way, and a line on few cores can heal in between."""
QUIET_S = (2.0, 6.0)
"""Between two faults."""
POISON = [
    fails_preprocessing(Fault.CRASH),
    fails_inference(Fault.CRASH),
    fails_preprocessing(Fault.HANG_LOCKED),
    fails_inference(Fault.HANG),
    fails_preprocessing(Fault.RAISE),
]

pytestmark = [
    pytest.mark.rabbitmq,
    pytest.mark.postgresql,
    pytest.mark.soak,
    pytest.mark.timeout(SOAK_S + 900),
]


def test_all_faults_at_random(tmp_path: Path) -> None:
    seed = int(os.environ.get("SOAK_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"SOAK_SEED={seed}")  # noqa: T201 - so that a failure can be had again
    chance = random.Random(seed)
    frames = int(SOAK_S * FPS * 5 / 2)
    with ExitStack() as house:
        broker = house.enter_context(Broker(tmp_path / "broker"))
        server = house.enter_context(Postgres())
        proxy = house.enter_context(TcpProxy(parse(broker.url()).parameters[0].port))
        topology.declare(parse(broker.url()))
        broker.settle()
        url = f"{broker.url()}?{SHORT_PATIENCE}"
        camera_url = url.replace(f":{parse(url).parameters[0].port}", f":{proxy.port}")
        settings = {service: {"call_limit_s": 2.0} for service in ("preprocessing", "inference")}
        with Scenario(
            f"all at random, seed {seed}",
            frames,
            tmp_path,
            url,
            server.new_database(),
            fps=FPS,
            poison=POISON,
            settings=settings,
            camera_bus_url=camera_url,
        ) as scenario:

            def service() -> None:
                scenario.line[f"{chance.choice(SERVICES)}-0"].kill()

            faults: dict[str, Callable[[], None]] = {
                "a service killed": service,
                "another service killed": service,
                "broker killed": lambda: held(broker.kill, broker.start, chance.uniform(0, 4)),
                "broker stopped": lambda: held(broker.stop, broker.start, chance.uniform(0, 4)),
                "broker paused": lambda: held(broker.pause, broker.resume, chance.uniform(1, 10)),
                "memory alarm": lambda: held(
                    lambda: broker.memory_alarm(True), lambda: broker.memory_alarm(False), chance.uniform(1, 5)
                ),
                "database killed": lambda: held(server.kill, server.start, chance.uniform(0, 4)),
                "network cut": lambda: held(proxy.cut, proxy.heal, chance.uniform(1, 10)),
            }
            count: Counter[str] = Counter()
            until_s = time.monotonic() + SOAK_S
            while time.monotonic() < until_s:
                let_pass(chance.uniform(*QUIET_S))
                name = chance.choice(list(faults))
                faults[name]()
                count[name] += 1
            figures = scenario.finish(patience_s=600)
    print(dict(count))  # noqa: T201
    assert figures.held >= len(POISON)
    assert count.total() > SOAK_S / 30, "faults did happen"


def held(begin: Callable[[], None], end: Callable[[], None], seconds: float) -> None:
    """A fault that lasts."""
    begin()
    let_pass(seconds)
    end()
