"""Our own rules hold for every combination, and each of them bites: rules.py says what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.manifests import rules
from tests.manifests.combinations import ALL, with_training
from tests.manifests.conftest import Rendered
from tests.manifests.kustomize import Manifests
from tests.manifests.rules import RULES, Rule

TRAINED = with_training("plant")


@pytest.mark.parametrize("name", ALL)
def test_every_rule_holds(rendered: Rendered, name: str) -> None:
    found = rendered(name)
    assert [f"{rule.__name__}: {fault}" for rule in RULES for fault in rule(found)] == []


@dataclass(frozen=True)
class Broken:
    """What somebody might do to a plant, and what is said then."""

    rule: Rule
    words: str
    do: Callable[[Manifests], object]
    where: str = "overlays/plant"


def pod(found: Manifests, name: str = "inference") -> Any:
    return found.workload(name).pod


def container(found: Manifests, name: str = "inference") -> Any:
    return pod(found, name)["containers"][0]


def set_env(found: Manifests, name: str, value: str, workload: str = "inference") -> None:
    container(found, workload)["env"].append({"name": name, "value": value})


def shared(found: Manifests) -> Any:
    (data,) = (each["data"] for each in found.of("ConfigMap") if "INSPECTBUS_STATE_DIR" in each.get("data", {}))
    return data


def drop(found: Manifests, kind: str, name: str) -> None:
    found.objects.remove(found.one(kind, name))


def scaler(found: Manifests, name: str = "inference") -> Any:
    return found.one("ScaledObject", name)["spec"]


def unset_env(found: Manifests, *names: str, workload: str = "train") -> None:
    taken = {f"INSPECTBUS_{name}" for name in names}
    env = container(found, workload)["env"]
    env[:] = [entry for entry in env if entry["name"] not in taken]


def mount(found: Manifests, name: str, workload: str = "train") -> Any:
    (one,) = (each for each in container(found, workload)["volumeMounts"] if each["name"] == name)
    return one


def volumes(found: Manifests, *taken: str) -> list[Any]:
    return [each for each in pod(found)["volumes"] if each["name"] not in taken]


def give_line_1_the_stations_of_line_2(found: Manifests) -> None:
    plants = {each["metadata"]["name"]: each["data"] for each in found.of("ConfigMap") if "plant.yaml" in each["data"]}
    (one,) = (data for name, data in plants.items() if "line-1" in name)
    (two,) = (data for name, data in plants.items() if "line-2" in name)
    one["plant.yaml"] = two["plant.yaml"]


def replace_broken_order(found: Manifests) -> None:
    # As a strategic merge patch leaves it: what was changed comes first.
    env = container(found)["env"]
    env.sort(key=lambda entry: not entry["name"].endswith("_BUS_URL"))


BROKEN = (
    Broken(rules.nothing_of_the_host, "hostNetwork", lambda found: pod(found).update(hostNetwork=True)),
    Broken(rules.nothing_of_the_host, "hostPID", lambda found: pod(found).update(hostPID=True)),
    Broken(
        rules.nothing_of_the_host,
        "hostPath",
        lambda found: pod(found)["volumes"].append({"name": "root", "hostPath": {"path": "/"}}),
    ),
    Broken(
        rules.nothing_of_the_host,
        "privileged",
        lambda found: container(found)["securityContext"].update(privileged=True),
    ),
    Broken(rules.nothing_of_the_host, "hostPort", lambda found: container(found)["ports"][0].update(hostPort=50053)),
    Broken(
        rules.as_little_as_possible, "as root", lambda found: pod(found)["securityContext"].update(runAsNonRoot=False)
    ),
    Broken(rules.as_little_as_possible, "seccomp", lambda found: pod(found)["securityContext"].pop("seccompProfile")),
    Broken(
        rules.as_little_as_possible,
        "gain privileges",
        lambda found: container(found)["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    Broken(
        rules.as_little_as_possible,
        "write to its root",
        lambda found: container(found)["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    Broken(
        rules.as_little_as_possible,
        "capabilities",
        lambda found: container(found)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    ),
    Broken(
        rules.as_little_as_possible,
        "after all",
        lambda found: container(found)["securityContext"].update(runAsUser=0),
    ),
    Broken(rules.no_token_and_no_links, "token", lambda found: pod(found).pop("automountServiceAccountToken")),
    Broken(rules.no_token_and_no_links, "addresses", lambda found: pod(found).update(enableServiceLinks=True)),
    Broken(rules.no_token_and_no_links, "`default`", lambda found: pod(found).update(serviceAccountName="default")),
    Broken(
        rules.no_token_and_no_links,
        "its token is mounted",
        lambda found: found.one("ServiceAccount", "inference").pop("automountServiceAccountToken"),
    ),
    Broken(rules.requests_and_limits, "of memory", lambda found: container(found)["resources"]["limits"].pop("memory")),
    Broken(
        rules.requests_and_limits,
        "more cpu",
        lambda found: container(found)["resources"]["requests"].update(cpu="3500m"),
    ),
    Broken(
        rules.requests_and_limits,
        "no bound",
        lambda found: pod(found)["volumes"][0].update(emptyDir={}),
        "overlays/edge",
    ),
    Broken(rules.three_probes, "missing", lambda found: container(found).pop("startupProbe")),
    Broken(
        rules.three_probes,
        "the same",
        lambda found: container(found).update(livenessProbe=container(found)["readinessProbe"]),
    ),
    Broken(
        rules.three_probes, "hardly later", lambda found: container(found)["livenessProbe"].update(failureThreshold=1)
    ),
    Broken(
        rules.three_probes,
        "health port",
        lambda found: container(found)["readinessProbe"]["grpc"].update(port=50053),
    ),
    Broken(
        rules.three_probes,
        "no service inspectbus.api.v1.Inference",
        lambda found: container(found)["readinessProbe"]["grpc"].update(service="inspectbus.api.v1.Inference"),
    ),
    Broken(
        rules.three_probes,
        "without its own service",
        lambda found: container(found)["readinessProbe"]["grpc"].pop("service"),
    ),
    Broken(
        rules.three_probes,
        "waits for its database",
        lambda found: container(found)["startupProbe"].update(failureThreshold=6),
    ),
    Broken(rules.time_to_drain, "killed while", lambda found: pod(found).update(terminationGracePeriodSeconds=60)),
    Broken(rules.time_to_drain, "killed while", lambda found: set_env(found, "INSPECTBUS_INFERENCE_DRAIN_S", "40")),
    Broken(rules.time_to_drain, "before its callers", lambda found: container(found).pop("lifecycle")),
    Broken(
        rules.what_scales_is_spread,
        "PodDisruptionBudget",
        lambda found: drop(found, "PodDisruptionBudget", "inference"),
    ),
    Broken(
        rules.what_scales_is_spread, "one node", lambda found: pod(found, "results").pop("topologySpreadConstraints")
    ),
    Broken(
        rules.headless_services,
        "behind one address",
        lambda found: found.one("Service", "results")["spec"].pop("clusterIP"),
    ),
    Broken(
        rules.headless_services,
        "listen on 50050",
        lambda found: found.one("Service", "results")["spec"]["ports"][0].update(port=50050),
    ),
    Broken(
        rules.headless_services,
        "leads to",
        lambda found: found.one("Service", "acquisition")["spec"]["selector"].pop("inspectbus.io/line"),
    ),
    Broken(rules.headless_services, "has no service", lambda found: drop(found, "Service", "results")),
    Broken(
        rules.settings_are_real,
        "INSPECTBUS_INFERENCE_BATCH is not a setting",
        lambda found: set_env(found, "INSPECTBUS_INFERENCE_BATCH", "8"),
    ),
    Broken(
        rules.settings_are_real,
        "INSPECTBUS_INFERENCE_MAX_BATCH_SIZE",
        lambda found: set_env(found, "INSPECTBUS_INFERENCE_MAX_BATCH_SIZE", "many"),
    ),
    Broken(
        rules.settings_are_real,
        "the bus has no option window",
        lambda found: shared(found).update(BUS_OPTIONS="?window=4"),
    ),
    Broken(rules.settings_are_real, "libpq has no ssl", lambda found: shared(found).update(DATABASE_OPTIONS="?ssl=on")),
    Broken(rules.settings_are_real, "is no broker", lambda found: shared(found).update(BUS_SCHEME="http")),
    Broken(
        rules.settings_are_real,
        "no such setting",
        lambda found: [
            each["data"].update({"plant.yaml": "acquisition: {line: []}"})
            for each in found.of("ConfigMap")
            if "plant.yaml" in each["data"]
        ],
    ),
    Broken(
        rules.ports_are_listened_on,
        "tells of",
        lambda found: container(found)["ports"].append({"name": "debug", "containerPort": 5678}),
    ),
    Broken(rules.ports_are_listened_on, "tells of", lambda found: set_env(found, "INSPECTBUS_INFERENCE_PORT", "6000")),
    Broken(
        rules.secrets_are_referred_to,
        "a Secret is written down",
        lambda found: found.objects.append({"kind": "Secret", "metadata": {"name": "mine"}}),
    ),
    Broken(
        rules.secrets_are_referred_to,
        "a password is written down",
        lambda found: set_env(found, "INSPECTBUS_INFERENCE_BUS_URL", "amqp://inspectbus-inference:hunter2@rabbitmq/"),
    ),
    Broken(
        rules.secrets_are_referred_to,
        "AWS_SECRET_ACCESS_KEY is written down",
        lambda found: set_env(found, "AWS_SECRET_ACCESS_KEY", "hunter2"),
    ),
    Broken(
        rules.secrets_are_referred_to,
        "DATABASE_PASSWORD is written down",
        lambda found: shared(found).update(DATABASE_PASSWORD="hunter2"),
    ),
    Broken(
        rules.secrets_are_referred_to,
        "nobody makes the Secret somebodys",
        lambda found: container(found)["envFrom"].append({"secretRef": {"name": "somebodys"}}),
    ),
    Broken(
        rules.secrets_can_be_read,
        "train: cannot read its volume token",
        lambda found: pod(found, "train")["securityContext"].pop("fsGroup"),
        TRAINED,
    ),
    Broken(rules.names_lead_somewhere, "does not stand before it", replace_broken_order),
    Broken(rules.names_lead_somewhere, "no BUS_HOST", lambda found: shared(found).pop("BUS_HOST")),
    Broken(
        rules.names_lead_somewhere,
        "no claim training-data",
        lambda found: drop(found, "PersistentVolumeClaim", "training-data"),
    ),
    Broken(rules.names_lead_somewhere, "no account", lambda found: drop(found, "ServiceAccount", "inference")),
    Broken(rules.names_lead_somewhere, "no volume tls", lambda found: pod(found).update(volumes=volumes(found, "tls"))),
    Broken(
        rules.names_lead_somewhere,
        "mounted nowhere",
        lambda found: pod(found)["volumes"].append({"name": "spare", "emptyDir": {"sizeLimit": "1Mi"}}),
    ),
    Broken(
        rules.folders_to_write_to,
        "cannot write to ['/tmp', '/var/lib/inspectbus']",
        lambda found: [mount.update(readOnly=True) for mount in container(found)["volumeMounts"]],
    ),
    Broken(
        rules.folders_to_write_to,
        "is not mounted",
        lambda found: shared(found).update(INSPECTBUS_FRAME_STORE_URL="file:///srv/frames"),
    ),
    Broken(
        rules.a_station_has_one_owner,
        "two replicas",
        lambda found: found.one("StatefulSet", "acquisition-line-1")["spec"].update(replicas=2),
    ),
    Broken(rules.a_station_has_one_owner, "belong to another workload too", give_line_1_the_stations_of_line_2),
    Broken(
        rules.a_station_has_one_owner,
        "meet its stations again",
        lambda found: found.one("StatefulSet", "acquisition-line-1")["spec"].update(volumeClaimTemplates=[]),
    ),
    Broken(
        rules.scaling_follows_real_queues,
        "watches ['inspectbus.inference.live']",
        lambda found: scaler(found)["triggers"].pop(1),
    ),
    Broken(rules.scaling_follows_real_queues, "left alone", lambda found: scaler(found).pop("fallback")),
    Broken(rules.scaling_follows_real_queues, "in a hurry", lambda found: scaler(found).pop("advanced")),
    Broken(
        rules.scaling_follows_real_queues,
        "nothing to scale",
        lambda found: scaler(found)["scaleTargetRef"].update(name="inferences"),
    ),
    Broken(
        rules.scaling_follows_real_queues,
        "sets the number too",
        lambda found: found.one("Deployment", "inference")["spec"].update(replicas=2),
    ),
    Broken(
        rules.scaling_follows_real_queues,
        "its message is gone",
        lambda found: scaler(found, "training-worker")["triggers"].pop(1),
    ),
    Broken(
        rules.the_broker_has_room,
        "its queues may take",
        lambda found: found.one("RabbitmqCluster", "rabbitmq")["spec"]["persistence"].update(storage="20Gi"),
    ),
    Broken(
        rules.the_broker_has_room,
        "no majority",
        lambda found: found.one("RabbitmqCluster", "rabbitmq")["spec"].update(replicas=2),
    ),
    Broken(
        rules.the_broker_has_room,
        "less memory",
        lambda found: found.one("RabbitmqCluster", "rabbitmq")["spec"]["resources"]["requests"].update(memory="1Gi"),
    ),
    Broken(
        rules.images_have_a_version,
        "another one tomorrow",
        lambda found: container(found).update(image="inspectbus/inference:latest"),
    ),
    Broken(
        rules.certificates_bear_their_names,
        "acquisition-line-1",
        lambda found: found.one("Certificate", "acquisition")["spec"].update(dnsNames=["acquisition"]),
    ),
    Broken(rules.certificates_bear_their_names, "nobody makes", lambda found: drop(found, "Certificate", "inference")),
    *(
        Broken(rules.clients_show_what_doors_ask_for, words, do, TRAINED)
        for words, do in {
            "training without token": lambda found: unset_env(found, "TOKEN_FILE"),
            "training without authority": lambda found: unset_env(found, "TLS_CA"),
            "training without certificate": lambda found: unset_env(found, "TLS_CERTIFICATE", "TLS_KEY"),
            "operator: calls results without token": lambda found: unset_env(found, "TOKEN_FILE", workload="operator"),
            "operator: nobody gives it /etc/inspectbus/tls/tls.key": lambda found: mount(
                found, "tls", "operator"
            ).update(mountPath="/tls"),
            "operator: preprocessing does not listen on 50051": lambda found: set_env(
                found, "INSPECTBUS_PREPROCESSING_ADDRESS", "preprocessing:50051", "operator"
            ),
            "nobody gives it /etc/inspectbus/token/token": lambda found: mount(found, "token").update(
                mountPath="/token"
            ),
            "nobody gives it /etc/inspectbus/tls/ca.crt": lambda found: drop(found, "Certificate", "client"),
            "training does not listen on 50055": lambda found: container(found, "train").update(
                args=["train", "parts", "--address", "training:50055"]
            ),
        }.items()
    ),
)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: f"{broken.rule.__name__}: {broken.words}")
def test_what_breaks_a_rule_is_named(rendered: Rendered, broken: Broken) -> None:
    found = rendered(broken.where)

    broken.do(found)

    assert broken.words in " ".join(broken.rule(found))


def test_every_rule_has_something_that_breaks_it() -> None:
    assert {broken.rule for broken in BROKEN} == set(RULES)
