"""The two tiers together: what is in RAM is what is on disk, or is not used."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from krunch_plugins.errors import StoreClosed, StoreError
from krunch_plugins.storage import dictionaries, retention
from krunch_plugins.storage.packing import adopt, pack
from krunch_plugins.storage.records import Session
from krunch_plugins.storage.reports import StoreStats
from krunch_plugins.storage.upkeep import Upkeep
from krunch_plugins.turns import APART

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from krunch_plugins.storage.hot import HotTier, Leaving
    from krunch_plugins.storage.ledger import Ledger
    from krunch_plugins.storage.opening import Opened
    from krunch_plugins.turns import EvictReason, Turn

    EvictListener = Callable[[str, Sequence[Turn], EvictReason, str | None], object]

T = TypeVar("T")
log = logging.getLogger("krunch")

PACK_TURNS = 100
"""Turns in a session's log at which it is packed."""
_NAMES_KEPT = 20_000
_EXPIRE_SECONDS = 3600.0

_SETTLE_REST = 100
"""Upkeep rests for so many times as long as rebuilding the file has taken, since nobody can write meanwhile: logs that
are trimmed all the time would have a large store rebuilt all the time."""


@dataclass(slots=True)
class Known:
    """What we saw of a session, and the cold tier's version before we looked."""

    key: str
    first: int
    next: int
    version: int


