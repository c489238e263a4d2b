"""The text of a turn, as searches see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from krunch_plugins.turns import Message


def text_of(message: Message) -> str:
    """What a message says: its content or the text of its parts, and the names and arguments of its tool calls."""
    return "\n".join(_texts(message))


def _texts(message: Message) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                yield text
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        yield from _call(call.get("function") if isinstance(call, dict) else None)
    yield from _call(message.get("function_call"))


def _call(function: Any) -> Iterator[str]:  # noqa: ANN401 - whatever a message holds
    if isinstance(function, dict):
        for key in ("name", "arguments"):
            if isinstance(text := function.get(key), str):
                yield text
