"""Vectors: the voice that finds turns by the nearness of their embeddings."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.recall.embedders import HashingEmbedder
from krunch_plugins.recall.embedding import EMBED_SECONDS, QueryVectors
from krunch_plugins.recall.embedding_index import HELD_BYTES, EmbeddingIndex
from krunch_plugins.recall.following import Follower
from krunch_plugins.recall.locks import Lock
from krunch_plugins.recall.vectors import EXACT_UP_TO
from krunch_plugins.recall.voices import found

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from krunch_plugins.recall.files import IndexFiles
    from krunch_plugins.recall.vectors import AdaptiveIndex
    from krunch_plugins.turns import Embedder, SearchHit, SearchQuery, TurnStore

_TIES, _MOST_TIES = 32, 10_000
"""Vectors that are looked at beyond what is wanted, at first and at most; see `_with_ties`."""
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
        without: searches of this process that had to do without vectors, because the query's came late or not at all.
    """

    model: str
    vectors: int
    waiting: int
    skipped: int
    kind: str
    missing: str | None
    without: int


class _Limits(NamedTuple):
    """As `Vectors` describes them."""

    exact_up_to: int
    held_bytes: int
    embed_seconds: float


class Model:
    """An embedder, the index of its vectors, and what keeps that in step with the store.

    Attributes:
        embedder: the embedder.
        index: the vectors of all turns.
        queries: the vectors of what is searched for.
        follower: keeps the index in step.
    """

    def __init__(self, store: TurnStore, files: IndexFiles, embedder: Embedder, limits: _Limits) -> None:
        self.embedder = embedder
        self.queries = QueryVectors(embedder, limits.embed_seconds)
        self.index = EmbeddingIndex(
            store, files, embedder, self.queries, exact_up_to=limits.exact_up_to, held_bytes=limits.held_bytes
        )
        self.follower = Follower(store, self.index, "vectors")

    def wanted(self, query: SearchQuery) -> NDArray[np.float32] | None:
        """The vector of what is searched for, of a turn that says the same if that will do; None if there is none."""
        known = self.index.of_text(query.text, query.tenant) if self.queries.alike else None
        return self.queries.vector(query.text, query.tenant) if known is None else known


