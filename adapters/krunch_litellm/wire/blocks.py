"""Anthropic's content blocks as chat messages, and back."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from krunch_litellm.wire.thoughts import in_plain_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunch_plugins.exchange import TextExpander
    from krunch_plugins.turns import Message

    Block = dict[str, Any]

_THOUGHTS = frozenset({"thinking", "redacted_thinking"})
_OWN_TOOLS = frozenset({"server_tool_use", "mcp_tool_use"})


def to_chat(role: str, blocks: list[Block]) -> Message:
    """A message's blocks as one chat message; none of them are tool results.

    Text blocks and blocks of other kinds are its content, as they are; tool calls and thinking stand beside it.
    """
    content = [block for block in blocks if block.get("type") not in {*_THOUGHTS, "tool_use"}]
    message: Message = {"role": role, "content": content or None}
    if len(content) == 1 and content[0].keys() == {"type", "text"}:
        message["content"] = content[0]["text"]
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    if calls:
        message["tool_calls"] = calls
    thoughts = [block for block in blocks if block.get("type") in _THOUGHTS]
    if thoughts:
        message["thinking_blocks"] = thoughts
    return message


def with_content(blocks: list[Block], before: Message, after: Message) -> list[Block]:
    """Blocks that say what `after` says, where `before` is what they said."""
    content, calls = after.get("content"), iter(after.get("tool_calls") or ())
    given = [block for block in blocks if block.get("type") not in {*_THOUGHTS, "tool_use"}]
    if isinstance(content, str) and isinstance(before.get("content"), str):
        parts: list[Block] = [{**given[0], "text": content}]
    else:
        parts = _as_blocks(content)
    in_place = len(parts) == len(given)
    remaining = iter(parts)
    out: list[Block] = []
    for block in blocks:
        kind = block.get("type")
        if kind in _THOUGHTS:
            out.append(block)
        elif kind == "tool_use":
            out.append(_with_arguments(block, next(calls, None)))
        elif in_place:
            out.append(next(remaining))
        else:
            out.extend(remaining)  # a plugin has made other parts of them: all where the first one stood
    out.extend(remaining)
    return out


def from_chat(message: Message) -> list[Block]:
    """A chat message that is no client's as blocks."""
    if message.get("role") == "tool":
        result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": message.get("content")}
        return [result]
    blocks = [*(message.get("thinking_blocks") or ()), *_as_blocks(message.get("content"))]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        block = {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": {}}
        blocks.append(_with_arguments(block, call))
    return blocks


def _as_blocks(content: Any) -> list[Block]:  # noqa: ANN401 - a chat message's content
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [dict(part) for part in content] if isinstance(content, list) else []


def joined(before: Any, after: Any) -> list[Block]:  # noqa: ANN401 - contents, strings or blocks
    """Two contents as one."""
    return [*_as_blocks(before), *_as_blocks(after)]


def _call(block: Block) -> dict[str, Any]:
    arguments = json.dumps(block.get("input"), ensure_ascii=False)
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


def _with_arguments(block: Block, call: Mapping[str, Any] | None) -> Block:
    """A tool call with the arguments of a chat message's; itself if they are the same, or no JSON."""
    arguments = ((call or {}).get("function") or {}).get("arguments")
    if isinstance(arguments, str) and arguments != _call(block)["function"]["arguments"]:
        with suppress(ValueError):
            return {**block, "input": json.loads(arguments)}
    return block


def beside_expanded(block: Block, texts: TextExpander) -> Block:
    """Thinking that nobody has signed, or a call of the provider's own tools, expanded; another block as it is."""
    kind = block.get("type")
    if kind == "thinking" and not block.get("signature") and isinstance(block.get("thinking"), str):
        return {**block, "thinking": in_plain_words(block["thinking"], texts)}
    if kind in _OWN_TOOLS and "input" in block:
        return {**block, "input": in_plain_words(block["input"], texts)}
    return block
