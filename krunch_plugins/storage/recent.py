"""Recent turns without a store: in RAM only, for programs that asked for nothing to be written to disk."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from krunch_plugins.storage.hot import RamTier
from krunch_plugins.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins.exchange import Exchange, Reply
    from krunch_plugins.storage.hot import Leaving
    from krunch_plugins.turns import EvictReason

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
        self._lock = threading.Lock()

    def hold(self, exchange: Exchange, reply: Reply) -> None:
        """Hold the end of a conversation."""
        if exchange.session is None or reply.choice != 0 or not self._max_turns:
            return
        now = self._clock()
        messages = [*exchange.original, reply.message]
        first = max(0, len(messages) - self._max_turns)
        turns = [Turn(number, _copy(messages[number]), now) for number in range(first, len(messages))]
        key = _key(exchange.session, exchange.tenant)
        with self._lock:
            replaced = self._tier.take(key, "size")
            if replaced is not None:
                self._tier.drop(replaced)
            self._tier.append(key, turns)
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


def _copy(message: dict[str, Any]) -> dict[str, Any]:
    """The caller goes on with its own objects; what is held must not change with them."""
    return {name: _copy_value(value) for name, value in message.items()}


def _copy_value(value: Any) -> Any:  # noqa: ANN401 - whatever a message holds
    if isinstance(value, dict):
        return _copy(value)
    return [_copy_value(item) for item in value] if isinstance(value, list) else value
