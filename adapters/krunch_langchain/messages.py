"""LangChain's messages and OpenAI's: what Krunch compresses and stores, and the way back without loss.

A turn's `message` is the OpenAI form, so that every part of Krunch understands it. What that form does not say (ids,
artifacts, usage, response metadata, …) travels in the turn's metadata under `"langchain"`: the message as
`message_to_dict` writes it, without the texts, which stand in the turn's message already.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    message_chunk_to_message,
    message_to_dict,
    messages_from_dict,
)

from krunch_langchain.json_values import from_json_value, to_json_value
from krunch_langchain.parts import new_content, openai_parts, without_texts
from krunch_langchain.tool_calls import call_blocks, calls_from_openai, calls_to_openai, new_calls
from krunch_plugins.errors import NotStorable

if TYPE_CHECKING:
    from krunch_plugins import Turn

log = logging.getLogger("krunch")

Message = dict[str, Any]
"""A chat message in OpenAI's form."""

METADATA_KEY = "langchain"
"""Under which key a turn's metadata holds what makes a LangChain message of it."""

TEXT_FIELDS = ("refusal", "reasoning_content", "reasoning")
"""Fields beside `content` that hold a model's text. LangChain keeps them in `additional_kwargs`."""

_ROLES = {
    "human": "user",
    "HumanMessageChunk": "user",
    "ai": "assistant",
    "AIMessageChunk": "assistant",
    "ToolMessageChunk": "tool",
    "FunctionMessageChunk": "function",
}
"""By `BaseMessage.type`; the others are called by their own."""
_OWN = frozenset({"role", "content", "name", "id", "tool_calls", "tool_call_id"})
"""Keys of an OpenAI message that have a place of their own in a LangChain message."""


def openai_form(message: BaseMessage) -> Message:
    """The message as OpenAI's API has it: role, content, tool calls, and the model's other texts.

    Of a reply, content blocks that only repeat tool calls, and signed or encrypted thoughts, are left out, and so is
    the name: an agent gives it to the reply afterwards. Images, audio and files have OpenAI's form; blocks that OpenAI
    does not know stand as they are.
    """
    if type(message) is HumanMessage and not message.name and not message.additional_kwargs:
        return {"role": "user", "content": openai_parts(message)}  # half of them; pydantic's isinstance is slow
    form: Message = {"role": _role(message), "content": openai_parts(message)}
    if isinstance(message, ToolMessage):
        form["tool_call_id"] = message.tool_call_id
    if not isinstance(message, AIMessage):
        name = message.name or message.additional_kwargs.get("name")
        return {**form, "name": name} if name else form
    extra = message.additional_kwargs
    calls = calls_to_openai(message)
    if calls:
        form["tool_calls"] = calls
    elif isinstance(extra.get("function_call"), dict):
        form["function_call"] = extra["function_call"]
    if ("tool_calls" in form or "function_call" in form) and not form["content"]:
        form["content"] = None
    form.update((field, extra[field]) for field in TEXT_FIELDS if isinstance(extra.get(field), str))
    return form


def with_changes(message: BaseMessage, before: Message, after: Message, *, only_blocks: bool = False) -> BaseMessage:
    """A copy of a message with what was changed in its OpenAI form; the message itself if nothing was.

    Args:
        message: the LangChain message.
        before: its `openai_form`.
        after: what became of that: other texts, other arguments of tool calls.
        only_blocks: a changed text that stood as a mere string among blocks becomes a block, as `restore` expects it.
    """
    if after == before:
        return message
    text = after.get("content")
    only_text = isinstance(text, str) and isinstance(message.content, str) and not message.additional_kwargs
    if only_text and {**before, "content": text} == after:  # nearly all of them; the rest takes twice as long
        return message.model_copy(update={"content": text})
    update: dict[str, Any] = {}
    if after.get("content") != before.get("content"):
        content = new_content(message, before.get("content"), after.get("content"), only_blocks=only_blocks)
        update["content"] = content
    if after.get("name") != before.get("name"):
        update["name"] = after.get("name")
    if isinstance(message, ToolMessage) and after.get("tool_call_id") != before.get("tool_call_id"):
        update["tool_call_id"] = after.get("tool_call_id")
    if isinstance(message, AIMessage):
        if after.get("tool_calls") != before.get("tool_calls"):
            update.update(new_calls(message, after.get("tool_calls") or []))
            content = update.get("content", message.content)
            update["content"] = call_blocks(content, update["tool_calls"], update["invalid_tool_calls"])
        extra = _new_extra(message, before, after)
        if extra is not message.additional_kwargs:
            update["additional_kwargs"] = extra
    return message.model_copy(update=update)


def turn_metadata(message: BaseMessage) -> dict[str, Any]:
    """What a turn's metadata must hold for `from_turn` to give back an equal message.

    Chunks count as the message that they are a part of. Objects of pydantic classes come back as dicts.

    Returns:
        `{"langchain": …}`, JSON-like.

    Raises:
        NotStorable: something in the message (an artifact, say) has no form in JSON.
    """
    message = message_chunk_to_message(message)
    stored = _stored(_without_texts(message))
    whole = message_to_dict(message)
    back = _read(stored, to_json_value(openai_form(message)))
    if back is None or message_to_dict(back) != whole:
        stored = {**_encoded(whole), "whole": True}
    return {METADATA_KEY: stored}


