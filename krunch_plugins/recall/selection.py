"""Which old turns are worth their tokens: whether any are needed, which, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

from krunch_plugins.recall.excerpts import excerpt
from krunch_plugins.recall.messages import MESSAGE_TOKENS, count
from krunch_plugins.recall.quoting import Quote, disarm, quote
from krunch_plugins.recall.texts import text_of
from krunch_plugins.turns import SearchQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from krunch_plugins.recall.weights import Weights
    from krunch_plugins.tokens import Tokenizer
    from krunch_plugins.turns import Message, SearchHit, Turn

_LOOKED_FOR = 20
"""Hits that a search for context is asked for: some of them may be in the window already."""

RECALLED = 10
"""Hits of these that are recalled at most."""

_QUERY_CHARACTERS = 2_000
"""Characters of a query that are looked for: the first and the last ones of a longer one."""

ROLES = frozenset({"user", "assistant", "tool", "function"})
"""Roles that are recalled. Instructions are not: they stay in the request, or belong to another conversation."""

_COVERED = 0.75
"""The window is taken to be what is asked about if the best hit is in it, and it has at least this much of the share of
the query's words that the best old turn has."""

_RELEVANT = 0.1
"""Share of what a query says that the best old turn must have, if any was found by its words: with less they have only
words in common that are everywhere. Nine of ten questions of the long-memory corpus have .3 and more."""

_FIRST, _BESIDE_BEST = 3, 0.2
"""So many hits are taken for relevant if any is; of the others those that have this much of the best one's share."""

_LEAST = 80
"""Tokens that a turn gets at least, or all that it has: rather fewer turns than shreds. Measured on the long-memory
corpus; with 40 more turns are touched and fewer held whole, above 100 neither gets better."""

_PART = 150
"""Tokens that a turn gets at most which does not fit whole."""

_BESIDE = 60
"""Tokens of a neighbour: enough to tell what a turn was said to."""


class Place(NamedTuple):
    """Where a turn stands."""

    session: str
    number: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A turn that may be recalled.

    Attributes:
        place: where it stands in the store.
        role: who said it.
        timestamp: when, seconds since the epoch.
        text: what it says.
        elsewhere: it is from another session.
    """

    place: Place
    role: str
    timestamp: float
    text: str
    elsewhere: bool = False

    @classmethod
    def of(cls, turn: Turn, session: str, message: Message | None = None, *, elsewhere: bool = False) -> Self:
        """A turn of a session, with the text of another message if there is one."""
        role, text = str(turn.message.get("role", "")), text_of(turn.message if message is None else message)
        return cls(Place(session, turn.number), role, turn.timestamp, text, elsewhere)


class Chosen(NamedTuple):
    """What is recalled.

    Attributes:
        message: the message that quotes it.
        tokens: what that takes.
        places: where the turns in it stand, in time order.
        hits: how many of these were found; the others are their neighbours.
    """

    message: Message
    tokens: int
    places: list[Place]
    hits: int


def search_for(text: str, session: str | None, tenant: str | None) -> SearchQuery:
    """What to look for where something was said; without a session in all of the tenant's."""
    half = _QUERY_CHARACTERS // 2
    short = text if len(text) <= _QUERY_CHARACTERS else f"{text[:half]}\n{text[-half:]}"
    return SearchQuery(short, session, tenant, _LOOKED_FOR, roles=ROLES)


def needed(
    weights: Weights, window: Iterable[str], old: Sequence[Candidate], hits: Sequence[SearchHit], *, best: bool
) -> list[Candidate] | None:
    """Those of the old turns that have to do with the query, in their order.

    Args:
        weights: the query.
        window: the text of each message in the window.
        old: what was found outside of it, the best first.
        hits: all that was found, in the window too.
        best: the best hit of all is in the window.

    Returns:
        None if the query refers to what is in the window, so that nothing has to be recalled for it.
    """
    return None if _is_in_window(weights, window, old, best=best) else _relevant(weights, old, hits)


def _is_in_window(weights: Weights, window: Iterable[str], old: Iterable[Candidate], *, best: bool) -> bool:
    if not best:
        return False
    covered = max(map(weights.share, window), default=0.0)
    return covered >= _COVERED * max((weights.share(one.text) for one in old), default=0.0)


def _relevant(weights: Weights, old: Sequence[Candidate], hits: Iterable[SearchHit]) -> list[Candidate]:
    """A search gives as many hits as it is asked for, the last ones often for want of better.

    Meaning needs no common words: so the first ones are let pass, and all if no voice found anything by its words.
    """
    if not any("words" in hit.found_by for hit in hits):
        return list(old)
    shares = [weights.share(one.text) for one in old]
    best = max(shares, default=0.0)
    if best < _RELEVANT:
        return []
    return [one for rank, one in enumerate(old) if rank < _FIRST or shares[rank] >= _BESIDE_BEST * best]


