"""What the workers of one proxy share: where it lies, who writes it when, and how a reset reaches all of them."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import shutil
import socket
import sqlite3
import stat
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from krunch_litellm.figures import Figures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from krunch_litellm.entries import Entry
    from krunch_litellm.figures import Reset
    from krunch_plugins import Krunch

log = logging.getLogger("krunch")

DELAY = 0.2
"""Seconds for which entries are gathered before they are written: other workers' figures are at most so old."""
MEMORY_EVERY = 10.0
"""Seconds after which a worker that has something to write tells anew what it holds in memory."""
LINGER = 5.0
"""Seconds for which the thread that writes waits for more: one for each request would cost as much as all the rest."""
PENDING = 100_000
"""Entries that are held until they are written; the oldest go first."""
_UNUSABLE = (sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.IntegrityError)
"""Errors of SQLite's that an entry can be the cause of."""
_SIGNAL = "resets"
_PREFIX = "krunch-proxy-"


def directory(krunch: Krunch) -> Path | None:
    """Where workers meet: in the store's directory if there is one, else one of their own if there are several.

    The workers of a proxy are children of one process, which is what the second kind is known by.

    Returns:
        The directory, made and private; None for a single worker without a store.

    Raises:
        OSError: it cannot be made, or is somebody else's.
    """
    store = krunch.store.directory if krunch.store is not None else None
    if store is not None:
        return _private(store / "proxy")
    try:
        workers = int(os.environ.get("NUM_WORKERS", "1"))  # which LiteLLM sets before it starts them
    except ValueError:
        workers = 1
    return _private(temporary(os.getppid())) if workers > 1 else None


def temporary(parent: int) -> Path:
    """The directory of the workers that are children of process `parent`."""
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{_user()}-{parent}-{_started(parent)}"


