"""OpenAI's responses, streamed: typed events, each text told three times over, and all of them must agree."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from krunch_litellm import telemetry
from krunch_litellm.wire.fields import as_usage, get, items, put, twin, word
from krunch_litellm.wire.items import part_slots, reply_message, slots
from krunch_litellm.wire.offsets import Offsets, move, put_offsets_right
from krunch_litellm.wire.reasoning import ReasoningText, UnchangedText, held_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from krunch_litellm.wire.items import Slot
    from krunch_plugins import Exchange
    from krunch_plugins.exchange import TextWindow
    from krunch_plugins.turns import Message

_FIELDS = {
    "output_text": "text",
    "refusal": "refusal",
    "function_call_arguments": "arguments",
    "custom_tool_call_input": "input",
    "mcp_call_arguments": "arguments",
    "code_interpreter_call_code": "code",
    "apply_patch_call_operation_diff": "diff",
    "shell_call_command": "command",
    "reasoning_text": "text",
    "reasoning_summary_text": "text",
}
"""The texts that the model writes, by the name of their events, and the key that the whole of each stands under."""

_JSON = frozenset({"function_call_arguments", "mcp_call_arguments"})
_REASONING = frozenset({"reasoning_text", "reasoning_summary_text"})
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})

Key = tuple[str, Any, Any]
"""Which text: the name of its events, the position of its item, and of the part in it."""


class ResponsesStream:
    """Expands a streamed reply, event by event.

    What is held back of a text goes out as one more delta right before the event that ends the text; the numbers of
    the events after it move up. Reasoning is held back from its first symbol on until its item is complete: only then
    it shows whether the provider has encrypted it, and encrypted reasoning passes as it came. If expanding fails, what
    was held back goes out before the event, and from there on everything is handed on as it came.

    Args:
        exchange: the request.
        echo: puts what a reply repeats of its request as the client sent it, in place.
    """

    def __init__(self, exchange: Exchange, echo: Callable[[Any], None]) -> None:
        self.usage: Mapping[str, Any] | None = None
        self.reply: Any = None
        self._exchange, self._echo = exchange, echo
        self._texts = exchange.texts()
        self._open: dict[Key, _Text] = {}
        self._holding: dict[Key, _Text] = {}  # those of them that may hold something back
        self._waiting: dict[Any, list[Any]] = {}
        self._done: dict[Any, Any] = {}
        self._numbers = _Numbers()
        self._broken = False

    def feed(self, item: Any) -> list[Any]:  # noqa: ANN401 - one of LiteLLM's events, or a dict
        """Take one event; give back what is to be handed on."""
        kind = word(item, "type")
        if not kind.startswith("response.") and kind != "error":
            return [item]
        waiting: list[tuple[list[Any], int]] = []
        try:
            if self._broken:
                self._note(item, kind)
                out = [item]
            else:
                waiting = [(events, len(events)) for events in self._waiting.values()]
                for text in self._holding.values():
                    text.mark()
                out = self._event(item, kind)
        except Exception as error:  # noqa: BLE001 - whatever a provider sends, the stream goes on
            telemetry.failed("stream", error)
            out = [*self._give_up(waiting, item, kind), item]
        return [self._numbers.next(event) for event in out]

    def _give_up(self, waiting: list[tuple[list[Any], int]], item: Any, kind: str) -> list[Any]:  # noqa: ANN401 - dict or object
        """Hand on everything as it comes; what it says is noted all the same, as far as it can be read.

        Returns:
            What was held back before this event: each text's as a delta, and the events that waited.
        """
        if self._broken:
            return []
        self._broken = True
        self._waiting.clear()
        held = [event for text in self._holding.values() for event in text.give_up()]
        held += [event for events, many in waiting for event in events[:many]]
        with suppress(Exception):
            for event in held:
                self._note(event, word(event, "type"))
            self._note(item, kind)
        return held

    def _note(self, event: Any, kind: str) -> None:  # noqa: ANN401 - dict or object
        """Take what an event says that is handed on as it came."""
        if kind in _ENDS:
            self.reply = get(event, "response")
            self.usage = as_usage(get(self.reply, "usage")) or self.usage
        elif kind == "response.output_item.done":
            self._done[get(event, "output_index")] = get(event, "item")
        elif kind == "response.output_text.delta" and isinstance(get(event, "delta"), str):
            key = _key(event, "output_text")
            self._open.setdefault(key, _Text(UnchangedText(), reasoning=False)).feed(get(event, "delta"))

    async def end(self, *, partial: bool) -> list[Any]:
        """What was held back; the hooks run."""
        rest: list[Any] = []
        with telemetry.counted("end"):
            rest = [self._numbers.next(event) for event in self._flush(lambda _: True)]
        waiting = [event for events in self._waiting.values() for event in events]
        with telemetry.counted("end"):
            waiting = [self._numbers.next(out) for event in waiting for out in self._reasoned(event)]
        with telemetry.counted("end"):
            message = self._message()
            if message.get("content") is not None or message.get("tool_calls"):
                await self._texts.aend(message, partial=partial)
        return [*rest, *waiting]

    def _message(self) -> Message:
        """The reply as the client has it, as a chat message."""
        message = reply_message(items(self.reply, "output") or [self._done[index] for index in sorted(self._done)])
        if message.get("content") is None and not message.get("tool_calls"):
            told = "".join(piece for key, text in self._open.items() if key[0] == "output_text" for piece in text.told)
            message["content"] = told or None
        return message

    def _event(self, event: Any, kind: str) -> list[Any]:  # noqa: ANN401 - dict or object
        """What goes out instead of an event; its numbers are put right by the caller."""
        index = get(event, "output_index")
        family, _, moment = kind.removeprefix("response.").rpartition(".")
        if kind in _ENDS or kind == "error":
            return [*self._flush(lambda _: True), self._finished(event) if kind in _ENDS else event]
        if kind == "response.output_item.done":
            return self._item_done(event, index)
        if index in self._waiting:
            self._waiting[index].append(event)
            return []
        if family in _FIELDS and moment == "delta" and isinstance(get(event, "delta"), str):
            return [self._delta(event, family)]
        if family in _FIELDS and moment == "done":
            return self._text_done(event, family, index)
        return [self._other(event, kind)]

    def _other(self, event: Any, kind: str) -> Any:  # noqa: ANN401 - dict or object
        """An event that neither brings text nor ends one."""
        if kind == "response.output_text.annotation.added":
            return self._annotated(event)
        if kind == "response.content_part.done":
            result = twin(event)
            self._expand_slots(part_slots(get(result, "part")))
            return result
        if get(get(event, "response"), "instructions") is not None:
            result = twin(event)
            self._echo(get(result, "response"))
            return result
        return event

    def _delta(self, event: Any, family: str) -> Any:  # noqa: ANN401 - dict or object
        key = _key(event, family)
        text = self._open.get(key)
        if text is None:
            text = self._open[key] = _Text(self._window(family), reasoning=family in _REASONING)
        text.last = event
        self._holding[key] = text
        out = text.feed(get(event, "delta"))
        return event if out == get(event, "delta") else _with(event, "delta", out)

    def _text_done(self, event: Any, family: str, index: Any) -> list[Any]:  # noqa: ANN401 - dict or object
        """A text is complete: what was held back of it, and the whole."""
        text = self._open.get(_key(event, family))
        if text is not None and family in _REASONING:
            agreed = text.settle()
            if text.undecided:
                self._waiting[index] = [event]
                return agreed
            return [*agreed, event]
        held = [] if text is None else text.end()
        self._holding.pop(_key(event, family), None)
        whole = get(event, _FIELDS[family])
        if not isinstance(whole, str):
            return [*held, event]
        return [*held, _with(event, _FIELDS[family], self._expand(whole, family))]

    def _item_done(self, event: Any, index: Any) -> list[Any]:  # noqa: ANN401 - dict or object
        """An item is complete: what waited for it, and the whole."""
        item = get(event, "item")
        signed = bool(get(item, "encrypted_content"))
        out = self._flush(lambda key: key[1] == index, signed=signed)
        for waiting in self._waiting.pop(index, ()):
            out += [waiting] if signed else self._reasoned(waiting)
        done = twin(event)
        self._expand_slots(slots([get(done, "item")]))
        self._done[index] = get(done, "item")
        return [*out, done]

    def _reasoned(self, event: Any) -> list[Any]:  # noqa: ANN401 - dict or object
        """What goes out for an event that waited, of reasoning that is not encrypted."""
        family, _, moment = word(event, "type").removeprefix("response.").rpartition(".")
        if family in _REASONING and moment == "delta":
            return [self._delta(event, family)]
        text = self._open.get(_key(event, family)) if moment == "done" else None
        result = twin(event)
        for holder in (result, get(result, "part")):
            if isinstance(told := get(holder, "text"), str):
                put(holder, "text", self._expand(told, "reasoning_text"))
        return [*(text.end() if text else ()), result]

    def _finished(self, event: Any) -> Any:  # noqa: ANN401 - dict or object
        """The event that repeats the whole reply."""
        self.usage = as_usage(get(get(event, "response"), "usage")) or self.usage
        result = twin(event)
        self.reply = get(result, "response")
        self._expand_slots(slots(items(self.reply, "output")))
        self._agree(items(self.reply, "output"))
        self._echo(self.reply)
        return result

    def _agree(self, output: Sequence[Any]) -> None:
        """Have reasoning say what it said before, which was taken for unsigned: LiteLLM may tell so only here.

        What the provider is handed back it reads from what is encrypted, which stays.
        """
        for index, item in enumerate(output):
            sealed, before = get(item, "encrypted_content"), self._done.get(index)
            if sealed and before is not None and not get(before, "encrypted_content"):
                put(item, "encrypted_content", None)
                self._expand_slots(slots([item]))
                put(item, "encrypted_content", sealed)

    def _expand_slots(self, found: Iterable[Slot]) -> None:
        families = {"text": "output_text", "arguments": "function_call_arguments", "json": "mcp_call_arguments"}
        for slot in found:
            wire = slot.text
            slot.write(self._expand(wire, families.get(slot.kind, "refusal")))
            if slot.kind == "text":
                put_offsets_right(slot.holder, wire, self._texts, json_text=self._exchange.json_reply)

    def _annotated(self, event: Any) -> Any:  # noqa: ANN401 - dict or object
        text = self._open.get(_key(event, "output_text"))
        if text is None:
            return event
        result = twin(event)
        move(get(result, "annotation"), Offsets("".join(text.wire), lambda: self._window("output_text")))
        return result

    def _flush(self, which: Any, *, signed: bool = False) -> list[Any]:  # noqa: ANN401 - a predicate
        """Deltas with what is held back of the texts whose keys are wanted."""
        wanted = [key for key in self._holding if which(key)]
        out = [event for key in wanted for event in self._holding[key].end(signed=signed)]
        for key in wanted:
            del self._holding[key]
        return out

    def _expand(self, text: str, family: str) -> str:
        window = self._window(family)
        return window.feed(text) + window.end()

    def _window(self, family: str) -> TextWindow:
        json_text = family in _JSON or (family == "output_text" and self._exchange.json_reply)
        return self._texts.open(json_text=json_text)


class _Text:
    """One text on its way out.

    Attributes:
        last: the event that brought the last of it.
        wire: what the model wrote so far, in pieces.
        told: what has gone out of it, in pieces.
    """

    def __init__(self, window: TextWindow, *, reasoning: bool) -> None:
        self._window: TextWindow | ReasoningText = ReasoningText(window) if reasoning else window
        self.last: Any = None
        self.wire: list[str] = []
        self.told: list[str] = []
        self._mark: tuple[int, Callable[[], str]] = 0, str

    @property
    def undecided(self) -> bool:
        """Something is held back until it is known whether it is encrypted."""
        return isinstance(self._window, ReasoningText) and self._window.is_open

    def feed(self, text: str) -> str:
        self.wire.append(text)
        return self._tell(self._window.feed(text))

    def settle(self) -> list[Any]:
        return self._event(self._window.settle()) if isinstance(self._window, ReasoningText) else []

    def end(self, *, signed: bool = False) -> list[Any]:
        if isinstance(self._window, ReasoningText):
            return self._event(self._window.end(signed=signed))
        return self._event(self._window.end())

    def mark(self) -> None:
        """Remember where the text stands: `give_up` goes back to here."""
        self._mark = len(self.told), held_by(self._window)

    def give_up(self) -> list[Any]:
        """What came since the mark counts for nothing; from now on all passes.

        Returns:
            A delta with what was held back then, if anything was.
        """
        place, held = self._mark
        del self.told[place:]
        self._window = UnchangedText()
        rest = held()
        return [_with(self.last, "delta", rest)] if rest else []

    def _event(self, text: str) -> list[Any]:
        return [_with(self.last, "delta", self._tell(text))] if text else []

    def _tell(self, text: str) -> str:
        self.told.append(text)
        return text


class _Numbers:
    """The events' sequence numbers, which move up where events are put in."""

    def __init__(self) -> None:
        self._last: int | None = None

    def next(self, event: Any) -> Any:  # noqa: ANN401 - dict or object
        """The event with its number; itself if that is right."""
        number = get(event, "sequence_number")
        if not isinstance(number, int):
            return event
        wanted = number if self._last is None else max(number, self._last + 1)
        self._last = wanted
        return event if wanted == number else _with(event, "sequence_number", wanted)


def _key(event: Any, family: str) -> Key:  # noqa: ANN401 - dict or object
    places = (get(event, name) for name in ("content_index", "summary_index", "command_index"))
    return family, get(event, "output_index"), next((place for place in places if place is not None), None)


def _with(event: Any, name: str, value: object) -> Any:  # noqa: ANN401 - dict or object
    """A copy of an event that says something else in one place."""
    result = dict(event) if isinstance(event, dict) else event.model_copy()
    put(result, name, value)
    return result
