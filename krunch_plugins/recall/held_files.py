"""Reading a file that SQLite has open in this process, without breaking its locks.

POSIX locks belong to the process: whoever closes any descriptor of a file lets go of all the locks that the process has
on it, those of SQLite too (sqlite.org/howtocorrupt.html, 2.2). Then another process takes itself for the last one that
has the database open, and removes the log that we go on writing to. So a descriptor is closed only when nobody in this
process has the file open any more.
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PIECE = 1 << 20


class _Files:
    """All files that are held in this process.

    Attributes:
        lock: guards the rest.
        held: by device and number of the file, its descriptors, and how many hold it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: dict[tuple[int, int], tuple[list[int], int]] = {}


_files = _Files()
if hasattr(os, "register_at_fork"):  # another thread of the parent may have the lock, and its locks stay with it
    os.register_at_fork(after_in_child=_files.__init__)  # type: ignore[misc]


class HeldFile:
    """One user's hold on the file under a path. Not thread-safe; any number of users may hold one file.

    Args:
        path: where the file is; another one may take its place there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: tuple[int, int] | None = None

    def digest(self) -> str:
        """Hex digest (BLAKE2b) of the file's bytes; the file is held from then on.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        if not hasattr(os, "pread"):  # Windows: its locks belong to descriptors, and what is open cannot be removed
            with self._path.open("rb") as file:
                return hashlib.file_digest(file, "blake2b").hexdigest()
        descriptor, at, found = self._hold(), 0, hashlib.blake2b()
        while part := os.pread(descriptor, _PIECE, at):
            found.update(part)
            at += len(part)
        return found.hexdigest()

    def release(self) -> None:
        """Let go of the file, after all connections to it were closed. Safe to call twice."""
        if self._held is None:
            return
        with _files.lock:
            descriptors, users = _files.held.pop(self._held, ([], 0))
            if users > 1:
                _files.held[self._held] = descriptors, users - 1
            else:
                for descriptor in descriptors:
                    os.close(descriptor)
        self._held = None

    def forget(self) -> None:
        """Let go without closing anything: in a forked process, where all of it is the parent's."""
        self._held = None

    def _hold(self) -> int:
        with _files.lock:
            found = _number(self._path.stat())
            if found == self._held:
                return _files.held[found][0][0]
        self.release()
        with _files.lock:
            found = _number(self._path.stat())
            if found not in _files.held:
                descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                found = _number(os.fstat(descriptor))  # another one may have taken its place just now
                _files.held.setdefault(found, ([], 0))[0].append(descriptor)
            descriptors, users = _files.held[found]
            _files.held[found] = descriptors, users + 1
        self._held = found
        return descriptors[0]


def _number(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
