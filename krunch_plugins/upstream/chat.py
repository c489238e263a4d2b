"""OpenAI's chat completions."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

from krunch_plugins.upstream.answers import count_tokens, split, text_of, word_logprobs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from krunch_plugins.upstream.answers import Answer, ToolCall


def whole(body: Mapping[str, Any], answers: Sequence[Answer], number: int) -> dict[str, Any]:
    """A plain reply."""
    choices = [_choice(body, answer, index) for index, answer in enumerate(answers)]
    return {**_envelope(body, number), "object": "chat.completion", "choices": choices, "usage": _usage(body, answers)}


def events(body: Mapping[str, Any], answers: Sequence[Answer], number: int) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed reply; the choices take turns."""
    envelope = {**_envelope(body, number), "object": "chat.completion.chunk"}
    streams = [_choice_events(body, answer, index) for index, answer in enumerate(answers)]
    while streams:
        for stream in tuple(streams):
            choice = next(stream, None)
            if choice is None:
                streams.remove(stream)
            else:
                yield {**envelope, "choices": [choice]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**envelope, "choices": [], "usage": _usage(body, answers)}


def error(message: str) -> dict[str, Any]:
    """The event that tells of an error."""
    return {"error": {"message": message, "type": "upstream_error", "code": "500"}}


def _envelope(body: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "created": 1_700_000_000 + number, "model": body.get("model", "")}


def _choice(body: Mapping[str, Any], answer: Answer, index: int) -> dict[str, Any]:
    """One choice of a plain reply."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, **answer.extra}
    if answer.refusal is not None:
        message["refusal"] = answer.refusal
    if answer.annotations:
        message["annotations"] = list(answer.annotations)
    calls = [_call(call, call.arguments) for call in answer.tool_calls]
    if calls and "functions" in body:
        message["function_call"] = calls[0]["function"]
    elif calls:
        message["tool_calls"] = calls
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs(body, answer.text or ""),
        "finish_reason": _finish_reason(body, answer),
    }


def _choice_events(body: Mapping[str, Any], answer: Answer, index: int) -> Iterator[dict[str, Any]]:
    """One choice, delta by delta."""

    def event(delta: dict[str, Any], text: str = "", finish_reason: str | None = None) -> dict[str, Any]:
        return {
            "index": index,
            "delta": delta,
            "logprobs": logprobs(body, text) if text else None,
            "finish_reason": finish_reason,
        }

    sizes = cycle(answer.pieces)
    yield event({"role": "assistant", "content": None if answer.text is None else "", **answer.extra})
    for piece in split(answer.text or "", sizes):
        yield event({"content": piece}, piece)
    for piece in split(answer.refusal or "", sizes):
        yield event({"refusal": piece})
    if answer.annotations:
        yield event({"annotations": list(answer.annotations)})
    for position, call in enumerate(answer.tool_calls):
        legacy = "functions" in body
        opening = _call(call, "")
        yield event(
            {"function_call": opening["function"]} if legacy else {"tool_calls": [{"index": position, **opening}]}
        )
        for piece in split(call.arguments, sizes):
            key = "input" if call.type == "custom" else "arguments"
            if legacy:
                yield event({"function_call": {key: piece}})
            else:
                yield event({"tool_calls": [{"index": position, call.type: {key: piece}}]})
    yield event({}, finish_reason=_finish_reason(body, answer))


def _call(call: ToolCall, arguments: str) -> dict[str, Any]:
    key = "input" if call.type == "custom" else "arguments"
    return {"id": call.id, "type": call.type, call.type: {"name": call.name, key: arguments}}


def _finish_reason(body: Mapping[str, Any], answer: Answer) -> str:
    if not answer.tool_calls:
        return "stop"
    return "function_call" if "functions" in body else "tool_calls"


def logprobs(body: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    """Those of a text, for requests that ask for them."""
    return {"content": word_logprobs(text), "refusal": None} if body.get("logprobs") else None


def _usage(body: Mapping[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens of the texts on the wire."""
    texts = [text_of(message.get("content")) for message in body.get("messages", ())]
    prompt, reply = count_tokens(body, texts, answers)
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
    if answers[0].cached_tokens:
        usage["prompt_tokens_details"] = {"cached_tokens": min(answers[0].cached_tokens, prompt)}
    return usage