class Tiers:
    """Moves turns between the tiers, and tells those who want to know.

    Args:
        hot: the hot tier.
        opened: the cold one.
        clock: seconds since the epoch.
        upkeep_seconds: how often the background thread looks around; 0: there is none.
        expire: applies retention.
    """

    def __init__(
        self,
        hot: HotTier,
        opened: Opened,
        clock: Callable[[], float],
        upkeep_seconds: float,
        expire: Callable[[], object] | None,
    ) -> None:
        self.hot, self.opened, self._clock, self._expire = hot, opened, clock, expire
        self.stats = StoreStats()
        self.listeners: list[EvictListener] = []
        self.followers: list[Callable[[str | None], None]] = []
        self.closed = False
        self._known: dict[tuple[str | None, str], Known] = {}
        self._names: dict[str, tuple[str, str | None]] = {}
        self._tried: dict[str | None, int] = {}
        self._expired = time.monotonic()
        self._settle_from = 0.0
        self._count_lock = threading.Lock()
        self.upkeep = Upkeep(upkeep_seconds, self._pack_draft, self._keep_up)

    def ledger(self) -> Ledger:
        """The ledger. Raises StoreClosed, and what is wrong with the database."""
        if self.closed:
            raise StoreClosed
        return self.opened.ledger

    def close(self) -> None:
        """Let everything leave RAM, pack it, and let go of the disk."""
        if self.closed:
            return
        self.upkeep.stop()
        for key in list(self.hot.keys()):
            self.let_go(self.hot.take(key, "close"))
            if self.opened.broken is None:
                self.pack_quietly(key)
        self.closed = True
        self.opened.close()

    def know(self, session: str, tenant: str | None) -> Known | None:
        """Which turns a session has now, by all processes. Costs 3 µs if nobody wrote anything since the last time."""
        if not isinstance(session, str):
            raise TypeError(f"a session's id is a string, not {type(session).__name__}")
        ledger = self.ledger()
        version = ledger.cold.version()
        known = self._known.get((tenant, session))
        if known is not None and known.version == version:
            return known
        record = ledger.steady(lambda: ledger.find(session, tenant))
        if record is None:
            if known is not None:
                self._known.pop((tenant, session), None)
                self.let_go(self.hot.take(known.key, "forget"))
            return None
        if len(self._known) >= _NAMES_KEPT:
            self._known.clear()
        fresh = Known(record.id, record.first, record.next, version)
        self._known[tenant, session] = fresh
        return fresh

    def held(self, known: Known, start: int, stop: int) -> list[Turn] | None:
        """Turns `start` to before `stop` if RAM has all of them."""
        turns = self.hot.recent(known.key, known.next - start)
        if not turns or turns[0].number > start or turns[-1].number < stop - 1:
            self.stats.hot_misses += 1
            return None
        self.stats.hot_hits += 1
        if turns[0].number == start and turns[-1].number == stop - 1:
            return turns
        return [turn for turn in turns if start <= turn.number < stop]

    def from_cold(self, session: str, tenant: str | None, start: int, stop: int) -> list[Turn]:
        """Turns from disk."""
        ledger = self.ledger()

        def read() -> list[Turn]:
            record = ledger.find(session, tenant)
            return ledger.read(record, start, stop) if record else []

        return ledger.steady(read)

    def warm(self, key: str, session: str, tenant: str | None, turns: Sequence[Turn]) -> None:
        """Hold turns in RAM, and let leave what is too much then."""
        if not turns:
            return
        if len(self._names) >= 2 * _NAMES_KEPT:
            held = set(self.hot.keys())
            self._names = {name: ids for name, ids in self._names.items() if name in held}
        self._names[key] = session, tenant
        self.hot.append(key, turns)
        self.let_go(self.hot.trim(key))
        for leaving in self.hot.leaving(self._clock()):
            self.let_go(leaving)
            if leaving.whole:
                self.upkeep.due(leaving.key)

    def let_go(self, leaving: Leaving | None) -> None:
        """Tell the listeners, then drop the turns; no lock is held meanwhile."""
        if leaving is None:
            return
        session, tenant = self._names.get(leaving.key, ("", None))
        told = () if tenant is not None and tenant.startswith(APART) else self.listeners
        for listener in told:
            self._guard("an on_evict listener", partial(listener, session, leaving.turns, leaving.reason, tenant))
        with self._count_lock:
            evicted = self.stats.evicted
            evicted[leaving.reason] = evicted.get(leaving.reason, 0) + len(leaving.turns)
        self.hot.drop(leaving)

    def tell(self, tenant: str | None) -> None:
        """Wake those who follow."""
        for follower in list(self.followers):
            self._guard("a follower of the store", partial(follower, tenant))

    def _pack_draft(self, key: str) -> None:
        """Pack what is due: as a draft while RAM holds the session, for good when it does not."""
        self.pack_quietly(key, draft=key in set(self.hot.keys()))

    def pack_quietly(self, key: str, *, draft: bool = False) -> None:
        """Pack a session where nobody waits for the outcome; what cannot be packed stays in the log."""
        try:
            self.stats.packed += pack(self.ledger(), key, draft=draft)
        except StoreError as error:
            self.stats.pack_failures += 1
            log.warning("a session of the history store could not be packed: %s", type(error).__name__)

    def compact(self) -> int:
        """Pack everything, train dictionaries where they pay, give free space back; bytes saved."""
        ledger = self.ledger()
        before, failed = ledger.cold.size(), None
        for tenant in ledger.tenants():
            for record in ledger.sessions(tenant):
                try:
                    self.stats.packed += pack(ledger, record.id)
                except StoreError as error:
                    failed = error
            dictionaries.train(ledger, tenant)
            adopt(ledger, tenant)
        ledger.cold.scrub()
        if failed:
            raise failed
        return max(before - ledger.cold.size(), 0)

    def reset(self) -> None:
        """Drop everything that RAM knows."""
        self._known.clear()
        for key in list(self.hot.keys()):
            self.let_go(self.hot.take(key, "size"))

    def _keep_up(self) -> None:
        """What is due now and then."""
        ledger = self.ledger()
        for leaving in self.hot.leaving(self._clock()):
            self.let_go(leaving)
            if leaving.whole:
                self.pack_quietly(leaving.key)
        for key in list(self.hot.keys()):
            if ledger.shelf.load(f"s/{key}", Session) is None:  # another process forgot it
                self.let_go(self.hot.take(key, "forget"))
        started = time.monotonic()
        if started >= self._settle_from:
            retention.settle(ledger)
            ended = time.monotonic()
            self._settle_from = ended + _SETTLE_REST * (ended - started)
        if self._expire is not None and time.monotonic() - self._expired >= _EXPIRE_SECONDS:
            self._expired = time.monotonic()
            self._expire()
        for tenant in ledger.tenants():
            holder = ledger.tenant(tenant)
            # Looking whether a dictionary pays reads many sessions, so it is done each time their number has doubled.
            if holder and not holder.dictionary and holder.sessions >= 2 * self._tried.get(tenant, 16):
                self._tried[tenant] = holder.sessions
                if dictionaries.train(ledger, tenant):
                    adopt(ledger, tenant)

    def _guard(self, who: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - what others do with the news must not fail the one who made them
            with self._count_lock:
                self.stats.listener_failures += 1
            log.warning("%s raised %s", who, type(error).__name__)
