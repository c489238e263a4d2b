"""Ids by turn number, in a few bytes each: a session's turns stand under numbers without gaps, or with few."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from itertools import repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NONE = -1
_GAP = 65_536
"""Numbers that may be missing between two turns at least; where more are, room is not taken for them."""


class Rows(Mapping[int, int]):
    """The id of each of a session's turns by its number, in the order of the numbers.

    A dict took some 100 bytes a turn; this takes 8, and as many for each number that is missing in between. Where
    far more would be missing than are there, a dict keeps what lies outside.
    """

    __slots__ = ("_first", "_ids", "_others", "_there")

    def __init__(self) -> None:
        self._first = self._there = 0
        self._ids = array("q")
        self._others: dict[int, int] = {}

    def __getitem__(self, number: int) -> int:
        at = number - self._first
        found = self._ids[at] if 0 <= at < len(self._ids) else self._others.get(number, _NONE)
        if found == _NONE:
            raise KeyError(number)
        return found

    def __iter__(self) -> Iterator[int]:
        within = (number for number, row in enumerate(self._ids, self._first) if row != _NONE)
        return iter(sorted([*self._others, *within])) if self._others else within

    def __len__(self) -> int:
        return self._there

    def __setitem__(self, number: int, row: int) -> None:
        if number in self:
            raise KeyError(f"turn {number} has an id")
        if not self._ids:
            self._first = number
        at = number - self._first
        missing = max(at - len(self._ids), -at, 0)
        if missing > max(_GAP, len(self._ids)):
            self._others[number] = row
        elif at < 0:
            self._ids[:0] = array("q", [row, *repeat(_NONE, -at - 1)])
            self._first = number
        else:
            self._ids.extend(repeat(_NONE, at + 1 - len(self._ids)))
            self._ids[at] = row
        self._there += 1

    def ids(self) -> list[int]:
        """All ids."""
        return [*self._others.values(), *(row for row in self._ids if row != _NONE)]

    def drop(self, before: int | None = None) -> list[int]:
        """Take out all turns, or those with lower numbers; their ids."""
        kept = {number: row for number, row in self.items() if before is not None and number >= before}
        gone = [row for number, row in self.items() if number not in kept]
        self._ids, self._others, self._there = array("q"), {}, 0
        for number, row in kept.items():
            self[number] = row
        return gone
