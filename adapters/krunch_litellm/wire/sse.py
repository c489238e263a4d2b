"""Server-sent events in bytes that may be cut anywhere."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINES = re.compile(r"\r\n|\n|\r")


class Event(NamedTuple):
    """One event.

    Attributes:
        raw: its bytes, with the blank line that ends it.
        data: what it says, parsed; None if that is no JSON object.
    """

    raw: bytes
    data: dict[str, Any] | None


_FIELDS = (b"data", b"event", b"id", b"retry", b":", b"\r", b"\n", b"\xef\xbb\xbf")
"""What an event may begin with: a field, a comment, the end of a line, the mark before UTF-8."""


class EventReader:
    """Cuts a stream of bytes into events; what is incomplete waits for the rest."""

    def __init__(self) -> None:
        self._held = bytearray()  # grows in place: an event may be large, and come in many pieces

    def feed(self, data: bytes) -> list[Event]:
        """Take more bytes; give back the events that are complete by now."""
        # A blank line may be cut itself, so the search begins a little before what is new.
        begin = max(0, len(self._held) - 3)
        self._held += data
        events, start = [], 0
        for end in [match.end() for match in _BLANK_LINE.finditer(self._held, begin)]:
            events.append(_event(bytes(self._held[start:end])))
            start = end
        del self._held[:start]
        if self._held and not any(self._held.startswith(field[: len(self._held)]) for field in _FIELDS):
            events.append(Event(self.rest(), None))  # no event at all: there may never be a blank line to wait for
        return events

    def rest(self) -> bytes:
        """The stream is at its end: the bytes that no event came of."""
        rest = bytes(self._held)
        self._held.clear()
        return rest


def encode(data: Mapping[str, Any]) -> bytes:
    """An event as bytes, announced by its type."""
    return f"event: {data.get('type')}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _event(raw: bytes) -> Event:
    try:
        lines = _LINES.split(raw.decode())
        value = json.loads("\n".join(line[5:].removeprefix(" ") for line in lines if line.startswith("data:")))
    except (ValueError, RecursionError):  # no Unicode, no JSON, or nested deeper than can be read
        return Event(raw, None)
    return Event(raw, value if isinstance(value, dict) else None)
