"""What a conversation is about: its turns on a torus, where near meanings are near, and what of it is still warm."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from krunch_plugins.recall.embedders import idf, words
from krunch_plugins.recall.torus import ToroidalMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SIZE = 50
"""Columns and rows of a session's grid."""
DEPOSIT, DEPOSIT_RADIUS = 0.5, 3.0
"""What a turn adds at its place, and how far around it, in cells."""
QUERY_RADIUS, QUERY_STEPS = 8.0, 10
"""How far around its place a query warms the grid, and how many steps that spreads."""
REMEMBERED = 0.1
"""How much the memory's own heat counts beside that of a query."""
_AXES = 4
_FIRST_FIT = 16
_FITTED_AT_MOST = 2048
_NAME_WORDS = 3
_COMMON = 3.0
"""Words of a lower idf name nothing."""


@dataclass(frozen=True, slots=True)
class TopicMap:
    """Where an embedding lies on a torus: two angles, so that near meanings are near.

    The four directions in which the fitted embeddings differ most (principal components) make two planes; the two
    angles are the directions in these planes. Random planes were tried: they keep a third of the neighbours that these
    do (docs/topics.md).

    Attributes:
        mean: of the embeddings, shape (d,).
        axes: the four directions, over their spread, shape (d, 4).
    """

    mean: Floats
    axes: Floats

    @classmethod
    def fit(cls, vectors: Floats) -> Self:
        """The map for embeddings like these, shape (n, d), at least one; deterministic."""
        if len(vectors) > _FITTED_AT_MOST:
            vectors = vectors[np.linspace(0, len(vectors) - 1, _FITTED_AT_MOST).astype(np.int64)]
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        _, _, found = np.linalg.svd(centred, full_matrices=False)
        axes = np.zeros((vectors.shape[1], _AXES), dtype=np.float32)
        count = min(_AXES, len(found))
        axes[:, :count] = found[:count].T
        axes *= np.where(axes[np.abs(axes).argmax(axis=0), np.arange(_AXES)] < 0, -1, 1)  # SVD leaves the signs open
        spread = (centred @ axes).std(axis=0)
        return cls(mean, np.asarray(axes / np.where(spread > 1e-6, spread, np.inf), dtype=np.float32))  # noqa: PLR2004

    def angles(self, vectors: Floats) -> Floats:
        """Two angles for each embedding, from 0 to 2π; shape (n, 2) for (n, d), (2,) for (d,)."""
        found = (vectors - self.mean) @ self.axes
        return np.arctan2(found[..., 1::2], found[..., 0::2]) % np.float32(2 * np.pi)


@dataclass(frozen=True, slots=True)
class Topic:
    """A warm place.

    Attributes:
        name: the most telling words of its turns.
        x: its column.
        y: its row.
        heat: the grid's value there.
        turns: numbers of the turns that lie near it, ascending.
    """

    name: str
    x: int
    y: int
    heat: float
    turns: tuple[int, ...]


class SessionTopics:
    """The topic memory of one session: turns deposit heat at their place, and with each turn it spreads and fades.

    A function of the turns alone: the same turns give the same grid, however they came. The map is fitted to the first
    16, 32, 64, … turns, and the grid is made anew whenever there are twice as many. Not thread-safe.

    Args:
        size: columns and rows of the grid.
    """

    def __init__(self, size: int = SIZE) -> None:
        self.memory = ToroidalMemory(size, size)
        self._size = size
        self._numbers: list[int] = []
        self._vectors: list[Floats] = []
        self._map: TopicMap | None = None
        self._fitted = 0
        self._places: list[tuple[float, float]] = []

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def numbers(self) -> Sequence[int]:
        """Numbers of the turns, in order."""
        return self._numbers

    def add(self, numbers: Sequence[int], vectors: Floats) -> None:
        """Take in turns, in order.

        Args:
            numbers: their numbers, ascending.
            vectors: their embeddings, shape (n, d).
        """
        self._numbers += numbers
        self._vectors += list(vectors)
        fit = max(_FIRST_FIT, 1 << (max(len(self._numbers), 1).bit_length() - 1))
        if fit != self._fitted or len(self._numbers) < _FIRST_FIT:
            self._fitted, self._places = fit, []
            self._map = TopicMap.fit(np.stack(self._vectors[:fit])) if self._vectors else None
            self.memory = ToroidalMemory(self._size, self._size)
        if self._map is None:
            return
        for vector in self._vectors[len(self._places) :]:
            place = self.place(vector)  # one by one: among others, its last bits would depend on them
            self.memory.step()
            self.memory.activate(*place, DEPOSIT, DEPOSIT_RADIUS)
            self._places.append(place)

    def place(self, vector: Floats) -> tuple[float, float]:
        """Where an embedding lies on the grid: column and row."""
        assert self._map is not None
        x, y = self._map.angles(vector) * (self._size / (2 * np.pi))
        return float(x), float(y)

    def warm(self, query: Floats) -> list[tuple[int, float]]:
        """The turns in the places that are warm once the query has warmed its own: (number, heat), the warmest first.

        Among turns of equal heat the newest come first.
        """
        if self._map is None:
            return []
        grid = self.memory.copy()
        grid.fill(grid.grid * REMEMBERED)
        grid.activate(*self.place(query), 1.0, QUERY_RADIUS)
        grid.step(QUERY_STEPS)
        found = [
            (number, grid.get(round(x), round(y))) for number, (x, y) in zip(self._numbers, self._places, strict=True)
        ]
        return sorted(found, key=lambda one: (-one[1], -one[0]))

    def topics(self, texts: Sequence[str], most: int = 9, *, radius: int = 4) -> list[Topic]:
        """The warmest places with their names, the warmest first.

        Args:
            texts: of the turns, in order.
            most: how many.
            radius: cells within which turns belong to a place; two places are at least as far apart.
        """
        found: list[Topic] = []
        grid = self.memory.grid
        for cell in np.argsort(-grid, axis=None, kind="stable").tolist():
            y, x = divmod(cell, self._size)
            if len(found) >= most or grid[y, x] < 0.01:  # noqa: PLR2004 - as good as cold
                break
            if any(self._apart((x, y), (one.x, one.y)) <= 2 * radius for one in found):
                continue
            near = [at for at, place in enumerate(self._places) if self._apart((x, y), place) <= radius]
            name = _name([texts[at] for at in near], texts)
            turns = tuple(self._numbers[at] for at in near)
            found.append(Topic(name, x, y, float(grid[y, x]), turns))
        return found

    def _apart(self, one: tuple[float, float], other: tuple[float, float]) -> float:
        """The distance of two places, the shortest way around."""
        across, down = (abs(a - b) % self._size for a, b in zip(one, other, strict=True))
        return float(np.hypot(min(across, self._size - across), min(down, self._size - down)))


def _name(texts: Sequence[str], everything: Sequence[str]) -> str:
    """The words that tell these texts from the others and from common language, and that several of them share."""
    inside, all_texts = _frequencies(texts), _frequencies(everything)
    least = min(len(texts), max(2, len(texts) // 4))
    scores = {
        word: count * idf(word) * count / all_texts[word]
        for word, count in inside.items()
        if count >= least and len(word) > 2 and not word.isdigit() and idf(word) >= _COMMON  # noqa: PLR2004 - telling
    }
    best = sorted(scores, key=lambda word: (-scores[word], word))[:_NAME_WORDS]
    return ", ".join(best) or "…"


def _frequencies(texts: Sequence[str]) -> Counter[str]:
    """In how many of the texts each word stands."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(set(words(text)))
    return found
