"""Nearest vectors by cosine: exact while there are few, approximate (hnswlib) above, behind one interface.

Measured (bench/vectors.py): up to about 10,000 vectors exact search is faster and needs no build. Above, a graph
answers in about 2 ms whatever the size, and takes a third less memory.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from krunch_plugins.errors import WrongDimension
from krunch_plugins.recall.locks import ReadWriteLock
from krunch_plugins.recall.sketches import SAMPLE, Projection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from krunch_plugins.recall.hnsw import HnswIndex

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float32]

log = logging.getLogger("krunch")

EXACT_UP_TO = 10_000
"""Vectors up to which search is exact."""
SLOW_FROM = 100_000
"""Vectors above which exact search takes so long that we say so."""
_FIRST_ROWS = 64
_LARGE = 1 << 20
"""Bytes from which an array grows in small steps."""
_Kind = TypeVar("_Kind", bound=np.generic)
_BUILT_AT_ONCE = 1024
_MARKED_AT_MOST = 0.2


class VectorIndex(Protocol):
    """Vectors by id, found by cosine. Thread-safe: any number of searches at once, changes one at a time.

    Ids are whole numbers from 0; memory is taken up to the highest. Vectors are scaled to length 1 when they come in,
    and rounded to what float16 can tell. One of zeros has no direction, so nothing is near it: it is not kept, and
    finds nothing.

    Attributes:
        dimension: length of each vector.
    """

    dimension: int

    def __len__(self) -> int:
        """How many vectors there are."""

    def add(self, ids: ArrayLike, vectors: ArrayLike) -> None:
        """Put vectors in, over those that have these ids.

        Args:
            ids: whole numbers, shape (n,).
            vectors: shape (n, dimension).

        Raises:
            WrongDimension: they have another length; nothing was changed.
            ValueError: NaN or infinite values, ids below 0, or another number of ids than of vectors; nothing was
                changed.
        """

    def remove(self, ids: ArrayLike) -> int:
        """Take vectors out; how many of the ids there were."""

    def search(self, query: ArrayLike, k: int, subset: ArrayLike | None = None) -> tuple[Ids, Floats]:
        """The nearest vectors.

        Args:
            query: shape (dimension,).
            k: how many at most, at least 1; fewer come back when there are fewer.
            subset: only these ids, exactly; ids that are not there are left out. None: all.

        Returns:
            Their ids, nearest first and at the same distance the lower id, and their cosines, from -1 to 1.

        Raises:
            WrongDimension: the query has another length.
            ValueError: NaN or infinite values in the query, or k below 1.
        """

    def get(self, ids: ArrayLike) -> tuple[Ids, Floats]:
        """Those of the ids that are there, in order, and their vectors."""


class ExactIndex:
    """A `VectorIndex` that compares with every vector: one contiguous block of float32.

    The block has little room to spare (see `room`), and a removed row is taken by the last one and wiped.

    Args:
        dimension: length of each vector.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._lock = ReadWriteLock()
        self._block: Floats = np.zeros((_FIRST_ROWS, dimension), dtype=np.float32)
        self._ids: Ids = np.zeros(_FIRST_ROWS, dtype=np.int64)
        self._rows: Ids = np.full(_FIRST_ROWS, -1, dtype=np.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, ids: ArrayLike, vectors: ArrayLike) -> None:
        """Put vectors in; see `VectorIndex`."""
        keys, found = incoming(ids, vectors, self.dimension)
        with self._lock.writing():
            some = found.any(axis=1)
            self._remove(keys[~some])
            keys, found = keys[some], found[some]
            if not len(keys):
                return
            self._rows = room(self._rows, int(keys.max()) + 1, -1)
            rows = self._rows[keys]
            fresh = rows < 0
            rows[fresh] = np.arange(self._count, self._count + int(fresh.sum()))
            self._count += int(fresh.sum())
            self._block = room(self._block, self._count, 0)
            self._ids = room(self._ids, self._count, 0)
            self._block[rows], self._ids[rows], self._rows[keys] = found, keys, rows

    def remove(self, ids: ArrayLike) -> int:
        """Take vectors out; see `VectorIndex`."""
        with self._lock.writing():
            return self._remove(np.unique(np.asarray(ids, dtype=np.int64).reshape(-1)))

    def _remove(self, keys: Ids) -> int:
        keys = keys[(keys >= 0) & (keys < len(self._rows))]
        rows = self._rows[keys]
        present = rows >= 0
        keys, rows = keys[present], rows[present]
        for key in keys.tolist():
            row, last = int(self._rows[key]), self._count - 1
            moved = int(self._ids[last])
            self._block[row], self._ids[row] = self._block[last], moved
            self._rows[moved], self._rows[key] = row, -1
            self._block[last] = 0.0  # what is forgotten is not left in memory
            self._count = last
        return len(keys)

    def search(self, query: ArrayLike, k: int, subset: ArrayLike | None = None) -> tuple[Ids, Floats]:
        """The nearest vectors; see `VectorIndex`."""
        wanted = asked(query, k, self.dimension)
        with self._lock.reading():
            if wanted is None or not self._count:
                return nothing()
            if subset is None:
                return nearest(self._ids[: self._count], cosines(self._block[: self._count], wanted), k)
            keys, rows = self._present(subset)
            return nearest(keys, cosines(self._block[rows], wanted), k)

    def get(self, ids: ArrayLike) -> tuple[Ids, Floats]:
        """Vectors by id; see `VectorIndex`."""
        with self._lock.reading():
            keys, rows = self._present(ids)
            return keys, self._block[rows]

    def ids(self) -> Ids:
        """All ids, in no order."""
        with self._lock.reading():
            return self._ids[: self._count].copy()

    def _present(self, ids: ArrayLike) -> tuple[Ids, Ids]:
        keys = np.asarray(ids, dtype=np.int64).reshape(-1)
        keys = keys[(keys >= 0) & (keys < len(self._rows))]
        rows = self._rows[keys]
        return keys[rows >= 0], rows[rows >= 0]


