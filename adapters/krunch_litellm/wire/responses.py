"""OpenAI's responses: requests and whole replies. `responses_stream.py` has the streamed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from krunch_litellm.wire.fields import as_usage, get, items, put, twin
from krunch_litellm.wire.items import Group, groups, new_items, reply_message, slots, with_texts
from krunch_litellm.wire.offsets import put_offsets_right
from krunch_litellm.wire.places import sources
from krunch_litellm.wire.responses_stream import ResponsesStream
from krunch_litellm.wire.thoughts import with_copies_expanded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_plugins import Exchange
    from krunch_plugins.turns import Message


class ResponsesWire:
    """A request to /v1/responses.

    Args:
        data: its arguments.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._given = data["input"]
        self._groups, self._trailing = groups(self._given)
        instructions = data.get("instructions")
        self._instructions = self._sent_instructions = instructions
        self.tools: Sequence[Mapping[str, Any]] | None = data.get("tools") or None
        self._instructed = False
        if isinstance(instructions, str) and instructions:
            if data.get("store") is False:
                self._instructed = True
                self._groups.insert(0, Group({"role": "system", "content": instructions}))
            else:  # the next response may go on from this one, and will not have them
                self.tools = [*(self.tools or ()), {"instructions": instructions}]
        self.messages = [group.message for group in self._groups]
        self.json_reply = _is_json(data)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self | None:
        """The request in a call's arguments; None if there is no input that Krunch understands.

        Nor if the reply will be fetched later (`background`), by a call that may come to another process.
        """
        given = data.get("input")
        if data.get("background"):
            return None
        if isinstance(given, str):
            return cls(data) if given else None
        if not isinstance(given, list) or not given:
            return None
        return cls(data) if all(isinstance(item, dict) for item in given) else None

    def arguments(self, exchange: Exchange) -> dict[str, Any]:
        """What is sent instead."""
        sent: dict[str, Any] = {}
        out: list[Any] = []
        held = len(exchange.original) - len(self.messages)  # by the provider, and so not sent again
        for message, source in zip(exchange.messages, sources(exchange), strict=True):
            if source is None:
                out += new_items(message)
            elif source == held and self._instructed:
                sent["instructions"] = self._sent_instructions = message.get("content")
            elif source >= held:
                group = self._groups[source - held]
                out += with_texts(group, message) if group.items else [message]
        if isinstance(self._given, str) and len(out) == 1 and out[0].get("role") == "user":
            return {**sent, "input": out[0].get("content")}
        return {**sent, "input": [*out, *self._trailing]}

    async def finish(self, exchange: Exchange, reply: Any) -> Any:  # noqa: ANN401 - LiteLLM's own, or a dict
        """The reply for the client."""
        texts = exchange.texts()
        # What stands beside the chat message is expanded first, so that the hooks see none of the marks.
        result = twin(reply)
        output = items(result, "output")
        found = list(slots(output))
        wire = {id(slot.holder): slot.text for slot in found}
        for slot in found:
            if slot.kind in {"refusal", "reasoning", "told", "json"}:
                window = texts.open(json_text=slot.kind == "json")
                slot.write(window.feed(slot.text) + window.end())
        message = await exchange.afinish(reply_message(output))
        _write(message, output)
        for slot in found:
            if slot.kind == "text":
                put_offsets_right(slot.holder, wire[id(slot.holder)], texts, json_text=exchange.json_reply)
        copies = get(result, "provider_specific_fields")
        if isinstance(copies, dict):
            put(result, "provider_specific_fields", with_copies_expanded(copies, texts))
        self._echo(result)
        return result

    def as_message(self, reply: Any) -> Message | None:  # noqa: ANN401 - LiteLLM's own, or a dict
        """An expanded reply as a chat message."""
        return reply_message(items(reply, "output"))

    def stream(self, exchange: Exchange) -> ResponsesStream:
        """What expands one streamed reply."""
        return ResponsesStream(exchange, self._echo)

    def usage(self, reply: Any) -> Mapping[str, Any] | None:  # noqa: ANN401 - LiteLLM's own, or a dict
        """What the provider counted."""
        return as_usage(get(reply, "usage"))

    def _echo(self, reply: Any) -> None:  # noqa: ANN401 - as above
        """A reply repeats the instructions that it was given: put them as the client gave them, in place."""
        if self._instructed and get(reply, "instructions") == self._sent_instructions:
            put(reply, "instructions", self._instructions)


def fetched(reply: Any, exchange: Exchange) -> Any:  # noqa: ANN401 - LiteLLM's own, or a dict
    """A reply that was stored by the provider, expanded by an exchange that knows its symbols."""
    texts, result = exchange.texts(), twin(reply)
    for slot in slots(items(result, "output")):
        wire = slot.text
        window = texts.open(
            json_text=slot.kind in {"arguments", "json"} or (slot.kind == "text" and exchange.json_reply)
        )
        slot.write(window.feed(wire) + window.end())
        if slot.kind == "text":
            put_offsets_right(slot.holder, wire, texts, json_text=exchange.json_reply)
    return result


def _write(message: Message, output: Sequence[Any]) -> None:
    """Put the texts and arguments of a chat message into a reply's output, in place."""
    content = message.get("content")
    said = [content] if isinstance(content, str) else [part["text"] for part in content or () if _is_text(part)]
    calls = list(message.get("tool_calls") or ())
    found = list(slots(output))
    texts = [slot for slot in found if slot.kind == "text"]
    if len(said) != len(texts):  # a plugin has made other parts of them: all where the first one stood
        said = ["".join(said), *[""] * (len(texts) - 1)]
    for slot, text in zip(texts, said, strict=False):
        slot.write(text)
    for slot, call in zip([slot for slot in found if slot.kind in {"arguments", "input"}], calls, strict=False):
        written = (
            get(get(call, "function"), "arguments") if slot.kind == "arguments" else get(get(call, "custom"), "input")
        )
        if isinstance(written, str):
            slot.write(written)


def _is_text(part: Any) -> bool:  # noqa: ANN401 - a part of a chat message's content
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_json(data: Mapping[str, Any]) -> bool:
    """Whether the reply's text was asked to be one JSON document."""
    form = get(data.get("text"), "format") or data.get("text_format")
    return get(form, "type") in {"json_schema", "json_object"} or isinstance(form, type)
