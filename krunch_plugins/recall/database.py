"""An SQLite file that may be lost at any time, and never lies: it is checked before it is used, or made anew."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sqlite3
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING

from krunch_plugins import abandoned
from krunch_plugins.errors import StoreBusy, StoreClosed, StoreError, StoreFull, StoreUnavailable
from krunch_plugins.recall.connections import Connections
from krunch_plugins.recall.files import FileLock
from krunch_plugins.recall.held_files import HeldFile
from krunch_plugins.recall.locks import begin_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger("krunch")

WAIT = 30.0
"""Seconds to wait for another process."""
LOG_BYTES = 16 << 20
"""Bytes of SQLite's log from which on it is moved into the file, if the file is not four times as large."""
_SETTLE_WAIT = 2.0
"""Seconds to wait for readers before the log is left for the next time."""
_IDLE = 4
"""Connections for reading that are kept."""
_UNAVAILABLE = {"SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH"}
_INHERITED: list[object] = []
"""What a forked process must neither use nor close."""

_OPEN: weakref.WeakSet[IndexDatabase] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Settle what nobody closed: SQLite would move the log into the file at the end, and write no digest."""
    for database in list(_OPEN):
        with contextlib.suppress(Exception):
            database.retire()


class DatabaseReplaced(Exception):  # noqa: N818 - it tells that one has to begin anew
    """The database was damaged or removed, and an empty one has taken its place."""


class IndexDatabase:
    """One file of an index, in SQLite. Thread-safe; several processes may have it open.

    SQLite notices some damage, and answers wrongly after other. So the file's digest stands beside it. All changes go
    to SQLite's log first, whose frames have checksums; the file itself changes only in `settle`, which writes the
    digest anew. Whoever opens the file while nobody else has it open compares the two. What does not fit is removed,
    and whoever follows the store fills it again. A kill in the middle of `settle` has the same end.

    Args:
        path: the file; its log, digest and locks lie beside it.
        prepare: makes the tables in an empty database.
        version: what must stand in it; a database of another version is made anew.
        connected: called with each new connection, to add functions to it.
    """

    def __init__(
        self,
        path: Path,
        prepare: Callable[[sqlite3.Connection], None],
        version: int,
        connected: Callable[[sqlite3.Connection], None],
    ) -> None:
        self.path, self._prepare, self._version, self._connected = path, prepare, version, connected
        self._digest = path.with_suffix(".digest")
        self._file = HeldFile(path)
        self._begin()
        begin_after_fork(self)
        _OPEN.add(self)

    def begin(self) -> None:
        """Have nothing open; see `begin_after_fork`."""
        _INHERITED.append((self._connections, self._present, self._writer))
        self._file.forget()
        self._begin()

    def _begin(self) -> None:
        self._retired = False
        self._present, self._writer = (FileLock(self.path.with_suffix(suffix)) for suffix in (".open", ".writer"))
        self._writing = threading.RLock()  # taken before the other one, and held as long as something is written
        self._lock = threading.RLock()  # guards what follows; held for moments, or while the file is checked
        self._identity: tuple[int, int] | None = None
        self._generation = 0
        self._connections = Connections()

    def __del__(self) -> None:
        """Nobody closed it: it is closed elsewhere, since the collector may run this inside any lock."""
        connections = self.__dict__.get("_connections")
        if connections is not None and connections.held and not sys.is_finalizing():
            abandoned.hand_over(self.close)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading, with a view that does not change within the block.

        Raises:
            DatabaseReplaced: it was damaged.
        """
        with self._lock:
            self._use()
            generation = self._generation
            idle = self._connections.idle
            connection = idle.pop() if idle else None
        try:
            with self._translated():
                connection = connection or self._connect()
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    connection.execute("ROLLBACK")
        except BaseException:  # whatever it was, nobody knows in which state the connection is
            if connection is not None:
                connection.close()
            raise
        with self._lock:
            if generation == self._generation and len(self._connections.idle) < _IDLE:
                self._connections.idle.append(connection)
                return
        connection.close()

    @contextlib.contextmanager
    def alone(self, timeout: float = 0.0) -> Iterator[bool]:
        """Be the only one who writes, of all threads and processes; yields False if another process does. Reentrant."""
        with self._lock:
            self._use()
        with self._holding(timeout) as mine:
            yield mine

    @contextlib.contextmanager
    def _holding(self, timeout: float) -> Iterator[bool]:
        with self._writing:
            if self._writer.held:
                yield True
            else:
                with self._writer.holding(timeout) as mine:
                    yield mine

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction. Within `alone` only.

        Raises:
            DatabaseReplaced: it was damaged, or is gone.
        """
        with self._writing, self._translated():
            if self._identity is None or self._stat() != self._identity:
                raise DatabaseReplaced
            connection = self._writing_connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:  # an interrupt too must not leave half of it
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def needs_settling(self) -> bool:
        """Whether the log has grown so long that it should be moved into the file."""
        try:
            size = self._beside("-wal").stat().st_size
            return size > LOG_BYTES and size * 4 > self.path.stat().st_size
        except OSError:
            return False

    def settle(self, *, scrub: bool = False) -> bool:
        """Move the log into the file, and write the file's digest.

        Args:
            scrub: leave no byte of what was deleted.

        Returns:
            False if another process was reading or writing just then, so that the log is not empty yet.
        """
        with self.alone(WAIT if scrub else 0.0) as mine:
            return mine and self._move_log(scrub=scrub)

    def _move_log(self, *, scrub: bool = False) -> bool:
        """`settle`, by whoever is the only one who writes."""
        with self._translated():
            connection = self._connect(_SETTLE_WAIT)
            try:
                if scrub:
                    connection.execute("VACUUM")
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                connection.close()
        if busy:
            # The file has part of the log. Were the log cut off now by damage, its older pages would hide newer ones of
            # the file; without a digest whoever finds it so makes it anew.
            self._digest.unlink(missing_ok=True)
            return False
        self._write_digest()
        return True

    def condemn(self) -> None:
        """Put an empty database in the place of this one, at its next use."""
        with self._writing, self._lock:
            mine = contextlib.nullcontext() if self._writer.held else self._writer.holding(WAIT)
            with mine:
                if self._stat() == self._identity:
                    log.warning("an index of recall was damaged, and is made anew from the history")
                    self._remove()
            self._drop_connections()
            self._identity = None

    def close(self) -> None:
        """Settle and let go. Safe to call twice; the next use opens it again."""
        with self._writing, self._lock:
            if not self._connections.held:
                return
            self._connections.drop_idle()
            if self._identity is not None and self._stat() == self._identity:
                with (
                    contextlib.suppress(sqlite3.Error, OSError, StoreError, DatabaseReplaced),
                    self._holding(0.0) as mine,  # not `alone`, which is closed to a database that is retired
                ):
                    _ = mine and self._move_log()
            self._drop_connections()
            self._identity = None
            self._present.release()

    def retire(self) -> None:
        """`close` for good, because the process ends: a thread that goes on may die at any place, amid `_create`."""
        with self._lock:
            self._retired = True
        self.close()

    def _use(self) -> None:
        """Have the file open; the lock is held."""
        if self._retired:
            raise StoreClosed
        self._open()

    def _open(self) -> None:
        """Check and open the file unless it is open; the lock is held."""
        if self._identity is not None:
            if self._stat() == self._identity:
                return
            self._connections.drop_idle()  # another process, or a user, has removed it
            self._generation += 1
            self._identity = None
            self._connections.drop_anchor()
        self._present.release()
        abandoned.attend()
        self._connections.hold()
        try:
            with self._translated(made_anew=False):
                self._check()
        except BaseException as error:  # what is held must be let go of, whatever it was
            self._drop_connections()
            self._present.release()
            if isinstance(error, OSError):
                why = f"{error.strerror}; check its permissions and its disk"
                raise StoreUnavailable(str(self.path), why) from error
            raise
        self._identity = self._stat()

    def _check(self) -> None:
        """Open a file that is whole and of this version, or a new one."""
        for folder in (self.path.parent.parent, self.path.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        if self._present.acquire():
            if not (self._is_intact() and self._anchored() == self._version):
                self._create()
            self._present.share()
        elif self._present.acquire(shared=True, timeout=WAIT):
            with FileLock(self.path.with_suffix(".writer")).holding(WAIT):
                found = self._anchored() if self.path.exists() else 0
                if not found:
                    self._create()
                elif found != self._version:
                    why = "another process has it open, and is of another version of Krunch"
                    raise StoreUnavailable(str(self.path), why)
        else:
            raise StoreBusy(str(self.path), WAIT)

    def _create(self) -> None:
        """Make the file and its tables; what was there is removed."""
        self._connections.drop_anchor()
        self._remove()  # the log of a file that is gone would be replayed into the new one
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        anchor = self._connections.anchor = self._connect()
        anchor.execute("BEGIN IMMEDIATE")
        self._prepare(anchor)
        anchor.execute(f"PRAGMA user_version={self._version:d}")
        anchor.execute("COMMIT")
        anchor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._write_digest()

    def _is_intact(self) -> bool:
        """Whether the file is what its digest says. Nobody else has it open."""
        try:
            return self._digest.read_text(encoding="ascii") == self._compute()
        except (OSError, ValueError):
            return False

    def _anchored(self) -> int:
        """Open the file; its version, 0 if it has none or cannot be read."""
        try:
            anchor = self._connections.anchor = self._connect()
            return int(anchor.execute("PRAGMA user_version").fetchone()[0])
        except sqlite3.DatabaseError:
            return 0

    def _compute(self) -> str:
        return self._file.digest()

    def _write_digest(self) -> None:
        temporary = self._digest.with_suffix(".tmp")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "w", encoding="ascii") as out:
            out.write(self._compute())
        temporary.replace(self._digest)

    def _remove(self) -> None:
        for path in (self._digest, self._beside("-wal"), self._beside("-shm"), self.path):
            path.unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _connect(self, wait: float = WAIT) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=wait, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")  # the file changes in `settle` only
            connection.execute("PRAGMA secure_delete=1")
            connection.execute("PRAGMA cache_size=-8000")
            connection.execute("PRAGMA temp_store=MEMORY")
            self._connected(connection)
        except BaseException:  # nobody else could close it
            connection.close()
            raise
        return connection

    def _stat(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _drop_connections(self) -> None:
        self._generation += 1
        self._connections.drop()
        self._file.release()

    def _writing_connection(self) -> sqlite3.Connection:
        """The connection that changes are made with; `_writing` is held."""
        connections = self._connections
        if connections.mine is not None and connections.mine[0] != self._generation:
            connections.drop_mine()
        if connections.mine is None:
            connections.mine = self._generation, self._connect()
        return connections.mine[1]

    def _is_broken(self) -> bool:
        """Whether SQLite finds the file damaged, which takes a look at all of it."""
        try:
            with contextlib.closing(self._connect()) as connection:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
        except sqlite3.DatabaseError:
            return True

    @contextlib.contextmanager
    def _translated(self, *, made_anew: bool = True) -> Iterator[None]:
        """Our errors instead of SQLite's; damage has the database made anew."""
        started = time.monotonic()
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = (error.sqlite_errorname or "") if hasattr(error, "sqlite_errorname") else ""
            kind = "_".join(code.split("_")[:2])
            if kind in ("SQLITE_BUSY", "SQLITE_LOCKED"):
                raise StoreBusy(str(self.path), time.monotonic() - started) from error
            if kind == "SQLITE_FULL" and not self._is_broken():  # a damaged file may be "full" as well
                raise StoreFull(str(self.path.parent)) from error
            torn = code == "SQLITE_IOERR_SHORT_READ" or self._stat() != self._identity  # cut off, or replaced just now
            if not made_anew or (kind in _UNAVAILABLE and not torn):
                raise StoreUnavailable(str(self.path), f"{code}; check its permissions and its disk") from error
            self.condemn()
            raise DatabaseReplaced from error
