"""Streamed chunks: the texts in them, each on a lane of its own, and chunks with other texts."""

# ruff: noqa: ANN401 - content is what LangChain has it be: a string or blocks; an index is a number or a name
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.messages.tool import tool_call_chunk

from krunch_langchain.messages import TEXT_FIELDS
from krunch_langchain.parts import is_text
from krunch_langchain.tool_calls import mirrored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.messages import AIMessageChunk
    from langchain_core.outputs import ChatGenerationChunk

Lane = tuple[str, Any]
"""Which text a piece belongs to: its kind ("content", "block", "call", "function_call" or a text field), its index."""

SPOKEN = ("content", "block")
"""Kinds of lanes that hold what the model says, not what it thinks or calls."""

_CONTENT: Lane = ("content", None)
_FINISHED = ("finish_reason", "stop_reason", "done_reason")


def pieces_of(message: AIMessageChunk) -> list[tuple[Lane, str]]:
    """The texts in a chunk, and which text of the reply each continues."""
    pieces: list[tuple[Lane, str]] = []
    if isinstance(message.content, str):
        if message.content:
            pieces.append((_CONTENT, message.content))
    else:
        for block in message.content:
            if isinstance(block, str):
                pieces.append((("block", None), block))
            elif is_text(block):
                pieces.append((("block", block.get("index")), block["text"]))
    for place, call in enumerate(message.tool_call_chunks):
        if call["args"]:
            index = call.get("index")
            pieces.append((("call", ("whole", place) if index is None else index), call["args"]))
    extra = message.additional_kwargs
    pieces += [
        ((field, None), extra[field]) for field in TEXT_FIELDS if extra.get(field) and isinstance(extra[field], str)
    ]
    function = extra.get("function_call")
    if isinstance(function, dict) and function.get("arguments"):
        pieces.append((("function_call", None), function["arguments"]))
    return pieces


def with_texts(message: AIMessageChunk, texts: dict[Lane, Any]) -> AIMessageChunk:
    """The chunk with its texts replaced; where one text has several pieces, the first gets all of it."""
    left = dict(texts)
    content: Any = message.content
    if isinstance(content, str):
        content = left.pop(_CONTENT, content)
    else:
        content = [_block_with(block, left) for block in content]
    calls: list[Any] = []
    for place, call in enumerate(message.tool_call_chunks):
        index = call.get("index")
        text = left.pop(("call", ("whole", place) if index is None else index), "" if call["args"] else call["args"])
        calls.append({**call, "args": text})
        if not isinstance(content, str) and text != call["args"]:
            content = [_mirror(block, call, text) for block in content]
    extra = dict(message.additional_kwargs)
    extra.update((kind, text) for (kind, _), text in left.items() if kind in TEXT_FIELDS or kind == "parsed")
    if ("function_call", None) in left:
        extra["function_call"] = {**extra["function_call"], "arguments": left["function_call", None]}
    return _rebuilt(message, content=content, tool_call_chunks=calls, additional_kwargs=extra)


def with_rests(
    message: AIMessageChunk,
    before: Mapping[Lane, str],
    after: Mapping[Lane, str],
    mirrors: Mapping[Any, dict[str, Any]],
) -> AIMessageChunk:
    """The chunk with what was held back.

    Args:
        message: the chunk.
        before: rests of texts that ended before it; they come in front.
        after: rests of texts that end with it; they come behind.
        mirrors: by the index of a tool call, the shape of the content blocks that repeat its pieces.
    """
    content: Any = message.content
    calls, extra = list(message.tool_call_chunks), dict(message.additional_kwargs)
    for lane, text in before.items():
        if text and lane[0] in SPOKEN:
            content = _joined(_said(lane, text), content)
        elif text:
            extra[lane[0]] = _beside(lane, text, extra.get(lane[0]), in_front=True)
    for lane, text in after.items():
        if text and lane[0] in SPOKEN:
            content = _joined(content, _said(lane, text))
        elif text and lane[0] == "call":
            content, calls = _with_call_rest(content, calls, lane[1], text, mirrors.get(lane[1]))
        elif text:
            extra[lane[0]] = _beside(lane, text, extra.get(lane[0]))
    return _rebuilt(message, content=content, tool_call_chunks=calls, additional_kwargs=extra)