def _with_ties(
    vectors: AdaptiveIndex, wanted: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest and all that are as near as the last of them, so that their order need not be that of their ids.

    Ids depend on when turns came into the index. Where one text stands in hundreds of turns ("thanks"), the answer
    would be another one after a rebuild.
    """
    more = _TIES
    while True:
        ids, scores = vectors.search(wanted, k + more, rows)
        if len(scores) < k + more or scores[-1] < scores[k - 1] or more > _MOST_TIES:
            return ids, scores
        more *= 8


def _instead(model: Model, before: Model | None, tenant: str | None, *, wait: bool) -> Model | None:
    """Which model answers while it is not known how long this one's vectors are; None: none does."""
    if before is not None and len(before.index.space(tenant).vectors):
        return before
    return model if wait and model.index.known.wait(_FIRST_WAIT) else None


def _frozen(model: Model) -> Model:
    """The model, which answers searches with what it has and takes in nothing more."""
    model.index.freeze()
    model.index.stop()
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
        held_bytes: bytes of vectors in memory over all tenants; those that were not used lately leave it.
        embed_seconds: seconds that a search waits at most for the embedding of its query.
    """

    def __init__(  # noqa: PLR0913 - limits by name
        self,
        store: TurnStore,
        files: IndexFiles,
        embedder: Embedder | None = None,
        *,
        exact_up_to: int = EXACT_UP_TO,
        held_bytes: int = HELD_BYTES,
        embed_seconds: float = EMBED_SECONDS,
    ) -> None:
        self._store, self._files = store, files
        self._limits = _Limits(exact_up_to, held_bytes, embed_seconds)
        self._lock = Lock()
        self._model = Model(store, files, embedder or HashingEmbedder(), self._limits)
        self._before: Model | None = None
        self._asked: dict[str | None, float] = {}
        if not isinstance(self._model.embedder, HashingEmbedder):
            self._before = _frozen(Model(store, files, HashingEmbedder(), self._limits))

    def search(self, query: SearchQuery) -> Sequence[SearchHit]:
        """The nearest turns first, as far as they have any nearness; exact on what the query's filters leave."""
        model = self.answering(query.tenant)
        if model is None:
            return []
        space = model.index.space(query.tenant)
        catalogue, vectors = space.now()
        with space.lock:
            rows = catalogue.matching(query)
        if not len(vectors) or (rows is not None and not len(rows)):
            return []
        wanted = model.wanted(query)
        if wanted is None:
            return []
        ids, scores = _with_ties(vectors, wanted, query.k, rows)
        with space.lock:
            places = [catalogue.place(row) for row in ids.tolist()]
        near = [(-score, place) for place, score in zip(places, scores.tolist(), strict=True) if place and score > 0]
        return [found(place.session, place.number, -score) for score, place in sorted(near)[: query.k]]

    def version(self, tenant: str | None) -> Hashable:
        """Differs from before when the same query may have another answer."""
        model = self.answering(tenant)
        if model is None:
            return None
        space = model.index.space(tenant)
        # An answer without vectors is not that of a version: once the query's vector is there, it is another. And the
        # index may be behind: what another process forgot must not be answered with from a cache.
        head = self._model.follower.head(tenant, space.cursor)
        return model.embedder.name, space.serial, space.changes, model.queries.without, head

    def flush(self, timeout: float | None = None) -> bool:
        """Have every turn embedded; False if an embedder is down, or time ran out."""
        done = self._model.follower.flush(timeout)
        if done:
            with self._lock:
                self._before = None  # its vectors are of no use any more
        return done

    def forget(self, session: str, tenant: str | None) -> int:
        """Remove every trace of a session's text; how many turns had one."""
        removed = self._model.index.forget(tenant, session, partial(self._model.follower.is_gone, tenant))
        self._model.queries.drop(tenant)
        with self._lock:
            before = self._before
        if before is not None:
            before.queries.drop(tenant)
            before.index.forget(tenant, session, lambda _: True)
        return removed

    def close(self) -> None:
        """Stop embedding, and write index files that are worth it. Safe to call twice."""
        self._model.index.stop()
        self._model.follower.close()

    def change_embedder(self, embedder: Embedder) -> None:
        """Go over to another model. Until its vectors are complete, the ones there are answer, as they stand."""
        with self._lock:
            if embedder.name == self._model.embedder.name:
                return
            self._before, self._model = self._model, Model(self._store, self._files, embedder, self._limits)
            self._asked.clear()
            before = self._before
        _frozen(before)
        for tenant in self._store.tenants():
            self._model.follower.wake(tenant)

    def stats(self, tenant: str | None = None) -> VectorStats:
        """What a tenant's vectors are like; of the model that is being built, if there is one."""
        name, without = self._model.embedder.name, self._model.queries.without
        if not self._model.index.known.is_set():
            return VectorStats(name, 0, 0, 0, "exact", None, without)
        space = self._model.index.space(tenant)
        kind = "exact" if space.vectors.graph is None else "graph"
        return VectorStats(
            name,
            len(space.vectors),
            len(space.lacking),
            space.skipped,
            kind,
            space.vectors.missing,
            without,
        )

    def answering(self, tenant: str | None) -> Model | None:
        """The model whose vectors answer a tenant's searches; has the background look for news now and then.

        None while an embedder has not told its dimension: the background asks it, and it may be down.
        """
        with self._lock:
            model, before = self._model, self._before
            asked, now = self._asked.get(tenant), time.monotonic()
            due = asked is None or now - asked > _LOOK_AGAIN
            if due:
                self._asked[tenant] = now
        if not model.index.known.is_set():
            if due:
                model.follower.wake(tenant)
            found = _instead(model, before, tenant, wait=asked is None)
            if found is not model:
                return found
        space = model.index.space(tenant)
        first = not space.complete.is_set() and not space.awaited
        if first or due:
            model.follower.wake(tenant)
        if space.complete.is_set():
            if before is not None:
                before.index.release(tenant)
            return model
        if before is not None and len(before.index.space(tenant).vectors):
            return before
        if first:
            space.awaited = True
            space.complete.wait(_FIRST_WAIT)
        return model
