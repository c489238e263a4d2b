"""Vectors that are equal: of each kind a graph holds one, for many of them make it fall apart.

A graph links each vector to its nearest. Where one text stands in thousands of turns ("thanks"), these link to each
other and to nothing else, and whoever comes to them by the graph does not get away again: with a third of all vectors
equal, hnswlib found .18 of the ten nearest of other queries, with a fifteenth .81.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]


class Twins:
    """Which ids stand behind another one, whose vector is equal to theirs and is in the graph. Not thread-safe."""

    def __init__(self) -> None:
        self._behind: dict[int, list[int]] = {}
        self._before: dict[int, int] = {}

    def __len__(self) -> int:
        """How many stand behind others."""
        return len(self._before)

    def put(self, twin: int, first: int) -> None:
        """Have an id stand behind another one, which stands behind none."""
        self._before[twin] = first
        self._behind.setdefault(first, []).append(twin)

    def take(self, key: int) -> tuple[bool, int | None]:
        """Take an id out.

        Returns:
            Whether it was in the graph itself; and which one has to take its place there, behind which the others stand
            from now on. None: nobody stood behind it.
        """
        first = self._before.pop(key, None)
        if first is not None:
            self._behind[first].remove(key)
            if not self._behind[first]:
                del self._behind[first]
            return False, None
        others = self._behind.pop(key, None)
        if others is None:
            return True, None
        heir, *rest = others
        del self._before[heir]
        for other in rest:
            self._before[other] = heir
        if rest:
            self._behind[heir] = rest
        return True, heir

    def spread(self, firsts: Ids) -> tuple[Ids, Ids]:
        """All ids that stand for these, and the position in `firsts` of the one that each stands behind, or is."""
        if not self._behind:
            return firsts, np.arange(len(firsts))
        groups = [[first, *self._behind.get(first, ())] for first in firsts.tolist()]
        positions = np.repeat(np.arange(len(firsts)), [len(group) for group in groups])
        return np.array([key for group in groups for key in group], dtype=np.int64), positions

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Each id that stands behind another one, and that one."""
        yield from self._before.items()
