"""Following the store: each index reads what is new by a cursor of its own, at once or in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from krunch_plugins.errors import MissingExtra, StoreClosed, WrongDimension
from krunch_plugins.recall.locks import begin_after_fork
from krunch_plugins.turns import TurnEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from krunch_plugins.turns import TurnStore

log = logging.getLogger("krunch")

CHUNK = 512
"""Turns that an index is given at a time."""
AT_ONCE = 2048
"""Turns that an append catches up with before it returns; more than that is left to the background."""
_ALL = 1_000_000
"""Events that are looked through at a time: the store begins at the newest, so a few large answers are the cheapest."""
_RETRY, _RETRY_MOST = 1.0, 60.0
"""Seconds after which what failed is tried again: the first time, and at most."""
_BUSY, _AGAIN = 0.005, 0.1
"""Seconds until the next look at an index that another process is writing: where somebody waits, and in background."""

Tenant = str | None


class Index(Protocol):
    """What follows the store: an index over the turns of each tenant.

    The `Follower` calls it, never twice at the same time for one tenant; searches may run meanwhile. What it raises is
    logged and tried again later.
    """

    def cursor(self, tenant: str | None) -> str | None:
        """The cursor that was stored with what was applied last; None if there is nothing yet, or it was damaged."""

    def writing(self, tenant: str | None) -> AbstractContextManager[bool]:
        """The right to change the index while the block runs; False if another process has it just now.

        It is for one writer an index file, as a build may take several calls of `apply`. An index that only this
        process has always says True.
        """

    def apply(self, tenant: str | None, events: Sequence[TurnEvent], cursor: str | None) -> None:
        """Take in what happened, in order, and the cursor with it, all or nothing. Called within `writing`.

        It may be told again what it knows already: turns that it has are not to be added twice. Turns that the store
        has no more when they are read are left out; an event that comes later says why.

        Args:
            tenant: whose sessions.
            events: "reset" comes first or not at all.
            cursor: store it with this; None: more of the same news is to come, the stored cursor stays.
        """

    def forget(self, tenant: str | None, session: str, is_gone: Callable[[str], bool]) -> int:
        """Remove every trace of a forgotten session now; how much was removed. The event comes later.

        Args:
            tenant: whose session.
            session: its id. Another one may have been begun under it meanwhile, by another process.
            is_gone: whether a session of this key is to be removed; to be asked when nobody else changes the index.
        """

    def flush(self) -> None:
        """Write what is only in memory to the disk. May be nothing."""

    def close(self) -> None:
        """Flush, and let go of everything. Safe to call twice."""


@dataclass(slots=True)
class _Wish:
    """A session that is to be removed while its caller waits."""

    session: str
    done: threading.Event = field(default_factory=threading.Event)
    removed: int = 0
    error: Exception | None = None


class Follower:
    """Keeps one index in step with the store.

    - At once: `catch_up` before a search; with `at_once`, each append of this process too, before it returns.
    - In the background: a thread, begun when there is something to do, catches up with what it is woken for.
      What fails there is tried again, after a second first, then less and less often.
    - Several processes: each follows by the index's cursor; `Index.writing` says who may write.

    Thread-safe.

    Args:
        store: whom to follow.
        index: what to keep in step.
        name: for logs and the thread.
        at_once: an append is in the index when it returns, if no more than `AT_ONCE` turns are missing.
        chunk: turns that the index is given at a time.
    """

    def __init__(self, store: TurnStore, index: Index, name: str, *, at_once: bool = False, chunk: int = CHUNK) -> None:
        self._store, self._index, self.name = store, index, name
        self._at_once, self._chunk = at_once, chunk
        self._closed = False
        self.begin()
        begin_after_fork(self)
        self._unsubscribe = store.subscribe(self._told)

    def begin(self) -> None:
        """Have no thread, and nothing to do; see `begin_after_fork`."""
        self._locks: defaultdict[Tenant, threading.RLock] = defaultdict(threading.RLock)
        self._work = threading.Condition()
        self._due: OrderedDict[Tenant, float] = OrderedDict()  # when to look at a tenant, by time.monotonic()
        self._failures: dict[Tenant, int] = {}
        self._heads: dict[Tenant, str] = {}
        self._building: set[Tenant] = set()
        self._wishes: defaultdict[Tenant, list[_Wish]] = defaultdict(list)
        self._busy = False
        self._thread: threading.Thread | None = None

    def catch_up(self, tenant: str | None, timeout: float | None = None) -> bool:
        """Apply what is new to a tenant's index, in this thread; True when nothing is left.

        Args:
            tenant: whose.
            timeout: seconds to wait for another thread or process that is at it; None: as long as it takes.

        Raises:
            Exception: whatever the index or the store raises.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._news(tenant):
            left = -1 if deadline is None else max(deadline - time.monotonic(), 0)
            with self._work:
                lock = self._locks[tenant]
            if not lock.acquire(timeout=left):
                return False
            try:
                mine = self._take_in(tenant)
            finally:
                lock.release()
            if not mine:
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                time.sleep(_BUSY)
        return True

    def head(self, tenant: str | None, known: str | None) -> str:
        """The cursor after all that the store has by now, whoever committed it, and however far the index is.

        Args:
            tenant: whose.
            known: a cursor to start from the first time, None for the beginning.
        """
        at = self._heads.get(tenant) or known
        while True:
            after = self._store.since(at, tenant=tenant, limit=_ALL)[1]
            if after == at:
                self._heads[tenant] = after
                return after
            at = after

    def wake(self, tenant: str | None) -> None:
        """Have the background thread catch up with a tenant. What has failed waits until it is tried again."""
        with self._work:
            if self._closed:
                return
            if tenant not in self._failures:
                self._due[tenant] = 0.0
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"krunch-{self.name}", daemon=True)
                self._thread.start()
            self._work.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Have everything caught up with, all tenants, and written to disk.

        Args:
            timeout: seconds to wait at most.

        Returns:
            False if time ran out, or something failed (an embedder that is down, say); it is tried again later.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        tenants = self._store.tenants()
        with self._work:
            self._failures.clear()
        for tenant in tenants:
            self.wake(tenant)
        with self._work:
            while self._busy or any(tenant not in self._failures for tenant in self._due):
                left = None if deadline is None else deadline - time.monotonic()
                if self._closed or (left is not None and left <= 0):
                    return False
                self._work.wait(left)
            done = not self._failures
        self._index.flush()
        return done

    def is_gone(self, tenant: str | None, key: str) -> bool:
        """Whether the session of this key was forgotten, and the index not told yet; to be asked when it may change."""
        cursor = self._index.cursor(tenant)
        while cursor is not None:
            events, after = self._store.since(cursor, tenant=tenant, limit=_ALL)
            if events and events[0].kind == "reset":
                break
            if any(event.kind == "forget" and event.key == key for event in events):
                return True
            if after == cursor:
                return False
            cursor = after
        return all(event.key != key for event in self._store.since(None, tenant=tenant)[0])  # it is being built

    def forget(self, session: str, tenant: str | None) -> int:
        """Remove a forgotten session from the index now, whatever is waiting; how much was removed.

        By its key, not by its id: another process may have begun it anew, and that may be in the index already.
        """
        wish = _Wish(session)
        with self._work:
            lock = self._locks[tenant]
            self._wishes[tenant].append(wish)
        while not wish.done.is_set():
            # Whoever builds the index looks at wishes in between, for that may take minutes.
            if lock.acquire(timeout=_BUSY):
                try:
                    self._fulfil(tenant)
                finally:
                    lock.release()
        if wish.error is not None:
            raise wish.error
        return wish.removed

    def _fulfil(self, tenant: str | None) -> None:
        """Remove the sessions that somebody waits for. The tenant's lock is held."""
        with self._work:
            wishes = self._wishes.pop(tenant, [])
        for wish in wishes:
            try:
                wish.removed = self._index.forget(tenant, wish.session, partial(self.is_gone, tenant))
            except Exception as error:  # noqa: BLE001 - it belongs to the one who waits
                wish.error = error
            wish.done.set()

    def close(self) -> None:
        """Stop the thread after the chunk it is at, and close the index. Safe to call twice."""
        with self._work:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            self._work.notify_all()
        self._unsubscribe()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._index.close()

    def _told(self, tenant: str | None) -> None:
        """The store has news. Called within the call that made them."""
        if not self._at_once or tenant in self._building:
            self.wake(tenant)
            return
        with self._work:
            lock = self._locks[tenant]
        try:
            with lock:
                events, _ = self._store.since(self._index.cursor(tenant), tenant=tenant)
                if _turns(events) > AT_ONCE or (events and not self._take_in(tenant)):
                    self.wake(tenant)
        except Exception as error:  # noqa: BLE001 - the turns are stored; the index can come later
            self._failed(tenant, error)
            self.wake(tenant)

    def _news(self, tenant: str | None) -> bool:
        cursor = self._index.cursor(tenant)
        # Not whether there are events: what was appended to a session that is gone is none, but others follow it.
        return cursor is None or self._store.since(cursor, tenant=tenant, limit=1)[1] != cursor

    def _take_in(self, tenant: str | None) -> bool:
        """Apply the news there are; False if another process is writing. The tenant's lock is held."""
        with self._index.writing(tenant) as mine:
            if not mine:
                return False
            cursor = self._index.cursor(tenant)  # another process may have moved it
            events, after = self._store.since(cursor, tenant=tenant)
            if cursor is None and (not events or events[0].kind != "reset"):
                # What a build that was killed left behind may have been forgotten since.
                events.insert(0, TurnEvent("reset", "", None, 0, 0))
            chunks = list(_chunks(events, self._chunk))
            if not chunks and after != cursor:
                chunks = [[]]
            if len(chunks) > 1:
                self._building.add(tenant)
            try:
                for number, chunk in enumerate(chunks, 1):
                    if self._closed:
                        return False
                    self._fulfil(tenant)
                    self._index.apply(tenant, chunk, after if number == len(chunks) else None)
            finally:
                self._building.discard(tenant)
        return True

    def _run(self) -> None:
        """The background thread."""
        while True:
            with self._work:
                tenant = self._next()
                if self._closed:
                    self._work.notify_all()
                    return
                self._busy = True
            try:
                done = self.catch_up(tenant, 0.0)
                with self._work:
                    self._failures.pop(tenant, None)
                    if not done and not self._closed:
                        self._due.setdefault(tenant, time.monotonic() + _AGAIN)
            except Exception as error:  # noqa: BLE001 - whatever it is, the index is behind, and words still answer
                self._failed(tenant, error)
            finally:
                with self._work:
                    self._busy = False
                    self._work.notify_all()

    def _next(self) -> Tenant:
        """The next tenant to look at, when it is time. The condition is held."""
        while not self._closed:
            now = time.monotonic()
            ready = [tenant for tenant, due in self._due.items() if due <= now]
            if ready:
                del self._due[ready[0]]
                return ready[0]
            self._work.wait(min(self._due.values()) - now if self._due else None)
        return None

    def _failed(self, tenant: str | None, error: Exception) -> None:
        with self._work:
            failures = self._failures[tenant] = self._failures.get(tenant, 0) + 1
            delay = min(_RETRY * 2 ** (failures - 1), _RETRY_MOST)
            self._due.setdefault(tenant, time.monotonic() + delay)
        if failures == 1 and not (self._closed or isinstance(error, StoreClosed)):  # that is the end of the process
            log.warning("index %r is behind, and is tried again: %s", self.name, _told(error))


def _told(error: Exception) -> str:
    """What is logged of an error: of those that somebody has to do something about all; others may hold text."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, (MissingExtra, WrongDimension)) else name


def _turns(events: Sequence[TurnEvent]) -> int:
    return sum(event.stop - event.start for event in events if event.kind == "append")


def _chunks(events: Sequence[TurnEvent], size: int) -> Iterator[list[TurnEvent]]:
    """The events in lists of at most about `size` turns each; long ones are cut."""
    chunk: list[TurnEvent] = []
    count = 0
    for event in events:
        start = event.start
        while event.kind == "append" and event.stop - start > size - count:
            chunk.append(TurnEvent("append", event.key, event.session, start, start + size - count))
            start += size - count
            yield chunk
            chunk, count = [], 0
        if event.kind != "append" or start < event.stop:
            chunk.append(TurnEvent(event.kind, event.key, event.session, start, event.stop))
            count += event.stop - start if event.kind == "append" else 1
        if count >= size:
            yield chunk
            chunk, count = [], 0
    if chunk:
        yield chunk
