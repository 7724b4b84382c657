"""What we ask of our manifests beyond what Kubernetes does: each rule looks at one rendering and names what breaks it.

A rule is a function in RULES; test_rules.py has a broken object for each, or the rule would be worth nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import psycopg
import yaml

from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.api.oip import open_inference_pb2
from inspectbus.api.v1 import acquisition_pb2, inference_pb2, model_pb2, preprocessing_pb2, results_pb2, training_pb2
from inspectbus.bus.rabbitmq import FIRST_TRY_S, FLUSH_S, addresses, naming, topology
from inspectbus.bus.rabbitmq.limits import Limits
from inspectbus.bus.topics import FRAMES, PREPARED, TRAINING
from inspectbus.channels import Access
from inspectbus.cli.doors import access
from inspectbus.errors import BadField
from inspectbus.line import SERVICES, settings_class
from inspectbus.runtime.settings import PREFIX, refuse_unknown
from inspectbus.stores.database import START_PATIENCE_S
from tests.manifests.environments import clean_environment
from tests.manifests.kustomize import Manifests, Workload

Rule = Callable[[Manifests], Iterator[str]]

CONTRACTS = {
    "acquisition": (acquisition_pb2,),
    "preprocessing": (preprocessing_pb2,),
    "inference": (inference_pb2, open_inference_pb2),
    "training": (training_pb2, model_pb2),
    "results": (results_pb2,),
}
DRAIN_STEPS = 4
"""Calls in hand, deliveries in hand, the engine or the training, its records: one after another, `drain_s` each."""
SPARE_S = 5.0 + 2 * FLUSH_S
"""What rpc_server waits beyond its drain, and the bus for confirms and connections."""
GIVEN_BY_HAND = ("inspectbus-s3", "inspectbus-tokens", "inspectbus-train-token", "inspectbus-operator-token")
MADE = (
    "inspectbus-bus-*",
    "inspectbus-broker-users",
    "inspectbus-database",
    "inspectbus-database-keda",
    "inspectbus-keda",
)
"""By k8s/make_secrets.py, which has a test of its own."""
SECRETIVE = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|TOKEN$|CREDENTIAL", re.IGNORECASE)
LOGIN = re.compile(r"://[^/\s:@]*:(?P<password>[^/\s@]+)@")


def nothing_of_the_host(found: Manifests) -> Iterator[str]:
    """No privileges, no namespaces, folders or ports of the node."""
    for each in found.workloads:
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if each.pod.get(field):
                yield f"{each.name}: {field}"
        yield from (f"{each.name}: hostPath" for volume in each.pod.get("volumes", []) if "hostPath" in volume)
        for container in each.containers:
            if container.get("securityContext", {}).get("privileged"):
                yield f"{each.name}: privileged"
            yield from (f"{each.name}: hostPort" for port in container.get("ports", []) if "hostPort" in port)


def as_little_as_possible(found: Manifests) -> Iterator[str]:
    """No root, no way to become it, nothing to write on but what is mounted."""
    for each in found.workloads:
        pod = each.pod.get("securityContext", {})
        if pod.get("runAsNonRoot") is not True or not pod.get("runAsUser"):
            yield f"{each.name}: may run as root"
        if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{each.name}: no seccomp profile"
        for container in each.containers:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{each.name}: may gain privileges"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{each.name}: may write to its root"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{each.name}: keeps capabilities"
            if own.get("runAsUser") == 0 or own.get("runAsNonRoot") is False:
                yield f"{each.name}: runs as root after all"


def no_token_and_no_links(found: Manifests) -> Iterator[str]:
    """Nothing in a pod calls the cluster, and no neighbour's address appears in its environment."""
    for each in found.workloads:
        if each.pod.get("automountServiceAccountToken") is not False:
            yield f"{each.name}: gets a service account's token"
        if each.pod.get("enableServiceLinks") is not False:
            yield f"{each.name}: gets its neighbours' addresses"
        if each.service and each.pod.get("serviceAccountName", "default") == "default":
            yield f"{each.name}: shares the account `default`"
    for account in found.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"account {account['metadata']['name']}: its token is mounted"


