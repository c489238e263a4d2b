"""OpenAI's chat completions: the form that Krunch's core speaks itself."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Self

from krunch_litellm import telemetry
from krunch_litellm.chunks import ExpandedChunks
from krunch_litellm.replies import aexpanded, is_whole
from krunch_litellm.requests import as_dict, is_json

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

    async def finish(self, exchange: Exchange, reply: Any) -> Any:  # noqa: ANN401 - a ModelResponse, or several
        """The reply for the client; each of them, where it asked several models at once."""
        if isinstance(reply, list):
            out, choices = [], 0
            for one in reply:
                out.append(await aexpanded(exchange, one, first=choices) if is_whole(one) else one)
                choices += len(one.choices) if is_whole(one) else 0
            return out
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
        self.reply: Any = None
        self._chunks = ExpandedChunks(exchange, functools.partial(telemetry.failed, "stream"))

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """What the provider counted, as far as the stream has told it."""
        return self._chunks.usage

    def feed(self, item: Any) -> list[Any]:  # noqa: ANN401 - a ModelResponseStream
        """Take one chunk; give back what is to be handed on."""
        return self._chunks.feed(item) if hasattr(item, "choices") else [item]

    async def end(self, *, partial: bool) -> list[Any]:
        """What was held back."""
        return await self._chunks.aflush(partial=partial)


def as_usage(usage: Any) -> Mapping[str, Any] | None:  # noqa: ANN401 - pydantic or dict
    """A reply's usage as a mapping."""
    usage = as_dict(usage)
    return usage if isinstance(usage, dict) else None
