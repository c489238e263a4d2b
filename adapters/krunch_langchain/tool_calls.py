"""Tool calls: LangChain's parsed ones, OpenAI's with arguments as text, and the content blocks that repeat them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from langchain_core.messages.tool import invalid_tool_call, tool_call

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from langchain_core.messages import AIMessage, InvalidToolCall, ToolCall

CALL_BLOCKS = frozenset(
    {
        "tool_use",
        "tool_call",
        "tool_call_chunk",
        "invalid_tool_call",
        "function_call",
        "custom_tool_call",
        "input_json_delta",
    }
)
"""Types of content blocks that say again what `tool_calls` says."""


def calls_to_openai(message: AIMessage) -> list[dict[str, Any]]:
    """The message's tool calls in OpenAI's form, invalid ones behind the others."""
    calls = [
        _openai_call(call["id"], call["name"], json.dumps(call["args"], ensure_ascii=False, default=str))
        for call in message.tool_calls
    ]
    calls += [_openai_call(call["id"], call["name"], call["args"] or "") for call in message.invalid_tool_calls]
    raw = message.additional_kwargs.get("tool_calls")
    return calls or (raw if isinstance(raw, list) else [])


def calls_from_openai(calls: Iterable[Any]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """LangChain's tool calls of OpenAI's: those whose arguments are a JSON object, and the others."""
    valid: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in calls:
        name, arguments, number = _read(call)
        args = _object(arguments)
        if args is None or name is None:
            error = None if args is None else "the call has no name"
            invalid.append(invalid_tool_call(name=name, args=arguments, id=number, error=error))
        else:
            valid.append(tool_call(name=name, args=args, id=number))
    return valid, invalid


def new_calls(message: AIMessage, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields `tool_calls` and `invalid_tool_calls` with what was changed in their OpenAI form.

    Args:
        message: the message.
        calls: what became of its `calls_to_openai`.
    """
    if len(calls) != len(message.tool_calls) + len(message.invalid_tool_calls):
        valid, invalid = calls_from_openai(calls)
        return {"tool_calls": valid, "invalid_tool_calls": invalid}
    changed: list[Any] = []
    for old, new in zip(message.tool_calls, calls, strict=False):
        name, arguments, number = _read(new)
        args = _object(arguments)
        changed.append({**old, "name": name, "id": number, "args": old["args"] if args is None else args})
    broken: list[Any] = []
    for bad, new in zip(message.invalid_tool_calls, calls[len(message.tool_calls) :], strict=True):
        name, arguments, number = _read(new)
        broken.append({**bad, "name": name, "id": number, "args": arguments or bad["args"]})
    return {"tool_calls": changed, "invalid_tool_calls": broken}


def call_blocks(content: Any, calls: Sequence[Any], invalid: Sequence[Any]) -> Any:  # noqa: ANN401 - as LangChain has it
    """Content with the arguments of these calls in the blocks that repeat them, matched by id.

    Args:
        content: a string or blocks; a string is returned as it is.
        calls: tool calls in LangChain's form.
        invalid: those whose arguments could not be read.
    """
    if isinstance(content, str):
        return content
    by_id = {call["id"]: call["args"] for call in (*calls, *invalid) if call["id"]}
    return [_call_block(block, by_id) for block in content]


def mirrored(content: Any, call: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - as LangChain has it
    """The shape of the content block that repeats a streamed piece of a tool call, arguments None; {} if none does."""
    if isinstance(content, str) or not call.get("args"):
        return {}
    for block in content:
        if isinstance(block, dict) and block.get("type") in CALL_BLOCKS and block.get("index") == call.get("index"):
            keys = [key for key in _ARGUMENTS if block.get(key) == call["args"]]
            if keys:
                return {"type": block["type"], "index": block.get("index"), keys[0]: None}
    return {}


def _call_block(block: Any, by_id: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a string or a block
    if not isinstance(block, dict) or block.get("type") not in CALL_BLOCKS:
        return block
    number = str(block.get("call_id") or block.get("id"))
    if number not in by_id:
        return block
    args = by_id[number]
    text = args if isinstance(args, str) or args is None else json.dumps(args, ensure_ascii=False)
    return {**block, **{key: _argument(block[key], args, text) for key in _ARGUMENTS if key in block}}


_ARGUMENTS = ("input", "args", "arguments", "partial_json")
"""Where blocks hold a call's arguments, as an object or as its JSON text."""


def _argument(old: Any, args: Any, text: str | None) -> Any:  # noqa: ANN401 - an object or its text
    if not isinstance(old, str):
        return args
    free = isinstance(args, dict) and set(args) == {"__arg1"}  # a custom tool's input, which is no JSON
    return args["__arg1"] if free else text


def _openai_call(number: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def _read(call: Any) -> tuple[str | None, str, str | None]:  # noqa: ANN401 - whatever JSON holds
    """Name, arguments and id of a call in OpenAI's form."""
    call = call if isinstance(call, dict) else {}
    function = call.get("function") if isinstance(call.get("function"), dict) else {}
    custom = call.get("custom")
    if isinstance(custom, dict):
        return custom.get("name"), json.dumps({"__arg1": custom.get("input", "")}), call.get("id")
    return function.get("name"), function.get("arguments") or "", call.get("id")


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "{}", strict=False)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