class AdaptiveIndex:
    """A `VectorIndex` that is exact while it is small, and becomes a graph when it grows, if hnswlib is installed.

    The graph is built while searches go on in the block, and takes its place when it is whole.

    Args:
        dimension: length of each vector.
        exact_up_to: vectors up to which search is exact; it becomes exact again at half of that.
        stopping: once it is set, no graph is built any more: what takes a minute is broken off, and nothing is changed.

    Attributes:
        missing: what would make it faster and is not there, in words; None if nothing is missing.
    """

    def __init__(self, dimension: int, exact_up_to: int = EXACT_UP_TO, stopping: threading.Event | None = None) -> None:
        self.dimension = dimension
        self._stopping = stopping or threading.Event()
        self.missing: str | None = None
        self._exact_up_to = exact_up_to
        self._changing = threading.Lock()
        self._index: ExactIndex | HnswIndex = ExactIndex(dimension)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def graph(self) -> HnswIndex | None:
        """The graph, if the index is one by now."""
        return None if isinstance(self._index, ExactIndex) else self._index

    @property
    def marked(self) -> int:
        """How many removed vectors are still in memory, and would be in a file; `compact` removes them."""
        return 0 if isinstance(self._index, ExactIndex) else self._index.marked

    @property
    def worn(self) -> bool:
        """So many are marked that searches suffer."""
        return self.marked > max(_MARKED_AT_MOST * len(self), _BUILT_AT_ONCE)

    def compact(self) -> None:
        """Build the graph anew without what is marked, while searches go on; as slow as building it."""
        with self._changing:
            if not isinstance(self._index, ExactIndex):
                self._index.compact(self._stopping)

    def adopt(self, graph: HnswIndex) -> None:
        """Take a graph that was loaded from a file as what this index holds."""
        with self._changing:
            self._index = graph

    def add(self, ids: ArrayLike, vectors: ArrayLike) -> None:
        """Put vectors in; see `VectorIndex`. The one that makes it a graph takes as long as building it does."""
        with self._changing:
            self._index.add(ids, vectors)
            if isinstance(self._index, ExactIndex) and len(self._index) > self._exact_up_to:
                self._grow(self._index)

    def remove(self, ids: ArrayLike) -> int:
        """Take vectors out; see `VectorIndex`."""
        with self._changing:
            removed = self._index.remove(ids)
            if not isinstance(self._index, ExactIndex) and len(self._index) < self._exact_up_to // 2:
                exact = ExactIndex(self.dimension)
                for keys, vectors in pieces(self._index):
                    exact.add(keys, vectors)
                self._index = exact
            return removed

    def search(self, query: ArrayLike, k: int, subset: ArrayLike | None = None) -> tuple[Ids, Floats]:
        """The nearest vectors; see `VectorIndex`."""
        return self._index.search(query, k, subset)

    def get(self, ids: ArrayLike) -> tuple[Ids, Floats]:
        """Vectors by id; see `VectorIndex`."""
        return self._index.get(ids)

    def ids(self) -> Ids:
        """All ids, in no order."""
        return self._index.ids()

    def _grow(self, exact: ExactIndex) -> None:
        try:
            from krunch_plugins.recall.hnsw import HnswIndex
        except ImportError:  # not installed, or built for another machine
            if len(exact) > SLOW_FROM and self.missing is None:
                self.missing = "hnswlib: pip install 'krunch-plugins[search]'"
                log.warning(
                    "more than %d vectors are searched one by one, exactly but slowly; missing is %s",
                    SLOW_FROM, self.missing,
                )  # fmt: skip
            return
        ids = np.sort(exact.ids())
        sample = exact.get(ids[:: len(ids) // SAMPLE + 1])[1]
        graph = HnswIndex(self.dimension, projection=Projection.learned(self.dimension, sample))
        for keys, vectors in pieces(exact):
            if self._stopping.is_set():
                return
            graph.add(keys, vectors)
        self._index = graph


def pieces(index: ExactIndex | HnswIndex) -> Iterator[tuple[Ids, Floats]]:
    """All that an index holds, a part at a time, by id."""
    ids = np.sort(index.ids())
    for start in range(0, len(ids), _BUILT_AT_ONCE):
        yield index.get(ids[start : start + _BUILT_AT_ONCE])


def incoming(ids: ArrayLike, vectors: ArrayLike, dimension: int) -> tuple[Ids, Floats]:
    """Ids and vectors, checked; each id once, the last one given; vectors of length 1 or of zeros, in float16.

    Raises:
        WrongDimension: another dimension.
        ValueError: what `VectorIndex.add` says.
    """
    keys = np.asarray(ids, dtype=np.int64).reshape(-1)
    found = np.asarray(vectors, dtype=np.float32)
    if found.ndim != 2:  # noqa: PLR2004 - rows of vectors
        raise ValueError(f"vectors have the shape {found.shape}; wanted are rows: (n, {dimension})")
    if found.shape[1] != dimension:
        raise WrongDimension(dimension, found.shape[1], "add()")
    if len(keys) != len(found):
        raise ValueError(f"{len(keys)} ids for {len(found)} vectors; each vector has one id")
    if len(keys) and keys.min() < 0:
        raise ValueError(f"id {keys.min()} is below 0; ids are counted from 0")
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found).all(axis=1)).sum())
        raise ValueError(f"{bad} of {len(found)} vectors hold NaN or infinite values; they would be near nothing")
    last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]
    return keys[last], unit(found[last]).astype(np.float16).astype(np.float32)


