"""The input and output items of OpenAI's responses as chat messages, and the texts in them.

Assistant items that stand together (reasoning, messages, calls) are one chat message, as a reply is one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from krunch_litellm.wire.fields import get, items, put, word

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from krunch_plugins.turns import Message

_TEXTS = frozenset({"input_text", "output_text", "text"})
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_RESULTS = frozenset(
    {"function_call_output", "custom_tool_call_output", "local_shell_call_output", "apply_patch_call_output"}
)
_OTHER_CALLS = {
    "apply_patch_call": "operation",
    "code_interpreter_call": "code",
    "computer_call": "action",
    "file_search_call": "queries",
    "image_generation_call": "revised_prompt",
    "local_shell_call": "action",
    "mcp_approval_request": "arguments",
    "mcp_call": "arguments",
    "shell_call": "action",
    "tool_search_call": "arguments",
    "web_search_call": "action",
}
"""Calls of the provider's tools, some of which clients run: where the texts that the model wrote are, at any depth."""


@dataclass(slots=True)
class Group:
    """Items that one chat message stands for.

    Attributes:
        message: the chat message.
        items: the items, some of which it may not show: reasoning, and what the provider's own tools did.
    """

    message: Message
    items: list[Any] = field(default_factory=list)


def groups(given: str | Sequence[Any]) -> tuple[list[Group], list[Any]]:
    """The chat messages that a request's input stands for, and the items at its end that none stands for."""
    if isinstance(given, str):
        return [Group({"role": "user", "content": given})], []
    out: list[Group] = []
    waiting: list[Any] = []
    for item in given:
        message = _message(item)
        if message is None:
            waiting.append(item)
        elif message["role"] == "assistant" and out and not _ends(waiting) and _is_open(out[-1]):
            _extend(out[-1].message, message)
            out[-1].items += [*waiting, item]
            waiting = []
        else:
            out.append(Group(message, [*waiting, item]))
            waiting = []
    return out, waiting


def reply_message(output: Iterable[Any]) -> Message:
    """A reply's output as one chat message."""
    whole: Message = {"role": "assistant", "content": None}
    for item in output:
        message = _message(item)
        if message is not None and message["role"] == "assistant":
            _extend(whole, message)
    return whole


def with_texts(group: Group, message: Message) -> list[Any]:
    """A group's items with the texts and arguments of `message`, copies where anything differs."""
    parts = _parts(message.get("content"))
    calls = list(message.get("tool_calls") or ())
    given = sum(_weight(item) for item in group.items)
    if len(parts) != given:  # a plugin has made other parts of them: all where the first text stood
        return _rebuilt(group, message, parts)
    out: list[Any] = []
    remaining, left = iter(parts), iter(calls)
    for item in group.items:
        kind = _kind(item)
        if kind in _CALLS:
            call = next(left, None)
            text = None if call is None else _written(call)
            out.append(item if text is None or text == item.get(_CALLS[kind]) else {**item, _CALLS[kind]: text})
        elif kind == "message":
            out.append(_with_content(item, "content", [next(remaining) for _ in range(_weight(item))]))
        elif kind in _RESULTS:
            out.append(_with_content(item, "output", [next(remaining) for _ in range(_weight(item))]))
        else:
            out.append(item)
    return out


def new_items(message: Message) -> list[dict[str, Any]]:
    """The items of a chat message that is no client's."""
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        return [{"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": content}]
    kind = "output_text" if role == "assistant" else "input_text"
    parts = [_named(part, kind) for part in _parts(content)]
    out: list[dict[str, Any]] = [{"type": "message", "role": role, "content": parts}] if parts else []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        out.append(
            {
                "type": "function_call",
                "call_id": call.get("id"),
                "name": function.get("name"),
                "arguments": function.get("arguments") or "",
            }
        )
    return out


@dataclass(frozen=True, slots=True)
class Slot:
    """One text in a reply's output.

    Attributes:
        kind: what it is: text of the reply, a function call's arguments or free-form input, a refusal, reasoning, or
            text ("told") or JSON ("json") in a call of another tool.
        holder: the dict, list or object that it stands in.
        key: the name, or the place, it stands under.
    """

    kind: Literal["text", "arguments", "input", "refusal", "reasoning", "told", "json"]
    holder: Any
    key: Any

    @property
    def text(self) -> str:
        """What it says."""
        value = self.holder[self.key] if isinstance(self.holder, list) else get(self.holder, self.key)
        return value if isinstance(value, str) else ""

    def write(self, text: str) -> None:
        """Put another text there, in place."""
        if isinstance(self.holder, list):
            self.holder[self.key] = text
        else:
            put(self.holder, self.key, text)


def slots(output: Iterable[Any]) -> Iterator[Slot]:
    """The texts that the model wrote, in order; reasoning that the provider has encrypted is not among them."""
    for item in output:
        kind = word(item, "type")
        if kind == "message":
            for part in items(item, "content"):
                yield from part_slots(part)
        elif kind in _CALLS:
            yield Slot("arguments" if kind == "function_call" else "input", item, _CALLS[kind])
        elif kind == "reasoning" and not get(item, "encrypted_content"):
            for part in [*items(item, "summary"), *items(item, "content")]:
                if isinstance(get(part, "text"), str):
                    yield Slot("reasoning", part, "text")
        elif kind in _OTHER_CALLS:
            key = _OTHER_CALLS[kind]
            said = get(item, key)
            as_json = key == "arguments" and isinstance(said, str)
            yield from [Slot("json", item, key)] if as_json else _told(item, key, said)


