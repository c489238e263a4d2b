"""What was said before: the part of `Krunch` that reads it, finds it, and makes contexts of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from krunch_plugins.storage.blocks import plain_copy
from krunch_plugins.turns import SearchQuery

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from krunch_plugins.plugins import Plugins
    from krunch_plugins.recall.context import Contexts
    from krunch_plugins.recall.recall import Recall
    from krunch_plugins.settings import ContextMode
    from krunch_plugins.storage.recent import RecentTurns
    from krunch_plugins.storage.store import ConversationStore
    from krunch_plugins.turns import Message, SearchHit, Turn


class History:
    """Reads what is stored; `Krunch`, which is one, makes the parts and has the docstring that users read.

    Attributes:
        store: the history store, or None.
    """

    store: ConversationStore | None
    _recent: RecentTurns | None
    _recall: Recall
    _plugins: Plugins
    _contexts: Contexts

    def recent(self, session: str, n: int = 20, *, tenant: str | None = None) -> list[Turn]:
        """The newest turns of a session, in order: from the store, or without one from RAM (`Settings.hot_turns`).

        Args:
            session: its id.
            n: how many at most.
            tenant: who owns it.

        Raises:
            StoreError: the store could not be read.
        """
        if self._recent is not None:
            return self._recent.recent(session, n, tenant=tenant)
        return [] if self.store is None else self.store.recent(session, n, tenant=tenant)

    def search(  # noqa: PLR0913 - each narrows the search by itself, given by name
        self,
        query: str,
        *,
        session: str | None = None,
        tenant: str | None = None,
        k: int = 10,
        after: float | None = None,
        before: float | None = None,
        roles: Iterable[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[SearchHit]:
        """Find old turns: what all search plugins find, fused by reciprocal rank.

        Args:
            query: what to look for, in plain words; it is never parsed as a query language.
            session: only in this session; None: in all sessions of the tenant.
            tenant: whose turns; None is a tenant of its own.
            k: how many at most, at least 1.
            after: only turns stored at or after this time, seconds since the epoch.
            before: only turns stored before this time, seconds since the epoch.
            roles: only messages of these roles.
            metadata: only turns whose metadata holds all of these; a tuple is the list that it is stored as.

        Returns:
            The best first; `hit.found_by` says which plugin found it at which rank.

        Raises:
            ValueError: `k` is below 1.
            NotStorable: no metadata could hold this.
            StoreError: the turns that were found could not be read.
        """
        if k < 1:
            raise ValueError(f"k is {k}; a search is for 1 turn at least")
        metadata = None if metadata is None else plain_copy(metadata, "metadata")
        chosen = None if roles is None else frozenset([roles] if isinstance(roles, str) else roles)
        asked = SearchQuery(query, session, tenant, k, after, before, chosen, metadata)
        return self._find(asked)

    async def asearch(self, query: str, **filters: Any) -> list[SearchHit]:  # noqa: ANN401 - as `search` has them
        """`search`, in a worker thread, because it reads from the disk; the same arguments."""
        return await asyncio.to_thread(self.search, query, **filters)

    def context(
        self,
        session: str,
        mode: ContextMode = "recent",
        *,
        query: str | None = None,
        budget: int = 2000,
        tenant: str | None = None,
    ) -> list[Message]:
        """Messages of a session, from the store, to go on with; docs/context.md says how they are chosen.

        Args:
            session: its id. One that does not exist has no messages.
            mode: "recent", the last messages that fit; "full", all; "smart", the last ones, and the old turns that
                matter for the query, in one message of the user that quotes them and says when each was said.
            query: what is asked next; None: what the user said last. Only for "smart".
            budget: tokens, counted by `Settings.default_encoding`; "full" does not look at it. Messages of the system
                are always there, whole: if they alone exceed it, they are all there is.
            tenant: who owns the session.

        Raises:
            ValueError: an unknown mode, or a budget below 1.
            StoreError: the store could not be read.
            TokenizerUnavailable: tokens cannot be counted.
        """
        return self._contexts.make(session, mode, query, budget, tenant)

    async def acontext(self, session: str, mode: ContextMode = "recent", **options: Any) -> list[Message]:  # noqa: ANN401 - as `context` has them
        """`context`, in a worker thread, because it reads from the disk; the same arguments."""
        return await asyncio.to_thread(self.context, session, mode, **options)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything stored so far is searchable in every way, embeddings too, and on disk.

        Args:
            timeout: seconds to wait at most.

        Returns:
            False if time ran out, or an embedder failed; it is tried again later, and words find the turns meanwhile.
        """
        return self._recall.flush(timeout)

    def _find(self, query: SearchQuery) -> list[SearchHit]:
        cacheable = not self._plugins.has_outside("on_search")
        return self._recall.search(query, self._plugins.on_search, cacheable=cacheable)

    def _find_or_fail(self, query: SearchQuery) -> list[SearchHit]:
        """`_find`; raises StoreError where all plugins failed, which is not to be taken for having found nothing."""
        cacheable = not self._plugins.has_outside("on_search")
        return self._recall.search(query, self._plugins.search_or_fail, cacheable=cacheable)
