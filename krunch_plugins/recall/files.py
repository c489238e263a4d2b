"""Where index files lie, and locks between processes over them."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from krunch_plugins import abandoned
from krunch_plugins.errors import StoreUnavailable

try:
    import fcntl
except ImportError:  # Windows: there, one process at a time may have a home open
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "recall"
"""Where all index files lie in the store's directory."""
_POLL = 0.005
"""Seconds between two attempts at a lock that another process has."""


_temporary: set[Path] = set()
if hasattr(os, "register_at_fork"):  # they stay the parent's
    os.register_at_fork(after_in_child=_temporary.clear)


@atexit.register
def _remove_temporary() -> None:
    """Nobody closed these: what was said must not lie there for ever."""
    for path in _temporary:
        shutil.rmtree(path, ignore_errors=True)


class IndexFiles:
    """The folder of all indexes over a store, with a folder for each tenant. For their owner only.

    Args:
        directory: the store's directory; None: a temporary one, removed by `close`.
    """

    def __init__(self, directory: Path | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="krunch-recall-")) if directory is None else directory / FOLDER
        if directory is None:
            _temporary.add(self.path)
            abandoned.attend()

    def __del__(self) -> None:
        """Nobody closed it: it is closed elsewhere, since the collector may run this at any moment."""
        if self.__dict__.get("path") in _temporary and not sys.is_finalizing():
            abandoned.hand_over(self.close)

    def folder(self, tenant: str | None) -> Path:
        """A tenant's folder, made if it is missing. Its name is a digest: ids are data, never paths.

        Raises:
            StoreUnavailable: it cannot be made.
        """
        name = b"\0" if tenant is None else b"\1" + tenant.encode("utf-8", "surrogatepass")
        folder = self.path / hashlib.blake2b(name, digest_size=16).hexdigest()
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(str(folder), f"it cannot be made: {error.strerror}") from error
        return folder

    def close(self) -> None:
        """Remove what was temporary."""
        if self.path in _temporary:
            shutil.rmtree(self.path, ignore_errors=True)
            _temporary.discard(self.path)


class FileLock:
    """A lock between processes: a file that is locked as long as it is open. Made at first use, for its owner only.

    Not reentrant, and not a lock between threads. It ends with the process, however that ends.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._file is not None

    def acquire(self, *, shared: bool = False, timeout: float = 0.0) -> bool:
        """Take the lock; whether it was to be had within `timeout` seconds."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        deadline = time.monotonic() + timeout
        while not self._try(file, shared=shared):
            if time.monotonic() >= deadline:
                os.close(file)
                return False
            time.sleep(_POLL)
        self._file = file
        return True

    def share(self) -> None:
        """Let others share what this object had alone."""
        if fcntl is not None and self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @contextlib.contextmanager
    def holding(self, timeout: float = 0.0) -> Iterator[bool]:
        """Hold the lock for a while; yields whether it was to be had."""
        got = self.acquire(timeout=timeout)
        try:
            yield got
        finally:
            if got:
                self.release()

    @staticmethod
    def _try(file: int, *, shared: bool) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