def _told(holder: Any, key: Any, said: Any) -> Iterator[Slot]:  # noqa: ANN401 - dict, list or object, and what it holds
    """All texts in what a call says."""
    if isinstance(said, str):
        yield Slot("told", holder, key)
    elif isinstance(said, list):
        for place, item in enumerate(said):
            yield from _told(said, place, item)
    elif isinstance(said, (dict, BaseModel)):
        for name, item in tuple(said.items() if isinstance(said, dict) else said):
            yield from _told(said, name, item)


def part_slots(part: Any) -> Iterator[Slot]:  # noqa: ANN401 - dict or object
    """The text of one part of a message."""
    kind = word(part, "type")
    if kind == "output_text" and isinstance(get(part, "text"), str):
        yield Slot("text", part, "text")
    elif kind == "refusal" and isinstance(get(part, "refusal"), str):
        yield Slot("refusal", part, "refusal")


def _kind(item: Any) -> str:  # noqa: ANN401 - dict or object
    return word(item, "type") or ("message" if get(item, "role") else "")


def _message(item: Any) -> Message | None:  # noqa: ANN401 - dict or object
    """The chat message of one item; None if it says nothing that a chat message has a place for."""
    kind = _kind(item)
    if kind == "message":
        content = get(item, "content")
        message: Message = {"role": word(item, "role") or "user", "content": content}
        if isinstance(content, list):
            message["content"] = [_as_text(part) for part in content]
        return message
    if kind in _RESULTS:
        output = get(item, "output")
        content = [_as_text(part) for part in output] if isinstance(output, list) else output
        return {"role": "tool", "content": content, "tool_call_id": get(item, "call_id")}
    if kind == "function_call":
        function = {"name": get(item, "name"), "arguments": get(item, "arguments")}
        call = {"id": get(item, "call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "custom_tool_call":
        custom = {"name": get(item, "name"), "input": get(item, "input")}
        call = {"id": get(item, "call_id"), "type": "custom", "custom": custom}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    return None


def _is_open(group: Group) -> bool:
    return bool(group.message["role"] == "assistant")


def _ends(waiting: Iterable[Any]) -> bool:
    """Whether items that show in no chat message end the assistant's one before them: results of the client's."""
    return any(_kind(item).endswith("_output") for item in waiting)


def _extend(message: Message, more: Message) -> None:
    """Put what a further item says behind an assistant message."""
    if more.get("content") is not None:
        before = message.get("content")
        message["content"] = more["content"] if before is None else [*_parts(before), *_parts(more["content"])]
    if more.get("tool_calls"):
        message["tool_calls"] = [*(message.get("tool_calls") or ()), *more["tool_calls"]]


def _as_text(part: Any) -> Any:  # noqa: ANN401 - dict or object
    """A part as a chat message has it: text parts are called so there, all others are as they are."""
    if word(part, "type") not in _TEXTS:
        return part.model_dump(exclude_none=True) if isinstance(part, BaseModel) else part
    return {"type": "text", "text": get(part, "text")}


def _parts(content: Any) -> list[Any]:  # noqa: ANN401 - a chat message's content
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []


def _weight(item: Any) -> int:  # noqa: ANN401 - dict or object
    """How many parts of a chat message's content are this item's."""
    kind = _kind(item)
    content = get(item, "content") if kind == "message" else get(item, "output") if kind in _RESULTS else None
    return len(content) if isinstance(content, list) else int(isinstance(content, str))


def _with_content(item: dict[str, Any], key: str, parts: list[Any]) -> dict[str, Any]:
    """An item with the text of `parts`; itself if it says that already."""
    given = item.get(key)
    if isinstance(given, str):
        text = parts[0].get("text")
        return item if text == given else {**item, key: text}
    if not isinstance(given, list):
        return item
    new = [
        part
        if word(part, "type") not in _TEXTS or part.get("text") == sent.get("text")
        else {**part, "text": sent["text"]}
        for part, sent in zip(given, parts, strict=True)
    ]
    return {**item, key: new}


def _rebuilt(group: Group, message: Message, parts: list[Any]) -> list[Any]:
    texts = [item for item in group.items if _weight(item)]
    out: list[Any] = []
    for item in group.items:
        kind = _kind(item)
        if not _weight(item):
            out.append(item)
        elif item is texts[0]:
            key = "output" if kind in _RESULTS else "content"
            name = "output_text" if message.get("role") == "assistant" else "input_text"
            out.append({**item, key: [_named(part, name) for part in parts]})
    return out


def _named(part: Any, kind: str) -> Any:  # noqa: ANN401 - a part of a chat message's content
    return {**part, "type": kind} if isinstance(part, dict) and part.get("type") == "text" else part


def _written(call: Any) -> str | None:  # noqa: ANN401 - a tool call
    """What the model wrote into a chat message's tool call."""
    for key, text in (("function", "arguments"), ("custom", "input")):
        value = get(get(call, key), text)
        if isinstance(value, str):
            return value
    return None
