"""The cold tier: frames by key on disk, in diskcache, all or nothing in transactions."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import diskcache

from krunch_plugins.errors import DatabaseDamaged, StoreBusy, StoreError, StoreFull, StoreUnavailable
from krunch_plugins.storage.inline_disk import MUST_BE, SETTINGS, InlineDisk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

Durability = Literal["process", "power"]
"""What an acknowledged write survives: the death of the process, or also a power cut."""

DATABASE = "cache.db"
"""diskcache's name for its file."""
WAIT = 30.0
"""Seconds to wait for another writer."""

# diskcache and sqlite3 trust the types and the text in the database, and damage can leave any.
_INSANE = (AttributeError, TypeError, ValueError, KeyError, IndexError, OverflowError)


class ColdTier(Protocol):
    """Where frames lie for good. Thread-safe; several processes may share one."""

    def get(self, key: str) -> bytes | None:
        """The value last put under `key`, or None."""

    def put(self, key: str, value: bytes) -> None:
        """Keep `value` under `key`, instead of what was there. Only within a transaction."""

    def delete(self, key: str) -> bool:
        """Remove `key`; whether it was there. Only within a transaction."""

    def transaction(self) -> AbstractContextManager[None]:
        """All changes within become durable together when it ends, or none of them if it raises.

        One at a time over all threads and processes; what is read within is what the changes apply to.
        """

    def version(self) -> int:
        """A number that differs from an earlier one whenever anybody changed anything in between. Cheap."""

    def keys(self) -> Iterator[str]:
        """Every key, in any order. Slow; for checks only."""

    def scrub(self) -> bool:
        """Leave no byte of anything deleted or replaced; False if another process kept it from that for now."""

    def size(self) -> int:
        """Bytes on disk."""

    def close(self) -> None:
        """Let go of it; what was committed stays."""


class _Transaction:
    """A transaction as a context manager, without a generator's cost."""

    __slots__ = ("_inner", "_tier")

    def __init__(self, tier: DiskTier) -> None:
        self._tier = tier

    def __enter__(self) -> None:
        self._inner = self._tier.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tier.end(self._inner, kind, error, trace)


