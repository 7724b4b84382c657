"""Rendered parts: textured plates, the defective ones with a bright scratch. Small enough to train on in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from inspectbus.domain.model_version import Architecture, Normalisation
from inspectbus.networks.classifier import build

TINY_BACKBONE = "test_efficientnet"


def plate(seed: int, *, scratched: bool, width: int = 64, height: int = 64) -> NDArray[np.uint8]:
    """uint8 (height, width, 3) BGR."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(90, 12, (height, width, 3)).clip(0, 255).astype(np.uint8)
    image: NDArray[np.uint8] = cv2.GaussianBlur(noise, (3, 3), 0)
    if scratched:
        x, y = rng.integers(8, width - 24), rng.integers(8, height - 24)
        end = (int(x + rng.integers(10, 20)), int(y + rng.integers(-4, 16)))
        cv2.line(image, (int(x), int(y)), end, (235, 240, 245), 3)
    return image


def write_plates(
    folder: Path, count: int, *, scratched: bool, first_seed: int = 0, sizes: Sequence[tuple[int, int]] = ((64, 64),)
) -> list[Path]:
    """PNG files 000.png, 001.png, ..., the sizes (width, height) in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        file = folder / f"{number:03d}.png"
        # Class and number both go into the seed: no two files are alike.
        seed = 2 * (first_seed + number) + scratched
        cv2.imwrite(str(file), plate(seed, scratched=scratched, width=width, height=height))
        files.append(file)
    return files


def write_set(root: Path, good: int = 24, defective: int = 16, sizes: Sequence[tuple[int, int]] = ((64, 64),)) -> Path:
    """Two class folders."""
    write_plates(root / "good", good, scratched=False, sizes=sizes)
    write_plates(root / "defective", defective, scratched=True, sizes=sizes)
    return root


def scratch_mask(seed: int, *, width: int = 64, height: int = 64) -> NDArray[np.bool_]:
    """bool (height, width): where the scratch of that plate lies."""
    sound, scratched = (plate(seed, scratched=each, width=width, height=height) for each in (False, True))
    return np.asarray((sound != scratched).any(axis=2))


def write_marks(root: Path) -> Path:
    """A mask of each scratch of a `write_set` of one size, 64x64, and the manifest that names them."""
    (root / "masks").mkdir()
    rows = ["file,mask", *(f"good/{file.name}," for file in sorted((root / "good").iterdir()))]
    for number, file in enumerate(sorted((root / "defective").iterdir())):
        cv2.imwrite(str(root / "masks" / file.name), 255 * scratch_mask(2 * number + 1).astype(np.uint8))
        rows.append(f"defective/{file.name},masks/{file.name}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def write_tiny_weights(file: Path, seed: int = 0) -> Path:
    """Weights for the tiny backbone as a safetensors file: never trained, but used to the look of plates."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        architecture = Architecture(backbone=TINY_BACKBONE)
        network = build(architecture, Normalisation(mean=(127, 127, 127), std=(128, 128, 128))).train()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        plates = np.stack([plate(number, scratched=bool(number % 2)) for number in range(16)])
        network(torch.from_numpy(plates))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in network.backbone.state_dict().items()}, file)
    return file
