"""Removing from both tiers at once, and telling those who keep text of what was removed elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from krunch_plugins.storage import retention
from krunch_plugins.storage.retention import Forgotten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from krunch_plugins.storage.ledger import Ledger
    from krunch_plugins.storage.tiers import Tiers


class Removal:
    """What leaves the store for good.

    Args:
        tiers: the tiers.
        days: turns older than this go when retention is applied; None: none do.
        count: of each session at most so many turns stay, the newest; None: all do.

    Attributes:
        forgetters: called with a session that is gone, and its tenant; each says how many things it removed.
        trimmers: called with a tenant, and the number of the oldest turn that is left by session; as `forgetters`.
    """

    def __init__(self, tiers: Tiers, days: float | None, count: int | None) -> None:
        self._tiers, self._days, self._count = tiers, days, count
        self.forgetters: list[Callable[[str, str | None], int]] = []
        self.trimmers: list[Callable[[str | None, Mapping[str, int]], int]] = []

    def forget(self, session: str, tenant: str | None) -> Forgotten:
        """Remove a session and every trace of its text."""
        ledger = self._tiers.ledger()
        report = Forgotten()
        known = self._tiers.know(session, tenant)
        if known:
            self._tiers.let_go(self._tiers.hot.take(known.key, "forget"))
        inside = retention.remove(ledger, session, tenant, report)
        if inside is not None:
            # Another thread may have appended while we told the listeners.
            self._tiers.let_go(self._tiers.hot.take(inside, "forget"))
        # Before anything that may fail: the session is gone, and what others keep of it must not outlive it.
        self._gone(session, tenant, report)
        if inside is not None:
            report.quarantined += self._tiers.opened.drop_unattributed()
            retention.settle_soon(ledger, report)
        return report

    def trim(self, session: str, tenant: str | None, start: int) -> int:
        """Remove a session's turns before number `start`; how many there were."""
        ledger = self._tiers.ledger()
        inside, removed = retention.cut(ledger, session, tenant, start)
        if removed:
            self._tiers.let_go(self._tiers.hot.take(inside, "forget"))
            self._tiers.tell(tenant)
            self._trimmed(ledger, [(session, tenant)])
            retention.drop_states(ledger, inside, None, Forgotten())
        return removed

    def expire(self, now: float) -> Forgotten:
        """Apply retention, as of `now` in seconds since the epoch.

        Raises:
            FrameDamaged: a session is damaged and was left as it is; it was applied to all others.
        """
        ledger = self._tiers.ledger()
        report = Forgotten()
        cutoff = None if self._days is None else now - self._days * 86_400
        if cutoff is None and self._count is None:
            return report
        touched, aged, failed = retention.expire(ledger, cutoff, self._count, report)
        trimmed = []
        for inside, session, tenant in touched:
            self._tiers.let_go(self._tiers.hot.take(inside, "forget"))
            if ledger.find(session, tenant) is None:
                self._gone(session, tenant, report)
            else:
                self._tiers.tell(tenant)
                trimmed.append((session, tenant))
        report.elsewhere += self._trimmed(ledger, trimmed)
        for inside in aged:  # what a listener has just cleaned is not among what goes
            retention.drop_states(ledger, inside, cutoff, report)
        retention.settle_soon(ledger, report)
        if failed is not None:
            raise failed
        return report

    def _gone(self, session: str, tenant: str | None, report: Forgotten) -> None:
        """Have everything removed that others keep about a session."""
        for forgetter in self.forgetters:
            report.elsewhere += forgetter(session, tenant)
        self._tiers.tell(tenant)

    def _trimmed(self, ledger: Ledger, sessions: list[tuple[str, str | None]]) -> int:
        """Tell `trimmers` which sessions have lost turns; how much these removed."""
        firsts: dict[str | None, dict[str, int]] = {}
        for session, tenant in sessions:
            record = ledger.find(session, tenant)
            if record is not None:
                firsts.setdefault(tenant, {})[session] = record.first
        return sum(trimmer(tenant, found) for tenant, found in firsts.items() for trimmer in self.trimmers)
