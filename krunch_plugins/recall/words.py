"""Words: BM25 over turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from krunch_plugins.recall.files import IndexFiles
    from krunch_plugins.turns import SearchHit, SearchQuery, TurnStore


class Words:
    """The voice that finds turns by their words.

    Args:
        store: whose turns.
        files: where the index lies.
    """

    def __init__(self, store: TurnStore, files: IndexFiles) -> None:
        self._store, self._files = store, files

    def search(self, query: SearchQuery) -> Sequence[SearchHit]:
        """Nothing yet."""
        del query
        return []

    def version(self, tenant: str | None) -> Hashable:
        """Of the index."""
        return self._store.since(None, tenant=tenant)[1]

    def flush(self, timeout: float | None = None) -> bool:
        """Always done."""
        del timeout
        return True

    def forget(self, session: str, tenant: str | None) -> int:
        """Nothing is kept."""
        del session, tenant
        return 0

    def close(self) -> None:
        """Nothing is held."""
