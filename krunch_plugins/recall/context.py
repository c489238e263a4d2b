"""A session's context, from the store: its end, all of it, or its end and the old turns that matter now."""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, get_args

from krunch_plugins import tokens
from krunch_plugins.recall.cut import Units
from krunch_plugins.recall.excerpts import excerpt
from krunch_plugins.recall.locks import Lock
from krunch_plugins.recall.messages import Lengths, is_instruction, is_result, is_users
from krunch_plugins.recall.selection import RECALLED, ROLES, Candidate, Chosen, choose, needed, search_for
from krunch_plugins.recall.texts import text_of
from krunch_plugins.recall.weights import SAMPLE, Weights, words
from krunch_plugins.settings import ContextMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from krunch_plugins.tokens import Tokenizer
    from krunch_plugins.turns import Message, SearchHit, SearchQuery, Turn

RECENT_SHARE = 5
"""One of so many parts of a smart context's budget is for the newest turns, whatever else matters."""

_AT_ONCE = 20
"""Turns that are read first; as many as the store holds in RAM of a session."""
_CHUNK = 1024
_SESSIONS = 4096
"""Sessions whose instructions are remembered."""
_EDITED = 80
"""Characters from which on two instructions of nearly the same text are taken for one that was edited."""


class SessionFacts(Protocol):
    """What the store knows about a session without reading it."""

    @property
    def key(self) -> str:
        """Names it for good: another one if it was forgotten and begun again; "" if nothing is known for good."""

    @property
    def first(self) -> int:
        """Number of its oldest turn."""

    @property
    def stop(self) -> int:
        """The number that its next turn will get."""


class ContextStore(Protocol):
    """What a context needs of the store."""

    def turns(self, session: str, start: int = 0, stop: int | None = None, *, tenant: str | None = None) -> list[Turn]:
        """Turns `start` to before `stop`, in order; what is not there is left out."""

    def recent(self, session: str, n: int = 20, *, tokens: int | None = None, tenant: str | None = None) -> list[Turn]:
        """The newest turns, in order."""

    def info(self, session: str, tenant: str | None = None) -> SessionFacts | None:
        """What is known of a session; None if there is none."""


class _Held(NamedTuple):
    """`SessionFacts` of turns that are only in RAM."""

    key: str
    first: int
    stop: int


class RecentTurns(Protocol):
    """Gives the newest turns of a session."""

    def __call__(self, session: str, n: int, *, tenant: str | None) -> list[Turn]:
        """At most `n` of them, in order."""


class HeldTurns:
    """A `ContextStore` over the newest turns in RAM, where there is no other.

    Args:
        recent: the newest turns of a session, in order, at most so many.
    """

    def __init__(self, recent: RecentTurns) -> None:
        self._recent = recent

    def turns(self, session: str, start: int = 0, stop: int | None = None, *, tenant: str | None = None) -> list[Turn]:
        """Those of the turns that are held."""
        held = self._recent(session, sys.maxsize, tenant=tenant)
        return [turn for turn in held if start <= turn.number and (stop is None or turn.number < stop)]

    def recent(self, session: str, n: int = 20, *, tokens: int | None = None, tenant: str | None = None) -> list[Turn]:
        """The newest turns; `tokens` is not looked at."""
        del tokens
        return self._recent(session, n, tenant=tenant)

    def info(self, session: str, tenant: str | None = None) -> SessionFacts | None:
        """The numbers of what is held."""
        held = self._recent(session, sys.maxsize, tenant=tenant)
        return _Held("", held[0].number, held[-1].number + 1) if held else None


@dataclass(slots=True)
class _Instructions:
    """The instructions among the turns of a session, as far as it was read; of one that was edited the last edition."""

    key: str
    first: int = 0
    stop: int = 0
    turns: list[Turn] = field(default_factory=list)


class _End(NamedTuple):
    """The newest turns that fit, in order, and what they take; `whole` if they are all there are."""

    turns: list[Turn]
    tokens: int
    whole: bool


