"""The line: which services there are, and how several of them open in one process, for `run`, `serve` and `inspect`.

Services open from the end of a frame's way to its beginning, so that nothing is published before somebody listens, and
leaving stops the cameras first and the ledger last.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog

from inspectbus.bus import Bus, connect
from inspectbus.domain.model_version import PRODUCTION
from inspectbus.domain.strict_yaml import read_mapping
from inspectbus.errors import BadField, ModelNotReady, NotFound, NotPossibleNow
from inspectbus.runtime.rpc_server import Door
from inspectbus.runtime.settings import ServiceSettings

if TYPE_CHECKING:
    from inspectbus.domain.recipe import Recipe
    from inspectbus_client import Client, Model

log = structlog.get_logger(__name__)

ENGINE_PATIENCE_S = 120.0
"""Loading, checking and warming a model takes seconds; on a machine under load more."""
DEFAULT_RECIPE = "default"
"""What acquisition's `inspect_recipe` is unless told otherwise."""

COMMAND = (sys.executable, "-m", "inspectbus")
"""Starts this program again."""

SERVICES = ("results", "training", "inference", "preprocessing", "acquisition")
"""In the order of opening."""

ADDRESS_FIELDS = {"models_address": "training", "results_address": "results"}
"""Settings that name another service's door; filled in when that service is open in the same process."""


PLANT_DOORS = ("tls_certificate", "tls_key", "tls_client_ca", "tls_ca", "tokens", "token_file")
"""Settings of doors that other machines come to."""


def settings_class(service: str) -> type[ServiceSettings]:
    """InferenceSettings for "inference". Imports that service's settings only, none of its heavy libraries."""
    module = import_module(f"inspectbus.{service}.settings")
    return cast(type[ServiceSettings], getattr(module, f"{service.capitalize()}Settings"))


@contextmanager
def open_line(
    services: Sequence[str],
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    stop: threading.Event | None = None,
    /,
    **forced: Any,
) -> Iterator[dict[str, Door]]:
    """Opens the services and yields their doors by name.

    `sections` are the services' parts of plant.yaml; `forced` wins over everything, for all services that know the
    setting. Raises BadField for an unknown service or a wrong setting, StorageAway for a database that is away, and was
    waited for until `stop` was set or patience was over.
    """
    unknown = sorted(set(services) - set(SERVICES))
    if unknown:
        raise BadField(f"no service {unknown[0]!r}: there are {', '.join(SERVICES)}", field="service")
    sections = sections or {}
    doors: dict[str, Door] = {}
    for service in services:
        # All of them before the first door opens: a typo must not look like a line that came up and fell.
        _settings(service, sections.get(service, {}), forced, doors)
    with ExitStack() as house:
        for service in SERVICES:
            if service in services:
                settings = _settings(service, sections.get(service, {}), forced, doors)
                start_child = partial(_start_alone, service, sections.get(service, {}))
                bus = house.enter_context(connect(settings.bus_url, f"inspectbus-{service}", start_child))
                doors[service] = house.enter_context(_open_service(service, settings, bus, stop))
        yield doors


def _start_alone(service: str, section: Mapping[str, Any], fd: int) -> subprocess.Popen[bytes]:
    """The service once more, with the same settings, on a bus of one message; see bus/solo.py."""
    prefix = str(settings_class(service).model_config["env_prefix"])
    ports = {f"{prefix}{port}": "0" for port in ("PORT", "METRICS_PORT", "HEALTH_PORT")}
    environment = {**os.environ, f"{prefix}BUS_URL": f"solo://{fd}", **ports}
    process = subprocess.Popen(  # noqa: S603
        [*COMMAND, "serve", service, "--config", "-"], env=environment, stdin=subprocess.PIPE, pass_fds=(fd,)
    )
    assert process.stdin is not None
    with process.stdin as config:
        config.write(json.dumps({service: section}, default=str).encode())
    return process


def _settings(
    service: str, section: Mapping[str, Any], forced: Mapping[str, Any], doors: Mapping[str, Door]
) -> ServiceSettings:
    kind = settings_class(service)
    known = {name: value for name, value in forced.items() if name in kind.model_fields}
    for field, owner in ADDRESS_FIELDS.items():
        if field in kind.model_fields and owner in doors:
            known.setdefault(field, doors[owner].address)
    return kind.load(section, **known)


def _open_service(
    service: str, settings: ServiceSettings, bus: Bus, stop: threading.Event | None
) -> AbstractContextManager[Door]:
    try:
        module = import_module(f"inspectbus.{service}.service")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("inspectbus"):
            raise
        raise NotPossibleNow(
            f"{service} needs the library {error.name}: install inspectbus[{service}]", field="service"
        ) from error
    # Nothing else that a start waits for is waited for as long as a database.
    waiting = {"stop": stop} if "database_url" in type(settings).model_fields else {}
    return cast(AbstractContextManager[Door], module.open_service(settings, bus, **waiting))