def requests_and_limits(found: Manifests) -> Iterator[str]:
    for each in found.workloads:
        for container in each.containers:
            told = container.get("resources", {})
            for what in ("cpu", "memory", "ephemeral-storage"):
                least, most = (told.get(part, {}).get(what) for part in ("requests", "limits"))
                if least is None or most is None:
                    yield f"{each.name}: no request or limit of {what}"
                elif amount(least) > amount(most):
                    yield f"{each.name}: asks for more {what} than it may have"
        for volume in each.pod.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{each.name}: volume {volume['name']} has no bound"


def three_probes(found: Manifests) -> Iterator[str]:
    """gRPC for services of ours, of the port that tells health alone; each with a patience of its own."""
    for each in found.workloads:
        if each.kind in ("Job", "CronJob"):
            continue
        (container,) = each.pod["containers"]
        probes = [container.get(f"{kind}Probe") for kind in ("startup", "readiness", "liveness")]
        if None in probes:
            yield f"{each.name}: a probe is missing"
            continue
        startup, readiness, liveness = probes
        if any(one == other for one, other in ((startup, readiness), (readiness, liveness), (startup, liveness))):
            yield f"{each.name}: two probes are the same"
        if patience_s(liveness) <= 2 * patience_s(readiness):
            yield f"{each.name}: is ended hardly later than it is spared"
        if each.service:
            yield from _grpc_probes(found, each, container, startup, readiness, liveness)


def _grpc_probes(found: Manifests, each: Workload, container: Any, *probes: Any) -> Iterator[str]:
    environ = found.environment(container)
    port = int(environ.get(f"{PREFIX}{each.service.upper()}_HEALTH_PORT", 0))
    names = {name for module in CONTRACTS[each.service] for name in _services(module)}
    startup, readiness, _ = probes
    for probe in probes:
        if "grpc" not in probe or probe["grpc"]["port"] != port:
            yield f"{each.name}: a probe does not ask the health port"
        elif probe["grpc"].get("service", "") not in {"", *names}:
            yield f"{each.name}: there is no service {probe['grpc']['service']}"
    # A worker has no contract; everybody else is ready when its own service is.
    worker = environ.get("INSPECTBUS_TRAINING_ROLE") == "worker"
    if not worker and not readiness.get("grpc", {}).get("service"):
        yield f"{each.name}: is ready without its own service"
    if patience_s(startup) < START_PATIENCE_S + FIRST_TRY_S:
        yield f"{each.name}: is ended while it waits for its database and its broker"


def _services(module: Any) -> Iterator[str]:
    return (service.full_name for service in module.DESCRIPTOR.services_by_name.values())


def time_to_drain(found: Manifests) -> Iterator[str]:
    for each in found.ours:
        (container,) = each.pod["containers"]
        pause_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if pause_s < 1:
            yield f"{each.name}: is gone before its callers hear of it"
        default = settings_class(each.service).model_fields["drain_s"].default
        drain_s = float(found.environment(container).get(f"{PREFIX}{each.service.upper()}_DRAIN_S", default))
        needed_s = pause_s + DRAIN_STEPS * drain_s + SPARE_S
        if each.pod.get("terminationGracePeriodSeconds", 30) <= needed_s:
            yield f"{each.name}: may be killed while it drains, which may take {needed_s:.0f} s"


def what_scales_is_spread(found: Manifests) -> Iterator[str]:
    """And its pods are moved one at a time."""
    for each in found.ours:
        scaled = each.name in {thing["spec"]["scaleTargetRef"]["name"] for thing in found.of("ScaledObject")}
        if not scaled and each.object["spec"].get("replicas", 1) < 2:
            continue
        budgets = [budget for budget in found.of("PodDisruptionBudget") if selects(budget["spec"]["selector"], each)]
        if [budget["spec"].get("maxUnavailable") for budget in budgets] != [1]:
            yield f"{each.name}: has not one PodDisruptionBudget of one pod"
        spread = each.pod.get("topologySpreadConstraints", [])
        nodes = [one for one in spread if one["topologyKey"] == "kubernetes.io/hostname"]
        if not any(selects(one["labelSelector"], each) for one in nodes):
            yield f"{each.name}: may stand on one node with all its replicas"


