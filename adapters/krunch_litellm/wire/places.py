"""Where the messages that are sent come from: plugins may take some out and put others in."""

from __future__ import annotations

import asyncio
import json
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from krunch_plugins import restore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_litellm.wire import WireRequest
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
    # Mostly one stretch was taken out: what is the same before and behind it need not be searched for.
    before = _common(ours, theirs)
    behind = _common(ours[before:][::-1], theirs[before:][::-1])
    found: list[int | None] = [None] * len(sent)
    found[:before] = range(before)
    found[len(sent) - behind :] = range(len(given) - behind, len(given))
    ours, theirs = ours[before : len(given) - behind], theirs[before : len(sent) - behind]
    for start, at, size in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        found[before + at : before + at + size] = range(before + start, before + start + size)
    return found


async def written(request: WireRequest, exchange: Exchange) -> dict[str, Any]:
    """`request.arguments(exchange)`, in a thread where messages have to be compared: that may take long."""
    if len(exchange.messages) == len(exchange.original):
        return request.arguments(exchange)
    return await asyncio.to_thread(request.arguments, exchange)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many items two sequences begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((number for number, (mine, its) in enumerate(pairs) if mine != its), min(len(one), len(other)))


def _face(message: Message) -> str:
    return json.dumps([message.get(key) for key in ("role", "content", "tool_calls", "tool_call_id")], default=str)
