"""Who may speak with whom: what network policies together allow, as edges.

policies, pods and outsiders ─> caller may send, and callee may receive, at a port ─> {(caller, callee, port)}
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.manifests.kustomize import Manifests

NAMESPACE = "inspectbus"
OF_NAMESPACE = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Party:
    """A pod, or what is no pod and has an address alone."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""

    @property
    def of_namespace(self) -> dict[str, str]:
        return {OF_NAMESPACE: self.namespace, **self.namespace_labels}


def edges(found: Manifests, parties: Sequence[Party]) -> set[tuple[str, str, int]]:
    """Of different parties, and of a party with others of its own kind."""
    policies = [each["spec"] for each in found.of("NetworkPolicy")]
    ports = sorted({port["port"] for policy in policies for rule in _rules(policy) for port in rule.get("ports", [])})
    return {
        (caller.name, callee.name, port)
        for caller in parties
        for callee in parties
        for port in ports
        if _may(policies, caller, callee, port, "Egress") and _may(policies, callee, caller, port, "Ingress")
    }


def _rules(policy: Any) -> Iterator[Any]:
    yield from policy.get("ingress", [])
    yield from policy.get("egress", [])


def _may(policies: Sequence[Any], own: Party, other: Party, port: int, way: str) -> bool:
    """Policies are this namespace's; what none of them selects may do everything."""
    if own.address or own.namespace != NAMESPACE:
        return True
    mine = [each for each in policies if way in each["policyTypes"] and _matches(each["podSelector"], own.labels)]
    side, peers = ("from", "ingress") if way == "Ingress" else ("to", "egress")
    return not mine or any(
        any(_is(peer, other) for peer in rule.get(side, [{}])) and _has(rule, port)
        for policy in mine
        for rule in policy.get(peers, [])
    )


def _has(rule: Any, port: int) -> bool:
    return "ports" not in rule or port in [each["port"] for each in rule["ports"]]


def _is(peer: Any, other: Party) -> bool:
    if "ipBlock" in peer:
        # A pod has an address too; whoever means pods names them.
        return bool(other.address) and ipaddress.ip_address(other.address) in ipaddress.ip_network(
            peer["ipBlock"]["cidr"]
        )
    if other.address:
        return not peer
    if "namespaceSelector" in peer:
        if not _matches(peer["namespaceSelector"], other.of_namespace):
            return False
    elif peer and other.namespace != NAMESPACE:
        return False
    return _matches(peer.get("podSelector", {}), other.labels)


def _matches(selector: Any, labels: Mapping[str, str]) -> bool:
    known = {"matchLabels", "matchExpressions"}
    assert set(selector) <= known, selector
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In", each
        if labels.get(each["key"]) not in each["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())