def headless_services(found: Manifests) -> Iterator[str]:
    """A service of ours gives all pods of one workload, at the port they listen on."""
    for service in found.of("Service"):
        name = service["metadata"]["name"]
        behind = [each for each in found.workloads if labelled(service["spec"]["selector"], each)]
        if len(behind) != 1:
            yield f"service {name}: leads to {[each.name for each in behind]}"
            continue
        if service["spec"].get("clusterIP") != "None":
            yield f"service {name}: hides its pods behind one address"
        open_ports = {port["name"]: port["containerPort"] for port in behind[0].pod["containers"][0].get("ports", [])}
        for port in service["spec"]["ports"]:
            if open_ports.get(port.get("targetPort")) != port["port"]:
                yield f"service {name}: its pods do not listen on {port['port']}"
    doors = {each.name for each in found.ours if not _is_worker(found, each)}
    yield from (
        f"{name}: has no service" for name in sorted(doors - {each["metadata"]["name"] for each in found.of("Service")})
    )


def _is_worker(found: Manifests, each: Workload) -> bool:
    return found.environment(each.pod["containers"][0]).get("INSPECTBUS_TRAINING_ROLE") == "worker"


def settings_are_real(found: Manifests) -> Iterator[str]:
    """Each pod's environment and plant.yaml are taken by the very code that reads them."""
    for each in found.workloads:
        for container in each.pod["containers"]:
            environ = found.environment(container)
            told = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
            try:
                refuse_unknown(told, [settings_class(service) for service in SERVICES])
                if each.service:
                    section = _plant(found, each).get(each.service, {})
                    with clean_environment(told):
                        settings = settings_class(each.service).load(section)
                    yield from _urls(each, settings.bus_url, getattr(settings, "database_url", None))
            except BadField as error:
                yield f"{each.name}: {error.message}"


def _plant(found: Manifests, each: Workload) -> dict[str, Any]:
    for volume in each.pod.get("volumes", []):
        data = found.data(volume.get("configMap", {}).get("name", ""))
        if "plant.yaml" in data:
            plant: dict[str, Any] = yaml.safe_load(data["plant.yaml"])
            return plant
    return {}


def _urls(each: Workload, bus_url: str, database_url: str | None) -> Iterator[str]:
    bus = urlsplit(bus_url)
    known = {*addresses._TLS_FILES, *vars(Limits())}
    if bus.scheme not in ("amqp", "amqps") or "$" in bus_url:
        yield f"{each.name}: {bus_url} is no broker"
    yield from (f"{each.name}: the bus has no option {name}" for name, _ in parse_qsl(bus.query) if name not in known)
    if database_url is None:
        return
    database = urlsplit(database_url)
    words = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    if database.scheme != "postgresql" or "$" in database_url:
        yield f"{each.name}: {database_url} is no database"
    yield from (f"{each.name}: libpq has no {name}" for name, _ in parse_qsl(database.query) if name not in words)


def ports_are_listened_on(found: Manifests) -> Iterator[str]:
    for each in found.ours:
        (container,) = each.pod["containers"]
        environ = found.environment(container)
        fields = settings_class(each.service).model_fields
        listening = {
            str(environ.get(f"{PREFIX}{each.service.upper()}_{field.upper()}", fields[field].default))
            for field in ("port", "metrics_port", "health_port")
        }
        told = {str(port["containerPort"]) for port in container.get("ports", [])}
        if told != listening:
            yield f"{each.name}: listens on {sorted(listening)} and tells of {sorted(told)}"


def secrets_are_referred_to(found: Manifests) -> Iterator[str]:
    """By file or by reference; none is written down, and each is one that somebody makes."""
    yield from (f"{each['metadata']['name']}: a Secret is written down" for each in found.of("Secret"))
    for place, text in _texts(found):
        login = LOGIN.search(text)
        if login is not None and not re.fullmatch(r"\$\([A-Z_]+\)", login["password"]):
            yield f"{place}: a password is written down"
    for each in found.workloads:
        for container in each.containers:
            for entry in container.get("env", []):
                if SECRETIVE.search(entry["name"]) and entry.get("value") and not entry["value"].startswith("/"):
                    yield f"{each.name}: {entry['name']} is written down"
    for each in found.of("ConfigMap"):
        for name, value in each.get("data", {}).items():
            if SECRETIVE.search(name) and not value.startswith("/"):
                yield f"{each['metadata']['name']}: {name} is written down"
    certified = {each["spec"]["secretName"] for each in found.of("Certificate")}
    for name in _secret_names(found.objects):
        if name not in certified and not any(fnmatch(name, known) for known in (*GIVEN_BY_HAND, *MADE)):
            yield f"nobody makes the Secret {name}"


