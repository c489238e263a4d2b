"""OpenAI's chat completions: the form that Krunch's core speaks itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from krunch_litellm.replies import aexpanded, chunk_like, is_whole
from krunch_litellm.requests import as_dict, is_json
from krunch_litellm.wire.offsets import StreamedOffsets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_plugins import Exchange
    from krunch_plugins.turns import Message


class ChatWire:
    """A request to /chat/completions.

    Args:
        data: its arguments.
        messages: its messages.
    """

    def __init__(self, data: Mapping[str, Any], messages: list[Message]) -> None:
        self.messages = messages
        tools = [*(data.get("tools") or ()), *(data.get("functions") or ())]
        self.tools: Sequence[Mapping[str, Any]] | None = [as_dict(tool) for tool in tools] or None
        self.json_reply = is_json(data.get("response_format"))

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self | None:
        """The request in a call's arguments; None if there are no messages that Krunch understands."""
        given = data.get("messages")
        if not isinstance(given, list) or not given:
            return None
        messages = [as_dict(message) for message in given]
        return cls(data, messages) if all(isinstance(message, dict) for message in messages) else None

    def arguments(self, exchange: Exchange) -> dict[str, Any]:
        """What is sent instead."""
        return {"messages": exchange.messages}

    async def finish(self, exchange: Exchange, reply: Any) -> Any:  # noqa: ANN401 - a ModelResponse
        """The reply for the client."""
        return await aexpanded(exchange, reply) if is_whole(reply) else reply

    def as_message(self, reply: object) -> None:
        """None: no request goes on from a reply by its id."""

    def stream(self, exchange: Exchange) -> ChatStream:
        """What expands one streamed reply."""
        return ChatStream(exchange)

    def usage(self, reply: Any) -> Mapping[str, Any] | None:  # noqa: ANN401 - a ModelResponse
        """What the provider counted."""
        return as_usage(getattr(reply, "usage", None))


class ChatStream:
    """Expands a stream of LiteLLM's chat chunks."""

    def __init__(self, exchange: Exchange) -> None:
        self.usage: Mapping[str, Any] | None = None
        self.reply: Any = None
        self._expander = exchange.stream()
        self._offsets = StreamedOffsets(exchange)
        self._last: Any = None

    def feed(self, item: Any) -> list[Any]:  # noqa: ANN401 - a ModelResponseStream
        """Take one chunk; give back what is to be handed on."""
        if not hasattr(item, "choices"):
            return [item]
        given = item.model_dump()
        self._last = item
        self.usage = as_usage(given.get("usage")) or self.usage
        ready = [self._offsets.put_right(given, out) for out in self._expander.feed(given)]
        return [item if out == given else chunk_like(item, out) for out in ready]

    async def end(self, *, partial: bool) -> list[Any]:
        """What was held back."""
        rest = await self._expander.aflush(partial=partial)
        return [] if self._last is None else [chunk_like(self._last, out) for out in rest]


def as_usage(usage: Any) -> Mapping[str, Any] | None:  # noqa: ANN401 - pydantic or dict
    """A reply's usage as a mapping."""
    usage = as_dict(usage)
    return usage if isinstance(usage, dict) else None
