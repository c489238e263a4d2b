"""OpenAI's responses."""

from __future__ import annotations

from itertools import count, cycle
from typing import TYPE_CHECKING, Any

from krunch_plugins.upstream.answers import count_tokens, split, text_of, word_logprobs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from krunch_plugins.upstream.answers import Answer


def whole(body: Mapping[str, Any], answers: Sequence[Answer], number: int) -> dict[str, Any]:
    """A plain reply."""
    reply = {**_envelope(body, number), "status": "completed", "output": _items(body, answers[0], number)}
    return {**reply, "usage": _usage(body, answers)}


def events(body: Mapping[str, Any], answers: Sequence[Answer], number: int) -> Iterator[dict[str, Any]]:
    """The events of a streamed reply."""
    numbers = count()
    begun = {**_envelope(body, number), "status": "in_progress", "output": []}
    yield {"type": "response.created", "response": begun, "sequence_number": next(numbers)}
    yield {"type": "response.in_progress", "response": begun, "sequence_number": next(numbers)}
    sizes = cycle(answers[0].pieces)
    for index, item in enumerate(_items(body, answers[0], number)):
        for event in _item_events(item, index, sizes):
            yield {**event, "sequence_number": next(numbers)}
    yield {"type": "response.completed", "response": whole(body, answers, number), "sequence_number": next(numbers)}


def error(message: str) -> dict[str, Any]:
    """The event that tells of an error."""
    return {"type": "error", "code": "server_error", "message": message, "param": None, "sequence_number": 0}


def _envelope(body: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1_700_000_000 + number,
        "model": body.get("model", ""),
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "temperature": 1.0,
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }


def _items(body: Mapping[str, Any], answer: Answer, number: int) -> list[dict[str, Any]]:
    """The output of a reply."""
    items: list[dict[str, Any]] = [dict(item) for item in answer.before]
    parts: list[dict[str, Any]] = []
    if answer.text is not None:
        parts.append({"type": "output_text", "text": answer.text, "annotations": list(answer.annotations)})
        if "message.output_text.logprobs" in (body.get("include") or ()):
            parts[-1]["logprobs"] = word_logprobs(answer.text)
    if answer.refusal is not None:
        parts.append({"type": "refusal", "refusal": answer.refusal})
    if parts:
        items.append(
            {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": "completed", "content": parts}
        )
    for call in answer.tool_calls:
        kind, key = ("custom_tool_call", "input") if call.type == "custom" else ("function_call", "arguments")
        items.append(
            {
                "id": f"fc_{call.id}",
                "type": kind,
                "call_id": call.id,
                "name": call.name,
                key: call.arguments,
                "status": "completed",
            }
        )
    return items


def _item_events(item: Mapping[str, Any], index: int, sizes: Iterator[int]) -> Iterator[dict[str, Any]]:
    """One item of the output, without sequence numbers."""
    place = {"item_id": item["id"], "output_index": index}
    empty = {"content": [], "summary": [], "arguments": "", "input": "", "code": "", "status": "in_progress"}
    begun = {key: empty.get(key, value) for key, value in item.items()}
    yield {"type": "response.output_item.added", "output_index": index, "item": begun}
    for position, part in enumerate(item.get("content") or ()):
        yield from _part_events(part, {**place, "content_index": position}, "content_part", sizes)
    for position, part in enumerate(item.get("summary") or ()):
        yield from _part_events(part, {**place, "summary_index": position}, "reasoning_summary_part", sizes)
    if item.get("type") in _STREAMED:
        family, key = _STREAMED[item["type"]]
        for piece in split(item[key], sizes):
            yield {"type": f"response.{family}.delta", **place, "delta": piece}
        yield {"type": f"response.{family}.done", **place, key: item[key]}
    yield {"type": "response.output_item.done", "output_index": index, "item": dict(item)}


_STREAMED = {
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
    "mcp_call": ("mcp_call_arguments", "arguments"),
    "code_interpreter_call": ("code_interpreter_call_code", "code"),
}
"""The events that a call's text comes in, and the key that it stands under, by the item's type."""

_FAMILIES = {
    "output_text": ("output_text", "text"),
    "refusal": ("refusal", "refusal"),
    "summary_text": ("reasoning_summary_text", "text"),
    "reasoning_text": ("reasoning_text", "text"),
}
"""The events that a part's text comes in, and the key that it stands under, by the part's type."""


def _part_events(
    part: Mapping[str, Any], place: Mapping[str, Any], name: str, sizes: Iterator[int]
) -> Iterator[dict[str, Any]]:
    """One part of an item."""
    family, key = _FAMILIES[part["type"]]
    begun = {**part, key: ""}
    is_text = family == "output_text"
    if is_text:
        begun |= {"annotations": [], **({"logprobs": []} if "logprobs" in part else {})}
    yield {"type": f"response.{name}.added", **place, "part": begun}
    for piece in split(part[key], sizes):
        told = {"logprobs": word_logprobs(piece) if "logprobs" in part else []} if is_text else {}
        yield {"type": f"response.{family}.delta", **place, "delta": piece, **told}
    for position, annotation in enumerate(part.get("annotations") or ()):
        yield {
            "type": "response.output_text.annotation.added",
            **place,
            "annotation_index": position,
            "annotation": dict(annotation),
        }
    told = {"logprobs": part.get("logprobs", [])} if is_text else {}
    yield {"type": f"response.{family}.done", **place, key: part[key], **told}
    yield {"type": f"response.{name}.done", **place, "part": dict(part)}


def _usage(body: Mapping[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    given = body.get("input")
    items = given if isinstance(given, list) else [{"content": given}]
    texts = [text_of(item.get("content") or item.get("output")) for item in items if isinstance(item, dict)]
    prompt, reply = count_tokens(body, [text_of(body.get("instructions")), *texts], answers)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": min(answers[0].cached_tokens, prompt)},
        "output_tokens": reply,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + reply,
    }
