"""The embeddings of one tenant's turns: which vector is whose, and what waits to be embedded or removed."""

from __future__ import annotations

import threading
import time
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from krunch_plugins.recall.catalogue import Catalogue
from krunch_plugins.recall.vectors import AdaptiveIndex

if TYPE_CHECKING:
    from krunch_plugins.recall.vector_files import Saved

_COMPACT_SECONDS = 600.0
"""How often a graph is built anew at most because something in it was forgotten."""
_RENUMBERED_AT_ONCE = 1024
_SERIALS = count()


class Space:
    """One tenant's embeddings of one model.

    Attributes:
        catalogue: whose vectors they are; to be used with `lock` held.
        vectors: the vectors, by the ids of the catalogue.
        cursor: up to where the store was followed.
        lacking: ids of turns that still wait for their vector.
        skipped: how many texts the embedder could not do; only words find them.
        changes: counts every change.
        serial: tells this object from the one that held the same tenant's before it left memory.
        complete: set when all that was there has been taken in once.
        awaited: a search has waited for that; the next ones do without.
    """

    def __init__(self, saved: Saved | None, dimension: int, exact_up_to: int, stopping: threading.Event) -> None:
        self.lock = threading.RLock()
        self.complete = threading.Event()
        self.awaited = False
        self.serial = next(_SERIALS)
        self.catalogue, self.cursor = Catalogue(), None if saved is None else saved.cursor
        self._stopping = stopping
        self.vectors = AdaptiveIndex(dimension, exact_up_to, stopping)
        if saved is not None:
            self.catalogue, self.vectors = saved.catalogue, saved.vectors
            self.complete.set()
        self.lacking: set[int] = set()
        self.skipped = self.changes = self.saved = 0
        self.doomed: list[int] = []
        self.compacted = time.monotonic()
        self.exact_up_to = exact_up_to

    def now(self) -> tuple[Catalogue, AdaptiveIndex]:
        """The catalogue and the vectors of the same ids, for one search; `lock` must be held where it is read."""
        with self.lock:
            return self.catalogue, self.vectors

    def drop(self, key: str, before: int | None = None) -> int:
        """Let a session's turns, or the oldest of them, be found no more; how many. Their vectors go with `sweep`."""
        with self.lock:
            gone = self.catalogue.drop(key, before)
            self.doomed += gone
            self.lacking.difference_update(gone)
            self.changes += len(gone)
            return len(gone)

    def clear(self) -> None:
        """Start from nothing. What is searched meanwhile finds nothing wrong, only less."""
        with self.lock:
            self.catalogue = Catalogue()
            self.vectors = AdaptiveIndex(self.vectors.dimension, self.exact_up_to, self._stopping)
            self.lacking, self.doomed, self.cursor = set(), [], None
            self.skipped = 0
            self.changes += 1

    def sweep(self) -> None:
        """Remove the vectors of what was dropped, from memory too."""
        with self.lock:
            doomed, self.doomed = self.doomed, []
        if doomed:
            self.vectors.remove(doomed)

    def tidy(self) -> None:
        """Build anew what has too many gaps, while searches go on. Ids change."""
        if self.catalogue.spent:
            self._renumber()
        if self.vectors.worn or (self.vectors.marked and time.monotonic() - self.compacted > _COMPACT_SECONDS):
            self.vectors.compact()
            self.compacted = time.monotonic()

    def _renumber(self) -> None:
        """Give the turns that are left new ids: where turns come and go for years, ids would take ever more room."""
        with self.lock:
            catalogue, old = self.catalogue.renumbered()
            known = len(old)
        vectors = AdaptiveIndex(self.vectors.dimension, self.exact_up_to, self._stopping)
        for start in range(0, known, _RENUMBERED_AT_ONCE):
            if self._stopping.is_set():
                return
            ids, found = self.vectors.get(old[start : start + _RENUMBERED_AT_ONCE])
            vectors.add(np.searchsorted(old, ids), found)
        with self.lock:
            if len(self.catalogue) == known:  # else something was forgotten meanwhile: next time
                self.catalogue, self.vectors = catalogue, vectors
                self.lacking = {int(np.searchsorted(old, row)) for row in self.lacking}
                self.doomed = []  # they were not taken along, and their ids are others' now
                self.changes += 1