def _texts(found: Manifests) -> Iterator[tuple[str, str]]:
    for each in found.objects:
        waiting: list[Any] = [each]
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict):
                waiting += part.values()
            elif isinstance(part, list):
                waiting += part
            elif isinstance(part, str):
                yield each["metadata"]["name"], part


def _secret_names(part: Any) -> Iterator[str]:
    """Of every reference to a Secret, whatever the kind of object."""
    if isinstance(part, list):
        for each in part:
            yield from _secret_names(each)
    elif isinstance(part, dict):
        for name, value in part.items():
            if name in ("secretRef", "secretKeyRef", "passwordSecret", "secret") and isinstance(value, dict):
                yield str(value.get("secretName") or value.get("name"))
            elif name == "secretTargetRef":
                yield from (each["name"] for each in value)
            else:
                yield from _secret_names(value)


def secrets_can_be_read(found: Manifests) -> Iterator[str]:
    """Their files are root's: what others may not read is read by the pod's group."""
    for each in found.workloads:
        group = each.pod.get("securityContext", {}).get("fsGroup")
        for volume in each.pod.get("volumes", []):
            mode = volume.get("secret", {}).get("defaultMode", 0o644)
            if not mode & 0o004 and (not mode & 0o040 or group is None):
                yield f"{each.name}: cannot read its volume {volume['name']}"


def names_lead_somewhere(found: Manifests) -> Iterator[str]:
    """Volumes, ConfigMaps and their keys, accounts, and variables within variables."""
    maps = {each["metadata"]["name"]: each.get("data", {}) for each in found.of("ConfigMap")}
    claims = {each["metadata"]["name"] for each in found.of("PersistentVolumeClaim")}
    accounts = {each["metadata"]["name"] for each in found.of("ServiceAccount")}
    for each in found.workloads:
        own = each.object["spec"].get("volumeClaimTemplates", [])
        volumes = {volume["name"] for volume in (*each.pod.get("volumes", []), *(claim["metadata"] for claim in own))}
        for volume in each.pod.get("volumes", []):
            if "persistentVolumeClaim" in volume and volume["persistentVolumeClaim"]["claimName"] not in claims:
                yield f"{each.name}: no claim {volume['persistentVolumeClaim']['claimName']}"
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                yield f"{each.name}: no ConfigMap {volume['configMap']['name']}"
        if each.service and each.pod["serviceAccountName"] not in accounts:
            yield f"{each.name}: no account {each.pod['serviceAccountName']}"
        for container in each.containers:
            mounted = [mount["name"] for mount in container.get("volumeMounts", [])]
            yield from (f"{each.name}: no volume {name}" for name in mounted if name not in volumes)
            yield from (f"{each.name}: volume {name} is mounted nowhere" for name in volumes if name not in mounted)
            before: set[str] = set()
            for entry in container.get("env", []):
                key = entry.get("valueFrom", {}).get("configMapKeyRef")
                if key is not None and key["key"] not in maps.get(key["name"], {}):
                    yield f"{each.name}: no {key['key']} in a ConfigMap {key['name']}"
                for name in re.findall(r"\$\((\w+)\)", entry.get("value", "")):
                    if name not in before:
                        yield f"{each.name}: {entry['name']} needs {name}, which does not stand before it"
                before.add(entry["name"])


def folders_to_write_to(found: Manifests) -> Iterator[str]:
    """The root is read-only: what the code writes lies on volumes."""
    for each in found.ours:
        (container,) = each.pod["containers"]
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        environ = found.environment(container)
        stores = [url.removeprefix("file://") for url in environ.values() if url.startswith("file://")]
        mine = [path for path in stores if any(path.startswith(folder) for folder in writable)]
        wanted = {"/tmp", environ.get("INSPECTBUS_STATE_DIR", "")}
        if not wanted <= writable:
            yield f"{each.name}: cannot write to {sorted(wanted - writable)}"
        needed = {value for name, value in environ.items() if value.startswith("file://") and _reads(each, name)}
        if len(needed) > len(mine):
            yield f"{each.name}: a store of {sorted(needed)} is not mounted"


def _reads(each: Workload, variable: str) -> bool:
    fields = settings_class(each.service).model_fields
    shared = variable.removeprefix(PREFIX).lower() in fields
    return shared or variable.removeprefix(f"{PREFIX}{each.service.upper()}_").lower() in fields


