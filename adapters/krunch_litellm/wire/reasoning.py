"""Reasoning in streams: whether it is signed shows only at its end, and signed text must go out as it came."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from krunch_plugins.exchange import TextWindow


class ReasoningText:
    """A streamed text that is expanded, unless it turns out to be signed.

    Until the first symbol both are the same, and go out at once; from there on the text is held back.

    Args:
        window: what expands it.
    """

    def __init__(self, window: TextWindow) -> None:
        self._window = window
        self._raw = self._expanded = ""

    @property
    def is_open(self) -> bool:
        """Something is held back."""
        return bool(self._raw or self._expanded)

    def feed(self, raw: str) -> str:
        """Take more of the text; give back what goes out either way."""
        self._raw += raw
        self._expanded += self._window.feed(raw)
        return self._agreed()

    def rest(self) -> str:
        """What is held back, as it came: whether that is right either way is not known yet."""
        return self._raw

    def settle(self) -> str:
        """The text is at its end, but not known to be signed or not: what goes out either way."""
        self._expanded += self._window.end()
        return self._agreed()

    def end(self, *, signed: bool) -> str:
        """It is known now: the rest."""
        self._expanded += self._window.end()
        rest = self._raw if signed else self._expanded
        self._raw = self._expanded = ""
        return rest

    def _agreed(self) -> str:
        shorter = min(len(self._raw), len(self._expanded))
        differ = (at for at in range(shorter) if self._raw[at] != self._expanded[at])
        end = next(differ, shorter)
        same = self._raw[:end]
        self._raw, self._expanded = self._raw[end:], self._expanded[end:]
        return same


class UnchangedText:
    """A text that passes as it comes, after expanding has failed."""

    def feed(self, text: str) -> str:
        """The text."""
        return text

    def end(self) -> str:
        """Nothing is held back."""
        return ""

    rest = end
