"""Locks: one that is free in a forked process, and one that many may hold for reading, or one for writing."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Begins(Protocol):
    """What has threads and locks."""

    def begin(self) -> None:
        """Make them anew."""


_begins: WeakSet[_Begins] = WeakSet()


def begin_after_fork(one: _Begins) -> None:
    """Have `one.begin()` called in a forked process, before anything else there.

    It has no thread but the one that forked, and whoever of the others held a lock never lets go of it: a program that
    forks its workers while the parent builds an index would have them wait for ever.
    """
    _begins.add(one)


def _begin() -> None:
    for one in list(_begins):
        one.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin)


class Lock:
    """A lock between threads that is free in a forked process, whoever held it in the parent. Not reentrant."""

    def __init__(self) -> None:
        self.begin()
        begin_after_fork(self)

    def begin(self) -> None:
        """Be free."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class ReadWriteLock:
    """Any number of readers, or one writer; a writer that waits goes before new readers. Not reentrant.

    hnswlib crashes or hangs when it is searched while it grows, saves or takes vectors in, so searches read and all
    else writes.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._readers = 0
        self._writing = False
        self._waiting = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold it for reading."""
        with self._changed:
            while self._writing or self._waiting:
                self._changed.wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                if not self._readers:
                    self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold it for writing, alone."""
        with self._changed:
            self._waiting += 1
            try:
                while self._writing or self._readers:
                    self._changed.wait()
            finally:
                self._waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
