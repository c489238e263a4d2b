"""The wing's door: each voice is a plugin, and what passes through it are searches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from krunch_plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_plugins.exchange import Exchange
    from krunch_plugins.recall.voices import Voice
    from krunch_plugins.recall.window import Window
    from krunch_plugins.turns import SearchHit, SearchQuery


class VoicePlugin:
    """Answers searches with what one voice finds.

    Args:
        voice: whose answers.
    """

    def __init__(self, voice: Voice) -> None:
        self._voice = voice

    @hookimpl
    def on_search(self, query: SearchQuery) -> Sequence[SearchHit]:
        """What the voice finds."""
        return self._voice.search(query)


class RecallPlugin:
    """Keeps requests within the window, and recalls what has left them; see `window`.

    Args:
        window: does it.
    """

    name = "recall"

    def __init__(self, window: Window) -> None:
        self._window = window

    @hookimpl(trylast=True)  # after everybody's plugins, before compression, which is registered later
    def pre_request(self, exchange: Exchange) -> None:
        """Take out what is too much, put in what matters."""
        self._window.apply(exchange)
