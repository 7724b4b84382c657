"""`inspectbus` with a stub engine, and with parts that make it fail: `python -m tests.faults.serve serve SERVICE...`

The command line, the services, the bus and the stores are the real ones. STUB_BATCH_MS is what a pass takes.
"""

from __future__ import annotations

import os
import resource
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from inspectbus import line
from inspectbus.__main__ import main
from inspectbus.errors import NotPossibleNow


def replace_torch() -> None:
    """Stands in for the one module of inference that imports torch, which alone takes seconds."""

    def open_stub(*how: object, bf16: bool) -> object:
        if bf16:
            raise NotPossibleNow("the stub has one precision")  # or it would race with itself
        from tests.doubles.stub_model import StubEngine

        return StubEngine(float(os.environ.get("STUB_BATCH_MS", "0")))

    stub: Any = ModuleType("inspectbus.inference.torch_engine")
    stub.TorchEngine = open_stub
    stub.chosen_device = lambda device, **more: device
    sys.modules[stub.__name__] = stub
    # `from inspectbus.inference import torch_engine` looks here first.
    import inspectbus.inference

    inspectbus.inference.torch_engine = stub


def mark_decoding() -> None:
    from tests.doubles.marked_parts import fault_of_file, suffer

    preparer: Any = import_module("inspectbus.preprocessing.preparer")
    decode = preparer.decode

    def decode_or_fail(image: bytes, *limits: Any) -> Any:
        suffer(fault_of_file(image))
        return decode(image, *limits)

    preparer.decode = decode_or_fail


if __name__ == "__main__":
    # Crashing is what it is for: nobody wants the cores.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A message worked on alone must meet the same engine.
    line.COMMAND = (sys.executable, "-m", "tests.faults.serve")
    replace_torch()
    if "preprocessing" in sys.argv:
        mark_decoding()
    main()
