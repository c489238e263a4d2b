"""Vectors: the voice that finds turns by the nearness of their embeddings."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.recall.embedders import HashingEmbedder
from krunch_plugins.recall.embedding import QueryVectors
from krunch_plugins.recall.embedding_index import EmbeddingIndex
from krunch_plugins.recall.following import Follower
from krunch_plugins.recall.vectors import EXACT_UP_TO
from krunch_plugins.recall.voices import found

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from krunch_plugins.recall.files import IndexFiles
    from krunch_plugins.turns import Embedder, SearchHit, SearchQuery, TurnStore

_TIES = 32
"""Vectors that are looked at beyond what is wanted, so that turns of one text come in the order of their numbers."""
_FIRST_WAIT = 0.5
"""Seconds that the first search of a tenant waits for embeddings that are on their way from the disk."""
_LOOK_AGAIN = 1.0
"""Seconds after which a search has the background thread look for what other processes appended."""


class VectorStats(NamedTuple):
    """What the vectors of one tenant are like.

    Attributes:
        model: name of the embedder.
        vectors: turns that have one.
        waiting: turns whose embedding has not been made yet.
        skipped: turns that the embedder could not do; only words find them.
        kind: "exact" or "graph".
        missing: what would make searches faster and is not installed; None if nothing is missing.
    """

    model: str
    vectors: int
    waiting: int
    skipped: int
    kind: str
    missing: str | None


class Model:
    """An embedder, the index of its vectors, and what keeps that in step with the store.

    Attributes:
        embedder: the embedder.
        index: the vectors of all turns.
        queries: the vectors of what is searched for.
        follower: keeps the index in step.
    """

    def __init__(self, store: TurnStore, files: IndexFiles, embedder: Embedder, exact_up_to: int) -> None:
        self.embedder = embedder
        self.index = EmbeddingIndex(store, files, embedder, exact_up_to=exact_up_to)
        self.queries = QueryVectors(embedder)
        self.follower = Follower(store, self.index, "vectors")


def _frozen(model: Model) -> Model:
    """The model, which answers searches with what it has and takes in nothing more."""
    model.index.freeze()
    model.follower.close()
    return model


class Vectors:
    """The voice that finds turns by the nearness of their embeddings, by cosine.

    Turns are embedded in the background; `flush` waits for it. While an embedder is down, this voice finds what it knew
    before, and later what came meanwhile. With another embedder than before, an index for it is built beside the old
    one, which answers until the new one is complete: after `change_embedder`, and after a restart if the embedder
    before was the built-in one (for another one, words answer meanwhile).

    Thread-safe.

    Args:
        store: whose turns.
        files: where index files lie.
        embedder: the model; None: `HashingEmbedder`.
        exact_up_to: vectors up to which search is exact.
    """

    def __init__(
        self, store: TurnStore, files: IndexFiles, embedder: Embedder | None = None, *, exact_up_to: int = EXACT_UP_TO
    ) -> None:
        self._store, self._files, self._exact_up_to = store, files, exact_up_to
        self._lock = threading.Lock()
        self._model = Model(store, files, embedder or HashingEmbedder(), exact_up_to)
        self._before: Model | None = None
        self._asked: dict[str | None, float] = {}
        if not isinstance(self._model.embedder, HashingEmbedder):
            self._before = _frozen(Model(store, files, HashingEmbedder(), exact_up_to))

    def search(self, query: SearchQuery) -> Sequence[SearchHit]:
        """The nearest turns first, as far as they have any nearness; exact on what the query's filters leave."""
        model = self.answering(query.tenant)
        space = model.index.space(query.tenant)
        with space.lock:
            rows = space.catalogue.matching(query)
        if not len(space.vectors) or (rows is not None and not len(rows)):
            return []
        wanted = model.queries.vector(query.text)
        if wanted is None:
            return []
        ids, scores = space.vectors.search(wanted, query.k + _TIES, rows)
        with space.lock:
            places = [space.catalogue.place(row) for row in ids.tolist()]
        near = [(-score, place) for place, score in zip(places, scores.tolist(), strict=True) if place and score > 0]
        return [found(place.session, place.number, -score) for score, place in sorted(near)[: query.k]]

    def version(self, tenant: str | None) -> Hashable:
        """Differs from before when the same query may have another answer."""
        model = self.answering(tenant)
        return model.embedder.name, model.index.space(tenant).changes

    def flush(self, timeout: float | None = None) -> bool:
        """Have every turn embedded; False if an embedder is down, or time ran out."""
        done = self._model.follower.flush(timeout)
        if done:
            with self._lock:
                self._before = None  # its vectors are of no use any more
        return done

    def forget(self, session: str, tenant: str | None) -> int:
        """Remove every trace of a session's text; how many turns had one."""
        removed = self._model.index.forget(tenant, session, self._model.follower.gone(tenant))
        with self._lock:
            before = self._before
        if before is not None:
            before.index.forget(tenant, session, None)
        return removed

    def close(self) -> None:
        """Stop embedding, and write index files that are worth it. Safe to call twice."""
        self._model.follower.close()

    def change_embedder(self, embedder: Embedder) -> None:
        """Go over to another model. Until its vectors are complete, the ones there are answer, as they stand."""
        with self._lock:
            if embedder.name == self._model.embedder.name:
                return
            self._before, self._model = self._model, Model(self._store, self._files, embedder, self._exact_up_to)
            self._asked.clear()
            before = self._before
        _frozen(before)
        for tenant in self._store.tenants():
            self._model.follower.wake(tenant)

    def stats(self, tenant: str | None = None) -> VectorStats:
        """What a tenant's vectors are like; of the model that is being built, if there is one."""
        space = self._model.index.space(tenant)
        kind = "exact" if space.vectors.graph is None else "graph"
        return VectorStats(
            self._model.embedder.name,
            len(space.vectors),
            len(space.lacking),
            space.skipped,
            kind,
            space.vectors.missing,
        )

    def answering(self, tenant: str | None) -> Model:
        """The model whose vectors answer a tenant's searches; has the background look for news now and then."""
        with self._lock:
            model, before = self._model, self._before
            asked, now = self._asked.get(tenant), time.monotonic()
            if asked is None or now - asked > _LOOK_AGAIN:
                self._asked[tenant] = now
        if asked is None or now - asked > _LOOK_AGAIN:
            model.follower.wake(tenant)
        space = model.index.space(tenant)
        if space.complete.is_set():
            if before is not None:
                before.index.release(tenant)
            return model
        if before is not None and len(before.index.space(tenant).vectors):
            return before
        if asked is None:
            space.complete.wait(_FIRST_WAIT)
        return model
