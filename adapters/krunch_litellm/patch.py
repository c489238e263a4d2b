"""`install` and `uninstall`: every call of `litellm.completion` and `litellm.acompletion` in this process."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import litellm

from krunch_litellm.callback import KrunchCallback
from krunch_litellm.calls import aserve, serve
from krunch_plugins import default_krunch

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins import Krunch

_lock = threading.Lock()
_callback: KrunchCallback | None = None
_patches: dict[str, _Patch] = {}


def install(krunch: Krunch | None = None) -> None:
    """Serve all chat completions of this process: sync and async, plain and streamed, SDK and Router.

    Replaces `litellm.completion` and `litellm.acompletion` and registers a `KrunchCallback`, which serves
    `acompletion` for those who imported the name before. Calling it again changes who serves, or puts back what
    somebody has undone; nothing is compressed twice.

    Args:
        krunch: who serves the calls; default one per process, with settings from `KRUNCH_*` variables.

    Raises:
        SettingsError: no `krunch` is given and a `KRUNCH_*` variable holds something that is not allowed.
    """
    global _callback  # noqa: PLW0603 - a process has one LiteLLM, so one installation
    with _lock:
        krunch = krunch or default_krunch()
        if _callback is None:
            _callback = KrunchCallback(krunch)
        _callback.krunch = krunch
        if _callback not in litellm.callbacks:
            litellm.callbacks.append(_callback)
        for name, build in (("completion", _sync), ("acompletion", _async)):
            patch = _patches.get(name)
            if patch is None or getattr(litellm, name) is not patch.wrapper:
                if patch is not None:
                    patch.krunch = None  # somebody took it out or built upon it; two in a row would serve once anyway
                patch = _patches[name] = _Patch(getattr(litellm, name), build)
                setattr(litellm, name, patch.wrapper)
            patch.krunch = krunch


def uninstall() -> None:
    """Undo `install`. What others have put in place of LiteLLM's functions since then stays, and works. Safe twice."""
    global _callback  # noqa: PLW0603 - as above
    with _lock:
        for name, patch in _patches.items():
            patch.krunch = None  # where somebody else's function calls ours, ours only passes through from now on
            if getattr(litellm, name) is patch.wrapper:
                setattr(litellm, name, patch.original)
        _patches.clear()
        if _callback is not None:
            for callbacks in _callback_lists():
                while _callback in callbacks:
                    callbacks.remove(_callback)
            _callback = None


class _Patch:
    """One function of LiteLLM's and what stands in its place."""

    def __init__(self, original: Callable[..., Any], build: Callable[[_Patch], Callable[..., Any]]) -> None:
        self.original = original
        self.krunch: Krunch | None = None  # None: pass through
        self.wrapper = build(self)


def _sync(patch: _Patch) -> Callable[..., Any]:
    original = patch.original

    @functools.wraps(original)
    def completion(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - LiteLLM's own
        krunch = patch.krunch
        return original(*args, **kwargs) if krunch is None else serve(original, krunch, args, kwargs)

    return completion


def _async(patch: _Patch) -> Callable[..., Any]:
    original = patch.original

    @functools.wraps(original)
    async def acompletion(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - LiteLLM's own
        krunch = patch.krunch
        return await (original(*args, **kwargs) if krunch is None else aserve(original, krunch, args, kwargs))

    return acompletion


def _callback_lists() -> list[list[Any]]:
    """LiteLLM's lists that it copies a callback into."""
    names = (
        "callbacks",
        "input_callback",
        "success_callback",
        "failure_callback",
        "_async_input_callback",
        "_async_success_callback",
        "_async_failure_callback",
    )
    return [found for name in names if isinstance(found := getattr(litellm, name, None), list)]
