"""The line: which services there are, and how several of them open in one process, for `run`, `serve` and `inspect`.

Services open from the end of a frame's way to its beginning, so that nothing is published before somebody listens, and
leaving stops the cameras first and the ledger last.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import structlog
import yaml

from inspectbus.bus import Bus, connect
from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.runtime.rpc_server import Door
from inspectbus.runtime.settings import ServiceSettings

log = structlog.get_logger(__name__)

SERVICES = ("results", "training", "inference", "preprocessing", "acquisition")
"""In the order of opening."""

ADDRESS_FIELDS = {"models_address": "training", "results_address": "results"}
"""Settings that name another service's door; filled in when that service is open in the same process."""


def settings_class(service: str) -> type[ServiceSettings]:
    """InferenceSettings for "inference". Imports that service's settings only, none of its heavy libraries."""
    module = import_module(f"inspectbus.{service}.settings")
    return cast(type[ServiceSettings], getattr(module, f"{service.capitalize()}Settings"))


@contextmanager
def open_line(
    services: Sequence[str], sections: Mapping[str, Mapping[str, Any]] | None = None, **forced: Any
) -> Iterator[dict[str, Door]]:
    """Opens the services and yields their doors by name.

    `sections` are the services' parts of plant.yaml; `forced` wins over everything, for all services that know the
    setting. Raises BadField for an unknown service or a wrong setting.
    """
    unknown = sorted(set(services) - set(SERVICES))
    if unknown:
        raise BadField(f"no service {unknown[0]!r}: there are {', '.join(SERVICES)}", field="service")
    sections = sections or {}
    doors: dict[str, Door] = {}
    with ExitStack() as house:
        for service in SERVICES:
            if service in services:
                settings = _settings(service, sections.get(service, {}), forced, doors)
                bus = house.enter_context(connect(settings.bus_url))
                doors[service] = house.enter_context(_open_service(service, settings, bus))
        yield doors


def _settings(
    service: str, section: Mapping[str, Any], forced: Mapping[str, Any], doors: Mapping[str, Door]
) -> ServiceSettings:
    kind = settings_class(service)
    known = {name: value for name, value in forced.items() if name in kind.model_fields}
    for field, owner in ADDRESS_FIELDS.items():
        if field in kind.model_fields and owner in doors:
            known.setdefault(field, doors[owner].address)
    return kind.load(section, **known)


def _open_service(service: str, settings: ServiceSettings, bus: Bus) -> AbstractContextManager[Door]:
    try:
        module = import_module(f"inspectbus.{service}.service")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("inspectbus"):
            raise
        raise NotPossibleNow(
            f"{service} needs the library {error.name}: install inspectbus[{service}]", field="service"
        ) from error
    return cast(AbstractContextManager[Door], module.open_service(settings, bus))


@contextmanager
def private_line(state_dir: Path) -> Iterator[dict[str, str]]:
    """A whole line for one command, on free ports and a bus of its own. Yields service -> address."""
    with open_line(
        SERVICES, bus_url=f"embedded://private-{id(state_dir)}", state_dir=state_dir, port=0, metrics_port=0
    ) as doors:
        yield {name: door.address for name, door in doors.items()}


def read_plant(path: Path) -> dict[str, dict[str, Any]]:
    """plant.yaml: a mapping of service names to their settings. Raises BadField naming the entry at fault."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise BadField(f"cannot read {path}: {error.strerror}", field="plant") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadField(f"{path} is not valid YAML: {error}", field="plant") from None
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise BadField(f"{path} must map service names to their settings", field="plant")
    unknown = sorted(set(content) - set(SERVICES))
    if unknown:
        raise BadField(f"{path}: no service {unknown[0]!r}; there are {', '.join(SERVICES)}", field=unknown[0])
    return content


@contextmanager
def sole_owner(state_dir: Path) -> Iterator[None]:
    """Holds the state folder for one run at a time: two would replay the same stations. Raises NotPossibleNow."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / "run.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotPossibleNow(
                f"another run uses {state_dir}; wait for it, or choose another folder with --state", field="state"
            ) from None
        yield
