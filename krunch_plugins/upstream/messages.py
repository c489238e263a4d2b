"""Anthropic's messages."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import cycle
from typing import TYPE_CHECKING, Any

from krunch_plugins.upstream.answers import count_tokens, split, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from krunch_plugins.upstream.answers import Answer


def whole(body: Mapping[str, Any], answers: Sequence[Answer], number: int) -> dict[str, Any]:
    """A plain reply."""
    prompt, reply = _usage(body, answers)
    return {
        **_envelope(body, number),
        "content": _blocks(answers[0]),
        "stop_reason": _stop_reason(answers[0]),
        "usage": {**prompt, "output_tokens": reply},
    }


def events(body: Mapping[str, Any], answers: Sequence[Answer], number: int) -> Iterator[dict[str, Any]]:
    """The events of a streamed reply."""
    answer = answers[0]
    prompt, reply = _usage(body, answers)
    usage = {**prompt, "output_tokens": 1}
    yield {"type": "message_start", "message": {**_envelope(body, number), "content": [], "usage": usage}}
    yield {"type": "ping"}
    sizes = cycle(answer.pieces)
    calls = iter(answer.tool_calls)
    for index, block in enumerate(_blocks(answer)):
        arguments = next(calls).arguments if block["type"] == "tool_use" else None
        yield from _block_events(index, block, arguments, sizes)
    delta = {"stop_reason": _stop_reason(answer), "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": reply}}
    yield {"type": "message_stop"}


def error(message: str) -> dict[str, Any]:
    """The event that tells of an error."""
    return {"type": "error", "error": {"type": "overloaded_error", "message": message}}


def count(body: Mapping[str, Any], answers: Sequence[Answer], number: int) -> dict[str, Any]:  # noqa: ARG001 - as all
    """The tokens of a request that is not sent."""
    return {"input_tokens": _tokens(body, ())[0]}


def _envelope(body: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": body.get("model", ""),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    """The content of a reply."""
    blocks: list[dict[str, Any]] = [dict(block) for block in answer.before]
    text = answer.text if answer.refusal is None else answer.refusal
    if text is not None:
        citations = {"citations": list(answer.annotations)} if answer.annotations else {}
        blocks.append({"type": "text", "text": text, **citations})
    for call in answer.tool_calls:
        given: Any = {}
        with suppress(ValueError):
            given = json.loads(call.arguments)
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
    return blocks


def _block_events(
    index: int, block: Mapping[str, Any], arguments: str | None, sizes: Iterator[int]
) -> Iterator[dict[str, Any]]:
    """One block, delta by delta; blocks that are not written by the model come whole."""

    def delta(kind: str, **what: object) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **what}}

    empty: dict[str, dict[str, Any]] = {
        "text": {"text": ""},
        "thinking": {"thinking": "", "signature": ""},
        "tool_use": {"input": {}},
        "server_tool_use": {"input": {}},
        "mcp_tool_use": {"input": {}},
    }
    if arguments is None and "input" in block:
        arguments = json.dumps(block["input"])
    opening = {**block, **empty.get(block["type"], {})}
    opening.pop("citations", None)
    yield {"type": "content_block_start", "index": index, "content_block": opening}
    if block["type"] == "text":
        for piece in split(block["text"], sizes):
            yield delta("text_delta", text=piece)
        for citation in block.get("citations", ()):
            yield delta("citations_delta", citation=citation)
    elif block["type"] == "thinking":
        for piece in split(block["thinking"], sizes):
            yield delta("thinking_delta", thinking=piece)
        if block.get("signature"):
            yield delta("signature_delta", signature=block["signature"])
    for piece in split(arguments or "", sizes):
        yield delta("input_json_delta", partial_json=piece)
    yield {"type": "content_block_stop", "index": index}


def _stop_reason(answer: Answer) -> str:
    if answer.refusal is not None:
        return "refusal"
    return "tool_use" if answer.tool_calls else "end_turn"


def _usage(body: Mapping[str, Any], answers: Sequence[Answer]) -> tuple[dict[str, int], int]:
    """What is told of the prompt, where tokens from the cache are counted apart, and the tokens of the reply."""
    prompt, reply = _tokens(body, answers)
    cached = min(answers[0].cached_tokens, prompt)
    return {"input_tokens": prompt - cached, **({"cache_read_input_tokens": cached} if cached else {})}, reply


def _tokens(body: Mapping[str, Any], answers: Sequence[Answer]) -> tuple[int, int]:
    texts = [text_of(message.get("content")) for message in body.get("messages", ())]
    return count_tokens(body, [text_of(body.get("system")), *texts], answers)