def a_station_has_one_owner(found: Manifests) -> Iterator[str]:
    """Two that ran it would both move its gate; and what it keeps must find it again."""
    owned: set[tuple[str, str]] = set()
    for each in found.ours:
        if each.service != "acquisition":
            continue
        section = _plant(found, each).get("acquisition", {})
        stations = {
            (line.name, station.name)
            for line in AcquisitionSettings.model_validate(section).lines
            for station in line.stations
        }
        if stations and each.object["spec"].get("replicas", 1) != 1:
            yield f"{each.name}: two replicas would run the same stations"
        if stations & owned:
            yield f"{each.name}: {sorted(stations & owned)} belong to another workload too"
        owned |= stations
        kept = [claim["metadata"]["name"] for claim in each.object["spec"].get("volumeClaimTemplates", [])]
        if each.kind != "StatefulSet" or kept != ["state"]:
            yield f"{each.name}: its spool would not meet its stations again"


def scaling_follows_real_queues(found: Manifests) -> Iterator[str]:
    """All lanes of the group; patient when the broker says nothing, slow to take away. Nobody else sets the number."""
    groups = {"preprocessing": FRAMES, "inference": PREPARED, "training-worker": TRAINING}
    for scaled in found.of("ScaledObject"):
        spec, name = scaled["spec"], scaled["spec"]["scaleTargetRef"]["name"]
        if name not in {each.name for each in found.workloads}:
            yield f"{name}: there is nothing to scale"
            continue
        each = found.workload(name)
        if "replicas" in each.object["spec"]:
            yield f"{name}: its manifest sets the number too"
        watched = {one["metadata"].get("queueName") for one in spec["triggers"] if one["type"] == "rabbitmq"}
        wanted = set(naming.work_queues(groups[name], each.service))
        if watched != wanted:
            yield f"{name}: watches {sorted(map(str, watched))}, and its work waits in {sorted(wanted)}"
        if "fallback" not in spec or spec["fallback"]["replicas"] < 1:
            yield f"{name}: is left alone when the broker says nothing"
        down = (
            spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {}).get("scaleDown", {})
        )
        if down.get("stabilizationWindowSeconds", 0) < 300:
            yield f"{name}: is taken away in a hurry"
        if spec.get("minReplicaCount", 0) == 0 and {one["type"] for one in spec["triggers"]} == {"rabbitmq"}:
            yield f"{name}: its last replica ends while it works, because its message is gone by then"


def the_broker_has_room(found: Manifests) -> Iterator[str]:
    """For all that its queues' limits allow, where it is a cluster: on one machine publishers wait sooner."""
    needed = sum(_limit_bytes(queue.name) for queue in topology.queues())
    for cluster in found.of("RabbitmqCluster"):
        if amount(cluster["spec"]["persistence"]["storage"]) < needed:
            yield f"{cluster['metadata']['name']}: its queues may take {needed / 1024**3:.0f} GiB"
        if cluster["spec"]["replicas"] % 2 == 0 or cluster["spec"]["replicas"] < 3:
            yield f"{cluster['metadata']['name']}: has no majority without one of its nodes"
        told = cluster["spec"]["resources"]
        if told["requests"] != told["limits"]:
            yield f"{cluster['metadata']['name']}: may be given less memory than it counts on"


def _limit_bytes(queue: str) -> int:
    matching = [policy for policy in topology.POLICIES if re.search(policy.pattern, queue)]
    return max(matching, key=lambda policy: policy.priority).bytes


def images_have_a_version(found: Manifests) -> Iterator[str]:
    for each in found.workloads:
        for container in each.containers:
            _, _, tag = container["image"].rpartition(":")
            if ":" not in container["image"] or tag == "latest":
                yield f"{each.name}: {container['image']} may be another one tomorrow"


def certificates_bear_their_names(found: Manifests) -> Iterator[str]:
    """A door's certificate has every name by which it is called, and a Secret of TLS is one that somebody makes."""
    by_secret = {each["spec"]["secretName"]: each["spec"] for each in found.of("Certificate")}
    for each in found.ours:
        secrets = [volume["secret"]["secretName"] for volume in each.pod["volumes"] if volume["name"] == "tls"]
        for secret in secrets:
            if secret not in by_secret:
                yield f"{each.name}: nobody makes {secret}"
                continue
            names = set(by_secret[secret].get("dnsNames", []))
            for service in found.of("Service"):
                if labelled(service["spec"]["selector"], each):
                    short, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
                    if not {short, f"{short}.{namespace}", f"{short}.{namespace}.svc"} <= names:
                        yield f"{each.name}: its certificate does not bear the name {short}"


