"""Nobody speaks with anybody, except along these edges."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.manifests.combinations import with_training
from tests.manifests.conftest import Rendered
from tests.manifests.edges import Party, edges
from tests.manifests.kustomize import NAME, Manifests

BUCKET, API, ELSEWHERE = "203.0.113.7", "10.96.0.1", "198.51.100.1"
PAGE = Path(__file__).parents[2] / "k8s" / "README.md"
OUTSIDERS = (
    Party("stranger", {"app": "stranger"}),
    Party("stranger's namespace", {"app": "stranger"}, "default"),
    Party("plant software", {"app": "mes"}, "mes", {"inspectbus.io/client": "true"}),
    Party("prometheus", {NAME: "prometheus"}, "monitoring"),
    Party("keda", {"app": "keda-operator"}, "keda"),
    Party("database operator", {}, "cnpg-system"),
    Party("dns", {"k8s-app": "kube-dns"}, "kube-system"),
    Party("bucket", address=BUCKET),
    Party("cluster's API", address=API),
    Party("internet", address=ELSEWHERE),
)
SERVICES = {"acquisition": 50051, "preprocessing": 50052, "inference": 50053, "training": 50054, "results": 50055}
METRICS = {"acquisition": 9101, "preprocessing": 9102, "inference": 9103, "training": 9104, "results": 9105}
WORKLOADS = (*SERVICES, "training-worker")
RECORDS = ("preprocessing", "training", "training-worker", "results")
INSIDE = (*WORKLOADS, "rabbitmq", "postgres", "train", "operator")

EDGES: set[tuple[str, str, int]] = {
    # Services among themselves: recipes and models are asked for, and a decision whose news did not come.
    ("preprocessing", "training", 50054),
    ("inference", "training", 50054),
    ("acquisition", "results", 50055),
    # Everybody and the bus; who keeps records and the database; images and models.
    *((name, "rabbitmq", port) for name in WORKLOADS for port in (5671, 5672)),
    *((name, "postgres", 5432) for name in RECORDS),
    *((name, "bucket", 443) for name in WORKLOADS),
    # Those who have the label: the training that is asked for, people's commands, and whom the plant gave it.
    *((client, name, door) for client in ("train", "operator", "plant software") for name, door in SERVICES.items()),
    # The doctor looks behind the doors too.
    *(("operator", "rabbitmq", port) for port in (5671, 5672)),
    ("operator", "postgres", 5432),
    ("operator", "bucket", 443),
    *(("operator", name, port) for name, port in METRICS.items()),
    # Who watches, who scales, who operates.
    *(("prometheus", name, port) for name, port in METRICS.items()),
    ("prometheus", "training-worker", 9104),
    *(("prometheus", "rabbitmq", port) for port in (15691, 15692)),
    ("prometheus", "postgres", 9187),
    *(("keda", "rabbitmq", port) for port in (5671, 5672)),
    ("keda", "postgres", 5432),
    *(("database operator", "postgres", port) for port in (5432, 8000)),
    # Nodes of the broker and instances of the database among themselves.
    *(("rabbitmq", "rabbitmq", port) for port in (4369, 25672)),
    *(("postgres", "postgres", port) for port in (5432, 8000)),
    # Their operators' programs in these pods ask the cluster's API, which has no label: so any address, at its ports.
    *(
        (name, place, port)
        for name in ("rabbitmq", "postgres")
        for place in ("bucket", "cluster's API", "internet")
        for port in (443, 6443)
    ),
    # Names.
    *((name, "dns", 53) for name in (*INSIDE, "stranger")),
}


def parties(found: Manifests) -> list[Party]:
    pods = {each.labels[NAME]: each.labels for each in found.workloads}
    # Operators' pods are not in the manifests; their labels are.
    pods |= {name: {NAME: name} for name in ("rabbitmq", "postgres") if name not in pods}
    assert set(pods) == set(INSIDE)
    return [*(Party(name, labels) for name, labels in pods.items()), *OUTSIDERS]


def inside(found: set[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    """Without what outsiders do among themselves."""
    named = {*INSIDE, "stranger"}
    return {edge for edge in found if edge[0] in named or edge[1] in named}


@pytest.mark.parametrize("overlay", ["edge", "plant"])
def test_the_edges_are_those_of_the_table(rendered: Rendered, overlay: str) -> None:
    found = rendered(with_training(overlay))

    assert inside(edges(found, parties(found))) == EDGES


def test_the_page_names_every_service_that_asks_another_in_the_tokens_file() -> None:
    told = re.findall(
        r"for service in ([\w ]+); do\n\s+inspectbus tokens make \$service --role viewer", PAGE.read_text()
    )

    assert [set(names.split()) for names in told] == [
        {asks for asks, asked, _ in EDGES if {asks, asked} <= {*SERVICES}}
    ]


def test_without_the_denial_of_all_the_unnamed_may_be_called(rendered: Rendered) -> None:
    found = rendered(with_training("edge"))
    found.objects.remove(found.one("NetworkPolicy", "default-deny"))

    assert ("stranger's namespace", "stranger", 50055) in inside(edges(found, parties(found))) - EDGES


def test_a_door_that_is_opened_to_all_is_noticed(rendered: Rendered) -> None:
    found = rendered(with_training("edge"))
    found.one("NetworkPolicy", "results")["spec"]["ingress"].append({"ports": [{"port": 50055}]})

    assert ("stranger's namespace", "results", 50055) in inside(edges(found, parties(found))) - EDGES


def test_a_policy_that_is_gone_is_noticed(rendered: Rendered) -> None:
    found = rendered(with_training("plant"))
    found.objects.remove(found.one("NetworkPolicy", "inference"))

    assert ("inference", "training", 50054) in EDGES - edges(found, parties(found))
