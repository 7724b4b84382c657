"""The tensors of a model version, by the names that its export gives them too.

images, UINT8 (N, H, W, 3) ─> score, FP32 (N,); verdict, BYTES (N,); heatmap, FP32 (N, h, w)
"""

from __future__ import annotations

from inspectbus.api.oip.open_inference_pb2 import ModelMetadataResponse
from inspectbus.domain.model_version import ModelCard

IMAGES, SCORE, VERDICT, HEATMAP = "images", "score", "verdict", "heatmap"
UINT8, FP32, BYTES = "UINT8", "FP32", "BYTES"
ANY = -1
"""A side that differs from call to call."""

TensorMetadata = ModelMetadataResponse.TensorMetadata


def input_of(card: ModelCard) -> TensorMetadata:
    """Prepared images: RGB, of the size that the preparation makes."""
    return TensorMetadata(name=IMAGES, datatype=UINT8, shape=[ANY, card.preparation.height, card.preparation.width, 3])


def outputs_of(card: ModelCard) -> list[TensorMetadata]:
    """Without a heatmap where the card says that the network has none."""
    outputs = [
        TensorMetadata(name=SCORE, datatype=FP32, shape=[ANY]),
        TensorMetadata(name=VERDICT, datatype=BYTES, shape=[ANY]),
    ]
    if card.export is None:  # a card from before there were exports does not say
        outputs.append(TensorMetadata(name=HEATMAP, datatype=FP32, shape=[ANY, ANY, ANY]))
    elif card.export.heatmap is not None:
        outputs.append(TensorMetadata(name=HEATMAP, datatype=FP32, shape=[ANY, *card.export.heatmap]))
    return outputs
