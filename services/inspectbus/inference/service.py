"""The inference service: how its parts are joined.

bus ─> events ───┐
                 ├─> models ─> loader ─> batcher ─> engine
gRPC ─> rpc, oip ┘   a loader for each: it finds the version, and opens engine and batcher; when the alias names another
                     version, again, beside the one that judges. All batchers share the streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prometheus_client import CollectorRegistry

from inspectbus.bus import Bus
from inspectbus.inference.choice import check_engines
from inspectbus.inference.events import aliases_followed, subscribed
from inspectbus.inference.evidence import EvidenceKeeper
from inspectbus.inference.models import Models
from inspectbus.inference.oip.rpc import STANDARD, OpenInferenceRpc
from inspectbus.inference.rpc import CONTRACT, InferenceRpc
from inspectbus.inference.settings import InferenceSettings
from inspectbus.inference.shadow import Shadows
from inspectbus.runtime.loop_server import loop_server
from inspectbus.runtime.rpc_server import Door
from inspectbus.stores.frames import FrameStore, default_url


@contextmanager
def open_service(settings: InferenceSettings, bus: Bus) -> Iterator[Door]:
    """Serves at once; a model is loaded in the background, and until then calls are told UNAVAILABLE.

    Raises NotPossibleNow when the engine or the device that was asked for is not there.
    """
    check_engines(settings.engine, settings.device)
    registry = CollectorRegistry()
    bus.report_to(registry)
    store = FrameStore(settings.frame_store_url or default_url(settings.state_dir))
    evidence = EvidenceKeeper(store, registry, keep=settings.keep_evidence, qualified_share=settings.evidence_share)
    with ExitStack() as house:
        # Before the models: their shadows are answered until the last batcher has closed.
        shadows = house.enter_context(Shadows(bus, settings, registry))
        models = house.enter_context(Models(settings, registry))
        house.enter_context(subscribed(bus, models, shadows, store, evidence, settings, registry))
        house.enter_context(aliases_followed(bus, models, settings))
        contracts = {
            CONTRACT: InferenceRpc(models, settings).add_to,
            STANDARD: OpenInferenceRpc(models, settings).add_to,
        }
        # Not ready without a model, or a rolling upgrade would end the replicas that have one before this one has.
        yield house.enter_context(
            loop_server("inference", settings, registry, contracts, ready=lambda: models.default.serving is not None)
        )
