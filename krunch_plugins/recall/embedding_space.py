"""The embeddings of one tenant's turns, whose vector is whose and what waits; and which tenants are in memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from krunch_plugins.recall.catalogue import Catalogue
from krunch_plugins.recall.locks import begin_after_fork
from krunch_plugins.recall.vectors import AdaptiveIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from krunch_plugins.recall.vector_files import Saved

SAVE_FROM = 256
"""Changes below which nothing is saved: to read so few from the store again takes no time."""
_SAVE_SHARE = 0.1
"""Changes, as a share of all vectors, after which the files are written in the background."""
_SPACE_BYTES = 24_000
"""Bytes that a tenant takes beside its vectors, be they ever so few."""
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

    @property
    def worth_saving(self) -> bool:
        """Whether it would take long to come where it is from what is in its files."""
        return self.changes - self.saved >= SAVE_FROM

    @property
    def save_now(self) -> bool:
        """Whether so much has changed that its files should be written amid the work."""
        return self.changes - self.saved >= max(4 * SAVE_FROM, _SAVE_SHARE * len(self.vectors))

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


class Spaces:
    """The tenants whose embeddings are in memory; those that were not used lately leave it. Thread-safe.

    Args:
        load: reads a tenant's embeddings from its files.
        held_bytes: bytes that there is room for.
        vector_bytes: tells the bytes of a vector.
    """

    def __init__(self, load: Callable[[str | None], Space], held_bytes: int, vector_bytes: Callable[[], int]) -> None:
        self._load, self._held_bytes, self._vector_bytes = load, held_bytes, vector_bytes
        self._left: dict[str | None, str | None] = {}
        self.begin()
        begin_after_fork(self)

    def begin(self) -> None:
        """Have nothing in memory; see `begin_after_fork`."""
        self._lock = threading.Lock()
        self._spaces: OrderedDict[str | None, Space] = OrderedDict()  # the least recently used first
        self._at_work: set[str | None] = set()

    def get(self, tenant: str | None) -> Space:
        """A tenant's embeddings, from its files if they are not in memory."""
        with self._lock:
            found = self._spaces.get(tenant)
            if found is not None:
                self._spaces.move_to_end(tenant)
                return found
            left = self._left.pop(tenant, None)
            found = self._spaces[tenant] = self._load(tenant)
            if left not in (None, found.cursor):
                found.complete.clear()  # it was further when it left memory: a search waits for the rest for a moment
        self.make_room(tenant)
        return found

    def all(self) -> dict[str | None, Space]:
        """Those in memory."""
        with self._lock:
            return dict(self._spaces)

    def cursor_of_left(self, tenant: str | None) -> str | None:
        """How far a tenant was when it left memory; None if it is there, or never was."""
        with self._lock:
            return None if tenant in self._spaces else self._left.get(tenant)

    @contextmanager
    def working(self, tenant: str | None) -> Iterator[None]:
        """Keep a tenant in memory: what came back from its files amid the work would not be as far."""
        with self._lock:
            self._at_work.add(tenant)
        try:
            yield
        finally:
            with self._lock:
                self._at_work.discard(tenant)

    def make_room(self, wanted: str | None, put_away: Callable[[str | None, Space], None] | None = None) -> None:
        """Let the least recently used tenants leave memory until the rest fits; what is worked on stays.

        Args:
            wanted: the tenant that is not to leave.
            put_away: called with what is to leave, to write its files; None: those that should be written first stay.
        """
        spaces = self.all()
        held = sum(map(self._bytes, spaces.values()))
        for tenant, space in spaces.items():
            if held <= self._held_bytes:
                return
            if tenant == wanted or (put_away is None and space.worth_saving):
                continue
            if put_away is not None:
                put_away(tenant, space)
            with self._lock:
                if tenant in self._at_work:
                    continue
                self._left[tenant] = space.cursor
                self._spaces.pop(tenant, None)
            held -= self._bytes(space)

    def release(self, tenant: str | None) -> None:
        """Let go of a tenant."""
        with self._lock:
            self._spaces.pop(tenant, None)

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._spaces.clear()

    def _bytes(self, space: Space) -> int:
        return len(space.vectors) * self._vector_bytes() + _SPACE_BYTES
