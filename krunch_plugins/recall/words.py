"""Words: the voice that finds turns by the words in them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from krunch_plugins.errors import StoreError
from krunch_plugins.recall.database import DatabaseReplaced
from krunch_plugins.recall.following import Follower
from krunch_plugins.recall.locks import begin_after_fork
from krunch_plugins.recall.voices import found
from krunch_plugins.recall.word_index import WordIndex, number_of, session_of, slot_in
from krunch_plugins.recall.word_search import rank
from krunch_plugins.turns import APART

if TYPE_CHECKING:
    from collections.abc import Hashable

    from krunch_plugins.recall.files import IndexFiles
    from krunch_plugins.settings import RecallSettings
    from krunch_plugins.turns import SearchHit, SearchQuery, TurnStore

log = logging.getLogger("krunch")

_ATTEMPTS = 3
_SOON = 5.0
"""Seconds after which traces of deleted turns are overwritten, where nobody waits for that."""
_SPARE = 20
"""How many times longer than a scrub took none is begun: many sessions that expire at once share a few."""


class Words:
    """Finds turns by their words, as soon as they are appended.

    Args:
        store: whose turns.
        files: where the indexes lie.
        settings: how long a search waits for an index that is being built, and what windows count.
    """

    def __init__(self, store: TurnStore, files: IndexFiles, settings: RecallSettings) -> None:
        self._index = WordIndex(store, files, self._scrub_later)
        self._follower = Follower(store, self._index, "words", at_once=True)
        self._settings = settings
        self._closed = False
        self._resting = 0.0  # until when no scrub is begun, by time.monotonic()
        self.begin()
        begin_after_fork(self)

    def begin(self) -> None:
        """Have no timer, and nothing to scrub; see `begin_after_fork`."""
        self._lock = threading.Lock()
        self._due: set[str | None] = set()  # tenants whose index has traces of what was deleted
        self._timer: threading.Timer | None = None

    def search(self, query: SearchQuery) -> list[SearchHit]:
        """The turns whose words fit best."""
        for _ in range(_ATTEMPTS):
            try:
                if not self._follower.catch_up(query.tenant, self._settings.wait_seconds):
                    self._follower.wake(query.tenant)
                    log.warning("the index of words is still being built; a search was answered with what there is")
                with self._index.database(query.tenant).reading() as connection:
                    scored = rank(connection, query, self._window_weight(query.tenant))
                    rows = {slot_in(row): row for row, _ in scored}
                    names = {slot: session_of(connection, row) for slot, row in rows.items()}
                    return [found(names[slot_in(row)], number_of(row), score) for row, score in scored]
            except DatabaseReplaced:
                continue  # it was damaged and is empty now: fill it and ask again
        raise StoreError("the index of words is damaged again each time it is made anew; check its disk")

    def _window_weight(self, tenant: str | None) -> float:
        """What a window counts: nothing where turns are no conversation, and neighbours have nothing to do with it."""
        return 0.0 if tenant is not None and tenant.startswith(APART) else self._settings.window_weight

    def version(self, tenant: str | None) -> Hashable:
        """How far the store has got, if the index has all of it; else something that no other version is equal to."""
        try:
            cursor = self._index.cursor(tenant)
        except DatabaseReplaced:
            return object()
        return cursor if cursor == self._follower.head(tenant, cursor) else object()

    def flush(self, timeout: float | None = None) -> bool:
        """Have everything searchable, and no trace left of what was forgotten."""
        done = self._follower.flush(timeout)
        return self._scrub_due() and done

    def forget(self, session: str, tenant: str | None) -> int:
        """Remove a session's words, also from the disk; how many turns there were."""
        try:
            removed = self._follower.forget(session, tenant)
            dirty = self._index.is_dirty(tenant)  # another process may have removed it, and not have got round to this
        except DatabaseReplaced:
            return 0  # it was damaged: nothing is left of it at all
        if dirty:
            self._scrub_later(tenant)
            if time.monotonic() >= self._resting:
                self._scrub_due()
        return removed

    def close(self) -> None:
        """Let go of everything."""
        self._closed = True
        self._scrub_quietly()
        self._follower.close()

    def _scrub_later(self, tenant: str | None) -> None:
        """Something was deleted from a tenant's index."""
        with self._lock:
            self._due.add(tenant)
            if self._timer is None and not self._closed:
                wait = max(self._resting - time.monotonic(), _SOON)
                self._timer = threading.Timer(wait, self._scrub_quietly)
                self._timer.daemon = True
                self._timer.start()

    def _scrub_quietly(self) -> None:
        with contextlib.suppress(StoreError):
            self._scrub_due()

    def _scrub_due(self) -> bool:
        """Scrub what is due; False if others kept it from that for now, so that it is tried again.

        Raises:
            StoreError: some could not be scrubbed, the disk is full, say; that is tried again, too.
        """
        with self._lock:
            due, self._due = self._due, set()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        began = time.monotonic()
        left, errors = [], []
        for tenant in due:
            try:
                if not self._index.scrub(tenant):
                    left.append(tenant)
            except DatabaseReplaced:
                pass  # it was damaged: nothing is left of it at all
            except StoreError as error:
                left.append(tenant)
                errors.append(error)
        if due:
            self._resting = time.monotonic() + (time.monotonic() - began) * _SPARE
        for tenant in left:
            self._scrub_later(tenant)
        if errors:
            raise errors[0]
        return not left
