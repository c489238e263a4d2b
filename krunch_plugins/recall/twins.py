"""Vectors that are equal: of each kind a graph holds one, for many of them make it fall apart.

A graph links each vector to its nearest. Where one text stands in thousands of turns ("thanks"), these link to each
other and to nothing else, and whoever comes to them by the graph does not get away again: with a third of all vectors
equal, hnswlib found .18 of the ten nearest of other queries, with a fifteenth .81.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]


@dataclass(slots=True)
class _Group:
    """Ids of equal vectors: the one in the graph, and those behind it in the order in which they came."""

    first: int
    behind: dict[int, None] = field(default_factory=dict)


class Twins:
    """Which ids stand behind another one, whose vector is equal to theirs and is in the graph. Not thread-safe."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}  # by each id that has a twin
        self._count = 0

    def __len__(self) -> int:
        """How many stand behind others."""
        return self._count

    def put(self, twin: int, first: int) -> None:
        """Have an id stand behind another one, which stands behind none."""
        group = self._groups.setdefault(first, _Group(first))
        group.behind[twin] = None
        self._groups[twin] = group
        self._count += 1

    def take(self, key: int) -> tuple[bool, int | None]:
        """Take an id out; it takes no longer where there are many.

        Returns:
            Whether it was in the graph itself; and which one has to take its place there, behind which the others stand
            from now on. That is the newest, for it is the oldest that retention removes. None: nobody stood behind it.
        """
        group = self._groups.pop(key, None)
        if group is None:
            return True, None
        self._count -= 1
        heir = None
        if key == group.first:
            heir, _ = group.behind.popitem()
            group.first = heir
        else:
            del group.behind[key]
        if not group.behind:
            del self._groups[group.first]
        return heir is not None, heir

    def spread(self, firsts: Ids) -> tuple[Ids, Ids]:
        """All ids that stand for these, and the position in `firsts` of the one that each stands behind, or is."""
        if not self._groups:
            return firsts, np.arange(len(firsts))
        groups = [[first, *self._behind(first)] for first in firsts.tolist()]
        positions = np.repeat(np.arange(len(firsts)), [len(group) for group in groups])
        return np.array([key for group in groups for key in group], dtype=np.int64), positions

    def _behind(self, first: int) -> Iterable[int]:
        group = self._groups.get(first)
        return () if group is None else group.behind

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Each id that stands behind another one, and that one."""
        return ((key, group.first) for key, group in self._groups.items() if key != group.first)
