"""A folder of the rendered product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.doubles.rendered import disc, encode

GOOD, DEFECTIVE = 48, 32


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `discs` with good/ and defective/."""
    root = tmp_path_factory.mktemp("data") / "discs"
    rng = np.random.default_rng(5)
    for name, count, scratched in (("good", GOOD, False), ("defective", DEFECTIVE, True)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{name}-{number:03}.png").write_bytes(encode(disc(rng, scratched=scratched)))
    return root