def clients_show_what_doors_ask_for(found: Manifests) -> Iterator[str]:
    """Who calls a door here trusts its certificate by the name it calls, and shows its own and a token where asked."""
    for each in found.workloads:
        container = each.pod["containers"][0]
        with clean_environment(found.environment(container)):
            shown = access()
        called = [*_told_address(container.get("args", [])), *_own_addresses(found, each)]
        doors = {one.name: one for one in found.ours}
        for host, port in called:
            if host in doors:
                yield from _refused(found, each, doors[host], port, shown)
        if called:
            files = [str(file) for file in (shown.ca, shown.certificate, shown.key, shown.token_file) if file]
            yield from (f"{each.name}: nobody gives it {file}" for file in files if file not in _given(found, each))


def _told_address(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    if "--address" in args:
        yield _host_and_port(args[args.index("--address") + 1])


def _own_addresses(found: Manifests, each: Workload) -> Iterator[tuple[str, str]]:
    """Of a pod for people's commands; services are known by their certificates."""
    if not each.service and each.kind == "CronJob":
        environ = found.environment(each.pod["containers"][0])
        addresses = (value for name, value in environ.items() if re.fullmatch(PREFIX + r"[A-Z]+_ADDRESS", name))
        yield from map(_host_and_port, addresses)


def _host_and_port(address: str) -> tuple[str, str]:
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    return host, port


def _refused(found: Manifests, each: Workload, door: Workload, port: str, shown: Access) -> Iterator[str]:
    container = door.pod["containers"][0]
    wanted = found.environment(container)
    if port not in {str(one["containerPort"]) for one in container["ports"] if one["name"] == "grpc"}:
        yield f"{each.name}: {door.name} does not listen on {port}"
    needed = {
        "authority": (wanted.get("INSPECTBUS_TLS_CERTIFICATE"), shown.ca),
        "certificate": (wanted.get("INSPECTBUS_TLS_CLIENT_CA"), shown.certificate),
        "token": (wanted.get("INSPECTBUS_TOKENS"), shown.token_file),
    }
    for what, (asked, file) in needed.items():
        if asked and not file:
            yield f"{each.name}: calls {door.name} without {what}"


def _given(found: Manifests, each: Workload) -> set[str]:
    """The files of Secrets that its first container sees."""
    by_secret = {one["spec"]["secretName"]: one["spec"] for one in found.of("Certificate")}
    volumes = {volume["name"]: volume["secret"] for volume in each.pod.get("volumes", []) if "secret" in volume}
    given = set()
    for mount in each.pod["containers"][0].get("volumeMounts", []):
        secret = volumes.get(mount["name"], {})
        items = [item["path"] for item in secret.get("items", [])]
        if "client auth" in by_secret.get(secret.get("secretName"), {}).get("usages", []):
            items += ["ca.crt", "tls.crt", "tls.key"]
        given |= {f"{mount['mountPath']}/{item}" for item in items}
    return given


RULES: tuple[Rule, ...] = (
    nothing_of_the_host,
    as_little_as_possible,
    no_token_and_no_links,
    requests_and_limits,
    three_probes,
    time_to_drain,
    what_scales_is_spread,
    headless_services,
    settings_are_real,
    ports_are_listened_on,
    secrets_are_referred_to,
    secrets_can_be_read,
    names_lead_somewhere,
    folders_to_write_to,
    a_station_has_one_owner,
    scaling_follows_real_queues,
    the_broker_has_room,
    images_have_a_version,
    certificates_bear_their_names,
    clients_show_what_doors_ask_for,
)


def patience_s(probe: Any) -> float:
    """How long it has to fail before it counts."""
    return float(probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3))


def labelled(selector: dict[str, str], each: Workload) -> bool:
    return selector.items() <= each.labels.items()


def selects(selector: Any, each: Workload) -> bool:
    return labelled(selector.get("matchLabels", {}), each)


def amount(quantity: Any) -> float:
    """Of a Kubernetes quantity: "250m" is 0.25, "1Gi" is 2**30."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(quantity)).groups()  # type: ignore[union-attr]
    units = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(number) * units[unit]
