"""Anthropic's messages: requests and whole replies. `messages_stream.py` has the streamed ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from krunch_litellm.wire.blocks import beside_expanded, from_chat, joined, to_chat, with_content
from krunch_litellm.wire.fields import as_usage
from krunch_litellm.wire.messages_stream import MessagesStream
from krunch_litellm.wire.places import sources
from krunch_litellm.wire.thoughts import in_plain_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from krunch_plugins import Exchange
    from krunch_plugins.turns import Message

    Block = dict[str, Any]

_INSTRUCTING = frozenset({"system", "developer"})


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of a request that one chat message stands for.

    Attributes:
        message: the chat message.
        at: the position in `messages` of what it is a part of; None: the system prompt.
        role: the role of that message.
        blocks: the content blocks that it stands for; None where the content is a string.
    """

    message: Message
    at: int | None
    role: str
    blocks: list[Block] | None


class MessagesWire:
    """A request to /v1/messages.

    Args:
        data: its arguments.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        # Not `data`: it holds the object that the proxy knows this request by, which would then live as long as we do.
        self._given = data["messages"]
        self._pieces = list(_pieces(data))
        self.messages = [piece.message for piece in self._pieces]
        self.tools: Sequence[Mapping[str, Any]] | None = data.get("tools") or None
        self.json_reply = _is_json(data)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self | None:
        """The request in a call's arguments; None if there are no messages that Krunch understands."""
        given = data.get("messages")
        if not isinstance(given, list) or not given:
            return None
        return cls(data) if all(map(_is_understood, given)) else None

    def arguments(self, exchange: Exchange) -> dict[str, Any]:
        """What is sent instead."""
        system: Any = None
        out: list[tuple[int | None, dict[str, Any]]] = []
        for message, source in zip(exchange.messages, sources(exchange), strict=True):
            piece = None if source is None else self._pieces[source]
            if piece.at is None if piece else message.get("role") in _INSTRUCTING and not out:
                system = message.get("content") if system is None else joined(system, message.get("content"))
            else:
                _add(out, message, piece, self._given)
        sent: dict[str, Any] = {"messages": [message for _, message in out]}
        return sent if system is None else {**sent, "system": system}

    async def finish(self, exchange: Exchange, reply: Any) -> Any:  # noqa: ANN401 - a dict, as LiteLLM types it
        """The reply for the client."""
        blocks = reply.get("content") if isinstance(reply, dict) else None
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            return reply
        texts = exchange.texts()
        blocks = [beside_expanded(block, texts) for block in blocks]
        given = to_chat("assistant", blocks)
        message = await exchange.afinish(given)
        told = {**reply, "content": with_content(blocks, given, message)}
        if reply.get("stop_details"):  # what a refusal says of itself
            told["stop_details"] = in_plain_words(reply["stop_details"], texts)
        return told

    def as_message(self, reply: object) -> None:
        """None: no request goes on from a reply by its id."""

    def stream(self, exchange: Exchange) -> MessagesStream:
        """What expands one streamed reply."""
        return MessagesStream(exchange)

    def usage(self, reply: Any) -> Mapping[str, Any] | None:  # noqa: ANN401 - a dict, as LiteLLM types it
        """What the provider counted."""
        return as_usage(reply.get("usage")) if isinstance(reply, dict) else None


def _is_understood(message: object) -> bool:
    """Whether it is a message: its content is a string, or a list of blocks."""
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, str) or (isinstance(content, list) and all(isinstance(one, dict) for one in content))


def _pieces(data: Mapping[str, Any]) -> Iterator[_Piece]:
    system = data.get("system")
    if system and isinstance(system, (str, list)):
        yield _Piece({"role": "system", "content": system}, None, "system", None)
    for at, given in enumerate(data["messages"]):
        role, content = str(given.get("role", "")), given["content"]
        if isinstance(content, str):
            yield _Piece({"role": role, "content": content}, at, role, None)
            continue
        blocks: list[Block] = []
        for block in content:
            if block.get("type") == "tool_result":
                if blocks:
                    yield _Piece(to_chat(role, blocks), at, role, blocks)
                    blocks = []
                result = {"role": "tool", "content": block.get("content"), "tool_call_id": block.get("tool_use_id")}
                yield _Piece(result, at, role, [block])
            else:
                blocks.append(block)
        if blocks or not content:
            yield _Piece(to_chat(role, blocks), at, role, blocks)


def _add(out: list[tuple[int | None, dict[str, Any]]], message: Message, piece: _Piece | None, given: Any) -> None:  # noqa: ANN401 - messages as the client gave them
    """Put a chat message behind what is sent so far: into the message it was a part of, or as one of its own."""
    if piece is None:
        role = "assistant" if message.get("role") == "assistant" else "user"
        out.append((None, {"role": role, "content": from_chat(message)}))
        return
    if piece.blocks is None:
        content: Any = message.get("content")
    elif message.get("role") == "tool":
        block = piece.blocks[0]
        same = message.get("content") == block.get("content")
        content = [block if same else {**block, "content": message.get("content")}]
    else:
        content = with_content(piece.blocks, piece.message, message)
    if out and out[-1][0] == piece.at:
        before = out[-1][1]
        before["content"] = joined(before["content"], content)
    else:
        at = piece.at or 0
        out.append((piece.at, {**given[at], "content": content}))


def _is_json(data: Mapping[str, Any]) -> bool:
    """Whether the reply's text was asked to be one JSON document."""
    for holder in (data, data.get("output_config")):
        for key in ("output_format", "format", "response_format"):
            form = holder.get(key) if isinstance(holder, dict) else None
            if isinstance(form, dict) and form.get("type") in {"json_schema", "json_object"}:
                return True
    return False
