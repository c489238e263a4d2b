"""Offsets into a reply's text, as annotations and citations have them, in the text after expansion."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from krunch_litellm.wire.fields import get, items, put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from krunch_plugins import Exchange
    from krunch_plugins.exchange import TextExpander, TextWindow
    from krunch_plugins.turns import Message

_FURTHEST = 64
"""Characters by which an offset inside a symbol is moved at most; no symbol is longer."""


class Offsets:
    """Turns offsets into the text that the model wrote into offsets into the text that the client gets.

    An offset is right where the text before it expands to what the whole expansion begins with. One inside a symbol is
    moved: a start before it, an end behind it.

    Args:
        text: the text that the model wrote.
        open_window: gives a fresh window to expand it with.
    """

    def __init__(self, text: str, open_window: Callable[[], TextWindow]) -> None:
        self._text, self._open = text, open_window
        self._whole = self._expand(len(text))

    def start(self, offset: int) -> int:
        """The offset of a stretch's beginning."""
        return self._moved(offset, range(offset, max(-1, offset - _FURTHEST), -1))

    def end(self, offset: int) -> int:
        """The offset of a stretch's end."""
        return self._moved(offset, range(offset, min(len(self._text), offset + _FURTHEST) + 1))

    def _moved(self, offset: int, candidates: Iterable[int]) -> int:
        if self._whole == self._text or not 0 <= offset <= len(self._text):
            return offset
        for candidate in candidates:
            before = self._expand(candidate)
            if self._whole.startswith(before):
                return len(before)
        return offset

    def _expand(self, length: int) -> str:
        window = self._open()
        return window.feed(self._text[:length]) + window.end()


def move(annotation: Any, offsets: Offsets) -> None:  # noqa: ANN401 - dict or object
    """Put the offsets of an annotation right, in place, wherever its kind keeps them."""
    for holder in (annotation, get(annotation, "url_citation")):
        for key, moved in (("start_index", offsets.start), ("end_index", offsets.end)):
            if isinstance(offset := get(holder, key), int):
                put(holder, key, moved(offset))


def put_offsets_right(part: Any, wire: str, texts: TextExpander, *, json_text: bool) -> None:  # noqa: ANN401 - dict or object
    """Put the offsets of a part's annotations right, in place.

    Args:
        part: the part, expanded.
        wire: its text as the model wrote it.
        texts: what expands texts.
        json_text: the text is JSON.
    """
    annotations = items(part, "annotations")
    if annotations:
        offsets = Offsets(wire, lambda: texts.open(json_text=json_text))
        for annotation in annotations:
            move(annotation, offsets)


def with_offsets_right(message: Message, wire: str, exchange: Exchange) -> Message:
    """A chat message, or a delta of one, whose annotations have the offsets of its text after expansion.

    Args:
        message: the message; not changed.
        wire: the text that the annotations are about, as the model wrote it.
        exchange: the request that it answers.
    """
    if not isinstance(message.get("annotations"), list) or not message["annotations"]:
        return message
    result = {**message, "annotations": copy.deepcopy(message["annotations"])}
    put_offsets_right(result, wire, exchange.texts(), json_text=exchange.json_reply)
    return result


class StreamedOffsets:
    """The same for a stream of chat chunks.

    Args:
        exchange: the request that it answers.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._wire: dict[int, list[str]] = {}

    def note(self, index: int, content: str) -> None:
        """Take text of a choice, as the model wrote it."""
        self._wire.setdefault(index, []).append(content)

    def put_right(self, given: Mapping[str, Any], out: dict[str, Any]) -> dict[str, Any]:
        """A chunk with its annotations' offsets right.

        Args:
            given: the chunk as it came.
            out: the chunk as it goes out; not changed.
        """
        for choice in items(given, "choices"):
            content = get(get(choice, "delta"), "content")
            if isinstance(content, str):
                self.note(choice.get("index") or 0, content)
        if not any(get(get(choice, "delta"), "annotations") for choice in items(out, "choices")):
            return out
        choices = [
            {
                **choice,
                "delta": with_offsets_right(
                    choice["delta"], "".join(self._wire.get(choice.get("index") or 0, ())), self._exchange
                ),
            }
            for choice in out["choices"]
        ]
        return {**out, "choices": choices}
