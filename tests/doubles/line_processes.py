"""A whole line as processes of their own, as in a plant: around a real broker, database and frame store.

    with LineProcesses(folder, broker.url(vhost), database_url, stations) as line:
        line["inference-0"].kill()

this process: the owner of the model
its children: results, preprocessing, inference, acquisition (tests/faults/serve.py), each in any number
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inspectbus.bus.rabbitmq import topology
from inspectbus.bus.rabbitmq.addresses import parse
from inspectbus.domain.recipe import QualityLimits, Recipe
from inspectbus_client import Client
from tests.doubles.children import lasting_port
from tests.doubles.model_owner import model_owner
from tests.doubles.service_process import ServiceProcess
from tests.doubles.stub_model import stub_version

ROOT = Path(__file__).parents[2]
LINE = "line-1"
RECIPE = "default"
SERVICES = ("results", "preprocessing", "inference", "acquisition")


class LineProcesses:
    """Entering waits until everything serves and the model is loaded; stations start last.

    A process is named by its service and a number: "inference-0". Ports are the same after each of its deaths, as a
    cluster's addresses are.
    """

    def __init__(
        self,
        folder: Path,
        bus_url: str,
        database_url: str,
        stations: Sequence[Mapping[str, Any]],
        *,
        frame_store_url: str = "",
        replicas: Mapping[str, int] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        batch_ms: float = 0.0,
        acquisition_bus_url: str = "",
    ) -> None:
        """`stations` are dealt out among acquisition's processes: the first to the first, the second to the second...
        `settings` are further ones by service, as in plant.yaml. `batch_ms` is what a pass of the engine takes.
        `acquisition_bus_url` is the stations' own way to the broker."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._bus_url = bus_url
        self._acquisition_bus_url = acquisition_bus_url or bus_url
        self._stations = stations
        self._settings = settings or {}
        self._names = [
            f"{service}-{number}" for service in SERVICES for number in range((replicas or {}).get(service, 1))
        ]
        self._ports = {name: lasting_port() for name in self._names}
        self._processes: dict[str, ServiceProcess] = {}
        self._house = ExitStack()
        paths = os.pathsep.join(str(ROOT / part) for part in ("services", "clients", "."))
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("INSPECTBUS_")},
            "PYTHONPATH": paths,
            "PYTHONUNBUFFERED": "1",
            "STUB_BATCH_MS": str(batch_ms),
            "INSPECTBUS_LOG_FORMAT": "json",
            "INSPECTBUS_BUS_URL": bus_url,
            "INSPECTBUS_DATABASE_URL": database_url,
            "INSPECTBUS_FRAME_STORE_URL": frame_store_url or (folder / "frames").absolute().as_uri(),
            "INSPECTBUS_RESULTS_ADDRESS": self.addresses("results"),
        }

    def __enter__(self) -> Self:
        with ExitStack() as house:
            topology.declare(parse(self._bus_url))
            version, card = stub_version(self._folder / "model")
            owner, address = house.enter_context(model_owner())
            owner.cards[card.name, "production"] = card
            self._environ["INSPECTBUS_MODELS_ADDRESS"] = address
            for name in self._names:
                process = self._processes[name] = self._process(name, version, card.name)
                if not name.startswith("acquisition"):
                    house.enter_context(process)
            for process in self.of("results", "preprocessing"):
                process.await_event("serving")
            for process in self.of("inference"):
                process.await_event("model loaded")
            with self.client() as client:
                # No limits: the verdict is the engine's alone.
                limits = QualityLimits(min_sharpness=None, min_brightness=None, max_brightness=None, max_glare=None)
                client.put_recipe(Recipe(name=RECIPE, model=card.name, quality=limits).to_yaml())
            for process in self.of("acquisition"):
                house.enter_context(process).await_event("serving")
            self._house = house.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._house.close()

    def __getitem__(self, name: str) -> ServiceProcess:
        return self._processes[name]

    def of(self, *services: str) -> Iterator[ServiceProcess]:
        """All processes of these services."""
        yield from (self._processes[name] for name in self._names if name.rpartition("-")[0] in services)

    def address(self, name: str) -> str:
        """host:port of its gRPC door."""
        return f"127.0.0.1:{self._ports[name]}"

    def addresses(self, service: str) -> str:
        """Of all its replicas, as gRPC spells them."""
        return "ipv4:" + ",".join(self.address(name) for name in self._names if name.rpartition("-")[0] == service)

    def state_folder(self, name: str) -> Path:
        """What a process keeps on its machine."""
        return self._folder / "state" / name

    def client(self, number: int = 0) -> Client:
        """Of the process of that number of each service, or the first where there are fewer."""
        names = {service: f"{service}-{number}" for service in SERVICES}
        return Client.connect(
            {service: self.address(name if name in self._ports else f"{service}-0") for service, name in names.items()}
        )

    def client_of_all(self) -> Client:
        """Of all replicas of each service."""
        return Client.connect({service: self.addresses(service) for service in SERVICES})

    @property
    def cpu_s(self) -> dict[str, float]:
        """Processor time so far, by process."""
        return {name: process.cpu_s for name, process in self._processes.items()}

    @property
    def memory_mb(self) -> dict[str, float]:
        """Resident now, by process."""
        return {name: process.memory_mb for name, process in self._processes.items()}

    def _process(self, name: str, version: Path, model: str) -> ServiceProcess:
        service, _, number = name.rpartition("-")
        section: dict[str, Any] = {"port": self._ports[name], "metrics_port": 0}
        if service == "inference":
            section |= {"model": model, "model_dir": str(version)}
        if service == "acquisition":
            replicas = sum(1 for each in self._names if each.startswith("acquisition"))
            section |= {"lines": [{"name": LINE, "stations": list(self._stations[int(number) :: replicas])}]}
            section |= {"bus_url": self._acquisition_bus_url}
        config = self._folder / f"{name}.yaml"
        config.write_text(json.dumps({service: section | dict(self._settings.get(service, {}))}, default=str))
        command = [sys.executable, "-m", "tests.faults.serve", "serve", service, "--config", str(config)]
        environ = self._environ | {"INSPECTBUS_STATE_DIR": str(self.state_folder(name))}
        return ServiceProcess(name, command, environ, self._folder / f"{name}.log")
