"""Which of ONNX Runtime's providers is meant, and what happens when it is listed and does not start."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from inspectbus.errors import NotPossibleNow
from inspectbus.inference.engine import Device, Place, open_engine
from inspectbus.inference.onnx_engine import chosen_providers
from inspectbus.stores.models import read_card
from tests.doubles.tiny_model import tiny_version

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def names(device: Device) -> list[str]:
    return [each if isinstance(each, str) else each[0] for each in chosen_providers(device)]


def available(monkeypatch: pytest.MonkeyPatch, *providers: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*providers, CPU])


def test_auto_takes_cuda_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch)
    assert names("auto") == names("cpu") == [CPU]
    available(monkeypatch, CUDA)
    assert names("auto") == names("cuda") == [CUDA, CPU]
    assert names("cpu") == [CPU]


def test_a_provider_that_this_build_has_not_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch)
    with pytest.raises(NotPossibleNow, match="onnxruntime-gpu") as refused:
        chosen_providers("cuda")
    assert refused.value.field == "device"


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_listed_and_does_not_start_is_no_silent_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this build of onnxruntime has CUDA")
    folder = tiny_version(tmp_path, exported=True)
    # Given a build that says it has CUDA, as one does whose driver or cuDNN is missing
    available(monkeypatch, CUDA)
    # When it is asked for, then ONNX Runtime falls back, and we do not
    with pytest.raises(NotPossibleNow, match=f"could not start its {CUDA}") as refused:
        open_engine("onnxruntime", folder, read_card(folder), Place("cuda"))
    assert refused.value.field == "device"
