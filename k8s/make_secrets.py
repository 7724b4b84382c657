"""The Secrets of a plant, as kubectl takes them: passwords made once, kept in one private file of yours.

    passwords.json (mode 0600) ─┬─> inspectbus-bus-<service>, inspectbus-bus-operator: the broker's user of each
    plant.yaml ─> its stations ─┤   inspectbus-broker-users: all of them with their rights, as the broker reads them
                                ├─> inspectbus-database, inspectbus-database-keda
                                └─> inspectbus-keda: where KEDA looks

    python k8s/make_secrets.py --plant k8s/overlays/plant/plant.yaml --passwords ~/passwords.json \
        | kubectl apply --server-side -f -

`--server-side`, because a plain apply writes every password once more, into an annotation. Doing it again changes
nothing but what is new in plant.yaml. Keys of a bucket and tokens of clients are not made here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.bus.rabbitmq import topology
from inspectbus.cli.credentials import keep_passwords
from inspectbus.errors import InspectBusError
from inspectbus.line import SERVICES, read_plant

NAMESPACE = "inspectbus"
LOGINS = (*SERVICES, "operator")
"""Who comes to the broker from a pod: services, and people by their commands."""
READER = "inspectbus-reader"
"""The broker's user that may look at queues and take nothing from them: KEDA."""
DATABASE_USERS = ("inspectbus", "inspectbus-keda")


def secrets(plant: Path, passwords: Path) -> list[dict[str, Any]]:
    """Manifests. Raises BadField for a plant or a file of passwords that cannot be used."""
    lines = AcquisitionSettings.load(read_plant(plant).get("acquisition", {})).lines
    stations = [(line.name, station.name) for line in lines for station in line.stations]
    broker_users = [user.name for user in topology.users(stations)]
    known = keep_passwords(passwords, [*broker_users, *(f"database/{user}" for user in DATABASE_USERS)])
    owner, looker = (known[f"database/{user}"] for user in DATABASE_USERS)
    return [
        *(_login(f"inspectbus-bus-{name}", f"inspectbus-{name}", known[f"inspectbus-{name}"]) for name in LOGINS),
        _secret(
            "inspectbus-broker-users", {"users.json": _users({name: known[name] for name in broker_users}, stations)}
        ),
        _login("inspectbus-database", DATABASE_USERS[0], owner),
        _login("inspectbus-database-keda", DATABASE_USERS[1], looker, {"cnpg.io/reload": ""}),
        _secret("inspectbus-keda", _looks(known[READER], looker)),
    ]


def _users(passwords: Mapping[str, str], stations: Sequence[tuple[str, str]]) -> str:
    told = topology.definitions(passwords=passwords, stations=stations)
    return json.dumps({part: told[part] for part in ("users", "permissions", "topic_permissions")})


def _looks(broker: str, database: str) -> dict[str, str]:
    # KEDA lives in a namespace of its own, so names are whole.
    login, host = f"{READER}:{quote(broker)}", f"rabbitmq.{NAMESPACE}.svc"
    database_host = f"postgres-rw.{NAMESPACE}.svc:5432"
    return {
        "broker": f"amqp://{login}@{host}:5672/",
        "broker-tls": f"amqps://{login}@{host}:5671/",
        "tls": "enable",
        "database": f"postgresql://{DATABASE_USERS[1]}:{quote(database)}@{database_host}/inspectbus?sslmode=require",
    }


def _login(name: str, user: str, password: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    content = {"username": user, "password": password}
    return _secret(name, content, labels) | {"type": "kubernetes.io/basic-auth"}


def _secret(name: str, content: Mapping[str, str], labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    marks = {"app.kubernetes.io/part-of": "inspectbus", **(labels or {})}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": marks}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": dict(content)}


def main() -> None:
    words = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=words)
    parser.add_argument("--plant", type=Path, required=True, help="plant.yaml: a user for each station")
    parser.add_argument("--passwords", type=Path, required=True, help="made when missing, and added to; keep it safe")
    told = parser.parse_args()
    try:
        made = secrets(told.plant, told.passwords)
    except InspectBusError as error:
        sys.exit(f"error: {error}")
    json.dump({"apiVersion": "v1", "kind": "List", "items": made}, sys.stdout)


if __name__ == "__main__":
    main()
