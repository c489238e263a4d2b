"""Anthropic's messages, streamed: server-sent events, each content block a text of its own."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from krunch_litellm import telemetry
from krunch_litellm.wire.blocks import to_chat
from krunch_litellm.wire.fields import as_usage
from krunch_litellm.wire.reasoning import ReasoningText, UnchangedText, held_by
from krunch_litellm.wire.sse import EventReader, encode
from krunch_litellm.wire.thoughts import in_plain_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from krunch_plugins import Exchange
    from krunch_plugins.exchange import TextWindow

    Data = dict[str, Any]

_FIELDS = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}
"""The field of a delta that the model wrote, by the delta's type."""

_ENDS = frozenset({"message_delta", "message_stop", "error"})
"""Events before which everything must have gone out."""


class MessagesStream:
    """Expands a streamed reply: bytes or strings of server-sent events, or events that are parsed already.

    What is held back of a block goes out as one more delta, right before the event that ends the block. An event that
    does not change is handed on in the very bytes that it came in. If expanding fails, what was held back goes out
    before the event, and from there on everything is handed on as it came.

    Args:
        exchange: the request.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.usage: Mapping[str, Any] | None = None
        self.reply: Any = None
        self._exchange = exchange
        self._texts = exchange.texts()
        self._events = EventReader()
        self._blocks: dict[int, _Block] = {}
        self._open_blocks: dict[int, _Block] = {}  # those that may hold something back
        self._encode: Callable[[Data], Any] = encode
        self._broken = False

    def feed(self, item: Any) -> list[Any]:  # noqa: ANN401 - bytes, a string or a dict
        """Take one item; give back what is to be handed on."""
        if isinstance(item, dict):
            self._encode = dict
            changed = self._take(item)
            return [item] if changed is None else changed
        if not isinstance(item, (bytes, str)):
            return [item]
        if isinstance(item, str):
            self._encode = _encode_text
        out: list[bytes] = []
        for event in self._events.feed(item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item):
            changed = None if event.data is None else self._take(event.data)
            out += [event.raw] if changed is None else map(encode, changed)
        whole = b"".join(out)
        return [whole.decode("utf-8", "surrogatepass") if isinstance(item, str) else whole] if whole else []

    async def end(self, *, partial: bool) -> list[Any]:
        """What was held back; the hooks run."""
        rest: list[Any] = []
        with telemetry.counted("end"):
            rest = [self._encode(data) for data in self._flush()]
        raw = self._events.rest()
        if raw:
            rest.append(raw.decode(errors="replace") if self._encode is _encode_text else raw)
        with telemetry.counted("end"):
            blocks = [block.whole() for _, block in sorted(self._blocks.items())]
            if blocks:
                await self._texts.aend(to_chat("assistant", blocks), partial=partial)
        return rest

    def _take(self, data: Data) -> list[Data] | None:
        """What goes out instead of an event; None if that is the event itself, as it came."""
        try:
            if not self._broken:
                for block in self._open_blocks.values():
                    block.mark()
            out = self._event(data)
        except Exception as error:  # noqa: BLE001 - whatever a provider sends, the stream goes on
            telemetry.failed("stream", error)
            return _before(self._give_up(data), data)
        return None if self._broken else out

    def _give_up(self, data: Data) -> list[Data]:
        """Hand on everything as it comes; what it says is noted all the same, as far as it can be read.

        Returns:
            What was held back before this event.
        """
        if self._broken:
            return []
        self._broken = True
        held = [delta for index, block in sorted(self._open_blocks.items()) for delta in block.give_up(index)]
        with suppress(Exception):
            self._event(data)
        return held

    def _open(self, *, json_text: bool) -> TextWindow:
        return UnchangedText() if self._broken else self._texts.open(json_text=json_text)

    def _event(self, data: Data) -> list[Data] | None:
        kind, index = data.get("type"), data.get("index")
        if kind == "message_start":
            self._note_usage((data.get("message") or {}).get("usage"))
        elif kind == "content_block_start" and isinstance(index, int) and isinstance(data.get("content_block"), dict):
            block = _Block(data["content_block"], self._open, json_text=self._exchange.json_reply)
            self._blocks[index] = self._open_blocks[index] = block
            return [{**data, "content_block": block.opening}] if block.opening != data["content_block"] else None
        elif kind == "content_block_delta" and index in self._blocks and isinstance(data.get("delta"), dict):
            return self._delta(data, self._blocks[index])
        elif kind == "content_block_stop" and index in self._blocks:
            block = self._blocks[index]
            rest = block.end(index)
            self._open_blocks.pop(index, None)
            return _before(rest, data)
        elif kind in _ENDS:
            self._note_usage(data.get("usage"))
            told = self._told(data)
            return [*self._flush(), told] if told is not data else _before(self._flush(), data)
        return None

    def _delta(self, data: Data, block: _Block) -> list[Data] | None:
        delta = data["delta"]
        if delta.get("type") == "signature_delta" and delta.get("signature"):
            return _before(block.sign(data["index"], delta["signature"]), data)
        field = _FIELDS.get(delta.get("type"))
        if field is None or not isinstance(delta.get(field), str):
            block.note(delta)
            return None
        out = block.feed(delta["type"], delta[field])
        return None if out == delta[field] else [{**data, "delta": {**delta, field: out}}]

    def _told(self, data: Data) -> Data:
        """The event itself, or one in which what a refusal says of itself is expanded."""
        delta = data.get("delta")
        details = delta.get("stop_details") if isinstance(delta, dict) else None
        if not details or self._broken:
            return data
        plain = in_plain_words(details, self._texts)
        return data if plain == details else {**data, "delta": {**data["delta"], "stop_details": plain}}

    def _flush(self) -> list[Data]:
        return [data for index, block in sorted(self._open_blocks.items()) for data in block.end(index)]

    def _note_usage(self, usage: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        counted = as_usage(usage)
        if counted:
            self.usage = {**(self.usage or {}), **counted}


class _Block:
    """One content block on its way out.

    Attributes:
        opening: what the event that begins the block says of it, expanded.
    """

    def __init__(self, given: Data, open_window: Callable[..., TextWindow], *, json_text: bool) -> None:
        self._kind = given.get("type")
        self._out: list[str] = []
        self._signature: str | None = given.get("signature") or None
        self._citations: list[Any] = []
        self._delta_type = ""
        self._mark: tuple[int, Callable[[], str]] = 0, str
        window = open_window(json_text=self._kind not in {"text", "thinking"} or (json_text and self._kind == "text"))
        self._window: TextWindow | ReasoningText = ReasoningText(window) if self._kind == "thinking" else window
        self.opening = given
        field = {"text": "text", "thinking": "thinking"}.get(str(self._kind))
        if field and given.get(field):
            self.opening = {**given, field: self.feed(f"{field}_delta", given[field])}

    def feed(self, delta_type: str, text: str) -> str:
        """Take more of the block's text; give back what goes out now."""
        self._delta_type = delta_type
        return self._said(self._window.feed(text))

    def sign(self, index: int, signature: str) -> list[Data]:
        """The block is signed: what was held back goes out as it came."""
        self._signature = (self._signature or "") + signature
        return self.end(index)

    def note(self, delta: Data) -> None:
        """Take a delta that is handed on as it is."""
        if "citation" in delta:
            self._citations.append(delta["citation"])

    def end(self, index: int) -> list[Data]:
        """The block is at its end: a delta with what was held back, if anything was."""
        if isinstance(self._window, ReasoningText):
            rest = self._window.end(signed=self._signature is not None)
        else:
            rest = self._window.end()
        if not rest:
            return []
        return [self._rest_delta(index, self._said(rest))]

    def _rest_delta(self, index: int, rest: str) -> Data:
        delta = {"type": self._delta_type, _FIELDS[self._delta_type]: rest}
        return {"type": "content_block_delta", "index": index, "delta": delta}

    def mark(self) -> None:
        """Remember where the block stands: `give_up` goes back to here."""
        self._mark = len(self._out), held_by(self._window)

    def give_up(self, index: int) -> list[Data]:
        """What came since the mark counts for nothing; from now on all passes.

        Returns:
            A delta with what was held back then, if anything was.
        """
        place, held = self._mark
        rest = held()
        self._out[place:] = [rest]
        self._window = UnchangedText()
        return [self._rest_delta(index, rest)] if rest else []

    def whole(self) -> Data:
        """The block as the client has it."""
        text = "".join(self._out)
        if self._kind == "text":
            return {**self.opening, "text": text, **({"citations": self._citations} if self._citations else {})}
        if self._kind == "thinking":
            return {**self.opening, "thinking": text, "signature": self._signature or ""}
        return {**self.opening, "input": _parsed(text)} if text else self.opening

    def _said(self, text: str) -> str:
        self._out.append(text)
        return text


def _before(held: list[Data], data: Data) -> list[Data] | None:
    """An event with what must go out before it; None if that is nothing."""
    return [*held, data] if held else None


def _parsed(text: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """A tool call's input; its text where that is no JSON, because the stream was broken off."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _encode_text(data: Data) -> str:
    return encode(data).decode()
