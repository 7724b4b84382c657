"""A channel to another service: its replicas are called in turn, and one that restarts is found again within seconds.

The address is as gRPC spells it: HOST:PORT, dns:///NAME:PORT for all that stand behind a name, ipv4:IP:PORT,IP:PORT.
"""

from __future__ import annotations

import grpc

_OPTIONS = [
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # gRPC's own pauses grow to two minutes, and it looks a name up again every half a minute at most.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
]


def open_channel(address: str) -> grpc.Channel:
    """Close it when its calls are done."""
    return grpc.insecure_channel(address, options=_OPTIONS)
