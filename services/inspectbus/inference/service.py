"""The inference service: how its parts are joined.

bus ─> events ───┐
                 ├─> batcher ─> engine          loader: finds the model version, and opens engine and batcher
gRPC ─> rpc, oip ┘                               when the alias names another version, again, beside the one that judges
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prometheus_client import CollectorRegistry

from inspectbus.api.oip import open_inference_pb2, open_inference_pb2_grpc
from inspectbus.api.v1 import inference_pb2, inference_pb2_grpc
from inspectbus.bus import Bus
from inspectbus.inference.choice import check_engines
from inspectbus.inference.events import alias_followed, subscribed
from inspectbus.inference.evidence import EvidenceKeeper
from inspectbus.inference.loader import Loader
from inspectbus.inference.oip.rpc import OpenInferenceRpc
from inspectbus.inference.rpc import InferenceRpc
from inspectbus.inference.settings import InferenceSettings
from inspectbus.runtime.rpc_server import Door, rpc_server
from inspectbus.stores.frames import FrameStore, default_url

_CONTRACT = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
_STANDARD = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


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
        loader = house.enter_context(Loader(settings, registry))
        house.enter_context(subscribed(bus, loader, store, evidence, settings, registry))
        house.enter_context(alias_followed(bus, loader, settings))
        rpc = InferenceRpc(loader, settings)
        oip = OpenInferenceRpc(loader, settings)
        contracts = {
            _CONTRACT: lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(rpc, server),
            _STANDARD: lambda server: open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(oip, server),
        }
        # Not ready without a model, or a rolling upgrade would end the replicas that have one before this one has.
        yield house.enter_context(
            rpc_server("inference", settings, registry, contracts, ready=lambda: loader.serving is not None)
        )
