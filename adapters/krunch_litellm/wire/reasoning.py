"""Reasoning in streams: whether it is signed shows only at its end, and signed text must go out as it came."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins.exchange import TextWindow


class ReasoningText:
    """A streamed text that is expanded, unless it turns out to be signed.

    Until the first symbol both are the same, and go out at once; from there on the text is held back.

    Args:
        window: what expands it.
    """

    def __init__(self, window: TextWindow) -> None:
        self._window = window
        self._raw: list[str] = []
        self._expanded: list[str] = []
        self._differ = False

    @property
    def is_open(self) -> bool:
        """Something is held back."""
        return any(self._raw) or any(self._expanded)

    def feed(self, raw: str) -> str:
        """Take more of the text; give back what goes out either way."""
        self._raw.append(raw)
        self._expanded.append(self._window.feed(raw))
        return self._agreed()

    def held(self) -> Callable[[], str]:
        """Says what is held back now, as it came: whether that is right either way is not known yet."""
        pieces, many = self._raw, len(self._raw)
        return lambda: "".join(pieces[:many])

    def settle(self) -> str:
        """The text is at its end, but not known to be signed or not: what goes out either way."""
        self._expanded.append(self._window.end())
        return self._agreed()

    def end(self, *, signed: bool) -> str:
        """It is known now: the rest."""
        self._expanded.append(self._window.end())
        rest = "".join(self._raw if signed else self._expanded)
        self._raw, self._expanded, self._differ = [], [], False
        return rest

    def _agreed(self) -> str:
        if self._differ:  # nothing more can agree, and the rest may be long
            return ""
        raw, expanded = "".join(self._raw), "".join(self._expanded)
        shorter = min(len(raw), len(expanded))
        same = shorter
        if raw[:shorter] != expanded[:shorter]:
            same = next(at for at in count() if raw[at] != expanded[at])
            self._differ = True
        self._raw, self._expanded = [raw[same:]], [expanded[same:]]
        return raw[:same]


class UnchangedText:
    """A text that passes as it comes, after expanding has failed."""

    def feed(self, text: str) -> str:
        """The text."""
        return text

    def end(self) -> str:
        """Nothing is held back."""
        return ""

    rest = end


def held_by(window: TextWindow | ReasoningText) -> Callable[[], str]:
    """Says what a window holds back now, whatever happens to it after this call. Asked before each event, so cheap."""
    if isinstance(window, ReasoningText):
        return window.held()
    rest = window.rest()
    return lambda: rest
