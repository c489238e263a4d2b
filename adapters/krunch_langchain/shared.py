"""Who keeps what for those that bring no store: in a process, one store for a directory and one Krunch for a store."""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING

from krunch_plugins import ConversationStore, Krunch, Settings
from krunch_plugins.errors import StoreClosed
from krunch_plugins.turns import APART

if TYPE_CHECKING:
    from pathlib import Path

_lock = threading.Lock()
_stores: dict[Path | None, ConversationStore] = {}
_krunches: dict[ConversationStore, Krunch] = {}


def shared_store() -> ConversationStore:
    """The process's store of the directory that `KRUNCH_HOME` names, else of the platform's place for a user's data.

    It is opened at first use, with the settings of `KRUNCH_*`, and closed when the process ends. What is kept there is
    on disk when a call returns, whether it is closed or not.

    Raises:
        StoreUnavailable: the directory cannot be used.
        SettingsError: a `KRUNCH_*` variable holds something that is not allowed.
    """
    settings = Settings.from_environment()
    home = None if settings.home is None else settings.home.expanduser().absolute()
    with _lock:
        if home not in _stores or not _is_open(_stores[home]):
            _stores[home] = ConversationStore(
                home,
                durability=settings.durability,
                hot_bytes=settings.hot_bytes,
                hot_turns=settings.hot_turns,
                hot_ttl=settings.hot_ttl,
                retention_days=settings.retention_days,
                retention_turns=settings.retention_turns,
                tenant_quota_bytes=settings.tenant_quota_bytes,
            )
        return _stores[home]


def krunch_of(store: ConversationStore) -> Krunch:
    """The process's Krunch over a store, for those who search it and bring no Krunch of their own."""
    with _lock:
        if store not in _krunches:
            for other in [other for other in _krunches if not _is_open(other)]:
                _krunches.pop(other).close()
            _krunches[store] = Krunch(Settings.from_environment(), store=store)
        return _krunches[store]


def krunch_and_store(krunch: Krunch | None, store: ConversationStore | None) -> tuple[Krunch, ConversationStore]:
    """A Krunch and the store that it searches, of what somebody gave or left out.

    Raises:
        ValueError: the two do not belong together.
    """
    if krunch is None:
        store = store or shared_store()
        return krunch_of(store), store
    if krunch.store is None:
        why = "has no store: make it with Settings(home=...) or Krunch(store=...)"
    elif store is not None and store is not krunch.store:
        why = "has another store than the one given"
    else:
        return krunch, krunch.store
    raise ValueError(f"this Krunch {why}")


def place_of(kind: str, tenant: str | None) -> str:
    """The tenant under which the store keeps things that are no conversations.

    Args:
        kind: what they are.
        tenant: who owns them.
    """
    return f"{APART}{kind}" if tenant is None else f"{APART}{kind}{APART}{tenant}"


def _is_open(store: ConversationStore) -> bool:
    try:
        store.info("")
    except StoreClosed:
        return False
    return True


@atexit.register
def _close() -> None:
    """Pack what is not packed."""
    for krunch in list(_krunches.values()):
        krunch.close()
    for store in _stores.values():
        store.close()