def remove_stale() -> None:
    """Remove the temporary directories of proxies that are no more. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{_user()}-*"):
            parent, _, started = path.name.removeprefix(f"{_PREFIX}{_user()}-").partition("-")
            if parent.isdigit() and (not _lives(int(parent)) or _started(int(parent)) != started):
                shutil.rmtree(path, ignore_errors=True)


class _Bell:
    """A few bytes in a file that all workers have mapped; each ring changes them.

    To look at them is no system call. (Rejected: the time of a file. To ask for it lets go of the interpreter's lock,
    and what serves requests got it back up to 10 ms later where other threads were busy: before each request.)

    Args:
        directory: where the file lies; None: nobody rings.

    Raises:
        OSError: the file cannot be made or mapped.
    """

    _SIZE = 16

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / _SIGNAL
        self._told: tuple[int, mmap.mmap] | None = None
        if self._path is not None:
            self._open(self._path)

    @property
    def state(self) -> tuple[int, bytes]:
        """Another one after each ring."""
        if self._told is None:
            return 0, b""
        inode, shared = self._told
        return inode, shared[: self._SIZE]

    def ring(self) -> None:
        """Change what others see.

        Raises:
            OSError: it could not be written.
        """
        if self._path is not None:
            self.keep()
            with self._path.open("r+b", buffering=0) as file:  # not through the map: a full disk would end the process
                file.write(os.urandom(self._SIZE))

    def keep(self) -> None:
        """See to it that the file is there, made anew if it is not, and looks used to those who clear old files away.

        Raises:
            OSError: it cannot be made.
        """
        if self._path is None or self._told is None:
            return
        try:
            os.utime(self._path)
            same = self._path.stat().st_ino == self._told[0]
        except FileNotFoundError:
            same = False
        if not same:
            self._open(self._path)

    def _open(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, self._SIZE)  # what stands there stays
            self._told = os.fstat(descriptor).st_ino, mmap.mmap(descriptor, self._SIZE, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)


class Workers:
    """This worker's way to what all of them share.

    Entries are written by a thread, which lives as long as there is something to write: a request never waits for the
    disk. If the database cannot be used, this worker counts for itself, and says so once.

    Args:
        krunch: where its store is, and how many conversations are kept for how long.
        memory_kb: what this worker holds in memory now, KiB.
        clock: seconds since the epoch.

    Attributes:
        dropped: entries that could not be written, or came while too many waited; told in the figures, too.
    """

    def __init__(self, krunch: Krunch, memory_kb: Callable[[], float], clock: Callable[[], float] = time.time) -> None:
        self._memory_kb, self._clock = memory_kb, clock
        limits = krunch.settings.efficiency
        self._name = f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"
        self.directory: Path | None = None
        try:
            remove_stale()
            self.directory = directory(krunch)
            self._bell = _Bell(self.directory)
            self.figures = _open(self.directory, limits.max_conversations, limits.cleanup_interval, clock)
        except (OSError, sqlite3.Error) as error:
            log.warning("workers cannot share their figures (%s); each counts for itself", type(error).__name__)
            self.directory, self._bell = None, _Bell(None)
            self.figures = _open(None, limits.max_conversations, limits.cleanup_interval, clock)
        self._pending: deque[Entry] = deque(maxlen=PENDING)
        self.dropped = self._lost_told = 0
        self._condition = threading.Condition()
        self._hearing = threading.Lock()
        self._writing = self._busy = False
        self._told = 0.0
        self._own: set[int] = set()
        self._rung = self._bell.state  # first: what comes between the two is heard rather than missed
        self._heard = self.figures.last_reset()

    @property
    def is_behind(self) -> bool:
        """Whether there may be resets that `heed` has not told of yet. Costs next to nothing."""
        return self._bell.state != self._rung

    def note(self, entry: Entry) -> None:
        """Take in what happened; it is written soon."""
        with self._condition:
            self.dropped += len(self._pending) == PENDING
            self._pending.append(entry)
            if self._writing:
                self._condition.notify_all()
                return
            self._writing = True
            try:
                threading.Thread(target=self._write, name="krunch-figures", daemon=True).start()
            except BaseException:  # no thread to be had: the next entry asks again
                self._writing = False
                raise

    def flush(self) -> None:
        """Write what was noted before this call; what is in another thread's hands is waited for, a second at most."""
        with self._condition:
            self._condition.wait_for(lambda: not self._pending and not self._busy, timeout=1.0)
        self._tell()

    def heed(self) -> list[Reset]:
        """Resets by other workers since the last call. Reads the database if there may be any, so it may wait."""
        rung = self._bell.state
        if rung == self._rung:
            return []
        with self._hearing:
            try:
                resets, heard = self.figures.resets_since(self._heard, own=self._own)
            except sqlite3.Error as error:
                log.warning("a reset could not be read (%s); it is asked for again", type(error).__name__)
                return []
            self._own = {number for number in self._own if number > heard}
            self._heard, self._rung = heard, rung
        return resets

    def reset(self, tenant: str | None, session: str | None = None) -> None:
        """Forget what all workers have counted, and have each of them forget what it holds before its next request.

        This worker is not told of it by `heed`: its caller knows. It is still told of what others have reset meanwhile.

        Raises:
            sqlite3.Error, OSError: it could not be written.
        """
        self.flush()
        with self._hearing:
            number = self.figures.reset(tenant, session)
            if self.directory is not None:  # else there are no others, and nothing is ever heard
                self._own.add(number)
        self._bell.ring()

    def close(self) -> None:
        """Write what is left and let go. Safe to call twice."""
        with contextlib.suppress(sqlite3.Error):
            self.flush()
        self.figures.close()

    def _write(self) -> None:
        """Write what is noted, until nothing more has come for a while."""
        while True:
            with self._condition:
                if not self._condition.wait_for(lambda: self._pending, timeout=LINGER):
                    self._writing = False
                    return
            time.sleep(DELAY)
            with self._condition:
                entries, self._pending = list(self._pending), deque(maxlen=PENDING)
                self._busy = True
            left = self._written(entries)
            self._done(left)
            if left:
                return

    def _written(self, entries: list[Entry]) -> list[Entry]:
        """Write entries; those that have to wait until the database can be written again. Raises nothing."""
        try:
            self.figures.add(entries)
        except sqlite3.OperationalError as error:
            return self._kept(entries, error)
        except Exception as error:  # noqa: BLE001 - a thread that ended here would end all counting
            if len(entries) > 1:
                for number, entry in enumerate(entries):
                    if self._written([entry]):
                        return entries[number:]
                return []
            if isinstance(error, sqlite3.Error) and not (isinstance(error, _UNUSABLE) and self._is_usable()):
                return self._kept(entries, error)
            self.dropped += len(entries)
            log.warning("an entry of the figures was dropped: writing it failed with %s", type(error).__name__)
            return []
        try:
            if self._clock() - self._told > MEMORY_EVERY:
                self._tell()
        except Exception as error:  # noqa: BLE001 - as above; what was to be written is written
            log.warning("a worker's memory could not be told (%s)", type(error).__name__)
        return []

    def _kept(self, entries: list[Entry], error: Exception) -> list[Entry]:
        log.warning("figures could not be written (%s); they are kept for later", type(error).__name__)
        return entries

    def _is_usable(self) -> bool:
        try:
            self.figures.last_reset()
        except sqlite3.Error:
            return False
        return True

    def _done(self, failed: Sequence[Entry] = ()) -> None:
        """The writer has written; or it has not, keeps what it had and ends: the next entry tries again."""
        with self._condition:
            if failed:
                both = [*failed, *self._pending]
                self.dropped += max(len(both) - PENDING, 0)
                self._pending = deque(both, maxlen=PENDING)
                self._writing = False
            self._busy = False
            self._condition.notify_all()

    def _tell(self) -> None:
        self._told = self._clock()
        with contextlib.suppress(OSError):  # the directory is gone: whoever rings is told
            self._bell.keep()
        lost = self.dropped - self._lost_told
        if lost:
            self.figures.lost(lost)
            self._lost_told += lost
        self.figures.seen(self._name, self._memory_kb())
        self.figures.gone(_is_alive)


def _open(path: Path | None, conversations: int, idle: float, clock: Callable[[], float]) -> Figures:
    return Figures(path, max_conversations=conversations, max_idle=idle, clock=clock)


def _private(path: Path) -> Path:
    """Make a directory that only its owner can read; one that is there must be ours and as private."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{path} is in the way of the workers' directory; remove it")
    if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o077):
        raise PermissionError(f"{path} belongs to or is open to others; remove it")
    return path


def _user() -> str:
    return str(os.getuid()) if os.name == "posix" else "user"


def _started(process: int) -> str:
    """When a process was started, in the words of its system, to tell a number that is used again; "" if unknown."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _lives(process: int) -> bool:
    if os.name != "posix":
        return True  # there, os.kill() would stop it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, or a system that cannot tell
        return True
    return True


def _is_alive(worker: str) -> bool:
    """Whether a worker lives, as far as it can be told from here."""
    host, process, started = worker.rsplit(":", 2)
    return host != socket.gethostname() or (_lives(int(process)) and _started(int(process)) == started)
