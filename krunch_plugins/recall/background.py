"""Nearest vectors for those who have no thread of their own to build a graph in: it is built in one, piece by piece."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np

from krunch_plugins.recall.sketches import SAMPLE, Projection
from krunch_plugins.recall.vectors import EXACT_UP_TO, SLOW_FROM, ExactIndex, nearest, pieces

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from krunch_plugins.recall.hnsw import HnswIndex

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float32]

log = logging.getLogger("krunch")

_PIECE = 64
"""Vectors that are moved into the graph while whoever changes the index waits."""
_PAUSE = 0.0005
"""Seconds between two of these, in which those get their turn."""
_BESIDE = 1024
"""Vectors that may stay outside of a graph: to compare with so many takes no time."""
_MARKED_AT_MOST = 0.2
"""Share of a graph's vectors that may be removed ones until it is built anew."""
_LOADING, _LOADING_MOST = 0.5, 60.0
"""Seconds without anything new after which it is begun, and after which it is begun in any case."""

_working: WeakSet[BackgroundIndex] = WeakSet()


class BackgroundIndex:
    """Nearest vectors by cosine: exact up to 10,000 vectors, with a graph above, where the extra `search` is installed.

    What comes in is found at once, exactly; a thread moves it into the graph while searches go on, and ends when there
    is no more. Ids are whole numbers from 0; memory is taken up to the highest. Vectors are scaled to length 1, and
    rounded to what float16 can tell, so cosines are right to about 0.0005. A vector of zeros is near nothing.

    Thread-safe. In a process that was forked off another one, make a new one.

    Args:
        dimension: length of each vector.
        exact_up_to: vectors up to which search is exact; it becomes exact again at half of that.

    Attributes:
        dimension: length of each vector.
    """

    def __init__(self, dimension: int, exact_up_to: int = EXACT_UP_TO) -> None:
        self.dimension = dimension
        self._exact_up_to = exact_up_to
        self._changing = threading.RLock()
        self._beside = ExactIndex(dimension)
        self._graph: HnswIndex | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._told = False
        self._added = 0.0

    def __len__(self) -> int:
        """How many vectors there are."""
        with self._changing:
            return len(self._beside) + (0 if self._graph is None else len(self._graph))

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
        with self._changing:
            self._added = time.monotonic()
            self._beside.add(ids, vectors)
            if self._graph is not None:
                self._graph.remove(ids)
            self._wake()

    def remove(self, ids: ArrayLike) -> int:
        """Take vectors out; how many of the ids there were."""
        with self._changing:
            removed = self._beside.remove(ids)
            if self._graph is not None:
                removed += self._graph.remove(ids)
                worn = self._graph.marked > max(_MARKED_AT_MOST * len(self._graph), _BESIDE)
                if worn or len(self) < self._exact_up_to // 2:
                    for keys, vectors in pieces(self._graph):
                        self._beside.add(keys, vectors)
                    self._graph = None
            self._wake()
            return removed

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
        while True:
            # What is moved meanwhile is in both for a moment, and never in none: so first here, then there.
            graph = self._graph
            ids, scores = self._beside.search(query, k, subset)
            if graph is not None:
                others, theirs = graph.search(query, k, subset)
                new = ~np.isin(others, ids)
                ids, scores = nearest(np.concatenate([ids, others[new]]), np.concatenate([scores, theirs[new]]), k)
            if graph is self._graph:
                return ids, scores

    def settle(self) -> None:
        """Wait until all is in the graph that is to be."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def stop(self) -> None:
        """Have the thread end soon, and wait for it; what is not in the graph is found exactly. None is begun again."""
        self._stopping.set()
        self.settle()

    def _wake(self) -> None:
        """Begin to move what is to be in the graph, unless that is being done. The lock is held."""
        limit = self._exact_up_to if self._graph is None else _BESIDE
        if len(self._beside) <= limit or self._thread is not None or self._stopping.is_set():
            return
        try:
            import_module("krunch_plugins.recall.hnsw")
        except ImportError:  # not installed, or built for another machine
            if len(self._beside) > SLOW_FROM and not self._told:
                self._told = True
                log.warning(
                    "more than %d vectors are searched one by one, exactly but slowly; missing is hnswlib: "
                    "pip install 'krunch-plugins[search]'", SLOW_FROM,
                )  # fmt: skip
            return
        self._thread = threading.Thread(target=self._move, name="krunch-nearest", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the process is ending
            self._thread = None
        else:
            _working.add(self)

    def _move(self) -> None:
        """The thread: move everything into the graph, a piece at a time."""
        try:
            end = time.monotonic() + _LOADING_MOST
            while time.monotonic() < min(self._added + _LOADING, end) and not self._stopping.wait(_LOADING / 5):
                pass  # whoever puts very many in is not to wait for the graph
            while not self._stopping.wait(_PAUSE):
                fresh = self._fresh() if self._graph is None else None
                with self._changing:
                    self._graph = fresh if self._graph is None else self._graph
                    if self._graph is None:
                        break
                    if not len(self._beside):
                        self._beside = ExactIndex(self.dimension)  # gives its memory back
                        break
                    ids, vectors = self._beside.get(self._beside.ids()[-_PIECE:])
                    self._graph.add(ids, vectors)
                    self._beside.remove(ids)
        finally:
            with self._changing:
                self._thread = None
                _working.discard(self)

    def _fresh(self) -> HnswIndex | None:
        """A graph for what there is; None if there is too little by now."""
        from krunch_plugins.recall.hnsw import HnswIndex

        ids = np.sort(self._beside.ids())
        if len(ids) <= self._exact_up_to:
            return None
        sample = self._beside.get(ids[:: len(ids) // SAMPLE + 1])[1]
        return HnswIndex(self.dimension, projection=Projection.learned(self.dimension, sample))


@atexit.register
def _at_exit() -> None:
    """End the threads: one that is within hnswlib while Python goes away takes the process down with it."""
    for index in list(_working):
        index.stop()
