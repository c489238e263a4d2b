"""Reading turns for an index: what nobody can read any more must not keep the rest out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from krunch_plugins.errors import FrameDamaged

if TYPE_CHECKING:
    from krunch_plugins.turns import Turn, TurnStore


def readable(store: TurnStore, session: str, start: int, stop: int, tenant: str | None) -> list[Turn]:
    """Turns of the store; those that are damaged are left out, since nobody can read them."""
    if start >= stop:
        return []
    try:
        return store.turns(session, start, stop, tenant=tenant)
    except FrameDamaged:
        if stop - start == 1:
            return []
        middle = (start + stop) // 2
        return [*readable(store, session, start, middle, tenant), *readable(store, session, middle, stop, tenant)]
