"""Which checks a plant's settings ask for: each thing once, however many services share it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from inspectbus.channels import NO_ACCESS, Access
from inspectbus.doctor.finding import Check, Finding
from inspectbus.line import SERVICES, settings_class
from inspectbus.runtime.settings import ServiceSettings

DATABASE_OWNERS = ("results", "training", "preprocessing")
ADDRESSED = {"results": "results_address", "training": "models_address"}
"""Services whose address others are told by a setting."""


def doors_of(
    services: Sequence[str], sections: Mapping[str, Mapping[str, Any]], access: Access = NO_ACCESS
) -> list[Check]:
    """Whether each service answers, and nothing else; `access` is how. Raises BadField for a wrong setting."""
    settings = _settings(sections)
    return [_door_check(name, settings, access) for name in SERVICES if name in services]


def checks_of(
    services: Sequence[str], sections: Mapping[str, Mapping[str, Any]], access: Access = NO_ACCESS
) -> list[Check]:
    """`access` is how the services' doors are asked. Raises BadField for a wrong setting. Libraries load only when a
    check runs."""
    settings = _settings(sections)
    asked = {name: settings[name] for name in SERVICES if name in services}
    checks = [Check("broker", partial(_broker, url)) for url in dict.fromkeys(each.bus_url for each in asked.values())]
    databases: dict[str, list[str]] = {}
    stores: dict[str, None] = {}
    for name, each in asked.items():
        if name in DATABASE_OWNERS:
            databases.setdefault(_told(each, "database_url") or _sqlite(each.state_dir), []).append(name)
        if "frame_store_url" in type(each).model_fields:
            stores[_told(each, "frame_store_url") or f"file://{(each.state_dir / 'frames').absolute()}"] = None
    checks += [Check("database", partial(_database, url, owners)) for url, owners in databases.items()]
    checks += [Check("frame store", partial(_frame_store, url)) for url in stores]
    checks += [Check("state folder", partial(_state, folder)) for folder in _folders(asked)]
    if "inference" in asked:
        checks.append(Check("model", partial(_model, asked["inference"], access)))
        checks.append(
            Check("served model", partial(_served, asked["inference"], _address("inference", settings), access))
        )
    if "preprocessing" in asked:
        checks.append(Check("recipes", partial(_recipes, settings, _address("preprocessing", settings), access)))
    for name in asked:
        checks.append(_door_check(name, settings, access, knows_us=True))
        address = _address(name, settings)
        host = address.rpartition(":")[0].strip("[]")
        if settings[name].metrics_port and host:
            checks.append(Check(f"clock of {name}", partial(_clock, name, host, settings[name].metrics_port)))
    return checks


def _settings(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, ServiceSettings]:
    return {name: settings_class(name).load(sections.get(name, {})) for name in SERVICES}


def _door_check(name: str, settings: Mapping[str, ServiceSettings], access: Access, *, knows_us: bool = False) -> Check:
    return Check(f"{name} service", partial(_door, name, _address(name, settings), access, knows_us))


def _address(name: str, settings: Mapping[str, ServiceSettings]) -> str:
    """Where others look for the service: as the environment says, or those it serves, or at its own door."""
    told = os.environ.get(f"INSPECTBUS_{name.upper()}_ADDRESS")
    if told:
        return told
    field = ADDRESSED.get(name, "")
    for each in settings.values():
        if field in each.model_fields_set:
            return str(getattr(each, field))
    own = settings[name]
    host = "127.0.0.1" if own.host in ("0.0.0.0", "::", "[::]") else own.host  # noqa: S104
    return f"[{host.strip('[]')}]:{own.port}" if ":" in host else f"{host}:{own.port}"


def _folders(settings: Mapping[str, ServiceSettings]) -> list[Path]:
    return list(dict.fromkeys(each.state_dir for each in settings.values()))


def _told(settings: ServiceSettings, field: str) -> str:
    return str(getattr(settings, field))


def _sqlite(state_dir: Path) -> str:
    return f"sqlite:///{(state_dir / 'inspectbus.db').absolute()}"


def _broker(url: str) -> list[Finding]:
    from inspectbus.doctor.broker import look_at_broker

    return look_at_broker(url)


def _database(url: str, owners: Sequence[str]) -> list[Finding]:
    from inspectbus.doctor.database import look_at_database

    return look_at_database(url, owners)


def _frame_store(url: str) -> list[Finding]:
    from inspectbus.doctor.storage import look_at_frame_store

    return look_at_frame_store(url)


def _state(folder: Path) -> list[Finding]:
    from inspectbus.doctor.storage import look_at_state

    return look_at_state(folder)


def _model(settings: Any, access: Access) -> list[Finding]:
    from inspectbus.doctor.storage import look_at_model, look_at_model_folder

    if settings.model_dir is not None:
        return look_at_model_folder(settings.model_dir)
    store = settings.model_store_url or f"file://{(settings.state_dir / 'models').absolute()}"
    cache = settings.state_dir / "model-cache"
    return look_at_model(settings.model, settings.model_alias, settings.models_address, store, cache, access)


def _served(settings: Any, address: str, access: Access) -> list[Finding]:
    if settings.model_dir is not None:  # which answers to no alias
        return []
    from inspectbus.doctor.storage import look_at_served

    return look_at_served(settings.model, settings.model_alias, settings.models_address, address, access)


def _recipes(settings: Mapping[str, Any], address: str, access: Access) -> list[Finding]:
    from inspectbus.doctor.recipes import look_at_recipes

    plant = settings["acquisition"]
    wanted: dict[str, list[str]] = {}
    for line in plant.lines:
        for station in line.stations:
            wanted.setdefault(station.recipe, []).append(f"{line.name}/{station.name}")
    wanted.setdefault(plant.inspect_recipe, []).append("inspect_recipe")
    inference = settings["inference"]
    models_address = inference.models_address if inference.model_dir is None else ""
    return look_at_recipes(wanted, inference.model, inference.model_alias, address, models_address, access)


def _door(name: str, address: str, access: Access, knows_us: bool) -> list[Finding]:
    from inspectbus.doctor.doors import look_at_door

    return look_at_door(name, address, access, knows_us=knows_us)


def _clock(name: str, host: str, port: int) -> list[Finding]:
    from inspectbus.doctor.doors import look_at_clock

    return look_at_clock(name, host, port)
