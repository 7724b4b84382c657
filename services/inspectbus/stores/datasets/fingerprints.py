"""A data fingerprint: the same for the same items, another as soon as a training could come out otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from inspectbus.errors import BadField
from inspectbus.stores.datasets.items import Item


def fingerprint(items: Iterable[Item]) -> str:
    """sha256 over every item in the order of names; an unreadable file counts as empty.

    It covers name, content, label and probability, which are learnt from, and half, group, lot and kind, which decide
    on which side of a cut an item stands; with the training's seed they fix the split. No training looks at the mask.
    """
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda each: each.name):
        try:
            content = hashlib.sha256(item.read()).hexdigest()
        except BadField:
            content = ""
        # JSON quotes what stands in a name, so no two lists spell the same text.
        facts = [item.name, item.label, content, item.probability, item.half, item.group, item.lot, item.kind]
        digest.update(json.dumps(facts).encode("ascii") + b"\n")
    return digest.hexdigest()