class DiskTier:
    """The cold tier in a directory, through diskcache.

    Args:
        directory: it must exist.
        durability: "process" (SQLite's NORMAL) or "power" (FULL).
        wait: seconds to wait for another writer before `StoreBusy`.

    Raises:
        StoreUnavailable: no permission, read-only, or a database that is not ours or was reconfigured.
        DatabaseDamaged: the database cannot be read.
    """

    def __init__(self, directory: Path, durability: Durability = "process", wait: float = WAIT) -> None:
        self.directory, self.path = directory, directory / DATABASE
        self._synchronous = 2 if durability == "power" else 1
        self._wait = wait
        self._lock = threading.RLock()
        self._local = threading.local()
        self._watcher: sqlite3.Connection | None = None
        self._watch_lock = threading.Lock()
        self._depth = 0
        self._pid = os.getpid()
        if os.path.expandvars(directory) != str(directory):
            # diskcache would expand it and use another directory.
            raise StoreUnavailable(str(directory), "its path holds the name of an environment variable")
        with self._translated():
            if not self.path.exists():
                # For its owner only, also in a directory that others may read; SQLite gives its log the same mode.
                self.path.touch(mode=0o600)
            elif self.path.stat().st_size:
                self._refuse_foreign()
            self._cache = diskcache.Cache(
                str(directory), timeout=wait, disk=InlineDisk, sqlite_synchronous=self._synchronous, **SETTINGS
            )
            self._identity = self._stat()

    def get(self, key: str) -> bytes | None:
        """The value last put under `key`, or None."""
        # try instead of our context managers: this is called several times for each append.
        try:
            if getattr(self._local, "ready", None) != os.getpid():
                self._prepare()
            value: bytes | None = self._cache.get(key)
        except (sqlite3.Error, diskcache.Timeout, OSError) as error:
            raise self._explain(error, 0.0) from error
        except _INSANE as error:
            raise self._insane(error) from error
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep `value` under `key`. Only within a transaction. Raises TypeError for anything but text and bytes."""
        if type(key) is not str or type(value) is not bytes:
            raise TypeError(f"the cold tier keeps bytes by text, not {type(value).__name__} by {type(key).__name__}")
        try:
            self._cache.set(key, value)
        except _INSANE as error:
            raise self._insane(error) from error

    def delete(self, key: str) -> bool:
        """Remove `key`; whether it was there. Only within a transaction."""
        try:
            return bool(self._cache.delete(key))
        except _INSANE as error:
            raise self._insane(error) from error

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing, one at a time."""
        return _Transaction(self)

    def begin(self) -> AbstractContextManager[None]:
        """Take the lock and begin. Our own lock comes first: SQLite's makes waiting threads sleep and starve."""
        self._after_fork()
        self._lock.acquire()
        try:
            with self._translated():
                self._prepare()
                self._refuse_replaced()
                inner: AbstractContextManager[None] = self._cache.transact()
                try:
                    inner.__enter__()
                except (sqlite3.Error, diskcache.Timeout):
                    if not self._depth:
                        self._drop_connection()
                    raise
        except BaseException:  # an interrupt too must not keep the lock
            self._lock.release()
            raise
        self._depth += 1
        return inner

    def end(self, inner: AbstractContextManager[None], *failure: Any) -> None:  # noqa: ANN401 - as __exit__ has them
        """Commit, or roll back if there is a failure, and give the lock back."""
        started = time.monotonic()
        try:
            # Where it rolls back, it leaves raising what failed to us.
            if not inner.__exit__(*failure) and isinstance(failure[1], (sqlite3.Error, diskcache.Timeout)):
                raise failure[1]
        except (sqlite3.Error, diskcache.Timeout, OSError) as error:
            if self._depth == 1:
                # A commit that failed leaves the connection inside its transaction; a new one starts clean.
                self._drop_connection()
            raise self._explain(error, time.monotonic() - started) from error
        finally:
            self._depth -= 1
            self._lock.release()

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """No other thread of this process is in a transaction meanwhile, whatever state the database is in."""
        self._after_fork()
        with self._lock:
            yield

    def version(self) -> int:
        """SQLite's data_version: it changes with every commit of another connection; this one never writes."""
        with self._translated(), self._watch_lock:
            self._after_fork()
            if self._watcher is None:
                self._watcher = self._connect(check_same_thread=False)
            number: int = self._watcher.execute("PRAGMA data_version").fetchone()[0]
            return number

    def keys(self) -> Iterator[str]:
        """Every key, in the order in which they were first put."""
        with self._translated():
            self._prepare()
            yield from self._cache

    def scrub(self) -> bool:
        """Rebuild the file without its free pages and empty the log."""
        with self._lock, self._translated():
            connection = self._connect(timeout=min(self._wait, 5.0))
            try:
                connection.execute("VACUUM")
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                return False
            finally:
                connection.close()
            return not busy

    def checkpoint(self) -> None:
        """Move the log into the database, as far as readers allow."""
        with self._lock, self._translated():
            connection = self._connect()
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                connection.close()

    def integrity(self) -> str:
        """What SQLite's own check says: "ok", or the first thing that is wrong."""
        with self._translated():
            connection = self._connect()
            try:
                return str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
            finally:
                connection.close()

    def size(self) -> int:
        """Bytes of the database and its log."""
        return sum(path.stat().st_size for path in (self.path, self.path.with_name(DATABASE + "-wal")) if path.exists())

    def close(self) -> None:
        """Close this thread's connection and empty the log if nobody else is reading."""
        with self._lock:
            try:
                if self._stat() == self._identity:
                    connection = self._connect(timeout=0.1)
                    try:
                        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    finally:
                        connection.close()
            except (sqlite3.Error, OSError):
                pass  # everything is in the log already, and the next one to open it moves it
            self._drop_connection()
            with self._watch_lock:
                if self._watcher is not None:
                    self._watcher.close()
                    self._watcher = None

    def _connect(self, *, timeout: float | None = None, check_same_thread: bool = True) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=self._wait if timeout is None else timeout,
            isolation_level=None,
            check_same_thread=check_same_thread,
        )
        connection.execute("PRAGMA secure_delete=1")
        return connection

    def _prepare(self) -> None:
        """Give this thread's connection our pragmas; those in the file can be changed by others."""
        if getattr(self._local, "ready", None) != os.getpid():
            self._cache.reset("sqlite_synchronous", self._synchronous, update=False)
            self._cache.reset("sqlite_secure_delete", 1, update=False)
            self._local.ready = os.getpid()

    def _drop_connection(self) -> None:
        self._cache.close()
        self._local.ready = None

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            # Another thread of the parent may have held these when it forked, and its connection is not ours to close.
            self._pid = os.getpid()
            self._lock, self._watch_lock = threading.RLock(), threading.Lock()
            self._watcher, self._depth = None, 0

    def _stat(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _refuse_replaced(self) -> None:
        if self._stat() != self._identity:
            why = "its database was removed or replaced while open; open it anew"
            raise StoreUnavailable(str(self.directory), why)

    def _refuse_foreign(self) -> None:
        """Look before diskcache does: its constructor writes its settings over whatever is there."""
        connection = self._connect()
        try:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
            if tables < {"Cache", "Settings"}:
                return  # another process is setting it up right now
            if not {"Cache", "Settings"} <= tables:
                raise StoreUnavailable(
                    str(self.directory), f"its {DATABASE} is not one of Krunch; choose another directory"
                )
            found = dict(connection.execute("SELECT key, value FROM Settings"))
            rows = connection.execute("SELECT 1 FROM Cache LIMIT 1").fetchone()
        finally:
            connection.close()
        for key in MUST_BE:
            value = found.get(key)
            # Without any rows it may be one that another process is setting up right now.
            if not rows or value == SETTINGS[key]:
                continue
            if not isinstance(value, int) and value not in diskcache.EVICTION_POLICY:
                raise DatabaseDamaged(str(self.path), f"its setting {key} is {value!r}")
            why = (
                f"another program set diskcache's {key} to {value!r}, which may delete history; to put it back: "
                f"diskcache.Cache({str(self.directory)!r}).reset({key!r}, {SETTINGS[key]!r})"
            )
            raise StoreUnavailable(str(self.directory), why)

    def _insane(self, error: Exception) -> DatabaseDamaged:
        return DatabaseDamaged(str(self.path), f"a value of a kind that was never written ({error})")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Our errors instead of SQLite's."""
        started = time.monotonic()
        try:
            yield
        except StoreError:
            raise
        except (sqlite3.Error, diskcache.Timeout, OSError) as error:
            raise self._explain(error, time.monotonic() - started) from error
        except _INSANE as error:
            raise self._insane(error) from error

    def _explain(self, error: BaseException, waited: float) -> StoreError:
        directory = str(self.directory)
        if isinstance(error, diskcache.Timeout):
            if waited >= self._wait * 0.9:
                return StoreBusy(directory, self._wait)
            error = self._real_reason() or error
        # A failed rollback hides what failed before it.
        while isinstance(error, sqlite3.Error) and "no transaction is active" in str(error) and error.__context__:
            error = error.__context__
        text = str(error)
        if "full" in text or (isinstance(error, OSError) and error.errno == 28):  # noqa: PLR2004 - ENOSPC
            return StoreFull(directory)
        if isinstance(error, (OSError, diskcache.Timeout)) or self._stat() is None:
            return StoreUnavailable(directory, f"{type(error).__name__}: {text}")
        if "locked" in text:
            return StoreBusy(directory, waited)
        if any(sign in text for sign in ("readonly", "unable to open", "I/O", "permission")):
            return StoreUnavailable(directory, f"{text}; check its permissions and that its disk is writable")
        return DatabaseDamaged(str(self.path), text)

    def _real_reason(self) -> sqlite3.Error | None:
        """Try by hand: diskcache reports every failure to begin as a timeout."""
        try:
            connection = self._connect(timeout=0.1)
        except sqlite3.Error as error:
            return error
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            return error
        finally:
            connection.close()
        return None