def unit(vectors: Floats) -> Floats:
    """Rows scaled to length 1, if they are not of that length up to rounding; rows of zeros stay as they are.

    Rows that are nearly of length 1 are left alone, so that what was rounded for storage comes back bit for bit.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    scaled = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0, casting="unsafe")
    return np.where(np.abs(lengths - 1.0) < 2e-3, vectors, scaled)  # noqa: PLR2004 - float16 rounds by less


def asked(query: ArrayLike, k: int, dimension: int) -> Floats | None:
    """A query of length 1, checked; None if it is all zeros."""
    if k < 1:
        raise ValueError(f"k is {k}; allowed: 1 or more")
    wanted = np.asarray(query, dtype=np.float32).reshape(-1)
    if len(wanted) != dimension:
        raise WrongDimension(dimension, len(wanted), "search()")
    if not np.isfinite(wanted).all():
        raise ValueError("the query vector holds NaN or infinite values")
    return unit(wanted[None])[0] if wanted.any() else None


def cosines(vectors: Floats, wanted: Floats) -> Floats:
    """The dot product of each row with the query.

    Not by BLAS: its threads made the slowest of a hundred searches 30 ms on a busy machine, and to forbid it threads
    would forbid them to the whole program. With einsum a row's result does not depend on where it lies, either.
    """
    found: Floats = np.einsum("ij,j->i", vectors, wanted)
    return found


def nearest(ids: Ids, scores: Floats, k: int) -> tuple[Ids, Floats]:
    """The k highest scores and their ids; equal scores by id.

    Scores are rounded to six digits, because the graph counts in another order than the block, and both must agree.
    """
    scores = np.round(scores, 6)
    if k < len(scores):
        kept = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
        ids, scores = ids[kept], scores[kept]
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def nothing() -> tuple[Ids, Floats]:
    """What is found where there is nothing."""
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)


def room(array: NDArray[_Kind], size: int, fill: int) -> NDArray[_Kind]:
    """The array, or a larger copy if it has fewer than `size` rows.

    By half more while it is small, so that growing costs little, then by a sixteenth, so that what is spare does.
    """
    if size <= len(array):
        return array
    spare = len(array) // (2 if array.nbytes < _LARGE else 16)
    larger = np.full((max(size, len(array) + spare), *array.shape[1:]), fill, dtype=array.dtype)
    larger[: len(array)] = array
    return larger
