"""Which turns of a session are a chat history's, and which of them a model wrapper recorded for it.

A wrapper on the same session records what it sends and gets, just before LangChain hands the same messages to the
history. The history then *claims* those turns instead of storing them again. What else an exchange recorded around
them (the system prompt, examples, a question as a template worded it) is no part of the history, and is *hidden*.

What is claimed or hidden stands in states of the session, one for each page of 64 turns. Where the message that
LangChain handed over differs from the one that was recorded, a state of that turn's own says how: it holds text, so the
store removes it with the turn.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

from krunch_langchain.json_values import from_json_value, to_json_value
from krunch_langchain.messages import METADATA_KEY, from_turn, openai_form

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from krunch_plugins import ConversationStore, Turn

MARK = "history"
"""Key in the metadata of turns that a history stored: a dict, with `before` where the turn belongs before another."""

_STATE = "langchain.history."
_CHANGES = "langchain.history.changes."
_PAGE = 64
_GLANCE, _LOOK_BACK = 16, 256
"""Turns at a session's end among which a wrapper's are looked for: at first, and at most."""
_INSTRUCTIONS = ("system", "developer")
_CLAIMED, _HIDDEN = "c", "h"

_Known = tuple["Turn", str, str | None, str]
"""A turn, its message's type and id, and the gist of it."""


