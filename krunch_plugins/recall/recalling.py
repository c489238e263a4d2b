"""What is recalled for one request that messages have left: searched, checked for need, and cut to its budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from krunch_plugins.recall.messages import identity
from krunch_plugins.recall.selection import RECALLED, ROLES, Candidate, Chosen, Place, choose, needed, search_for
from krunch_plugins.recall.texts import text_of
from krunch_plugins.recall.weights import SAMPLE, Weights, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from krunch_plugins.exchange import Exchange
    from krunch_plugins.recall.cut import Cut
    from krunch_plugins.tokens import Tokenizer
    from krunch_plugins.turns import Message, SearchHit, SearchQuery, Turn

_COMPARED = 60
"""Newest messages of the window that a query is compared with."""

Outcome = Literal["recalled", "in_window", "nothing_asked", "nothing_found", "no_room"]


class Request(NamedTuple):
    """A request that turns may be recalled for.

    Attributes:
        exchange: its messages, none of which has left yet.
        session: the exchange's session.
        cut: what leaves.
        places: turns that stand in the request already, because they were recalled before.
        budget: tokens for what is recalled.
        tokenizer: what counts them.
    """

    exchange: Exchange
    session: str
    cut: Cut
    places: frozenset[Place]
    budget: int
    tokenizer: Tokenizer


class Recalling:
    """Recalls old turns. Thread-safe.

    Args:
        turns: reads turns from the store.
        search: finds them.
        has_plugins: whether other people's plugins may have changed what messages say. What they did to the messages of
            this request they could not do to other turns (hide a name in them, say): then only turns are recalled that
            are in this request, as the plugins left them.
        everywhere: recall from the tenant's other sessions, too.
    """

    def __init__(
        self,
        turns: Callable[..., list[Turn]],
        search: Callable[[SearchQuery], Sequence[SearchHit]],
        has_plugins: Callable[[], bool],
        *,
        everywhere: bool,
    ) -> None:
        self._turns, self._search, self._has_plugins, self._everywhere = turns, search, has_plugins, everywhere

    def recall(self, request: Request) -> tuple[Outcome, Chosen | None]:
        """What is recalled for the last message, and why nothing is.

        Raises:
            Exception: whatever the search or the store raises.
        """
        messages = request.exchange.messages
        text = text_of(messages[-1])
        if not words(text):
            return "nothing_asked", None
        if request.budget <= 0:
            return "no_room", None
        known = _Known(request, safe=not self._has_plugins())
        hits = [hit for hit in self._hits(text, request) if not known.is_last(hit.turn)]
        candidates = [known.candidate(hit.turn, hit.session) for hit in hits]
        old = [one for one in candidates if one is not None][:RECALLED]
        if not old:
            return ("in_window" if hits and known.holds(hits[0].turn, hits[0].session) else "nothing_found"), None
        kept = [message for at, message in enumerate(messages[:-1]) if not request.cut.leaves(at, message)]
        said = map(text_of, kept[-_COMPARED:])
        weights = Weights(text, map(text_of, messages[:: len(messages) // SAMPLE + 1]))
        matters = needed(weights, said, old, hits, best=known.holds(hits[0].turn, hits[0].session))
        if not matters:
            return ("in_window" if matters is None else "nothing_found"), None
        chosen = choose(
            matters, lambda one: self._beside(one, request, known), weights, request.budget, request.tokenizer
        )
        return ("no_room", None) if chosen is None else ("recalled", chosen)

    def _hits(self, text: str, request: Request) -> list[SearchHit]:
        """What is found in this session and, if that is wanted, in the tenant's others: by turns, by their ranks."""
        tenant = request.exchange.tenant
        here = self._search(search_for(text, request.session, tenant))
        if not self._everywhere:
            return list(here)
        there = [hit for hit in self._search(search_for(text, None, tenant)) if hit.session != request.session]
        ranked = [(rank, where, hit) for where, found in enumerate((here, there)) for rank, hit in enumerate(found)]
        return [hit for _, _, hit in sorted(ranked, key=lambda one: one[:2])]

    def _beside(self, one: Candidate, request: Request, known: _Known) -> Iterable[Candidate]:
        session, number = one.place
        for turn in self._turns(session, max(number - 1, 0), number + 2, tenant=request.exchange.tenant):
            if turn.number != number and turn.message.get("role") in ROLES and not known.is_last(turn):
                found = known.candidate(turn, session)
                if found is not None:
                    yield found


class _Known:
    """The messages of a request by what makes them the same, to tell which of the turns found are in it."""

    def __init__(self, request: Request, *, safe: bool) -> None:
        self._session, self._places, self._safe = request.session, request.places, safe
        exchange, cut = request.exchange, request.cut
        messages = exchange.messages
        # The store has messages as the caller gave them; plugins may have changed them since.
        given: Sequence[Message] = messages
        if len(exchange.original) == len(messages) and not safe:
            given = exchange.original
        identities = [identity(message) for message in given]
        self._last = identities[-1]
        self._kept = {own for at, own in enumerate(identities) if not cut.leaves(at, messages[at])}
        self._left = {own: messages[at] for at, own in enumerate(identities) if cut.leaves(at, messages[at])}

    def is_last(self, turn: Turn) -> bool:
        """Whether it says just what the last message says."""
        return identity(turn.message) == self._last

    def holds(self, turn: Turn, session: str) -> bool:
        """Whether the turn is in the request as it will be sent."""
        return Place(session, turn.number) in self._places or (
            session == self._session and identity(turn.message) in self._kept
        )

    def candidate(self, turn: Turn, session: str) -> Candidate | None:
        """The turn, if it may be recalled: with the text that the plugins left of it, if it is of this request."""
        if self.holds(turn, session):
            return None
        here = session == self._session
        message = self._left.get(identity(turn.message)) if here else None
        if message is None:
            if not self._safe:
                return None
            message = turn.message
        return Candidate.of(turn, session, message, elsewhere=not here)
