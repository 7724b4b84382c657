"""Inference services on a bus of their own, with a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch

from inspectbus.inference import choice
from inspectbus.inference.engine import open_engine
from inspectbus.inference.settings import InferenceSettings
from tests.doubles.inference_service import Running, TouchyEngine, running
from tests.doubles.tiny_model import tiny_version


@pytest.fixture
def touchy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue[TouchyEngine]]:
    """Services opened from here on run a TouchyEngine; each is put here."""
    made: Queue[TouchyEngine] = Queue()

    def open_touchy(*how: Any) -> TouchyEngine:
        engine = TouchyEngine(open_engine(*how))
        made.put(engine)
        engines.append(engine)
        return engine

    engines: list[TouchyEngine] = []
    monkeypatch.setattr(choice, "open_engine", open_touchy)
    yield made
    for engine in engines:
        engine.gate.set()


@pytest.fixture(scope="session")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_version(tmp_path_factory.mktemp("versions"))


Open = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Open]:
    """Opens services; each has free ports, a bus of its own and `tmp_path` as its state folder."""
    with ExitStack() as house:

        def start(bus_url: str = "", **how: Any) -> Running:
            settings = InferenceSettings(
                **{
                    "port": 0,
                    "metrics_port": 0,
                    "state_dir": tmp_path / "state",
                    "models_address": "127.0.0.1:1",
                    "model_retry_s": 0.05,
                    "drain_s": 5,
                    "threads": 1,
                    "runs_ahead": 0,  # so that an engine which is held has what it computes, and no more
                    **how,
                }
            )
            return house.enter_context(running(settings, bus_url))

        yield start
