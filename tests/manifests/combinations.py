"""What is rendered: every overlay and job as it stands, the base with each component alone, and with several."""

from __future__ import annotations

from pathlib import Path

from tests.manifests.kustomize import K8S

OVERLAYS = tuple(sorted(folder.name for folder in (K8S / "overlays").iterdir()))
COMPONENTS = tuple(sorted(folder.name for folder in (K8S / "components").iterdir()))
JOBS = tuple(sorted(folder.name for folder in (K8S / "jobs").iterdir()))

SERVERS = ("rabbitmq-operator", "postgres")
SINGLE = ("rabbitmq-single", "postgres-single")
BUCKETS = ("frame-store-s3", "model-store-s3")
VOLUMES = ("frame-store-volume", "model-store-volume")

TOGETHER: dict[str, tuple[str, ...]] = {
    "nothing": (),
    **{name: (name,) for name in COMPONENTS},
    "servers of your own, with TLS and tokens": (*BUCKETS, "tls", "tokens"),
    "volumes many nodes write": (*SERVERS, *VOLUMES),
    "frames in a bucket, models on a volume": (*SERVERS, "frame-store-s3", "model-store-volume"),
    "a plant without GPUs": (*SERVERS, *BUCKETS, "autoscaling", "monitoring", "network-policies", "tls", "tokens"),
    "a plant without operators' TLS": (*SERVERS, *BUCKETS, "gpu", "autoscaling", "network-policies"),
    "a plant that does not scale": (*SERVERS, *BUCKETS, "gpu", "monitoring", "network-policies", "tls"),
    "one machine with a GPU, watched": (*SINGLE, *VOLUMES, "one-node", "gpu", "monitoring", "network-policies"),
}

ALL = (
    *(f"overlays/{name}" for name in OVERLAYS),
    *(f"jobs/{name}" for name in JOBS),
    *(f"with {name}" for name in TOGETHER),
)


def folder_of(name: str) -> Path | None:
    """None for the base with components."""
    return None if name.startswith("with ") else K8S / name
