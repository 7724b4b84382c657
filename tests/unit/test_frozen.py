"""What a model never changes, and what is worked out of it once."""

from __future__ import annotations

from functools import cached_property

from inspectbus.domain.frozen import Frozen
from inspectbus.domain.preparation import Preparation


class Square(Frozen):
    side: int

    @cached_property
    def area(self) -> int:
        return self.side**2


def test_a_copy_that_says_otherwise_has_its_own_answers() -> None:
    square = Square(side=3)

    assert square.area == 9
    assert square.model_copy(update={"side": 4}).area == 16
    assert square.area == 9


def test_what_was_worked_out_is_no_part_of_what_is_said() -> None:
    asked, unasked = Square(side=3), Square(side=3)

    assert asked.area == 9
    assert asked == unasked
    assert hash(asked) == hash(unasked)
    assert asked.model_dump() == {"side": 3}


def test_another_preparation_has_another_hash_whoever_asked_before() -> None:
    preparation = Preparation()

    assert preparation.hash == Preparation().hash
    assert preparation.model_copy(update={"width": 64}).hash == Preparation(width=64).hash != preparation.hash
