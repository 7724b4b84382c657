"""What is rendered: every overlay as it stands and with its training, each job, the base with each component alone, and
with several."""

from __future__ import annotations

from pathlib import Path

from tests.manifests.kustomize import K8S

OVERLAYS = tuple(sorted(folder.name for folder in (K8S / "overlays").iterdir()))
COMPONENTS = tuple(sorted(folder.name for folder in (K8S / "components").iterdir()))
JOBS = tuple(sorted(folder.name for folder in (K8S / "jobs").iterdir()))

TRAININGS = {"local": "jobs/train", "edge": "jobs/train", "plant": "overlays/plant/train"}
"""How a training is asked for in each overlay."""

SERVERS = ("rabbitmq-operator", "postgres")
SINGLE = ("rabbitmq-single", "postgres-single")
BUCKETS = ("frame-store-s3", "model-store-s3")
VOLUMES = ("frame-store-volume", "model-store-volume")

TOGETHER: dict[str, tuple[str, ...]] = {
    "nothing": (),
    **{name: (name,) for name in COMPONENTS},
    "servers of your own, with TLS and tokens": (*BUCKETS, "tls", "tokens"),
    "volumes many nodes write": ("operator", *SERVERS, *VOLUMES),
    "frames in a bucket, models on a volume": (*SERVERS, "frame-store-s3", "model-store-volume"),
    "a plant without GPUs": (
        "operator",
        *SERVERS,
        *BUCKETS,
        "autoscaling",
        "monitoring",
        "network-policies",
        "tls",
        "tokens",
    ),
    "a plant without operators' TLS": (*SERVERS, *BUCKETS, "gpu", "autoscaling", "network-policies"),
    "a plant that does not scale": (*SERVERS, *BUCKETS, "gpu", "monitoring", "network-policies", "tls"),
    "one machine with a GPU, watched": (
        "operator",
        *SINGLE,
        *VOLUMES,
        "one-node",
        "gpu",
        "monitoring",
        "network-policies",
    ),
}

ALL = (
    *(f"overlays/{name}" for name in OVERLAYS),
    *(f"jobs/{name}" for name in JOBS),
    *(f"overlays/{name} and {job}" for name, job in TRAININGS.items()),
    *(f"with {name}" for name in TOGETHER),
)


def with_training(overlay: str) -> str:
    return f"overlays/{overlay} and {TRAININGS[overlay]}"


def folders_of(name: str) -> list[Path]:
    """What is applied to one cluster together; none for the base with components."""
    return [] if name.startswith("with ") else [K8S / part for part in name.split(" and ")]