def choose(
    hits: Sequence[Candidate],
    beside: Callable[[Candidate], Iterable[Candidate]],
    weights: Weights,
    budget: int,
    tokenizer: Tokenizer,
) -> Chosen | None:
    """Fit turns into a budget: the hits first, whole where possible, then what was said right before and after them.

    Args:
        hits: the best first.
        beside: the neighbours of a hit.
        weights: the query.
        budget: tokens for the whole message.
        tokenizer: what counts them.

    Returns:
        None if there is nothing, or no room for anything.
    """
    fitting = _Fitting(weights, budget, tokenizer)
    taken = fitting.hits([hit for hit in hits if hit.text.strip()])
    everything = [*taken, *fitting.neighbours(taken, beside)]
    for stop in range(len(everything), 0, -1):  # parts were counted one by one; together they may be a few tokens more
        rest = everything[:stop]
        message = quote(_quotes(rest))
        tokens = count(message["content"], tokenizer) + MESSAGE_TOKENS
        if tokens <= budget:
            return Chosen(message, tokens, [one.place for one in _in_time(rest)], min(len(taken), stop))
    return None


class _Fitting:
    """Shares a budget among turns."""

    def __init__(self, weights: Weights, budget: int, tokenizer: Tokenizer) -> None:
        self._weights, self._tokenizer = weights, tokenizer
        self._sizes: dict[str, int] = {}
        self._left = budget - MESSAGE_TOKENS - count(quote(())["content"], tokenizer)

    def hits(self, hits: Sequence[Candidate]) -> list[Candidate]:
        """The hits whole, the best first, as far as they fit; then the best parts of those that do not."""
        whole: dict[int, Candidate] = {}
        for rank, hit in enumerate(hits):
            cost = self._cost(hit)
            if cost <= self._left:
                whole[rank] = hit
                self._left -= cost
            elif not rank:  # the best of all is not left out because it is long
                self._add_part(rank, hit, self._left // 2, whole)
        for rank, hit in enumerate(hits):
            if rank not in whole:
                self._add_part(rank, hit, min(_PART, self._left), whole)
        return [whole[rank] for rank in sorted(whole)]

    def _add_part(self, rank: int, hit: Candidate, room: int, out: dict[int, Candidate]) -> None:
        limit = room - self._frame(hit)
        if limit < _LEAST:
            return
        part = self._cut(hit, limit)
        if part.text:
            out[rank] = part
            self._left -= self._cost(part)

    def neighbours(
        self, hits: Sequence[Candidate], beside: Callable[[Candidate], Iterable[Candidate]]
    ) -> list[Candidate]:
        """What was said right before and after the hits, of each a little, as far as there is room."""
        left, known = self._left, {one.place for one in hits}
        out: list[Candidate] = []
        for hit in hits:
            if left < _LEAST // 2:  # not worth reading them
                break
            for one in beside(hit):
                if one.place in known:
                    continue
                short = self._cut(one, min(_BESIDE, left - self._frame(one)))
                cost = self._cost(short)
                if short.text and cost <= left:
                    known.add(one.place)
                    out.append(short)
                    left -= cost
        return out

    def _cut(self, one: Candidate, limit: int) -> Candidate:
        if self._size(one) <= limit:
            return one
        return replace(one, text=excerpt(one.text, self._weights, limit, self._tokenizer) if limit > 0 else "")

    def _cost(self, one: Candidate) -> int:
        return self._size(one) + self._frame(one)

    def _size(self, one: Candidate) -> int:
        size = self._sizes.get(one.text)
        if size is None:
            size = self._sizes[one.text] = count(disarm(one.text), self._tokenizer)
        return size

    def _frame(self, one: Candidate) -> int:
        return count(f"\n{_quote(one).header}\n", self._tokenizer)


def _in_time(turns: Iterable[Candidate]) -> list[Candidate]:
    """In the order in which they were said: within a session by number, for clocks may jump."""
    sessions: dict[str, list[Candidate]] = {}
    for one in sorted(turns, key=lambda one: one.place):
        sessions.setdefault(one.place.session, []).append(one)
    ordered = sorted(sessions.values(), key=lambda said: (not said[0].elsewhere, said[0].timestamp, said[0].place))
    return [one for said in ordered for one in said]


def _quotes(turns: Iterable[Candidate]) -> list[Quote]:
    return [_quote(one) for one in _in_time(turns)]


def _quote(one: Candidate) -> Quote:
    return Quote(one.role, one.timestamp, one.text, one.elsewhere)
