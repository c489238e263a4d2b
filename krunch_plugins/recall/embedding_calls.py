"""Calls of an embedder that can be left behind: who closes does not wait for a service that takes its time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")

CLOSE_SECONDS = 1.0
"""Seconds that a call may still take when its result is no more waited for: what it costs may have been paid."""
_POLL = 0.05


class LeftBehind(Exception):  # noqa: N818 - no error: somebody closes
    """A call was not waited for to its end."""


def until(stopping: threading.Event, call: Callable[[], _Result], seconds: float = CLOSE_SECONDS) -> _Result:
    """The result of a call, made in a thread of its own, which touches nothing but what the call does.

    Args:
        stopping: when it is set, the call has `seconds` left.
        call: what to do.
        seconds: see there.

    Raises:
        LeftBehind: the call went on after that; nobody gets its result.
        Exception: whatever the call raises.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the call is waited for
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="krunch-embed", daemon=True).start()
    while not done.wait(_POLL):
        if stopping.is_set() and not done.wait(seconds):
            raise LeftBehind
    if errors:
        raise errors[0]
    return results[0]
