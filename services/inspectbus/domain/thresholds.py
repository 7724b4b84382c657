"""Two scores that divide, often one and the same: QUALIFIED below the lower, DEFECTIVE from the upper on, HOLD between.

good ... | qualified_below ...... uncertain ...... | defective_from ... bad
"""

from __future__ import annotations

from dataclasses import dataclass

from inspectbus.errors import BadField


@dataclass(frozen=True)
class Thresholds:
    """Raises BadField naming the one that lies outside 0 to 1, or both when they stand the wrong way round."""

    qualified_below: float
    defective_from: float
    """Known elsewhere as *the* threshold: without a band it is the only one."""

    def __post_init__(self) -> None:
        for name, score in vars(self).items():
            # Spelt so that NaN, which compares as False, is refused too.
            if not 0 <= score <= 1:
                raise BadField(f"{name} is {score}; it lies between 0 and 1", field=name)
        if self.qualified_below > self.defective_from:
            raise BadField(
                f"qualified_below is {self.qualified_below}, above the threshold {self.defective_from}: "
                "a score between them would be good and defective",
                field="qualified_below",
            )

    @property
    def band(self) -> bool:
        """Whether any score is uncertain."""
        return self.qualified_below < self.defective_from

    def __str__(self) -> str:
        band = f", qualified below {self.qualified_below:.4g}" if self.band else ""
        return f"threshold {self.defective_from:.4g}{band}"
