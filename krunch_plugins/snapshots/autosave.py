"""Saving in the background what changes in the foreground."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from krunch_plugins.snapshots.encoding import State, copy
from krunch_plugins.snapshots.files import save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("krunch")


class AutoSave:
    """Saves a state some time after it changed, when it is closed, and at exit. A context manager.

        with AutoSave(lambda: statistics, "statistics.krunch", interval=30) as autosave:
            with autosave.changing():
                statistics["requests"] += 1

    A state is copied while `lock` is held, and written without it, so changes wait for the copy and not for the
    disk. A newer state is never replaced by an older one, whichever thread is faster. After a fork only the parent
    saves: the child's copy of the state would replace the parent's.

    Args:
        state: gives the state; called with `lock` held.
        target: a file for `save`, or a function that saves: `Deltas(path).save`, say.
        interval: seconds from a change to its saving; changes in between are saved with it.
        finite: refuse arrays that hold NaN or infinities.

    Attributes:
        lock: hold it (or use `changing`) while the state is inconsistent.
        error: why the last attempt in the background failed; None if it did not. It is tried again after `interval`.
    """

    def __init__(
        self,
        state: Callable[[], State],
        target: str | Path | Callable[[State], object],
        interval: float = 30.0,
        *,
        finite: bool = True,
    ) -> None:
        if interval < 0:
            raise ValueError(f"interval is {interval}; allowed: 0 seconds or more")
        self.lock = threading.RLock()
        self.error: Exception | None = None
        self._state, self._interval, self._finite = state, interval, finite
        path = target if isinstance(target, str | Path) else None
        self._path = path or ""
        self._save = target if callable(target) else lambda frozen: save(frozen, self._path, finite=finite)
        self._saving = threading.Lock()
        self._dirty = self._closed = False
        self._copied = self._written = 0
        self._wake, self._stop = threading.Event(), threading.Event()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="krunch-autosave", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold `lock` while the state is changed, and have it saved; also when the block raises half-way."""
        with self.lock:
            self._check()
            try:
                yield
            finally:
                self.changed()

    def changed(self) -> None:
        """Say that the state has changed.

        Raises:
            RuntimeError: it is closed, or this process is a fork of the one that opened it: it would not be saved.
        """
        with self.lock:
            self._check()
            self._dirty = True
        self._wake.set()

    @property
    def dirty(self) -> bool:
        """Whether there are changes that are not on disk, nor on their way to it."""
        return self._dirty

    def flush(self) -> None:
        """Save now what has changed. When it returns, every change made before the call is on disk.

        Raises:
            SnapshotError: it could not be saved. It counts as changed, so the next attempt has it.
        """
        frozen, number = self._copy()
        if number:
            self._write(frozen, number)

    def close(self) -> None:
        """Save what has changed, and stop. Closing twice does nothing.

        Raises:
            SnapshotError: it could not be saved; `close` can be tried again.
        """
        if self._closed or self._process != os.getpid():
            return
        self._stop.set()
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        with self.lock:
            self._closed = True  # first, so that no change comes too late for the last save
        try:
            self.flush()
        except BaseException:  # an interrupt too: it may be closed again, and must save then
            self._closed = False
            raise
        atexit.unregister(self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        if self._closed or self._process != os.getpid():
            raise RuntimeError("this AutoSave is closed or belongs to another process; open one here")

    def _copy(self) -> tuple[State, int]:
        """The state as it is now, and its number, which is higher than that of any copy before it; 0: no change.

        While a copy is on its way to the disk in another thread, another one is made: that one might fail or be slow.
        """
        with self.lock:
            if not self._dirty and self._copied == self._written:
                return None, 0
            frozen = copy(self._state(), self._path, finite=self._finite)
            self._dirty = False
            self._copied += 1
            return frozen, self._copied

    def _write(self, frozen: State, number: int) -> None:
        # The lock is not held here, so a thread that holds it may flush; hence the numbers.
        with self._saving:
            if number < self._written:
                return
            try:
                self._save(frozen)
            except BaseException:  # an interrupt too: it is not saved
                self._dirty = True
                raise
            self._written = number

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._stop.wait(self._interval):
                return
            self._wake.clear()
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 - whatever it was, it is kept, said, and tried again
                self.error = error
                self._wake.set()
                log.warning("autosave failed (%s), next attempt in %g s", type(error).__name__, self._interval)
            else:
                self.error = None

    def _at_exit(self) -> None:
        try:
            self.close()
        except Exception as error:  # noqa: BLE001 - nobody is left to catch it, and other exit handlers wait
            log.error("the last changes could not be saved at exit (%s)", type(error).__name__)  # noqa: TRY400 - a trace could hold data
