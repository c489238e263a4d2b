"""Reasoning beside the texts of a streamed chat reply; `thoughts` is the same for whole ones.

A block of it comes in pieces, and whether it is signed shows in its last one at the earliest. So its text goes out at
once until its first symbol, and is held back from there on: until its signature comes (then it goes out as it came),
or until another block begins or its choice ends (then it goes out in plain words). `reasoning_content`, which says the
same, is not held back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from krunch_litellm.wire.reasoning import ReasoningText
from krunch_litellm.wire.thoughts import CARRIERS, COPIES, TEXTS, expanded_unless_sealed, is_sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from krunch_plugins import Exchange
    from krunch_plugins.exchange import TextExpander

_Chunk = dict[str, Any]
_Place = tuple[int, bool, str]
"""The choice, whether it is LiteLLM's copy in `provider_specific_fields`, and the field."""

_SEEN = "reasoning_content"
"""LiteLLM's proxy writes deltas without it by a short cut, which leaves out `reasoning_details` beside a text."""

_PIECES = ("thinking", "text", "summary")
"""Where a block that comes in pieces has its text."""


class StreamedThoughts:
    """Expands the reasoning beside the texts of one streamed chat reply.

    Args:
        exchange: the request.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._texts: TextExpander | None = None
        self._open: dict[_Place, _Block] = {}

    def put_right(self, chunk: _Chunk) -> _Chunk:
        """A chunk with what of its reasoning is decided. The one given is not changed."""
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return chunk
        return {**chunk, "choices": [self._choice(choice, at) for at, choice in enumerate(choices)]}

    def held(self) -> Callable[[], list[_Chunk]]:
        """Says what is held back now, as it came, whatever happens to it after this call."""
        held = [(place, block, block.text.held()) for place, block in self._open.items()]
        return lambda: [_chunk_of(place, block.said(raw())) for place, block, raw in held if raw()]

    def flush(self) -> list[_Chunk]:
        """The stream is at its end: what was held back."""
        ended = [(place, block.end()) for place, block in self._open.items()]
        self._open.clear()
        return [_chunk_of(place, rest) for place, rest in ended if rest]

    def _choice(self, choice: Any, at: int) -> Any:  # noqa: ANN401 - whatever JSON holds
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            return choice
        index = choice.get("index")
        index = index if isinstance(index, int) else at
        changed = {name: self._field((index, False, name), delta[name]) for name in CARRIERS if delta.get(name)}
        copies = delta.get(COPIES)
        if isinstance(copies, dict):
            told = {
                name: self._field((index, True, name), copies[name])
                for name in (*CARRIERS, *TEXTS)
                if copies.get(name) and (name in CARRIERS or isinstance(copies[name], str))
            }
            changed |= {COPIES: {**copies, **told}} if told else {}
        if choice.get("finish_reason") is not None:
            for place in [place for place in self._open if place[0] == index]:
                _add({**delta, **changed}, changed, place, self._open.pop(place).end())
        if all(value == delta.get(name) for name, value in changed.items()):
            return choice
        return {**choice, "delta": {**delta, **changed, _SEEN: delta.get(_SEEN) or ""}}

    def _field(self, place: _Place, value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
        """What a field of a delta says, as far as it is decided."""
        if isinstance(value, str):
            return "".join(self._piece(place, {"": value}, ""))
        return [out for entry in value for out in self._entry(place, entry)] if isinstance(value, list) else value

    def _entry(self, place: _Place, entry: Any) -> Iterator[Any]:  # noqa: ANN401 - whatever JSON holds
        """What goes out for one entry of a list."""
        before = self._open.get(place)
        if before is not None and not before.goes_on_with(entry):
            yield from self._open.pop(place).end()
            before = None
        key = next((key for key in _PIECES if isinstance(entry, dict) and isinstance(entry.get(key), str)), None)
        if key is not None:
            yield from self._piece(place, entry, key)
        elif before is not None and is_sealed(entry):  # the signature, and no text with it
            yield {**entry, before.key: self._open.pop(place).text.end(signed=True)}
        else:
            yield expanded_unless_sealed(entry, self._expander())

    def _piece(self, place: _Place, entry: Mapping[str, Any], key: str) -> list[Any]:
        block = self._open.get(place)
        if block is None:
            block = self._open[place] = _Block(entry, key, ReasoningText(self._expander().open()))
        text = block.text.feed(str(entry[key]))
        if is_sealed(entry):
            text += self._open.pop(place).text.end(signed=True)
        return [text if key == "" else {**entry, key: text}]

    def _expander(self) -> TextExpander:
        if self._texts is None:
            self._texts = self._exchange.texts()
        return self._texts


class _Block:
    """A block whose end has not come.

    Attributes:
        key: where its entries have their text; empty: the field is a string itself.
        text: its text.
    """

    def __init__(self, entry: Mapping[str, Any], key: str, text: ReasoningText) -> None:
        self.key, self.text = key, text
        self._first = entry

    def goes_on_with(self, entry: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
        """Whether an entry belongs to this block."""
        return isinstance(entry, dict) and all(entry.get(key) == self._first.get(key) for key in ("type", "index"))

    def end(self) -> list[Any]:
        """What goes out when nobody has signed it."""
        return self.said(self.text.end(signed=False))

    def said(self, text: str) -> list[Any]:
        """A text in the form of this block's entries; nothing if there is none."""
        return [text if self.key == "" else {**self._first, self.key: text}] if text else []


def _chunk_of(place: _Place, entries: list[Any]) -> _Chunk:
    delta: dict[str, Any] = {_SEEN: ""}
    _add({}, delta, place, entries)
    return {"choices": [{"index": place[0], "delta": delta, "finish_reason": None}]}


def _add(said: Mapping[str, Any], delta: dict[str, Any], place: _Place, entries: list[Any]) -> None:
    """Put entries into a delta, behind what it says already."""
    if not entries:
        return
    _, is_copy, name = place
    holder: dict[str, Any] = dict(said.get(COPIES) or {}) if is_copy else dict(said)
    before = holder.get(name)
    more: Any = "".join((before or "", *entries)) if isinstance(entries[0], str) else [*(before or ()), *entries]
    if is_copy:
        delta[COPIES] = {**holder, name: more}
    else:
        delta[name] = more
