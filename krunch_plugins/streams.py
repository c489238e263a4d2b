"""A streamed reply: what expands it, and when the hooks run on it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from krunch_plugins.exchange import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from krunch_plugins.compression.stream import ChunkExpander
    from krunch_plugins.compression.windows import Window, Windows
    from krunch_plugins.exchange import Exchange
    from krunch_plugins.plugins import Plugins
    from krunch_plugins.turns import Message


class StreamedReply:
    """A streamed reply: expands the chunks, and at the end runs the hooks, once per choice, on what was assembled."""

    __slots__ = ("_chunks", "_counted", "_ended", "_exchange", "_may_wait", "_plugins")

    def __init__(
        self, plugins: Plugins, exchange: Exchange, chunks: ChunkExpander, may_wait: Callable[[], bool]
    ) -> None:
        self._plugins, self._exchange, self._chunks, self._may_wait = plugins, exchange, chunks, may_wait
        self._ended = False
        self._counted = 0

    def feed(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Take one chunk; give back what can be handed on.

        If one fails, what was held back before it goes out first; it and all later ones pass as they came.
        """
        held: list[dict[str, Any]] = []
        try:
            held = self._chunks.held()
            out = self._chunks.feed(chunk)
        except Exception as error:  # noqa: BLE001 - whatever a provider sends, the stream goes on
            self._plugins.note(self._exchange, "compression", "stream", error)
            out = [*held, dict(chunk)]
            self._chunks.give_up()
            with suppress(Exception):  # so that the hooks see it, as far as it can be read
                self._chunks.feed(chunk)
        self._count()
        return out

    def passes(self, index: int, content: str) -> bool:
        """Whether a chunk that brings only `content` goes out as it is; if so, it has been fed."""
        return self._chunks.passes(index, content)

    def held(self) -> list[dict[str, Any]]:
        """What is held back now."""
        return self._chunks.held()

    def flush(
        self, *, partial: bool = False, metadata: Mapping[str, Any] | None = None, message: Message | None = None
    ) -> list[dict[str, Any]]:
        """End the stream: what was held back; the hooks run."""
        if self._ended:
            return []
        rest = self._end()
        self._run_hooks(partial=partial, metadata=metadata, message=message)
        return rest

    async def aflush(
        self, *, partial: bool = False, metadata: Mapping[str, Any] | None = None, message: Message | None = None
    ) -> list[dict[str, Any]]:
        """`flush`, with the hooks in a worker thread when the reply is recorded on disk or outside plugins see it."""
        if self._ended:
            return []
        rest = self._end()
        if self._may_wait():  # asked at the end: plugins come and go while a stream runs
            await asyncio.to_thread(self._run_hooks, partial=partial, metadata=metadata, message=message)
        else:
            self._run_hooks(partial=partial, metadata=metadata, message=message)
        return rest

    def _end(self) -> list[dict[str, Any]]:
        self._ended = True
        rest = self._chunks.flush()
        self._count()
        return rest

    def _count(self) -> None:
        expanded = self._chunks.expanded
        self._exchange.report.symbols_expanded += expanded - self._counted
        self._counted = expanded

    def _run_hooks(self, *, partial: bool, metadata: Mapping[str, Any] | None, message: Message | None = None) -> None:
        for choice, whole in self._chunks.assembled() if message is None else [(0, message)]:
            reply = Reply(whole, choice, streamed=True, partial=partial, expanded=True, metadata=metadata or {})
            self._plugins.post_response(self._exchange, reply, refusable=False)


class RepliedTexts:
    """A reply whose texts are expanded one by one, by a caller that knows which texts its protocol has."""

    __slots__ = ("_exchange", "_may_wait", "_plugins", "_windows")

    def __init__(self, plugins: Plugins, exchange: Exchange, windows: Windows, may_wait: Callable[[], bool]) -> None:
        self._plugins, self._exchange, self._windows, self._may_wait = plugins, exchange, windows, may_wait

    def open(self, *, json_text: bool = False) -> CountedWindow:
        """A window for one text."""
        return CountedWindow(self._windows.open(json_text=json_text), self._exchange)

    def end(
        self, message: Message, *, choice: int = 0, partial: bool = False, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Run the hooks on what the caller got."""
        reply = Reply(message, choice, streamed=True, partial=partial, expanded=True, metadata=metadata or {})
        self._plugins.post_response(self._exchange, reply, refusable=False)

    async def aend(
        self, message: Message, *, choice: int = 0, partial: bool = False, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """The same, in a worker thread when the reply is recorded on disk or outside plugins see it."""
        if self._may_wait():
            await asyncio.to_thread(self.end, message, choice=choice, partial=partial, metadata=metadata)
        else:
            self.end(message, choice=choice, partial=partial, metadata=metadata)


class CountedWindow:
    """A window that tells the report how many symbols it has expanded."""

    __slots__ = ("_counted", "_exchange", "_window")

    def __init__(self, window: Window, exchange: Exchange) -> None:
        self._window, self._exchange, self._counted = window, exchange, 0

    def feed(self, text: str) -> str:
        """Take more of the text; give back what is decided by now."""
        return self._count(self._window.feed(text))

    def end(self) -> str:
        """The text is at its end: what was held back."""
        return self._count(self._window.end())

    def rest(self) -> str:
        """What `end` would give back."""
        return self._window.rest() if self._window.held else ""

    def _count(self, out: str) -> str:
        expanded = self._window.expanded
        self._exchange.report.symbols_expanded += expanded - self._counted
        self._counted = expanded
        return out
