"""The gate of every engine: what was tested is what runs.

pinned images of a version ─> the engine ─> their recorded scores, or it is refused
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import CorruptModel, UnreadableImage
from inspectbus.imaging.decoding import decode
from inspectbus.inference.engine import Images, Scores
from inspectbus.inference.verdict import verdict_of


def check_pinned(
    score: Callable[[Images], Scores],
    folder: Path,
    card: ModelCard,
    batch_size: int,
    *,
    verdicts: bool = False,
    engine: str = "the network",
) -> float:
    """Each pinned image must get its recorded score from `score`, in batches of `batch_size`. Warms it up too.

    With `verdicts` it must get the recorded score's verdict too: within the tolerance there may be a threshold.
    Gives the largest difference. Raises CorruptModel naming `engine` and the image.
    """
    images = pinned_images(folder, card)
    scores = np.concatenate([_scores(score, images[at : at + batch_size]) for at in range(0, len(images), batch_size)])
    for image, found in zip(card.pinned, scores.tolist(), strict=True):
        # Written so that NaN fails: no comparison with it is true.
        if not abs(found - image.score) <= card.pinned_tolerance:
            raise CorruptModel(
                f"{engine} gives pinned image {image.file} the score {found:.4f} here, and it had {image.score:.4f} "
                f"when the version was made; {card.pinned_tolerance} apart is allowed",
                field=image.file,
            )
        if verdicts and verdict_of(found, card.thresholds) != verdict_of(image.score, card.thresholds):
            raise CorruptModel(
                f"{engine} gives pinned image {image.file} the score {found:.4f} here, and it had {image.score:.4f} "
                "when the version was made: near, but another verdict",
                field=image.file,
            )
    _scores(score, np.zeros((batch_size, *images.shape[1:]), np.uint8))
    return float(np.abs(scores - [image.score for image in card.pinned]).max())


def pinned_images(folder: Path, card: ModelCard) -> Images:
    """As they were prepared, in the order of the card. Raises CorruptModel naming one that cannot be read."""
    return np.stack([_pinned(folder, image.file, card) for image in card.pinned])


def _scores(score: Callable[[Images], Scores], images: Images) -> Scores:
    scores = score(images)
    if scores.shape != (len(images),):
        raise CorruptModel(f"the network gives scores of shape {scores.shape} for {len(images)} images", field="model")
    return scores


def _pinned(folder: Path, file: str, card: ModelCard) -> Images:
    try:
        image = decode((folder / file).read_bytes())
    except UnreadableImage as error:
        raise CorruptModel(f"pinned image {file}: {error.message}", field=file) from error
    expected = (card.preparation.height, card.preparation.width, 3)
    if image.shape != expected:
        raise CorruptModel(f"pinned image {file} is {image.shape}, and the model takes {expected}", field=file)
    return image
