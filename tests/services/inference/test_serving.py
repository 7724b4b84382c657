"""How long a version stands beside the one that followed it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry

from inspectbus.domain.preparation import Preparation
from inspectbus.inference.batcher import Batcher
from inspectbus.inference.choice import Choice
from inspectbus.inference.metrics import BatcherMetrics
from inspectbus.inference.serving import InService, Serving
from inspectbus.runtime.watchdog import Watchdog
from tests.doubles.engines import BrightnessEngine
from tests.doubles.model_owner import card_for

SIDE = 32
STANDS_S = 30.0
ONE, OTHER = Preparation(width=SIDE, height=SIDE), Preparation(width=SIDE, height=SIDE, denoise="median")


@contextmanager
def version(preparation: Preparation) -> Iterator[Serving]:
    engine = BrightnessEngine()
    batcher = Batcher(
        engine,
        SIDE,
        SIDE,
        BatcherMetrics(CollectorRegistry(), 1),
        Watchdog(60.0),
        max_batch_size=1,
        max_batch_wait_s=0.0,
        queue_limit=1,
        drain_s=1.0,
    )
    with batcher:
        yield Serving(card_for(preparation), "production", engine, batcher, Choice(chosen="here", candidates=()))


@pytest.fixture
def old() -> Iterator[Serving]:
    with version(ONE) as serving:
        yield serving


@pytest.fixture
def new() -> Iterator[Serving]:
    with version(OTHER) as serving:
        yield serving


def test_the_version_before_goes_when_no_image_prepared_for_it_has_come_for_so_long(old: Serving, new: Serving) -> None:
    times_s = [0.0]
    service = InService(clock=lambda: times_s[-1])
    service.swap(old, STANDS_S)
    service.swap(new, STANDS_S)

    for now_s in (20.0, 40.0, 60.0):
        times_s.append(now_s)
        with service.chosen(preparation_hash=ONE.hash) as serving:
            assert serving is old
        assert service.let_go() is None
    times_s.append(89.0)
    assert service.let_go() is None
    times_s.append(90.0)
    assert service.let_go() is old
    with service.chosen(preparation_hash=ONE.hash) as serving:
        assert serving is new


def test_a_version_before_that_takes_the_same_pixels_goes_at_once(old: Serving) -> None:
    with version(ONE) as new:
        service = InService(clock=lambda: 0.0)
        service.swap(old, STANDS_S)
        service.swap(new, STANDS_S)
        assert service.let_go() is old
