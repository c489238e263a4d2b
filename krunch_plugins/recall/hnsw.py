"""A graph of neighbours (HNSW) over hnswlib, with its traps closed. Imported only where hnswlib is installed.

Its files are caches: `load` takes none whose checksum is not the one that was noted when it was written, because
hnswlib crashes, hangs or answers wrongly on a damaged one.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import hnswlib
import numpy as np

from krunch_plugins.recall.locks import ReadWriteLock
from krunch_plugins.recall.sketches import SAMPLE, HalfBlock, Projection, sketch_size
from krunch_plugins.recall.twins import Twins
from krunch_plugins.recall.vectors import asked, cosines, incoming, nearest, nothing, room

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float32]

LINKS = 16
"""Links of a vector (M), twice as many in the lowest layer: 128 bytes a vector."""
CONSTRUCTION = 200
"""Candidates that are looked at when a vector comes in (ef_construction)."""
CANDIDATES = 1200
"""Candidates that a search takes from the graph (ef), at least; they are compared exactly."""
_EQUAL_CANDIDATES = 32
"""Candidates that are looked at to find a vector that is equal to a new one."""
_MORE = 2
"""Candidates for each vector that is wanted, where that is more."""
_AT_ONCE = 64
"""Vectors that go in while searches wait."""
_SUBSET_AT_ONCE = 1024
_THREADS = max(1, (os.cpu_count() or 1) // 2)
"""Threads that build: not all, because the program that we are part of has work of its own."""


@dataclass(frozen=True, slots=True)
class GraphFile:
    """What must be known of a graph's file before it may be loaded.

    Attributes:
        size: its bytes.
        digest: hex digest (BLAKE2b) of its bytes and of those of the file of vectors beside it.
        count: vectors in both.
        twins: how many of these are not in the graph, because they are equal to others.
    """

    size: int
    digest: str
    count: int
    twins: int


class HnswIndex:
    """A `VectorIndex` over hnswlib.

    - The graph holds sketches, and gives candidates; the vectors themselves, in float16, decide (see `sketches`).
    - Of vectors that are equal one is in the graph, and stands for all (see `twins`).
    - A filtered search is exact: all vectors of the subset are compared.
    - A removed vector is wiped. Its sketch stays in the graph, marked, until `compact` builds it anew from the others,
      while searches go on in the old one.

    Args:
        dimension: length of each vector.
        capacity: vectors that there is room for at first; it grows.
        projection: makes the sketches; None: one with random directions, which finds less.
    """

    def __init__(self, dimension: int, capacity: int = 1024, projection: Projection | None = None) -> None:
        self.dimension = dimension
        self._lock = ReadWriteLock()
        self._changing = threading.Lock()
        self._graph = self._fresh(capacity)
        self._block = HalfBlock(dimension)
        self._sketches = projection or Projection.learned(dimension)
        self._there: NDArray[np.bool_] = np.zeros(1024, dtype=np.bool_)
        self._twins = Twins()
        self._marked: set[int] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @classmethod
    def load(cls, path: Path, noted: GraphFile, dimension: int) -> Self | None:
        """The graph in a file; None if the file, or the one beside it, is missing or not the one that was noted."""
        try:
            if path.stat().st_size != noted.size or _digest(path) != noted.digest:
                return None
        except OSError:
            return None
        graph = hnswlib.Index(space="ip", dim=sketch_size(dimension))
        graph.load_index(str(path), max_elements=noted.count - noted.twins + noted.count // 32 + 64)
        graph.set_num_threads(_THREADS)
        graph.set_ef(CANDIDATES)  # the file does not have it
        with beside(path).open("rb") as file:
            index = cls(dimension, 1, Projection.read(dimension, file))
            pairs = np.frombuffer(file.read(16 * noted.twins), dtype="<i8").reshape(-1, 2)
            for twin, first in pairs.tolist():
                index._twins.put(twin, first)
            ids = np.sort(np.concatenate([np.asarray(graph.get_ids_list(), dtype=np.int64), pairs[:, 0]]))
            index._block.read(ids, file)
        if len(ids) != noted.count or graph.index_file_size() != noted.size:
            return None
        index._graph, index._count = graph, noted.count
        index._there = np.zeros(int(ids.max(initial=0)) + 1024, dtype=np.bool_)
        index._there[ids] = True
        return index

    def save(self, path: Path) -> GraphFile:
        """Write the graph to a file, and its vectors to one beside it, without what is marked; searches wait meanwhile.

        Neither may be in use yet.

        Raises:
            OSError: not all of it was written. hnswlib says nothing when the disk is full.
        """
        with self._changing:
            if self._marked:
                self._compact()
            with self._lock.writing():
                size, count, twins = self._graph.index_file_size(), self._count, len(self._twins)
                try:
                    self._graph.save_index(str(path))
                except RuntimeError as error:
                    raise OSError(f"{path} cannot be written") from error
                with beside(path).open("wb") as file:
                    self._sketches.write(file)
                    file.write(np.array(list(self._twins.pairs()), dtype="<i8").tobytes())
                    self._block.write(np.flatnonzero(self._there), file)
        for one in (path, beside(path)):
            with one.open("rb") as written:
                os.fsync(written.fileno())
            one.chmod(0o600)
        found = path.stat().st_size
        if found != size:
            raise OSError(f"{path} has {found:,} bytes of {size:,}; is the disk full?")
        return GraphFile(size, _digest(path), count, twins)

    def add(self, ids: ArrayLike, vectors: ArrayLike) -> None:
        """Put vectors in; see `VectorIndex`."""
        keys, found = incoming(ids, vectors, self.dimension)
        some = found.any(axis=1)
        with self._changing:
            self._mark(keys[~some])
            keys, found = keys[some], found[some]
            for start in range(0, len(keys), _AT_ONCE):
                with self._lock.writing():
                    self._put(keys[start : start + _AT_ONCE], found[start : start + _AT_ONCE])

    def remove(self, ids: ArrayLike) -> int:
        """Take vectors out; see `VectorIndex`."""
        with self._changing:
            return self._mark(np.unique(np.asarray(ids, dtype=np.int64).reshape(-1)))

    def search(self, query: ArrayLike, k: int, subset: ArrayLike | None = None) -> tuple[Ids, Floats]:
        """The nearest vectors; see `VectorIndex`."""
        wanted = asked(query, k, self.dimension)
        with self._lock.reading():
            if wanted is None or not self._count:
                return nothing()
            if subset is not None:
                return self._among(self._present(subset), wanted, k)
            candidates = max(CANDIDATES, _MORE * k)
            if candidates >= self._count:
                return self._among(np.flatnonzero(self._there), wanted, k)
            candidates = min(candidates, self._count - len(self._twins))
            try:
                labels, _ = self._graph.knn_query(self._sketches(wanted[None]), k=candidates, num_threads=1)
            except RuntimeError:  # marks left it fewer than it was to find
                return self._among(np.flatnonzero(self._there), wanted, k)
            firsts, best = self._among(labels[0].astype(np.int64), wanted, k)
            keys, positions = self._twins.spread(firsts)
            return nearest(keys, best[positions], k)

    def get(self, ids: ArrayLike) -> tuple[Ids, Floats]:
        """Vectors by id; see `VectorIndex`."""
        with self._lock.reading():
            keys = self._present(ids)
            return keys, self._block.get(keys)

    @property
    def marked(self) -> int:
        """How many removed vectors still have a sketch in memory."""
        return len(self._marked)

    @property
    def bytes(self) -> int:
        """What its files take."""
        with self._lock.writing():
            return int(self._graph.index_file_size()) + 2 * self.dimension * self._count

    def compact(self, stopping: threading.Event | None = None) -> None:
        """Build the graph anew without what is marked. As slow as building it; given up once `stopping` is set."""
        with self._changing:
            if self._marked:
                self._compact(stopping)

    def ids(self) -> Ids:
        """All ids, ascending."""
        with self._lock.reading():
            return np.flatnonzero(self._there)

    def _among(self, keys: Ids, wanted: Floats, k: int) -> tuple[Ids, Floats]:
        """The nearest of these, exactly; in parts, which are quicker than one large copy."""
        best_ids, best = nothing()
        for start in range(0, len(keys), _SUBSET_AT_ONCE):
            part = keys[start : start + _SUBSET_AT_ONCE]
            scores = cosines(self._block.get(part), wanted)
            best_ids, best = nearest(np.concatenate([best_ids, part]), np.concatenate([best, scores]), k)
        return best_ids, best

    def _present(self, ids: ArrayLike) -> Ids:
        keys = np.asarray(ids, dtype=np.int64).reshape(-1)
        keys = keys[(keys >= 0) & (keys < len(self._there))]
        return keys[self._there[keys]]

    def _put(self, keys: Ids, vectors: Floats) -> None:
        """Add vectors; those that are equal to others stand behind them. The lock is held for writing."""
        self._take(self._present(keys))  # what is replaced
        self._block.put(keys, vectors)
        halves = self._block.halves(keys)
        _, at, same = np.unique(halves, axis=0, return_index=True, return_inverse=True)
        firsts = keys[at]
        found = self._sketches(vectors[at])
        known = self._equal(found, halves[at])
        self._link(firsts[known < 0], found[known < 0])
        known = np.where(known < 0, firsts, known)[same.reshape(-1)]
        for key, first in zip(keys.tolist(), known.tolist(), strict=True):
            if key != first:
                self._twins.put(key, first)
        self._there = room(self._there, int(keys.max(initial=-1)) + 1, 0)
        self._there[keys] = True
        self._count += len(keys)

    def _equal(self, found: Floats, halves: NDArray[np.uint16]) -> Ids:
        """For each of these vectors the id of an equal one in the graph, or -1. One that is missed does no harm."""
        known = np.full(len(found), -1, dtype=np.int64)
        if self._graph.get_current_count() > len(self._marked) and len(found):
            self._graph.set_ef(_EQUAL_CANDIDATES)
            try:
                labels = self._graph.knn_query(found, k=1)[0][:, 0].astype(np.int64)
                equal = (self._block.halves(labels) == halves).all(axis=1)
                known[equal] = labels[equal]
            except RuntimeError:  # it found nothing that is not marked
                pass
            finally:
                self._graph.set_ef(CANDIDATES)
        return known

    def _link(self, keys: Ids, found: Floats) -> None:
        """Put sketches into the graph, with room for them and under no label that is marked."""
        if not len(keys):
            return
        for key in self._marked.intersection(keys.tolist()):
            self._graph.unmark_deleted(key)
            self._marked.discard(key)
        needed = self._graph.get_current_count() + len(keys)
        if needed > self._graph.get_max_elements():
            self._graph.resize_index(needed + needed // 4)
        self._graph.add_items(found, keys)

    def _mark(self, keys: Ids) -> int:
        with self._lock.writing():
            present = self._present(keys)
            self._take(present)
            return len(present)

    def _take(self, keys: Ids) -> None:
        """Take out vectors that are there. The lock is held for writing."""
        heirs = set()
        for key in keys.tolist():
            linked, heir = self._twins.take(key)
            if key in heirs:  # it was to take a place in the graph, and goes as well
                heirs.discard(key)
            elif linked:
                self._graph.mark_deleted(key)
                self._marked.add(key)
            if heir is not None:
                heirs.add(heir)
        self._block.wipe(keys)  # what is forgotten is not left in memory
        self._there[keys] = False
        self._count -= len(keys)
        left = np.array(sorted(heirs), dtype=np.int64)
        self._link(left, self._sketches(self._block.get(left)))

    def _compact(self, stopping: threading.Event | None = None) -> None:
        """Build the graph anew without what is marked. `_changing` is held, so nothing else changes it."""
        keys = np.setdiff1d(np.flatnonzero(self._there), [twin for twin, _ in self._twins.pairs()])
        graph = self._fresh(len(keys) + len(keys) // 8 + 64)
        with self._lock.reading():
            sample = self._block.get(keys[:: len(keys) // SAMPLE + 1])
        sketches = Projection.learned(self.dimension, sample)
        for start in range(0, len(keys), _AT_ONCE):
            if stopping is not None and stopping.is_set():
                return
            with self._lock.reading():
                part = keys[start : start + _AT_ONCE]
                found = sketches(self._block.get(part))
            graph.add_items(found, part)
        with self._lock.writing():
            self._graph, self._sketches, self._marked = graph, sketches, set()

    def _fresh(self, capacity: int) -> Any:  # noqa: ANN401 - hnswlib ships no types
        graph = hnswlib.Index(space="ip", dim=sketch_size(self.dimension))  # of vectors of length 1: 1 - cosine
        graph.init_index(max(capacity, 64), ef_construction=CONSTRUCTION, M=LINKS, random_seed=100)
        graph.set_ef(CANDIDATES)
        graph.set_num_threads(_THREADS)
        return graph


def beside(path: Path) -> Path:
    """The file of the vectors that belong to a graph's file."""
    return path.with_suffix(".half")


def _digest(path: Path) -> str:
    found = hashlib.blake2b()
    for one in (path, beside(path)):
        with one.open("rb") as file:
            while part := file.read(1 << 20):
                found.update(part)
    return found.hexdigest()
