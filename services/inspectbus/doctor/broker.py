"""Is the broker there, complete, and willing? URL ─> handshake ─> topology, depths ─> one message to nobody."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from inspectbus.doctor.finding import Finding, State
from inspectbus.errors import InspectBusError, NotAllowed, NotPossibleNow

if TYPE_CHECKING:
    import pika

    from inspectbus.bus.rabbitmq import survey
    from inspectbus.bus.rabbitmq.addresses import Addresses

HANDSHAKE_S = 4.0
CONFIRM_S = 3.0
MANY_NAMES = 3
"""Of what is missing; `bus status` shows them all."""
MANY_WAIT = 1000
"""In a live queue: some seconds of a whole plant."""


def look_at_broker(url: str) -> list[Finding]:
    """Raises InspectBusError when nothing more can be said."""
    if url.startswith("embedded://"):
        return [Finding("broker", State.OK, "the bus is embedded in its process and needs no broker")]
    try:
        from inspectbus.bus.rabbitmq import addresses, survey, topology
    except ModuleNotFoundError as error:
        raise NotPossibleNow(f"amqp:// needs the library {error.name}: install inspectbus[rabbitmq]") from None
    where = addresses.parse(url, "inspectbus-doctor")
    limits = replace(where.limits, publish_patience_s=CONFIRM_S)
    where = replace(where, limits=limits, make_parameters=partial(_hasty, where.make_parameters))
    at = f"{', '.join(where.nodes)}, vhost {where.vhost}"
    with topology.connected(where) as connection:
        found = [Finding("broker", State.OK, f"{at} takes user {where.user}")]
        gone = survey.missing(connection)
        faults = survey.faults(connection)
        if gone:
            names = ", ".join([*gone[:MANY_NAMES], *(["…"] if len(gone) > MANY_NAMES else [])])
            found.append(Finding("topology", State.FAIL, f"{survey.told_missing(gone, where.vhost)} ({names})"))
        found += [Finding("topology", State.FAIL, fault) for fault in faults]
        if not gone and not faults:
            found.append(Finding("topology", State.OK, "every exchange and queue is there, as it should be"))
        standings = survey.standings(connection)
    found += _depths(standings)
    found.append(_willing(where))
    return found


def _hasty(make: Callable[[], tuple[pika.ConnectionParameters, ...]]) -> tuple[pika.ConnectionParameters, ...]:
    found = make()
    for parameters in found:
        parameters.socket_timeout = HANDSHAKE_S / 2
        parameters.stack_timeout = HANDSHAKE_S
    return found


def _depths(standings: list[survey.Standing]) -> list[Finding]:
    found = []
    dead = sum(each.messages or 0 for each in standings if each.kind == "dead")
    state = State.WARN if dead else State.OK
    says = f"{dead} wait for a person: `inspectbus dead list`, then replay or drop" if dead else "none"
    found.append(Finding("dead letters", state, says))
    for each in standings:
        waiting = each.messages or 0
        if each.kind == "work" and waiting and not each.consumers:
            says = f"{each.queue} holds {waiting} and nobody reads it: is its service started?"
        elif each.kind == "work" and each.lane != "backlog" and waiting >= MANY_WAIT:
            says = f"{each.queue} holds {waiting}: its readers are behind; start more of them"
        elif each.kind == "quarantine" and waiting:
            says = f"{each.queue} holds {waiting}: messages that took their worker down and wait to be worked alone"
        else:
            continue
        found.append(Finding("queues", State.WARN, says))
    there = [each for each in standings if each.kind == "work" and each.messages is not None]
    unread = [each.queue for each in there if not each.messages and not each.consumers]
    if unread:
        says = f"nothing waits and nobody reads {', '.join(unread)}: are their services started?"
        found.append(Finding("queues", State.WARN, says))
    if there and not any(each.about == "queues" for each in found):
        total = sum(each.messages or 0 for each in standings if each.kind in ("work", "retry"))
        found.append(Finding("queues", State.OK, f"{total} messages wait, and somebody reads"))
    return found


def _willing(where: Addresses) -> Finding:
    """A broker in alarm says so only to one who publishes."""
    import pika

    from inspectbus.bus.rabbitmq.link import Link
    from inspectbus.bus.rabbitmq.publisher import Publisher

    link = Link("doctor", where)
    publisher = Publisher(link, where.limits)
    link.start()
    try:
        # To a queue that is none: the broker confirms it and throws it away. In alarm it still takes a connection's
        # first message, and reads no second.
        for _ in range(2):
            sent = publisher.publish("", "inspectbus.doctor", pika.BasicProperties(), b"", mandatory=False)
            sent.result(CONFIRM_S / 2)
    except NotAllowed:
        return Finding("alarms", State.OK, f"user {where.user} may not try it; no other trouble is known")
    except (FutureTimeout, InspectBusError):
        trouble = link.trouble or publisher.trouble or f"the broker confirmed no message within {CONFIRM_S:.0f} s"
        return Finding("alarms", State.FAIL, f"{trouble}: free its memory or disk; cameras spool meanwhile")
    finally:
        publisher.close(0.0)
        link.close(1.0)
    return Finding("alarms", State.OK, "the broker takes and confirms messages")