def _said(lane: Lane, text: str) -> Any:
    """What the model says, as content."""
    return text if lane == _CONTENT else [_block(lane, text)]


def _beside(lane: Lane, text: str, held: Any, *, in_front: bool = False) -> Any:
    """A text beside the content, with more of it."""
    function = lane[0] == "function_call"
    old = ((held or {}).get("arguments") if function else held) or ""
    new = text + old if in_front else old + text
    return {**(held or {}), "arguments": new} if function else new


def _with_call_rest(
    content: Any, calls: list[Any], index: Any, text: str, mirror: Mapping[str, Any] | None
) -> tuple[Any, list[Any]]:
    if isinstance(index, tuple):  # a call that came whole, in this chunk
        place = index[1]
        return content, [
            *calls[:place],
            {**calls[place], "args": (calls[place]["args"] or "") + text},
            *calls[place + 1 :],
        ]
    if mirror:
        content = _joined(content, [{key: text if value is None else value for key, value in mirror.items()}])
    return content, [*calls, tool_call_chunk(args=text, index=index)]


def _joined(one: Any, other: Any) -> Any:
    """Two contents, one behind the other."""
    if isinstance(one, str) and isinstance(other, str):
        return one + other
    return [
        *([one] if isinstance(one, str) and one else one),
        *([other] if isinstance(other, str) and other else other),
    ]


def _block_with(block: Any, left: dict[Lane, Any]) -> Any:
    if isinstance(block, str):
        return left.pop(("block", None), "")
    if is_text(block):
        return {**block, "text": left.pop(("block", block.get("index")), "")}
    return block


def _mirror(block: Any, call: Any, text: str | None) -> Any:
    """A content block that repeats a piece of a tool call, with the piece as it is now."""
    shape = mirrored([block], call)
    return {**block, **{key: text for key, value in shape.items() if value is None}}


def _rebuilt(message: AIMessageChunk, **changes: Any) -> AIMessageChunk:
    """The chunk with other fields. What LangChain parses of its pieces of tool calls is parsed again."""
    if changes["tool_call_chunks"] == message.tool_call_chunks:
        return message.model_copy(update=changes)
    derived = ("tool_calls", "invalid_tool_calls", "type")
    fields = {name: value for name, value in message.__dict__.items() if name not in derived}
    return type(message)(**{**fields, **changes})


def delta_of(lane: Lane, text: str) -> dict[str, Any]:
    """A piece of a text as a delta in OpenAI's form, for the expander."""
    kind = lane[0]
    if kind == "call":
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
    if kind == "function_call":
        return {kind: {"arguments": text}}
    return {"content" if kind == "block" else kind: text}


def text_of(lane: Lane, delta: dict[str, Any]) -> str:
    """The piece of a text that a delta holds."""
    kind = lane[0]
    if kind == "call":
        return "".join(call["function"].get("arguments") or "" for call in delta.get("tool_calls") or ())
    if kind == "function_call":
        return (delta.get(kind) or {}).get("arguments") or ""
    return delta.get("content" if kind == "block" else kind) or ""


def _block(lane: Lane, text: str) -> Any:
    block: dict[str, Any] = {"type": "text", "text": text}
    return block if lane[1] is None else {**block, "index": lane[1]}


def is_finished(chunk: ChatGenerationChunk, message: AIMessageChunk) -> bool:
    """Whether the provider says with this chunk that the reply's texts are at their end."""
    told = ({**(chunk.generation_info or {}), **message.response_metadata}.get(name) for name in _FINISHED)
    return message.chunk_position == "last" or any(value is not None for value in told)