@contextmanager
def open_records(state_dir: Path, data_root: Path = Path(), *, takes_jobs: bool = True) -> Iterator[dict[str, str]]:
    """Ledger and training on free ports, by address: the first half of a line that one command keeps for itself.

    The other half opens when it is known which model is to judge. A command that does not train `takes_jobs` neither:
    one that was left behind by a training that was killed would compete with it.
    """
    own = {**_own(state_dir), "role": "all" if takes_jobs else "door"}
    with open_line(("results", "training"), {"training": {"data_root": data_root}}, **own) as doors:
        yield {name: door.address for name, door in doors.items()}


@contextmanager
def open_inspection(
    records: Mapping[str, str], state_dir: Path, model: str, lines: Sequence[Mapping[str, Any]] = ()
) -> Iterator[dict[str, str]]:
    """The other three services, with these lines of stations. Yields the addresses of all five."""
    sections: dict[str, dict[str, Any]] = {"acquisition": {"lines": lines}, "inference": {"model": model}}
    addresses = {"models_address": records["training"], "results_address": records["results"]}
    with open_line(("inference", "preprocessing", "acquisition"), sections, **_own(state_dir), **addresses) as doors:
        yield {**records, **{name: door.address for name, door in doors.items()}}


@contextmanager
def private_line(state_dir: Path, patience_s: float) -> Iterator[dict[str, str]]:
    """A whole line for one command, judging with the newest model in production. Yields service -> address.

    Raises NotFound when there is no model yet, ModelNotReady with the reason when it is not loaded within patience_s.
    """
    from inspectbus_client import Client

    with open_records(state_dir, takes_jobs=False) as records:
        with Client.connect(records) as client:
            model = newest_in_production(client)
        with open_inspection(records, state_dir, model.name) as addresses:
            with Client.connect(addresses) as client:
                wait_for_engine(client, threading.Event(), patience_s)
                make_recipe(client, model.name)
            yield addresses


def make_recipe(client: Client, model: str) -> None:
    """Where nobody has put a default recipe: the one that knows no image of the parts."""
    if all(recipe.name != DEFAULT_RECIPE for recipe in client.recipes()):
        client.put_recipe(unmeasured_recipe(model).to_yaml())
        log.warning(
            "there was no recipe of that name, so one was made: its quality limits are general ones, and "
            "`inspectbus run --data DATA` measures them on the images the model learnt from",
            recipe=DEFAULT_RECIPE,
            model=model,
        )


def unmeasured_recipe(model: str) -> Recipe:
    """The model as it was trained, without geometry, and with the quality limits that suit most cameras."""
    from inspectbus.domain.recipe import Recipe

    return Recipe(name=DEFAULT_RECIPE, description="made without images: general quality limits", model=model)


def newest_in_production(client: Client) -> Model:
    """Raises NotFound, saying what to do, when nothing was trained yet."""
    for model in client.models():
        if PRODUCTION in model.aliases:
            return model
    raise NotFound(
        "there is no model yet: train one with `inspectbus train DATA`, or try `inspectbus run`", field="model"
    )


def wait_for_engine(client: Client, stop: threading.Event, patience_s: float = ENGINE_PATIENCE_S) -> None:
    """Until inference has loaded its model, or `stop` is set. Raises ModelNotReady with its reason when it does not."""
    deadline = time.monotonic() + patience_s
    while not stop.is_set():
        engine = client.engine()
        if engine.ready:
            return
        if time.monotonic() > deadline:
            raise ModelNotReady(f"inference did not load its model in {patience_s:g} s: {engine.detail}", field="model")
        stop.wait(0.1)


def _own(state_dir: Path) -> dict[str, Any]:
    """Settings of services that one command keeps for itself: nobody else's ports, nobody else's bus."""
    own = {"state_dir": state_dir, "bus_url": f"embedded://own-{os.getpid()}", "port": 0, "metrics_port": 0}
    # A plant's certificates and tokens are for its doors; these are on loopback, and gone with the command.
    return {**own, "host": "127.0.0.1", **dict.fromkeys(PLANT_DOORS)}


def read_plant(path: Path) -> dict[str, dict[str, Any]]:
    """plant.yaml ("-" is standard input): settings by service. Raises BadField naming the entry at fault."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        content = read_mapping(text, str(path))
    except OSError as error:
        raise BadField(f"cannot read {path}: {error.strerror}", field="plant") from None
    except UnicodeDecodeError as error:
        raise BadField(f"{path} is not UTF-8: {error}", field="plant") from None
    if not all(isinstance(part, dict) for part in content.values()):
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
