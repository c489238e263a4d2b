"""Topics: the voice that offers the turns in the warm places of a session's topic memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from krunch_plugins.recall.locks import Lock
from krunch_plugins.recall.topics import SessionTopics
from krunch_plugins.recall.voices import found

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from krunch_plugins.recall.embedding_space import Space
    from krunch_plugins.recall.vector_search import Vectors
    from krunch_plugins.turns import SearchHit, SearchQuery

_SESSIONS = 64
"""Topic memories that are held; others are made anew from their embeddings when they are asked."""


class Topics:
    """The voice that offers the turns in the warm places.

    A query warms its own place on the session's torus; the turns where it is warm then are the answer. It knows one
    session at a time: a search over several finds nothing here. Thread-safe.

    Args:
        vectors: whose embeddings.
        owner: close and flush `vectors` too, because it is no voice of its own.
    """

    def __init__(self, vectors: Vectors, *, owner: bool = False) -> None:
        self._vectors, self._owner = vectors, owner
        self._lock = Lock()
        self._held: OrderedDict[tuple[str | None, str, str], SessionTopics] = OrderedDict()

    def search(self, query: SearchQuery) -> Sequence[SearchHit]:
        """The warmest turns first, of those that the query's filters leave."""
        if query.session is None:
            return []
        model = self._vectors.answering(query.tenant)
        if model is None:
            return []
        wanted = model.wanted(query)
        if wanted is None or not wanted.any():
            return []
        space = model.index.space(query.tenant)
        catalogue, _ = space.now()
        with space.lock:
            rows = catalogue.matching(query)
            places = () if rows is None else map(catalogue.place, rows.tolist())
            allowed = {place.number for place in places if place is not None}
        with self._lock:
            topics = self._topics(space, query.tenant, query.session, model.embedder.name)
            warm = [] if topics is None else topics.warm(wanted)
        hits = [found(query.session, number, heat) for number, heat in warm if number in allowed and heat > 0]
        return hits[: query.k]

    def version(self, tenant: str | None) -> Hashable:
        """Differs from before when the same query may have another answer."""
        return self._vectors.version(tenant)

    def flush(self, timeout: float | None = None) -> bool:
        """Have every turn embedded; memories are made when they are asked."""
        return self._vectors.flush(timeout) if self._owner else True

    def forget(self, session: str, tenant: str | None) -> int:
        """Drop what is held of a session."""
        with self._lock:
            for key in [key for key in self._held if key[:2] == (tenant, session)]:
                del self._held[key]
        return self._vectors.forget(session, tenant) if self._owner else 0

    def close(self) -> None:
        """Let go of everything. Safe to call twice."""
        with self._lock:
            self._held.clear()
        if self._owner:
            self._vectors.close()

    def _topics(self, space: Space, tenant: str | None, session: str, model: str) -> SessionTopics | None:
        """The session's memory, with all its turns in it; None if none has an embedding."""
        catalogue, vectors = space.now()
        with space.lock:
            numbers = {row: number for key in catalogue.keys(session) for number, row in catalogue.numbers(key).items()}
        ids, kept = vectors.get(sorted(numbers, key=numbers.__getitem__))
        order = [numbers[row] for row in ids.tolist()]
        if not order:
            return None
        held = self._held.pop((tenant, session, model), None)
        if held is None or list(held.numbers) != order[: len(held)]:
            held = SessionTopics()
        done = len(held)
        held.add(order[done:], kept[done:])
        self._held[tenant, session, model] = held
        if len(self._held) > _SESSIONS:
            self._held.popitem(last=False)
        return held
