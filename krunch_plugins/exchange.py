"""What travels through Krunch: one request, its reply, and the report of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_plugins.report import Report
    from krunch_plugins.turns import Message


class Runtime(Protocol):
    """What an exchange needs from the Krunch that made it."""

    def finish(
        self, exchange: Exchange, message: Message, choice: int, metadata: Mapping[str, Any] | None = None
    ) -> Message:
        """Expand a whole reply and run the `post_response` hooks."""

    async def afinish(
        self, exchange: Exchange, message: Message, choice: int, metadata: Mapping[str, Any] | None = None
    ) -> Message:
        """The same, off the event loop where it may take long."""

    def stream(self, exchange: Exchange) -> StreamExpander:
        """A fresh expander for one streamed reply."""

    def texts(self, exchange: Exchange) -> TextExpander:
        """A fresh expander for one reply whose texts come one by one."""

    def note_usage(self, exchange: Exchange, usage: Mapping[str, Any]) -> None:
        """Take what the provider counted into the statistics."""


class TextWindow(Protocol):
    """One text of a reply, on its way to the caller, in pieces. Not thread-safe."""

    def feed(self, text: str) -> str:
        """Take more of the text; give back what is decided by now. Little is held back, never a whole word."""

    def end(self) -> str:
        """The text is at its end: what was held back. The window can then be used for another text."""

    def rest(self) -> str:
        """What `end` would give back now; changes nothing."""


class TextExpander(Protocol):
    """Expands one reply text by text, for protocols whose replies are no chat messages. One per reply."""

    def open(self, *, json_text: bool = False) -> TextWindow:
        """A window for one of the reply's texts.

        Args:
            json_text: the text is JSON, so what is put into it is escaped.
        """

    def end(
        self, message: Message, *, choice: int = 0, partial: bool = False, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """The reply has gone out: run the `post_response` hooks on it.

        Args:
            message: what the caller got, expanded, as an assistant message in OpenAI's format.
            choice: which choice of the reply this is.
            partial: the reply was broken off; the hooks see `reply.partial`.
            metadata: what the store is to keep with the reply, if it is recorded; JSON-like.
        """

    async def aend(
        self, message: Message, *, choice: int = 0, partial: bool = False, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """`end`, off the event loop where the hooks may take long."""


class StreamExpander(Protocol):
    """Expands a streamed reply, chunk by chunk. One per stream; not thread-safe."""

    def feed(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Take one OpenAI chat chunk; give back the chunks to hand on (zero or more). `chunk` is not changed.

        If expanding fails, what was held back goes out before the chunk; it and all later ones pass as they came.
        """

    def passes(self, index: int, content: str) -> bool:
        """Whether a chunk that brings `content` for choice `index`, and nothing else, goes out as it is.

        If so, it has been fed. If not, nothing has happened, and `feed` takes it. An adapter whose chunks are no dicts
        asks this first: most of what a model writes needs no expansion, so most chunks need not be turned into dicts.
        """

    def held(self) -> list[dict[str, Any]]:
        """What is held back now, as chunks; changes nothing.

        An adapter that may fail itself asks before each chunk: if it then hands the chunk on as it came, this goes
        out first.
        """

    def flush(
        self, *, partial: bool = False, metadata: Mapping[str, Any] | None = None, message: Message | None = None
    ) -> list[dict[str, Any]]:
        """End the stream: what was held back, and the `post_response` hooks run. A second call returns nothing.

        Args:
            partial: the stream was broken off; the hooks see `reply.partial`.
            metadata: what the store is to keep with the reply, if it is recorded; JSON-like.
            message: the whole reply, expanded, for the hooks to see, from an adapter that puts it together itself;
                None: it is put together from the chunks.
        """

    async def aflush(
        self, *, partial: bool = False, metadata: Mapping[str, Any] | None = None, message: Message | None = None
    ) -> list[dict[str, Any]]:
        """`flush`, off the event loop where the hooks may take long."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and its reply, as it passes through the hooks.

    Attributes:
        messages: what will be sent. Hooks change it in place; after `Krunch.prepare` it is what to send.
        model: the model's name as the caller gave it.
        session: the conversation's id, or None.
        tenant: who owns the session, or None. What belongs to one tenant is invisible to every other.
        tools: tool definitions as the caller gave them; counted and scanned for marks, never changed.
        original: the messages as the caller gave them. For reading.
        report: what compression did, and which plugins failed.
        metadata: free for plugins, never sent. Use your plugin's name as the key.
        json_reply: the reply's text was asked to be one JSON document (`response_format`), so what is put back into it
            is escaped as in a JSON string, as in tool-call arguments.
        turn_metadata: what the store is to keep with each message of `original`, if that is recorded; or None.
        no_definitions: positions in `messages` of those that may use what earlier ones define, but define nothing. A
            plugin that puts messages in or takes them out keeps it right.
    """

    messages: list[Message]
    model: str
    session: str | None
    tenant: str | None
    tools: Sequence[Mapping[str, Any]] | None
    original: Sequence[Message]
    report: Report
    metadata: dict[str, Any] = field(default_factory=dict)
    json_reply: bool = False
    turn_metadata: Sequence[Mapping[str, Any] | None] | None = None
    no_definitions: frozenset[int] = frozenset()
    symbols: Mapping[str, str] = field(default_factory=dict)
    """Every symbol that this request defines, and the text it stands for. Set by compression."""
    substitutions: dict[str, str] = field(default_factory=dict)
    """Every token registered by `substitute`, and what it stands for."""
    meanings: object = field(default=None, repr=False)
    """What replies to this request are expanded with. Set by compression; means nothing to anybody else."""
    conversation: object = field(default=None, repr=False)
    """What the statistics know this conversation by. Set by compression; means nothing to anybody else."""
    runtime: Runtime | None = field(default=None, repr=False)
    """The Krunch that made this exchange."""

    def substitute(self, token: str, original: str) -> None:
        """Say that `token`, which a plugin put into the request, stands for `original`.

        Krunch puts `original` back wherever the reply holds `token`: in text, streams and tool-call arguments
        (JSON-escaped there).

        Args:
            token: what stands in the request. Choose one that ordinary text does not hold, such as "<EMAIL_1>".
            original: what comes back to the caller.

        Raises:
            ValueError: `token` is empty, or stands for something else already.
        """
        if not token:
            raise ValueError("substitute() needs a token of at least one character")
        if self.substitutions.setdefault(token, original) != original:
            raise ValueError("substitute(): this token already stands for another text; choose another")

    def finish(self, message: Message, *, choice: int = 0, metadata: Mapping[str, Any] | None = None) -> Message:
        """Expand a whole reply.

        Args:
            message: the assistant message as the model wrote it, OpenAI format. Not changed.
            choice: which choice of the reply this is, when the request asked for several.
            metadata: what the store is to keep with the reply, if it is recorded; JSON-like.

        Returns:
            The message for the caller: text and tool-call arguments expanded, hooks run.
        """
        return self._made_by().finish(self, message, choice, metadata)

    async def afinish(self, message: Message, *, choice: int = 0, metadata: Mapping[str, Any] | None = None) -> Message:
        """`finish` for async callers: off the event loop when hooks of outside plugins run or the reply is large."""
        return await self._made_by().afinish(self, message, choice, metadata)

    def stream(self) -> StreamExpander:
        """An expander for the streamed reply to this request; take a fresh one for each stream."""
        return self._made_by().stream(self)

    def texts(self) -> TextExpander:
        """An expander for a reply whose texts are handed on one by one; take a fresh one for each reply.

        For protocols other than OpenAI's chat completions; `stream` is built for those.
        """
        return self._made_by().texts(self)

    def note_usage(self, usage: Mapping[str, Any]) -> None:
        """Tell the statistics what the provider counted for this request; once per reply. Nothing else depends on it.

        Args:
            usage: the reply's `usage` as a mapping, in the words of OpenAI, LiteLLM, Anthropic or DeepSeek. Unknown or
                odd values are passed over.
        """
        self._made_by().note_usage(self, usage)

    def _made_by(self) -> Runtime:
        if self.runtime is None:
            raise RuntimeError("this exchange was not made by Krunch.prepare(), so it cannot finish or stream a reply")
        return self.runtime


@dataclass(slots=True)
class Reply:
    """One choice of a reply, as `post_response` hooks see it.

    Attributes:
        message: the assistant message, OpenAI format. Hooks may change or replace it.
        choice: index of the choice, 0 unless the request asked for several.
        streamed: the reply was streamed: its text has gone out, changes only reach later hooks.
        partial: the stream was broken off before its end.
        expanded: symbols and substitutions have been put back. Set by compression, which always comes first.
        metadata: what the store is to keep with the reply, if it is recorded.
    """

    message: Message
    choice: int = 0
    streamed: bool = False
    partial: bool = False
    expanded: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
