"""Where the messages that are sent come from: plugins may take some out and put others in."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from krunch_plugins import restore

if TYPE_CHECKING:
    from krunch_plugins import Exchange
    from krunch_plugins.turns import Message


def sources(exchange: Exchange) -> list[int | None]:
    """The position in `exchange.original` of each of `exchange.messages`; None for one that a plugin put in.

    As many as there were are the same ones, in order, whatever became of their text. Otherwise a message is known by
    its role, text and calls.
    """
    given, sent = exchange.original, exchange.messages
    if len(given) == len(sent):
        return list(range(len(sent)))
    ours, theirs = [_face(message) for message in given], [_face(message) for message in restore(sent)]
    found: list[int | None] = [None] * len(sent)
    for start, at, size in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        found[at : at + size] = range(start, start + size)
    return found


def _face(message: Message) -> str:
    return json.dumps([message.get(key) for key in ("role", "content", "tool_calls", "tool_call_id")], default=str)