@dataclass(slots=True)
class Claims:
    """What is claimed and hidden, as far as it was read.

    Attributes:
        flags: by turn number.
        changes: by turn number, the fields of the claimed message that differ from the recorded one.
        changed: numbers of turns that have changes in the store.
    """

    flags: dict[int, str] = field(default_factory=dict)
    changes: dict[int, dict[str, Any]] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, store: ConversationStore, session: str, tenant: str | None, numbers: range) -> Claims:
        """Of turns with these numbers."""
        claims = cls()
        if numbers:
            for page in range(numbers.start // _PAGE, numbers[-1] // _PAGE + 1):
                data = store.get_state(session, f"{_STATE}{page}", tenant=tenant)
                claims.add(page, json.loads(data) if data else {})
            for number in [number for number in claims.changed if number in numbers]:
                data = store.get_state(session, f"{_CHANGES}{number}", tenant=tenant)
                if data:
                    claims.changes[number] = json.loads(data)
        return claims

    def add(self, page: int, stored: Mapping[str, Any]) -> None:
        """Take in one page as it is stored."""
        for offset, what in stored.get("flags", {}).items():
            self.flags[page * _PAGE + int(offset)] = what
        self.changed.update(page * _PAGE + int(offset) for offset in stored.get("changed", {}))

    def merge(self, other: Claims) -> None:
        """Take in what was read of other turns."""
        self.flags.update(other.flags)
        self.changes.update(other.changes)
        self.changed.update(other.changed)

    def in_use(self, turns: Iterable[Turn]) -> bool:
        """Whether a session with these turns has a history."""
        return bool(self.flags) or any(MARK in turn.metadata for turn in turns)

    def write(self, store: ConversationStore, session: str, tenant: str | None) -> bool:
        """Add these to what is stored; False, and nothing is added, if somebody else has claimed one of them since."""
        pages = sorted({number // _PAGE for number in self.flags})
        for count, page in enumerate(pages):
            try:
                store.update_state(session, f"{_STATE}{page}", partial(self._with, page), tenant=tenant)
            except _TakenError:
                self._erase(store, session, tenant, pages[:count])
                return False
        # After the flags: nobody else writes the changes of a turn that is claimed.
        for number, changes in self.changes.items():
            data = json.dumps(changes, separators=(",", ":")).encode()
            store.put_state(session, f"{_CHANGES}{number}", data, tenant=tenant, turn=number)
        return True

    def erase(self, store: ConversationStore, session: str, tenant: str | None) -> None:
        """Take these out of what is stored again."""
        self._erase(store, session, tenant, sorted({number // _PAGE for number in self.flags}))

    def _erase(self, store: ConversationStore, session: str, tenant: str | None, pages: Sequence[int]) -> None:
        for page in pages:
            store.update_state(session, f"{_STATE}{page}", partial(self._without, page), tenant=tenant)

    def _with(self, page: int, data: bytes | None) -> bytes:
        stored = json.loads(data) if data else {}
        flags, changed = stored.setdefault("flags", {}), stored.setdefault("changed", {})
        for number, flag in self._on(page, self.flags):
            if flag == _CLAIMED and flags.get(number) == _CLAIMED:
                raise _TakenError
            if flag == _CLAIMED or number not in flags:
                flags[number] = flag
        changed.update((number, 1) for number, _ in self._on(page, self.changes))
        return json.dumps(stored, separators=(",", ":")).encode()

    def _without(self, page: int, data: bytes | None) -> bytes:
        stored = json.loads(data) if data else {}
        for number, _ in self._on(page, self.flags):
            for held in stored.values():
                held.pop(number, None)
        return json.dumps(stored, separators=(",", ":")).encode()

    @staticmethod
    def _on(page: int, values: Mapping[int, Any]) -> list[tuple[str, Any]]:
        """What belongs on a page, by place on it."""
        return [(str(number % _PAGE), value) for number, value in values.items() if number // _PAGE == page]


class _TakenError(Exception):
    """Somebody else has claimed a turn in the meantime."""


def belongs(turn: Turn, claims: Claims, *, in_use: bool) -> bool:
    """Whether a turn is part of the history.

    What others recorded is, unless an exchange of this history's had it beside its own messages, or it is the prompt of
    a chain, which brings that along every time.

    Args:
        turn: the turn.
        claims: what is claimed and hidden.
        in_use: whether the session has a history; where it has none, everything in it is shown.
    """
    flag = claims.flags.get(turn.number)
    if flag == _HIDDEN:
        return False
    own = flag == _CLAIMED or MARK in turn.metadata
    return own or not in_use or METADATA_KEY not in turn.metadata or turn.message.get("role") not in _INSTRUCTIONS


def shown(turns: Sequence[Turn], claims: Claims) -> list[tuple[int, BaseMessage]]:
    """The history: number and message of each turn that is part of it, in order."""
    in_use, again = claims.in_use(turns), came_back(turns, claims)
    own = (turn for turn in turns if turn.number not in again and belongs(turn, claims, in_use=in_use))
    kept = sorted(own, key=order_of)
    return [(turn.number, message_of(turn, claims)) for turn in kept]


def came_back(turns: Sequence[Turn], claims: Claims) -> set[int]:
    """Numbers of turns that are words of the history, which a later request brought along.

    The wrapper sends what the history says, a question as the user put it, where a template's wording of it was
    recorded; so it is recorded, too. It is hidden when the history claims the exchange. Until then, and for good where
    the chain failed after its model had answered, this tells it from what was asked anew: a reply follows that.
    """
    free = [
        turn
        for turn in turns
        if METADATA_KEY in turn.metadata and MARK not in turn.metadata and claims.flags.get(turn.number) != _CLAIMED
    ]
    if not claims.changes or all(turn.number in claims.flags for turn in free):
        return set()
    said: dict[str, list[int]] = {}
    for turn in turns:
        words = gist_of(openai_form(message_of(turn, claims))) if turn.number in claims.changes else None
        if words is not None and words != gist_of(turn.message):
            said.setdefault(words, []).append(turn.number)
    replies = {turn.number for turn in turns if _is_reply(turn)}
    again = set()
    for turn in free:
        numbers = said.get(gist_of(turn.message))
        asked = turn.number + 1 in replies and turn.message.get("role") not in ("assistant", *_INSTRUCTIONS)
        if numbers and numbers[0] < turn.number and not asked:
            del numbers[0]
            again.add(turn.number)
    return again


def match(
    batch: Sequence[BaseMessage], turns: Sequence[Turn], claims: Claims, reads: Sequence[int], *, of_chain: bool = False
) -> dict[int, Turn]:
    """Which messages of a batch were recorded already: position and turn, both in order.

    A turn is taken for a message if it has its id; or else its words, if it was recorded since the history was read, or
    stands right before one that was taken. From the end backwards, the nearest first: so a user who says the same
    thing twice has said it twice. A question whose answer was taken takes the user's turn right before that, whatever
    a template made of its words. Where a chain made other words of its model's reply, its answer takes the last reply
    that was recorded since it began.

    Args:
        batch: the messages that LangChain hands over.
        turns: the session's newest turns.
        claims: what is claimed of them.
        reads: numbers of the session's next turn when the history was read, at least one.
        of_chain: the batch is what a chain was asked and answered, and the last read was when it began.
    """
    again = came_back(turns, claims)
    free = [turn for turn in turns if MARK not in turn.metadata and claims.flags.get(turn.number) != _CLAIMED]
    free = [turn for turn in free if turn.number not in again]
    known: list[_Known] = [(turn, *_facts(turn)) for turn in free]
    found: dict[int, Turn] = {}
    end, since = len(known), min(reads)
    # What stood between the turns of another exchange, and was hidden with it, may be claimed still; older ones are
    # what templates made of questions, and the questions as they came back in later requests.
    hidden = {number for number in claims.flags if number < max(reads)}
    for position in reversed(range(len(batch))):
        fresh = _Fresh(since, hidden)
        index = _place(batch[position], known[:end], fresh, found.get(position + 1))
        if index is None and of_chain and position == len(batch) - 1 and batch[position].type == "ai":
            replies = (place for place, (turn, *_) in enumerate(known) if turn.number >= max(reads) and _is_reply(turn))
            index = max(replies, default=None)
        if index is not None:
            turn = found[position] = known[index][0]
            end = index
            # An exchange is recorded in one step, so what was read before its end was read before its beginning.
            since = max((read for read in reads if read <= turn.number), default=since)
    return dict(sorted(found.items()))


class _Fresh(NamedTuple):
    """Of which turns words are enough: those from number `since` on that are not `hidden`."""

    since: int
    hidden: set[int]

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and number >= self.since and number not in self.hidden


def _place(message: BaseMessage, known: Sequence[_Known], fresh: _Fresh, after: Turn | None) -> int | None:
    """Which turn is a message's, if one is.

    Args:
        message: the message.
        known: the turns that it can be.
        fresh: numbers of those whose words are enough.
        after: the turn of the message after it.
    """
    last = known[-1] if known else None
    if last and after is not None and last[0].number == after.number - 1:
        by_wrapper = METADATA_KEY in last[0].metadata
        if last[1] == message.type == "human" and by_wrapper and not (message.id and last[2] and message.id != last[2]):
            return len(known) - 1
    gist = gist_of(openai_form(message))
    expected = after.number - 1 if after is not None else -1
    for index in reversed(range(len(known))):
        turn, kind, message_id, words = known[index]
        if kind == message.type and not (message.id and message_id and message.id != message_id):
            by_id = bool(message.id) and message.id == message_id
            if by_id or (words == gist and (turn.number in fresh or turn.number == expected)):
                return index
    return None


def claim(
    batch: Sequence[BaseMessage], found: Mapping[int, Turn], turns: Sequence[Turn], claims: Claims, since: int
) -> Claims:
    """What to note down: the claims, and what stood around them in the same exchanges and is none of the history.

    That is what a LangChain adapter recorded, or what came after the history was read. What a program stored before
    stays part of it.
    """
    noted = Claims()
    for position, taken in found.items():
        noted.flags[taken.number] = _CLAIMED
        changes = _changes(taken, batch[position])
        if changes:
            noted.changes[taken.number] = changes
    if not found:
        return noted
    numbers = [turn.number for turn in found.values()]
    by_number = {turn.number: turn for turn in turns}
    for number in range(max(numbers) - 1, min(by_number) - 1, -1):
        turn = by_number.get(number)
        if number in noted.flags:
            continue
        other = turn is None or MARK in turn.metadata or number in claims.flags
        other = other or (turn is not None and number < since and METADATA_KEY not in turn.metadata)
        if number < min(numbers) and (other or _is_reply(turn)):
            break  # the end of an earlier exchange
        if not other:
            noted.flags[number] = _HIDDEN
    return noted


def look_back(count: int) -> list[int]:
    """How many of the newest turns to look at for `count` messages: few, which are in RAM, and more if need be."""
    return sorted({count + _GLANCE, count + 4 * _GLANCE, count + _LOOK_BACK})


def _is_reply(turn: Turn | None) -> bool:
    """Whether a turn is what a model answered, and not an example in a prompt."""
    return turn is not None and turn.message.get("role") == "assistant" and "model" in turn.metadata


def order_of(turn: Turn) -> tuple[int, int, int]:
    """Where a turn belongs in the history, to sort by."""
    mark = turn.metadata.get(MARK)
    before = mark.get("before") if isinstance(mark, dict) else None
    return (turn.number, 1, 0) if before is None else (before, 0, turn.number)


def message_of(turn: Turn, claims: Claims) -> BaseMessage:
    """LangChain's message of a turn, as it was handed over where it was claimed."""
    message, changes = from_turn(turn), claims.changes.get(turn.number)
    if not changes:
        return message
    whole = message_to_dict(message)
    data = {**whole["data"], **from_json_value(dict(changes))}
    return messages_from_dict([{"type": whole["type"], "data": data}])[0]


def _changes(turn: Turn, message: BaseMessage) -> dict[str, Any]:
    """The fields of the message that LangChain handed over which differ from the recorded one's.

    Empty ones do not count: a chain that ends in a parser hands over the text alone, and what was recorded says more.
    """
    recorded, handed = message_to_dict(from_turn(turn))["data"], message_to_dict(message)["data"]
    changed = {
        name: value
        for name, value in handed.items()
        if (name not in recorded or recorded[name] != value) and (value or name == "content")
    }
    stored: dict[str, Any] = to_json_value(changed)
    return stored


def _facts(turn: Turn) -> tuple[str, str | None, str]:
    message = from_turn(turn)
    return message.type, message.id, gist_of(turn.message)


def gist_of(form: Mapping[str, Any]) -> str:
    """What makes two messages the same to a person: role, text, other content, tool calls, names."""
    content = form.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    others = [part for part in parts if not (isinstance(part, dict) and part.get("type") == "text")]
    calls = [[call.get("id"), call.get("function")] for call in form.get("tool_calls") or ()]
    names = [form.get("name") or None, form.get("tool_call_id") or None]
    return json.dumps([form.get("role"), "".join(texts).strip(), others, calls, names], sort_keys=True, default=str)


def given_before(batch: Sequence[BaseMessage], reads: Iterable[Sequence[int]], given: Mapping[int, BaseMessage]) -> int:
    """With how many messages a batch begins that came from the history, as copies.

    Args:
        batch: the messages.
        reads: numbers of the turns that were given out, each time that the history was read.
        given: their messages by number.
    """
    said = [_sign(message) for message in batch]
    for numbers in sorted(reads, key=len, reverse=True):
        if len(numbers) <= len(batch) and all(
            number in given and _sign(given[number]) == sign for number, sign in zip(numbers, said, strict=False)
        ):
            return len(numbers)
    return 0


def _sign(message: BaseMessage) -> tuple[str | None, str]:
    """What tells a message from others with the same words, where it has an id; else the words."""
    return message.id, gist_of(openai_form(message))


def in_order(count: int, found: Mapping[int, Turn]) -> Iterable[tuple[int, int | None]]:
    """Positions of the messages that are still to be stored, each with the turn that it belongs before, if it does."""
    for position in range(count):
        if position not in found:
            yield position, next((turn.number for at, turn in found.items() if at > position), None)
