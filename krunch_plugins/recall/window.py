"""The window: old messages leave a request that has grown too long, and what matters of them comes back.

What leaves is decided from the message list alone (see `cut`), so any worker cuts alike, and the provider's cached
prefix breaks where a cut moves and nowhere else. What comes back depends on a search, which is not a function of the
list: so it is recorded with the session before it is sent, and read again for every later request.

Nothing leaves that could not be found again: a message leaves only if the store has it. So nothing leaves where there
is no store, or no session by which to find it; such a request goes out whole, as without Krunch, and the report says
why. (Rejected: to let messages leave there as well. The caller's own limit would never show, and the loss neither.)
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol

from krunch_plugins import tokens
from krunch_plugins.errors import StoreError, TokenizerUnavailable
from krunch_plugins.recall.cut import Cut, Limits, find_cut
from krunch_plugins.recall.inserts import Insert, Inserts, InsertStore, Record
from krunch_plugins.recall.messages import Lengths, chain, identity, is_users
from krunch_plugins.recall.recalling import Recalling, Request
from krunch_plugins.report import ContextReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from krunch_plugins.exchange import Exchange
    from krunch_plugins.recall.selection import Place
    from krunch_plugins.report import ContextReason
    from krunch_plugins.settings import Settings
    from krunch_plugins.tokens import Tokenizer
    from krunch_plugins.turns import Message, SearchHit, SearchQuery, Turn

log = logging.getLogger("krunch")

_LEAST_PART = 4
"""An insert may take half of what is left for recalled turns, or one of so many parts of all, whichever is more."""

_LEAST_RECALLED, _SMALL_WINDOW = 400, 3
"""Tokens that are for recalled turns at least, in a small window one of so many parts of it: with less, what frames a
quote would be most of it. One insert may take as many, if they are left."""


def _for_recalled(window: int, share: float) -> int:
    """Tokens of a window that are for recalled turns."""
    return max(int(window * share), min(_LEAST_RECALLED, window // _SMALL_WINDOW)) if share else 0


class StoredSession(Protocol):
    """What the window wants to know of a session."""

    @property
    def key(self) -> str:
        """Names it for good: another one if it was forgotten and begun again."""

    @property
    def first(self) -> int:
        """Number of its oldest turn."""


class WindowStore(InsertStore, Protocol):
    """What the window needs of the store."""

    def turns(self, session: str, start: int = 0, stop: int | None = None, *, tenant: str | None = None) -> list[Turn]:
        """Turns `start` to before `stop`, in order; what is not there is left out."""

    def sessions(self, tenant: str | None = None) -> list[str]:
        """Ids of a tenant's sessions."""

    def info(self, session: str, tenant: str | None = None) -> StoredSession | None:
        """What is known of a session; None if there is none."""


class _Plan(NamedTuple):
    """One request, and what becomes of it."""

    exchange: Exchange
    session: str
    cut: Cut
    keys: list[str]
    tokenizer: Tokenizer
    report: ContextReport

    def inserts(self, record: Record) -> dict[int, Insert]:
        """The recorded inserts that belong into this request, by the position that each stands before."""
        known = {one.key: one for one in record.inserts}
        messages = self.exchange.messages
        start = self.cut.position
        places = (at for at in range(start, len(messages)) if self.keys[at] in known and is_users(messages[at]))
        return {at: known[self.keys[at]] for at in places}