class Contexts:
    """Makes contexts. Thread-safe.

    Tokens are counted as `encoding` counts them; four are added for each message, and 1,000 for each image or file.

    Args:
        store: where the turns are.
        search: finds old ones.
        encoding: name of a tiktoken encoding.
    """

    def __init__(
        self, store: ContextStore, search: Callable[[SearchQuery], Sequence[SearchHit]], encoding: str
    ) -> None:
        self._store, self._search, self._encoding = store, search, encoding
        self._lengths = Lengths()
        self._lock = Lock()
        self._known: OrderedDict[tuple[str | None, str], _Instructions] = OrderedDict()

    def make(
        self, session: str, mode: ContextMode, query: str | None, budget: int, tenant: str | None
    ) -> list[Message]:
        """The messages of a context; `Krunch.context` says what they are, and what is raised."""
        if mode not in get_args(ContextMode):
            raise ValueError(f"the mode of a context is {mode!r}; it can be {', '.join(get_args(ContextMode))}")
        if budget < 1:
            raise ValueError(f"the budget of a context is {budget} tokens; it must be 1 at least")
        if mode == "full":
            return [turn.message for turn in self._store.turns(session, tenant=tenant)]
        making = _Making(self, session, tenant, tokens.load(self._encoding, wait=True), budget)
        if mode == "recent":
            return making.messages(making.end(making.room))
        return making.smart(query)

    def instructions(self, session: str, tenant: str | None) -> list[Turn]:
        """The messages of the system in a session; of one that was edited the last edition, where the first stood."""
        info = self._store.info(session, tenant)
        if info is None:
            with self._lock:
                self._known.pop((tenant, session), None)
            return []
        with self._lock:
            known = self._known.get((tenant, session))
        same = known is not None and info.key and (known.key, known.first) == (info.key, info.first)
        if known is None or not same or known.stop > info.stop:
            known = _Instructions(info.key, info.first, info.first)
        start, found = known.stop, list(known.turns)
        while start < info.stop:
            stop = min(start + _CHUNK, info.stop)
            for turn in self.read(session, start, stop, tenant):
                if is_instruction(turn.message):
                    _add_edition(found, turn)
            start = stop
        with self._lock:
            self._known[tenant, session] = _Instructions(info.key, info.first, info.stop, found)
            self._known.move_to_end((tenant, session))
            if len(self._known) > _SESSIONS:
                self._known.popitem(last=False)
        return found

    def read(self, session: str, start: int, stop: int, tenant: str | None) -> list[Turn]:
        """Turns from the store."""
        return self._store.turns(session, start, stop, tenant=tenant)

    def newest(self, session: str, count: int, tenant: str | None) -> list[Turn]:
        """The newest turns, from RAM if they are there."""
        return self._store.recent(session, count, tenant=tenant)

    def find(self, query: SearchQuery) -> Sequence[SearchHit]:
        """Old turns."""
        return self._search(query)

    def length(self, turn: Turn, tokenizer: Tokenizer) -> int:
        """Tokens of a turn's message."""
        return self._lengths.of(turn.message, tokenizer)


