"""What holds turns, as the settings ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from krunch_plugins.storage.recent import RecentTurns
from krunch_plugins.storage.store import ConversationStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins.settings import Settings
    from krunch_plugins.storage.recent import Listener


def open_store(settings: Settings, clock: Callable[[], float]) -> ConversationStore | None:
    """The store that the settings ask for. Stored data fails loudly: if it cannot be opened, this raises."""
    if settings.home is None:
        return None
    return ConversationStore(
        settings.home,
        durability=settings.durability,
        hot_bytes=settings.hot_bytes,
        hot_turns=settings.hot_turns,
        hot_ttl=settings.hot_ttl,
        retention_days=settings.retention_days,
        retention_turns=settings.retention_turns,
        tenant_quota_bytes=settings.tenant_quota_bytes,
        clock=clock,
    )


def hold_recent(settings: Settings, clock: Callable[[], float], on_evict: Listener) -> RecentTurns:
    """What holds recent turns where there is no store."""
    return RecentTurns(
        max_bytes=settings.hot_bytes,
        max_turns=settings.hot_turns,
        ttl=settings.hot_ttl,
        clock=clock,
        on_evict=on_evict,
    )
