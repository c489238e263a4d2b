"""Recent turns without a store: in RAM only, for programs that asked for nothing to be written to disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from krunch_plugins.storage.hot import RamTier

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins.exchange import Exchange, Reply
    from krunch_plugins.storage.hot import Leaving
    from krunch_plugins.turns import EvictReason, Turn

    Listener = Callable[[str, list[Turn], EvictReason, str | None], object]


class RecentTurns:
    """Holds the newest turns of each session as the client last sent them, and its reply; bounded, and lost at the end.

    Exchanges without a session are not held. A turn's number is its message's place in the client's list.

    Args:
        max_bytes: of RAM over all sessions, estimated; the least recently used session leaves first.
        max_turns: turns of one session.
        ttl: seconds after which a session that nobody used leaves.
        clock: seconds since the epoch.
        on_evict: called as `on_evict(session, turns, reason, tenant)` before turns leave for good.
    """

    def __init__(
        self, *, max_bytes: int, max_turns: int, ttl: float, clock: Callable[[], float], on_evict: Listener
    ) -> None:
        self._tier = RamTier(max_bytes, max_turns, ttl, clock)
        self._max_turns, self._clock, self._on_evict = max_turns, clock, on_evict

    def hold(self, exchange: Exchange, reply: Reply) -> None:
        """Hold the end of a conversation."""
        if exchange.session is None or reply.choice != 0 or not self._max_turns:
            return
        now = self._clock()
        messages = [*exchange.original, reply.message]
        first = max(0, len(messages) - self._max_turns)
        self._tier.replace(_key(exchange.session, exchange.tenant), first, messages[first:], now)
        for leaving in self._tier.leaving(now):
            self._leave(leaving)

    def recent(self, session: str, n: int, *, tenant: str | None = None) -> list[Turn]:
        """The newest turns of a session, at most `n`, in order; copies."""
        for leaving in self._tier.leaving(self._clock()):
            self._leave(leaving)
        return self._tier.recent(_key(session, tenant), n)

    def forget(self, session: str, *, tenant: str | None = None) -> None:
        """Let go of a session."""
        leaving = self._tier.take(_key(session, tenant), "forget")
        if leaving is not None:
            self._leave(leaving)

    def close(self) -> None:
        """Let go of everything."""
        held = self._tier.keys()
        for key in held:
            leaving = self._tier.take(key, "close")
            if leaving is not None:
                self._leave(leaving)

    def _leave(self, leaving: Leaving) -> None:
        tenant, session = json.loads(leaving.key)
        self._on_evict(session, leaving.turns, leaving.reason, tenant)
        self._tier.drop(leaving)


def _key(session: str, tenant: str | None) -> str:
    return json.dumps([tenant, session])