class _Making:
    """One context in the making."""

    def __init__(self, contexts: Contexts, session: str, tenant: str | None, tokenizer: Tokenizer, budget: int) -> None:
        self._all, self._session, self._tenant, self._tokenizer = contexts, session, tenant, tokenizer
        self._instructions = contexts.instructions(session, tenant)
        self.room = budget - sum(contexts.length(turn, tokenizer) for turn in self._instructions)
        """Tokens for everything else; below 0 if the messages of the system exceed the budget."""

    def end(self, room: int) -> _End:
        """The newest turns that fit into so many tokens, no call without its result and no result without its call."""
        wanted = _AT_ONCE
        while True:
            turns = self._all.newest(self._session, wanted, self._tenant)
            end = self._fitting(turns, room, whole=len(turns) < wanted)
            if end is not None:
                return end
            wanted *= 2

    def _fitting(self, turns: Sequence[Turn], room: int, *, whole: bool) -> _End | None:
        """`end` among these turns; None if more of them would be needed to say. `whole`: there are no others."""
        said: list[Turn] = []
        units = Units()
        for turn in turns:
            if is_instruction(turn.message):
                continue
            made = units.add(len(said), turn.message)
            if is_result(turn.message) and not made:
                if whole:  # nobody made the call: a result that no provider takes
                    continue
                units.starts.clear()
            for call in made:
                units.join(call)
            said.append(turn)
        start, used, stop = len(said), 0, len(said)
        for unit in reversed(units.starts):
            cost = sum(self._all.length(turn, self._tokenizer) for turn in said[unit:stop])
            if used + cost > room:
                return _End(said[start:], used, whole=False)
            start, used, stop = unit, used + cost, unit
        return _End(said[start:], used, whole=True) if whole else None

    def messages(self, end: _End, chosen: Chosen | None = None) -> list[Message]:
        """The messages of the system first, then what is recalled, then the end of the conversation.

        A message of the system that was said within that end stands where it was said.
        """
        first = end.turns[0].number if end.turns else float("inf")
        before = [turn.message for turn in self._instructions if turn.number < first]
        after = [turn for turn in self._instructions if turn.number >= first]
        tail = sorted([*end.turns, *after], key=lambda turn: turn.number)
        return [*before, *([chosen.message] if chosen else ()), *(turn.message for turn in tail)]

    def smart(self, query: str | None) -> list[Message]:
        """The end of the conversation, and what matters of the rest if the query is not about that end."""
        whole = self.end(self.room)
        asked = next((turn for turn in reversed(whole.turns) if is_users(turn.message)), None)
        text = query if query is not None else text_of(asked.message) if asked else ""
        if whole.whole or not text or self.room <= 0:
            return self.messages(whole)
        hits = self._all.find(search_for(text, self._session, self._tenant))
        window = {turn.number for turn in whole.turns}
        said = whole.turns
        if asked is not None and text_of(asked.message) == text:  # it finds itself, and covers all that it says
            hits = [hit for hit in hits if hit.turn.number != asked.number]
            said = [turn for turn in said if turn.number != asked.number]
        old = [hit for hit in hits if hit.turn.number not in window]
        if not old or not words(text):
            return self.messages(whole)
        weights = Weights(text, map(_text, self._all.newest(self._session, SAMPLE, self._tenant)))
        found = [Candidate.of(hit.turn, self._session) for hit in old[:RECALLED]]
        best = hits[0].turn.number in window
        relevant = needed(weights, map(_text, said), found, hits, best=best)
        if not relevant:
            return self.messages(whole)
        matters = {one.place.number for one in relevant}
        hits = [hit for hit in hits if hit.turn.number in window or hit.turn.number in matters]
        return self._with_old_turns(whole, hits, weights)

    def _with_old_turns(self, whole: _End, hits: Sequence[SearchHit], weights: Weights) -> list[Message]:
        """Less of the end, and what was found before it."""
        end = self.end(self.room // RECENT_SHARE)
        chosen = self._choose(whole, end, hits, weights)
        while chosen is not None:
            grown = self.end(self.room - chosen.tokens)
            if not {place.number for place in chosen.places} & {turn.number for turn in grown.turns}:
                return self.messages(grown, chosen)
            # There is room for what was recalled where it stands, at the end; then it need not be quoted.
            again = self._choose(whole, grown, hits, weights) if len(grown.turns) > len(end.turns) else None
            if again is None:
                return self.messages(end, chosen)
            end, chosen = grown, again
        return self.messages(whole)

    def _choose(self, whole: _End, end: _End, hits: Sequence[SearchHit], weights: Weights) -> Chosen | None:
        kept = {turn.number for turn in end.turns}
        candidates = [Candidate.of(hit.turn, self._session) for hit in hits if hit.turn.number not in kept][:RECALLED]
        if not end.turns and whole.turns:  # the newest message is too large to stand there whole: the best parts of it
            newest = Candidate.of(whole.turns[-1], self._session)
            part = excerpt(newest.text, weights, self.room // RECENT_SHARE, self._tokenizer)
            candidates = [replace(newest, text=part), *(one for one in candidates if one.place != newest.place)]

        def beside(one: Candidate) -> Iterable[Candidate]:
            return self._beside(one, kept)

        return choose(candidates, beside, weights, self.room - end.tokens, self._tokenizer)

    def _beside(self, one: Candidate, kept: set[int]) -> Iterable[Candidate]:
        """What was said right before and right after, as far as it is not there anyway."""
        number = one.place.number
        for turn in self._all.read(self._session, max(number - 1, 0), number + 2, self._tenant):
            if turn.number != number and turn.number not in kept and turn.message.get("role") in ROLES:
                yield Candidate.of(turn, self._session)


def _text(turn: Turn) -> str:
    return text_of(turn.message)


def _add_edition(turns: list[Turn], new: Turn) -> None:
    """Add an instruction, in the place of one that it replaces, as where a client writes the time into it anew."""
    text = text_of(new.message)
    for index, before in enumerate(turns):
        if before.message.get("role") == new.message.get("role") and _is_edition(text_of(before.message), text):
            turns[index] = replace(new, number=before.number)
            return
    turns.append(new)


def _is_edition(before: str, after: str) -> bool:
    """Whether two texts are the same but for a small part in one place."""
    if before == after:
        return True
    shorter, longer = sorted((len(before), len(after)))
    if shorter < _EDITED:
        return False
    start = _common(before, after, shorter)
    end = _common(before[::-1], after[::-1], shorter - start)
    return (start + end) * 5 >= longer * 4


def _common(one: str, other: str, most: int) -> int:
    """How many characters two texts have in common at their beginning, at most so many."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
