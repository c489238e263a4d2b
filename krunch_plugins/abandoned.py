"""What nobody holds any more and nobody ended (a stream, an index), ended in a thread of its own.

The garbage collector finds it in any thread at any moment, also inside a lock of ours, so it must not be ended there.
What a finalizer may do is put something into a `SimpleQueue`, whose `put` is reentrant. Starting a thread there is not
allowed either (`threading` has locks, too), so the thread is started when what may be abandoned is made.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("krunch")

_AT_EXIT = 2.0
"""Seconds that the end of the process waits for what is left."""

_lock = threading.Lock()
_endings: SimpleQueue[Callable[[], object]] = SimpleQueue()
_process: int | None = None


def attend() -> None:
    """See to it that what is handed over is run; once in a process, so cheap."""
    global _process  # noqa: PLW0603 - one thread a process is the point
    if _process == os.getpid():  # a forked child has no threads of its parent's
        return
    with _lock:
        if _process == os.getpid():
            return
        threading.Thread(target=_run, name="krunch-abandoned", daemon=True).start()
        _process = os.getpid()


def hand_over(ending: Callable[[], object]) -> None:
    """Have something run soon, in the thread. Never blocks; safe in a finalizer."""
    _endings.put(ending)


def settle(timeout: float | None = None) -> bool:
    """Wait until all that was handed over before has been run.

    Args:
        timeout: seconds; None: for ever.

    Returns:
        Whether it has.
    """
    if _process != os.getpid():
        return True
    done = threading.Event()
    hand_over(done.set)
    return done.wait(timeout)


def _run() -> None:
    while True:
        ending = _endings.get()
        try:
            ending()
        except Exception as error:  # noqa: BLE001 - the next ones are to be ended, too
            log.warning("ending what was abandoned failed with %s", type(error).__name__)
        del ending  # else it holds what was ended until the next one comes


@atexit.register
def _at_exit() -> None:
    settle(_AT_EXIT)