class Window:
    """Keeps requests within `Settings.context_window`. Thread-safe.

    Args:
        settings: the options.
        store: where the turns are; None: nothing ever leaves.
        search: finds old turns.
        record: has the store record a request before its reply has come; None where there is no store.
        has_plugins: whether other people's plugins have changed, or may have changed, what the messages say.
    """

    def __init__(
        self,
        settings: Settings,
        store: WindowStore | None,
        search: Callable[[SearchQuery], Sequence[SearchHit]],
        record: Callable[[Exchange], None] | None,
        has_plugins: Callable[[], bool],
    ) -> None:
        self._settings, self._store, self._record = settings, store, record
        if settings.context_window is not None and store is None:
            log.warning("context_window does nothing without a store; set home, or give Krunch a store")
        self._lengths = Lengths()
        self._inserts = None if store is None else Inserts(store)
        self._recalling = None
        if store is not None:
            self._recalling = Recalling(store.turns, search, has_plugins, everywhere=settings.context_sessions == "all")

    def apply(self, exchange: Exchange) -> None:
        """Replace `exchange.messages` by what is to be sent, and say in the report what left and what came back."""
        window = self._settings.context_window
        if window is None or self._settings.mode == "off":
            return
        report = exchange.report.context = ContextReport(window=window)
        try:
            self._apply(exchange, window, report)
        except TokenizerUnavailable as error:
            log.warning("%s", error)
            report.reason = "tokenizer_unavailable"
        except Exception as error:  # noqa: BLE001 - a request fails open, whatever the store or the messages do
            log.warning("the window failed with %s; the request is sent whole", type(error).__name__)
            reason: ContextReason = "store_failed" if isinstance(error, (StoreError, OSError)) else "error"
            whole = report.tokens_before
            exchange.report.context = ContextReport(window, reason, tokens_before=whole, tokens_after=whole)

    def forget(self, session: str, tenant: str | None) -> int:
        """Remove what quotes a forgotten session from the tenant's other sessions; how many inserts that were."""
        if self._store is None or self._inserts is None or self._settings.context_sessions != "all":
            return 0
        others = [other for other in self._store.sessions(tenant) if other != session]
        return self._drop(lambda one: session in one.others, others, tenant)

    def trimmed(self, tenant: str | None, firsts: Mapping[str, int]) -> int:
        """Remove what quotes turns that retention removed; how many inserts that were.

        Args:
            tenant: whose turns.
            firsts: numbers of the oldest turns that are left, by session.
        """
        if self._store is None or self._inserts is None:
            return 0
        sessions = self._store.sessions(tenant) if self._settings.context_sessions == "all" else list(firsts)

        def gone(one: Insert) -> bool:
            return any(place.number < firsts.get(place.session, 0) for place in one.places)

        return self._drop(gone, sessions, tenant)

    def _drop(self, gone: Callable[[Insert], bool], sessions: Sequence[str], tenant: str | None) -> int:
        """Remove inserts that quote what is gone. Where that fails, the next request of the session does it."""
        assert self._inserts is not None
        removed = 0
        for session in sessions:
            try:
                removed += self._inserts.drop(gone, session, tenant)
            except StoreError as error:
                log.warning("inserts that quote removed turns were not removed: %s", type(error).__name__)
        return removed

    def _apply(self, exchange: Exchange, window: int, report: ContextReport) -> None:
        name, _ = tokens.encoding_for(exchange.model, self._settings.default_encoding)
        tokenizer = tokens.load(name)
        messages = exchange.messages
        lengths = [self._lengths.of(message, tokenizer) for message in messages]
        report.tokens_before = report.tokens_after = sum(lengths)
        if report.tokens_before <= window:
            return
        limits = Limits(window, _for_recalled(window, self._settings.context_recall), self._settings.context_pinned)
        cut = find_cut(messages, lengths, limits)
        left = [at for at, message in enumerate(messages) if cut.leaves(at, message)]
        if not left:
            report.reason = "nothing_can_leave"
            return
        if exchange.session is None or self._store is None or self._record is None:
            report.reason = "no_session" if exchange.session is None else "no_store"
            return
        report.reason, report.cuts, report.left = "left", cut.cuts, len(left)
        report.left_tokens = sum(lengths[at] for at in left)
        report.tokens_after -= report.left_tokens
        if self._settings.mode == "observe":
            report.reason = "would_leave"
            return
        keys = [key.hex() for key in chain(messages, map(identity, messages))]
        self._send(_Plan(exchange, exchange.session, cut, keys, tokenizer, report), limits)

    def _send(self, plan: _Plan, limits: Limits) -> None:
        """Make sure that the store has what leaves, recall what matters, and put the request together."""
        assert self._inserts is not None
        assert self._record is not None
        exchange, session = plan.exchange, plan.session
        record = self._inserts.of(session, exchange.tenant)
        stored = plan.keys[plan.cut.position - 1]
        if record.stored != stored:
            self._record(exchange)
            record = self._inserts.note_stored(stored, session, exchange.tenant)
        inserts = self._recall(plan, self._without_gone(plan, plan.inserts(record)), limits)
        report = plan.report
        report.inserts = len(inserts)
        report.recalled_tokens = sum(one.tokens for one in inserts.values())
        report.tokens_after += report.recalled_tokens
        _put_together(plan, inserts)

    def _without_gone(self, plan: _Plan, inserts: dict[int, Insert]) -> dict[int, Insert]:
        """The inserts without those that quote what was removed since: not sent again, whatever that costs."""
        assert self._store is not None
        assert self._inserts is not None
        tenant = plan.exchange.tenant
        sessions = {place.session for one in inserts.values() for place in one.places}
        known = {session: self._store.info(session, tenant) for session in sessions}

        def is_gone(place: Place, others: Mapping[str, str]) -> bool:
            if place.session not in known:
                return False
            info = known[place.session]
            return info is None or place.number < info.first or others.get(place.session, info.key) != info.key

        def gone(one: Insert) -> bool:
            return any(is_gone(place, one.others) for place in one.places)

        left = {at: one for at, one in inserts.items() if not gone(one)}
        if len(left) < len(inserts):
            self._inserts.drop(gone, plan.session, tenant)
        return left

    def _recall(self, plan: _Plan, inserts: dict[int, Insert], limits: Limits) -> dict[int, Insert]:
        """The inserts with what is recalled for the last message, if that is the user's."""
        report, exchange = plan.report, plan.exchange
        last = len(exchange.messages) - 1
        left = limits.recalled - sum(one.tokens for one in inserts.values())
        if last in inserts:
            report.recall = "replayed"
            report.recalled = tuple(inserts[last].places)
        elif not limits.recalled:
            report.recall = "off"
        elif not is_users(exchange.messages[last]):
            report.recall = "not_the_users"
        else:
            budget = min(left, max(left // 2, limits.recalled // _LEAST_PART, _LEAST_RECALLED))
            inserts = self._recall_anew(plan, inserts, budget)
        return inserts

    def _recall_anew(self, plan: _Plan, inserts: dict[int, Insert], budget: int) -> dict[int, Insert]:
        assert self._recalling is not None
        assert self._inserts is not None
        exchange, report = plan.exchange, plan.report
        places = frozenset(place for one in inserts.values() for place in one.places)
        request = Request(exchange, plan.session, plan.cut, places, budget, plan.tokenizer)
        last = len(exchange.messages) - 1
        try:
            report.recall, chosen = self._recalling.recall(request)
        except Exception as error:  # noqa: BLE001 - a request fails open: what leaves is in the store all the same
            log.warning("recalling old turns failed with %s; the request goes without", type(error).__name__)
            report.recall = "search_failed"
            return inserts
        if chosen is None:
            return inserts
        alive = {one.key for one in inserts.values()}
        try:
            others = self._keys({place.session for place in chosen.places} - {plan.session}, exchange.tenant)
            new = Insert(plan.keys[last], chosen.message["content"], chosen.tokens, tuple(chosen.places), others)
            record = self._inserts.add(new, alive, plan.session, exchange.tenant)
        except Exception as error:  # noqa: BLE001 - what is not recorded could not be sent again, so it is not sent
            log.warning("what was recalled could not be recorded (%s); it is not sent", type(error).__name__)
            report.recall = "not_recorded"
            return inserts
        inserts = plan.inserts(record)
        report.recalled = tuple(inserts[last].places) if last in inserts else ()
        return inserts

    def _keys(self, sessions: set[str], tenant: str | None) -> dict[str, str]:
        """What the store calls these sessions.

        Raises:
            LookupError: one is gone by now.
        """
        assert self._store is not None
        keys = {}
        for session in sorted(sessions):
            info = self._store.info(session, tenant)
            if info is None:
                raise LookupError("a session was forgotten after it was searched")
            keys[session] = info.key
        return keys


def _put_together(plan: _Plan, inserts: dict[int, Insert]) -> None:
    """Make the request of what stays and what was recalled; positions that others noted move with their messages."""
    exchange = plan.exchange
    messages: list[Message] = []
    no_definitions: set[int] = set()
    for at, message in enumerate(exchange.messages):
        if at in inserts:
            no_definitions.add(len(messages))
            messages.append(inserts[at].message)
        if not plan.cut.leaves(at, message):
            if at in exchange.no_definitions:
                no_definitions.add(len(messages))
            messages.append(message)
    exchange.messages = messages
    exchange.no_definitions = frozenset(no_definitions)
