"""The content of a message: LangChain's string or blocks, OpenAI's string or parts, one for one."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, convert_to_openai_data_block, is_data_content_block

from krunch_langchain.json_values import to_json_value
from krunch_langchain.tool_calls import CALL_BLOCKS
from krunch_plugins.errors import NotStorable

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

Content = str | list[Any]

_BESIDE = CALL_BLOCKS | {"thinking", "redacted_thinking", "reasoning", "reasoning_content"}
"""Types of blocks of a reply that are no parts of its text: tool calls, said again, and thoughts, often signed."""


def openai_parts(message: BaseMessage) -> Any:  # noqa: ANN401 - a string, or a list of whatever parts there are
    """The content in OpenAI's form: a string, or parts. A reply's thoughts, and tool calls said again, are left out."""
    content = message.content
    if isinstance(content, str):
        return content
    return [_part(block) for block in content if not _is_beside(message, block)]


def new_content(message: BaseMessage, before: Any, after: Any, *, only_blocks: bool) -> Content:  # noqa: ANN401 - as above
    """The message's content with what was changed in its OpenAI form; blocks that were not are the very same.

    Args:
        message: the message.
        before: its `openai_parts`.
        after: what became of them.
        only_blocks: a text that was a mere string among blocks becomes a block.
    """
    if not isinstance(after, list):
        return "" if after is None else after
    content = message.content
    if isinstance(content, str) or not isinstance(before, list) or len(before) != len(after):
        return list(after)
    rest = iter(zip(before, after, strict=True))
    blocks: list[Any] = []
    for block in content:
        if _is_beside(message, block):
            blocks.append(block)
            continue
        old, new = next(rest)
        if new == old:
            blocks.append(block)
        elif isinstance(block, str) and not only_blocks and isinstance(new, dict) and new.get("type") == "text":
            blocks.append(new.get("text", ""))
        else:
            blocks.append(new)
    return blocks


def without_texts(message: BaseMessage) -> Content:
    """The content with its texts empty, everything else as it is."""
    if isinstance(message.content, str):
        return ""
    return [_without_text(block) for block in message.content]


def _without_text(block: Any) -> Any:  # noqa: ANN401 - a string or a block
    if isinstance(block, str):
        return ""
    return {**block, "text": ""} if is_text(block) else block


def is_text(block: object) -> bool:
    """Whether this is a block of text that may be compressed."""
    return isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)


def _is_beside(message: BaseMessage, block: object) -> bool:
    """Whether OpenAI's form has no place for this block of a reply among its parts."""
    return isinstance(message, AIMessage) and isinstance(block, dict) and block.get("type") in _BESIDE


def _part(block: Any) -> Any:  # noqa: ANN401 - a string or a block
    """One block as a part in OpenAI's form; as it is where OpenAI has none, but always JSON."""
    if isinstance(block, str):
        return {"type": "text", "text": block}
    if block.get("type") == "text" and "source_type" not in block:
        return block
    if is_data_content_block(block):
        try:
            with warnings.catch_warnings(action="ignore"):  # of a file without a name, which is sent as it is anyway
                return convert_to_openai_data_block(block)
        except (KeyError, TypeError, ValueError):
            pass
    try:
        return to_json_value(block)
    except NotStorable as error:  # nothing of it is needed for compression; what it is, is told
        return {"type": str(block.get("type")), "krunch": f"a block with a {error.kind}, which is not stored"}