def reply_metadata(message: BaseMessage) -> dict[str, Any]:
    """The same for a reply whose texts are still to be expanded: none of them stands in it.

    What cannot be stored is left out: then only the turn's message is kept.
    """
    try:
        return {METADATA_KEY: _stored(_without_texts(message_chunk_to_message(message)))}
    except NotStorable as error:
        log.warning("a reply is recorded without what only LangChain knows of it: %s is %s", error.path, error.kind)
        return {}


def from_turn(turn: Turn) -> BaseMessage:
    """The LangChain message of a turn: the original, if a LangChain adapter recorded it, else one made of its message.

    Raises:
        ValueError: the turn's metadata was written by a newer version, or not by Krunch.
    """
    stored = turn.metadata.get(METADATA_KEY)
    if stored is None:
        return from_openai(turn.message)
    message = _read(stored, turn.message)
    if message is None:
        raise ValueError(f"turn {turn.number} holds no LangChain message that this version can read")
    return message


def from_openai(message: Mapping[str, Any]) -> BaseMessage:
    """A LangChain message of an OpenAI message. Keys without a place of their own go into `additional_kwargs`."""
    role, content = message.get("role"), message.get("content")
    facts: dict[str, Any] = {
        "content": "" if content is None else content,
        "additional_kwargs": {key: value for key, value in message.items() if key not in _OWN and value is not None},
    }
    facts.update((key, message[key]) for key in ("name", "id") if isinstance(message.get(key), str))
    if role == "assistant":
        calls, invalid = calls_from_openai(message.get("tool_calls") or ())
        return AIMessage(**facts, tool_calls=calls, invalid_tool_calls=invalid)
    if role == "user":
        return HumanMessage(**facts)
    if role == "tool":
        return ToolMessage(**facts, tool_call_id=str(message.get("tool_call_id") or ""))
    if role == "developer":
        facts["additional_kwargs"]["__openai_role__"] = role
    if role in ("system", "developer"):
        return SystemMessage(**facts)
    if role == "function":
        return FunctionMessage(**{"name": "", **facts})
    return ChatMessage(**facts, role=str(role or ""))


class LazyMetadata(Sequence[Mapping[str, Any] | None]):
    """The metadata of a request's messages, each made when it is asked for: only new messages are recorded.

    Args:
        messages: the request's messages.
    """

    def __init__(self, messages: Sequence[BaseMessage]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any] | None: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any] | None]: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None:
        if isinstance(index, slice):
            return LazyMetadata(self._messages[index])
        try:
            return turn_metadata(self._messages[index])
        except NotStorable as error:
            log.warning("a turn is recorded without what only LangChain knows of it: %s is %s", error.path, error.kind)
            return None


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    if isinstance(message, SystemMessage):
        return str(message.additional_kwargs.get("__openai_role__", "system"))
    return _ROLES.get(message.type, message.type)


def _new_extra(message: AIMessage, before: Message, after: Message) -> dict[str, Any]:
    """`additional_kwargs` with the changed texts in them; the very same dict if there are none."""
    extra = message.additional_kwargs
    changed = {field: after[field] for field in TEXT_FIELDS if after.get(field) != before.get(field) and field in after}
    if "function_call" in after and after["function_call"] != before.get("function_call"):
        changed["function_call"] = after["function_call"]
    if "tool_calls" in extra and after.get("tool_calls") != before.get("tool_calls"):
        changed["tool_calls"] = after.get("tool_calls") or []
    if extra.get("parsed") is not None and after.get("content") != before.get("content"):
        changed["parsed"] = parsed_again(extra["parsed"], after.get("content"))
    return {**extra, **changed} if changed else extra


def parsed_again(parsed: Any, content: Any) -> Any:  # noqa: ANN401 - a dict or an object of the caller's own class
    """What ChatOpenAI parsed of a reply's JSON text, parsed of the new text; None if that cannot be."""
    try:
        if hasattr(type(parsed), "model_validate_json"):
            return type(parsed).model_validate_json(content)
        return json.loads(content)
    except (TypeError, ValueError):
        return None


def _without_texts(message: BaseMessage) -> BaseMessage:
    """A copy of a message without what its OpenAI form says."""
    update: dict[str, Any] = {"content": without_texts(message)}
    extra = dict(message.additional_kwargs)
    if isinstance(message, AIMessage):
        update["tool_calls"] = [{**call, "args": {}} for call in message.tool_calls]
        update["invalid_tool_calls"] = [
            {**call, "args": None if call["args"] is None else ""} for call in message.invalid_tool_calls
        ]
        update["content"] = call_blocks(update["content"], update["tool_calls"], update["invalid_tool_calls"])
        extra.update((field, "") for field in TEXT_FIELDS if isinstance(extra.get(field), str))
        if isinstance(extra.get("function_call"), dict):
            extra["function_call"] = {}
        if isinstance(extra.get("tool_calls"), list):
            extra["tool_calls"] = []
        if extra.get("parsed") is not None:
            extra["parsed"] = {}
        update["additional_kwargs"] = extra
    return message.model_copy(update=update)


def _stored(message: BaseMessage) -> dict[str, Any]:
    return _encoded(message_to_dict(message))


def _encoded(message: dict[str, Any]) -> dict[str, Any]:
    return {"type": message["type"], "data": to_json_value(message["data"], "message")}


def _read(stored: object, form: Message) -> BaseMessage | None:
    """The message that was stored, with the texts from its OpenAI form; None if it cannot be read."""
    if not isinstance(stored, Mapping) or not isinstance(stored.get("data"), Mapping):
        return None
    data = from_json_value(dict(stored["data"]))
    (message,) = messages_from_dict([{"type": stored.get("type"), "data": data}])
    if stored.get("whole"):
        return message
    return with_changes(message, openai_form(message), form)
