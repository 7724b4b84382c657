"""Scores become a ModelInferResponse: raw where the request was raw, in the order that was asked for."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inspectbus.api.oip.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from inspectbus.api.v1.decision_pb2 import Verdict
from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import BadField
from inspectbus.inference.batcher import Scored
from inspectbus.inference.oip.request import PREPARATION_HASH
from inspectbus.inference.oip.tensors import BYTES, FP32, HEATMAP, SCORE, VERDICT
from inspectbus.inference.verdict import verdict_of


def response_of(
    request: ModelInferRequest, names: Sequence[str], card: ModelCard, scored: Sequence[Scored]
) -> ModelInferResponse:
    """The outputs of these names; without names, all there are.

    Raises Internal when a score is none, BadField when a heatmap is asked for and the network has none.
    """
    raw = bool(request.raw_input_contents)
    # Whoever asks for scores alone is still not given one that is no number.
    verdicts = [Verdict.Name(verdict_of(each.score, card.thresholds)) for each in scored]
    heatmaps = [each.heatmap for each in scored if each.heatmap is not None]
    answer = _described(card, request.id)
    for name in names or (SCORE, VERDICT, *([HEATMAP] if heatmaps else [])):
        if name == SCORE:
            _add_floats(answer, name, np.array([each.score for each in scored], np.float32), raw=raw)
        elif name == VERDICT:
            _add_words(answer, name, [verdict.removeprefix("VERDICT_").encode() for verdict in verdicts], raw=raw)
        elif heatmaps:
            _add_floats(answer, name, np.stack(heatmaps), raw=raw)
        else:
            raise BadField(f"the network of {card.name} {card.version} gives no {name}", field="outputs")
    return answer


def _described(card: ModelCard, request_id: str) -> ModelInferResponse:
    answer = ModelInferResponse(model_name=card.name, model_version=card.version, id=request_id)
    answer.parameters["threshold"].double_param = card.thresholds.defective_from
    if card.thresholds.band:
        answer.parameters["qualified_below"].double_param = card.thresholds.qualified_below
    answer.parameters[PREPARATION_HASH].string_param = card.preparation.hash
    return answer


def _add_floats(answer: ModelInferResponse, name: str, values: NDArray[np.float32], *, raw: bool) -> None:
    output = answer.outputs.add(name=name, datatype=FP32, shape=values.shape)
    if raw:
        answer.raw_output_contents.append(values.astype("<f4").tobytes())
    else:
        output.contents.fp32_contents.extend(values.ravel().tolist())


def _add_words(answer: ModelInferResponse, name: str, words: list[bytes], *, raw: bool) -> None:
    output = answer.outputs.add(name=name, datatype=BYTES, shape=[len(words)])
    if raw:
        answer.raw_output_contents.append(b"".join(struct.pack("<I", len(word)) + word for word in words))
    else:
        output.contents.bytes_contents.extend(words)
