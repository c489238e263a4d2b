"""A toroidal memory: a grid without edges that holds how warm each place is, with diffusion and decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, DTypeLike, NDArray

Neighbourhood = Literal["von_neumann", "moore"]
"""Which cells are neighbours: those at most so many steps away along the axes (a diamond), or so many rows and columns
(a square)."""

SPREAD, DECAY = 0.25, 0.05
"""Share of a cell that goes to its four neighbours in a step, and share that is lost."""
_BAND_CELLS = 32_768
"""Cells that are worked on at a time, so that all buffers of a band stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class TorusStatistics:
    """What is on the grid.

    Attributes:
        total: sum of all cells.
        mean: total over the number of cells.
        maximum: the warmest cell's value.
        hottest: where that is, (x, y); the first in reading order.
        active: cells of 0.01 and more.
        entropy: of the heat's distribution over the cells, in bits; 0 for a cold grid or a single warm cell.
        steps: steps since the grid was new.
    """

    total: float
    mean: float
    maximum: float
    hottest: tuple[int, int]
    active: int
    entropy: float
    steps: int


class ToroidalMemory:
    """A grid of values from 0 to 1 whose left edge meets its right one, and its top its bottom.

    With each step heat spreads to the four neighbours and fades: v + r/4·Σn - r·v - d·v for all cells at once, where Σn
    is the sum of the four neighbours, r the spread and d the decay; the result is clamped to 0-1.

    Coordinates are (x, y), column and row, any whole numbers: they wrap around. Not thread-safe.

    Args:
        width: columns, at least 1.
        height: rows, at least 1.
        dtype: float32 or float64.
        spread: r, from 0 to 1.
        decay: d, from 0 to 1.
    """

    def __init__(
        self, width: int, height: int, dtype: DTypeLike = np.float32, *, spread: float = SPREAD, decay: float = DECAY
    ) -> None:
        if width < 1 or height < 1:
            raise ValueError(f"the grid is {width} by {height}; allowed: 1 or more each")
        if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"dtype is {np.dtype(dtype)}; allowed: float32, float64")
        if not (0 <= spread <= 1 and 0 <= decay <= 1):
            raise ValueError(f"spread is {spread}, decay {decay}; allowed: 0 to 1 each")
        self.width, self.height = width, height
        self.spread, self.decay = float(spread), float(decay)
        self.steps = 0
        # A rim of one cell holds copies of the opposite edges, so that neighbours are plain slices.
        self._rimmed: NDArray[Any] = np.zeros((height + 2, width + 2), dtype=dtype)
        self._next: NDArray[Any] = np.zeros_like(self._rimmed)
        self._band = max(1, min(height, _BAND_CELLS // width))
        self._sum: NDArray[Any] = np.zeros((self._band, width), dtype=dtype)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the cells."""
        return self._rimmed.dtype

    @property
    def grid(self) -> NDArray[Any]:
        """The cells by row and column, shape (height, width); read-only, and only true until the next change."""
        view = self._rimmed[1:-1, 1:-1]
        view.flags.writeable = False
        return view

    def get(self, x: int, y: int) -> float:
        """The value of a cell."""
        return float(self._rimmed[y % self.height + 1, x % self.width + 1])

    def set(self, x: int, y: int, value: float) -> None:
        """Give a cell a value; what is not from 0 to 1 is clamped.

        Raises:
            ValueError: NaN.
        """
        if math.isnan(value):
            raise ValueError("a cell cannot hold NaN")
        self._rimmed[y % self.height + 1, x % self.width + 1] = min(max(value, 0.0), 1.0)

    def fill(self, values: ArrayLike) -> None:
        """Give all cells values, shape (height, width), clamped to 0-1.

        Raises:
            ValueError: another shape, or NaN.
        """
        found = np.asarray(values, dtype=self.dtype)
        if found.shape != (self.height, self.width):
            raise ValueError(f"values have the shape {found.shape}; the grid's is {(self.height, self.width)}")
        if np.isnan(found).any():
            raise ValueError("a cell cannot hold NaN")
        np.clip(found, 0, 1, out=self._rimmed[1:-1, 1:-1])

    def neighbours(
        self, x: int, y: int, neighbourhood: Neighbourhood = "von_neumann", radius: int = 1
    ) -> list[tuple[int, int]]:
        """The cells around a cell, without it, each once, in reading order from the top left.

        Args:
            x: column.
            y: row.
            neighbourhood: "von_neumann" (|dx| + |dy| at most the radius) or "moore" (|dx| and |dy| at most the radius).
            radius: in cells, at least 0.
        """
        if neighbourhood not in ("von_neumann", "moore"):
            raise ValueError(f"neighbourhood is {neighbourhood!r}; allowed: 'von_neumann', 'moore'")
        found: dict[tuple[int, int], None] = {}
        for dy in range(-radius, radius + 1):
            reach = radius - abs(dy) if neighbourhood == "von_neumann" else radius
            for dx in range(-reach, reach + 1):
                found[(x + dx) % self.width, (y + dy) % self.height] = None
        found.pop((x % self.width, y % self.height), None)
        return list(found)

    def activate(self, x: float, y: float, amount: float = 1.0, radius: float = 0.0) -> None:
        """Warm a place: the whole amount at the place itself, less with the distance, nothing beyond the radius.

        Args:
            x: column; may lie between cells.
            y: row; may lie between cells.
            amount: what is added at the place; may be negative. Cells are clamped to 0-1.
            radius: in cells, along the shortest way around the torus. 0: only the nearest cell.
        """
        if radius <= 0:
            column, row = round(x), round(y)
            self.set(column, row, self.get(column, row) + amount)
            return
        across = _around(np.arange(self.width) - x, self.width)
        down = _around(np.arange(self.height) - y, self.height)
        columns, rows = np.flatnonzero(across <= radius), np.flatnonzero(down <= radius)
        distance = np.sqrt(across[columns] ** 2 + (down[rows] ** 2)[:, None])
        added = amount * np.maximum(0.0, 1.0 - distance / (radius + 1.0)) * (distance <= radius)
        cells = np.ix_(rows + 1, columns + 1)
        self._rimmed[cells] = np.clip(self._rimmed[cells] + added, 0, 1)

    def step(self, count: int = 1) -> None:
        """Let heat spread and fade, `count` times."""
        for _ in range(count):
            self._step()
        self.steps += count

    def _step(self) -> None:
        now, new, r = self._rimmed, self._next, self.spread
        now[0], now[-1] = now[-2], now[1]
        now[:, 0], now[:, -1] = now[:, -2], now[:, 1]
        for top in range(1, self.height + 1, self._band):
            end = min(top + self._band, self.height + 1)
            total, cells = self._sum[: end - top], new[top:end, 1:-1]
            np.add(now[top - 1 : end - 1, 1:-1], now[top + 1 : end + 1, 1:-1], out=total)
            total += now[top:end, :-2]
            total += now[top:end, 2:]
            total *= r / 4
            np.multiply(now[top:end, 1:-1], 1 - r - self.decay, out=cells)
            cells += total
            if r + self.decay > 1:
                np.maximum(cells, 0, out=cells)
            if self.decay < 1e-3:  # noqa: PLR2004 - otherwise no sum of these gets to 1, rounding included
                np.minimum(cells, 1, out=cells)
        self._rimmed, self._next = new, now

    def find(self, pattern: ArrayLike) -> list[tuple[int, int]]:
        """Where a pattern stands, exactly, around the edges too: (x, y) of its top left cell, in reading order.

        Args:
            pattern: 2-D, rows of values; compared in the grid's dtype. NaN stands for any value.
        """
        wanted = np.asarray(pattern, dtype=self.dtype)
        if wanted.ndim != 2 or not wanted.size:  # noqa: PLR2004 - rows and columns
            raise ValueError(f"the pattern has the shape {wanted.shape}; wanted are rows and columns")
        rows, columns = wanted.shape
        if rows > self.height or columns > self.width:
            return []
        grid = np.pad(self.grid, ((0, rows - 1), (0, columns - 1)), mode="wrap")
        left = np.ones((self.height, self.width), dtype=np.bool_)
        for row in range(rows):
            for column in range(columns):
                if not np.isnan(wanted[row, column]):
                    left &= grid[row : row + self.height, column : column + self.width] == wanted[row, column]
        return [(int(x), int(y)) for y, x in np.argwhere(left)]

    def statistics(self) -> TorusStatistics:
        """What is on the grid now."""
        grid = self.grid.astype(np.float64)
        total = float(grid.sum())
        share = grid[grid > 0] / total if total else grid[:0]
        hottest = int(grid.argmax())
        return TorusStatistics(
            total=total,
            mean=total / grid.size,
            maximum=float(grid.max()),
            hottest=(hottest % self.width, hottest // self.width),
            active=int((grid >= 0.01).sum()),  # noqa: PLR2004 - documented
            entropy=max(0.0, float(-(share * np.log2(share)).sum())),
            steps=self.steps,
        )

    def copy(self) -> Self:
        """Another memory of the same state."""
        return self.from_state(self.state())

    def state(self) -> dict[str, Any]:
        """All of it, as `krunch_plugins.snapshots` saves it: in any format, as a checkpoint, or by what changed."""
        return {"grid": self.grid.copy(), "spread": self.spread, "decay": self.decay, "steps": self.steps}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The memory that `state` described.

        Raises:
            ValueError: its grid is none.
        """
        grid = np.asarray(state["grid"])
        if grid.ndim != 2:  # noqa: PLR2004 - rows and columns
            raise ValueError(f"the state's grid has the shape {grid.shape}; wanted are rows and columns")
        found = cls(grid.shape[1], grid.shape[0], grid.dtype, spread=state["spread"], decay=state["decay"])
        found.fill(grid)
        found.steps = int(state["steps"])
        return found


def _around(difference: NDArray[Any], size: int) -> NDArray[Any]:
    """How far it is the shortest way around."""
    apart = np.abs(difference) % size
    return np.asarray(np.minimum(apart, size - apart))
