"""The embeddings of all turns, by tenant: follows the store, embeds what is new, and keeps it where it can be found."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from krunch_plugins.errors import SnapshotError, StoreClosed, StoreError
from krunch_plugins.recall.embedders import HashingEmbedder
from krunch_plugins.recall.embedding import BATCH_TEXTS, batches, embed
from krunch_plugins.recall.embedding_calls import LeftBehind, until
from krunch_plugins.recall.embedding_pages import MODELS, EmbeddingPages, digest
from krunch_plugins.recall.embedding_space import Space, Spaces
from krunch_plugins.recall.files import FileLock
from krunch_plugins.recall.reading import readable
from krunch_plugins.recall.texts import text_of
from krunch_plugins.recall.vector_files import VectorFiles
from krunch_plugins.recall.vectors import EXACT_UP_TO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from krunch_plugins.recall.embedding import QueryVectors
    from krunch_plugins.recall.files import IndexFiles
    from krunch_plugins.turns import Embedder, TurnEvent, TurnStore

    Vector = NDArray[np.float32]

log = logging.getLogger("krunch")

HELD_BYTES = 2_000_000_000
"""Bytes of vectors in memory, over all tenants."""
_WRITE_SECONDS = 2.0
"""How long embeddings may wait in memory until they are put into the store."""


class _Wanted(NamedTuple):
    """A turn that has no vector yet."""

    row: int
    key: str
    session: str
    number: int
    digest: int
    text: str


class EmbeddingIndex:
    """What the `Follower` keeps in step with the store: each turn's embedding. Thread-safe.

    - No text is embedded twice: an embedding is looked for in the store's pages, then among the tenant's other turns of
      the same text, then among its last queries. Processes take turns (a lock file), so each finds what the other
      embedded.
    - The embeddings of other models stay where they are: some other process may want them.
    - What was embedded is in the store before the next batch or two, so a crash or an embedder that goes down costs
      little.

    Args:
        store: whom to follow, and where embeddings are kept.
        files: where index files lie.
        embedder: the model.
        queries: vectors of what was searched for.
        exact_up_to: vectors up to which search is exact.
        held_bytes: bytes of vectors in memory, over all tenants; above, the tenant that was least recently used leaves
            memory, and comes back from the disk when it is asked for.
    """

    def __init__(  # noqa: PLR0913 - limits by name
        self,
        store: TurnStore,
        files: IndexFiles,
        embedder: Embedder,
        queries: QueryVectors,
        *,
        exact_up_to: int = EXACT_UP_TO,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self.embedder, self._queries = embedder, queries
        self._store, self._files, self._exact_up_to = store, files, exact_up_to
        # A plain number costs nothing to read. What has to be worked out may ask a service that is down just now.
        plain = inspect.getattr_static(embedder, "dimension", None)
        self._dimension = plain if isinstance(plain, int) else None
        self.known = threading.Event()
        if self._dimension is not None:
            self.known.set()
        self._pages = EmbeddingPages(store, embedder.name, lambda: self._dimension)
        self._spaces = Spaces(self._loaded, held_bytes, lambda: 4 * (self._dimension or 0))
        self._page_failures = 0
        self._frozen = False
        self._stopping = threading.Event()

    def space(self, tenant: str | None) -> Space:
        """A tenant's embeddings, from its files at first.

        Raises:
            Exception: whatever an embedder raises that has to be asked for its dimension, and is down; `LeftBehind`
                after `stop`. Searches wait for `known` instead, so that they never ask.
        """
        dimension = self._dimension
        if dimension is None:
            dimension = self._dimension = until(self._stopping, lambda: int(self.embedder.dimension))
            self.known.set()
        return self._spaces.get(tenant)

    def _loaded(self, tenant: str | None) -> Space:
        saved = self._vector_files(tenant).read(self._exact_up_to, self._stopping)
        return Space(saved, self._dimension or 0, self._exact_up_to, self._stopping)

    def spaces(self) -> dict[str | None, Space]:
        """The tenants that are in memory, the least recently used first."""
        return self._spaces.all()

    def cursor(self, tenant: str | None) -> str | None:
        """Up to where the store was followed; see `Index`. A tenant that has left memory is not brought back for it."""
        left = self._spaces.cursor_of_left(tenant)
        return self.space(tenant).cursor if left is None else left

    @contextmanager
    def writing(self, tenant: str | None) -> Iterator[bool]:
        """The right to embed and to write files, which one process has at a time; see `Index`."""
        with FileLock(self._files.folder(tenant) / "vectors.lock").holding() as mine:
            if not mine:
                yield False
                return
            with self._spaces.working(tenant):
                self.space(tenant)  # from here on the cursor is that of what is in memory
                yield True

    def apply(self, tenant: str | None, events: Sequence[TurnEvent], cursor: str | None) -> None:
        """Take in what happened; see `Index`.

        Raises:
            Exception: whatever an embedder that is down raises. What it did before that is kept.
        """
        space = self.space(tenant)
        wanted: dict[int, _Wanted] = {}
        for event in events:
            if event.kind == "reset":
                space.clear()
            elif event.kind == "forget":
                space.drop(event.key)
                self._forget_files(tenant)
            elif event.kind == "trim" and event.session is not None:
                self._trim(tenant, space, event, event.session)
            elif event.session is not None:
                wanted |= self._enter(tenant, space, event, event.session)
        space.sweep()
        with space.lock:
            left = [one for one in wanted.values() if one.row in space.lacking]
        self._fill(tenant, space, left)
        if self._stopping.is_set():
            return  # not all was embedded; the cursor stays, and the next start goes on
        if cursor is not None:
            space.tidy()
            with space.lock:
                space.cursor = cursor
                space.changes += 1
            if not space.complete.is_set():
                self._vector_files(tenant).remove_others(keep=MODELS - 1)
                space.complete.set()
            if space.save_now:
                self._save(tenant, space)
            self._spaces.make_room(tenant, self._put_away)

    def _put_away(self, tenant: str | None, space: Space) -> None:
        """Write a tenant's files if that is worth it, before it leaves memory."""
        if space.worth_saving:
            with self.writing(tenant) as mine:
                if mine:
                    self._save(tenant, space)

    def forget(self, tenant: str | None, session: str, is_gone: Callable[[str], bool]) -> int:
        """Let a session's turns be found no more, now, and remove the files that hold their vectors; see `Index`."""
        if not self.known.is_set():  # nothing is in memory yet
            self._forget_files(tenant)
            return 0
        space = self.space(tenant)
        with space.lock:
            known = space.catalogue.keys(session)
        removed = sum(space.drop(key) for key in known if is_gone(key))
        self._forget_files(tenant)
        return removed

    def flush(self) -> None:
        """Write what would take long to build again to the disk, unless another process is at it."""
        for tenant, space in self.spaces().items():
            self._put_away(tenant, space)

    def stop(self) -> None:
        """Embed no more than the batch that is on its way, and that only if it is done within a second.

        What is left is done after the next start.
        """
        self._stopping.set()

    def freeze(self) -> None:
        """Keep what there is for searches, whatever is closed; nothing is written any more."""
        self._frozen = True

    def release(self, tenant: str | None) -> None:
        """Let go of a tenant's embeddings in memory."""
        self._spaces.release(tenant)

    def close(self) -> None:
        """Flush, and let go of everything, unless it is frozen."""
        if self._frozen:
            return
        try:
            self.flush()
        except OSError as error:
            log.warning("index files were not written: %s", type(error).__name__)
        self._spaces.clear()

    def _enter(self, tenant: str | None, space: Space, event: TurnEvent, session: str) -> dict[int, _Wanted]:
        """Enter an event's turns in the catalogue; those that have no vector yet."""
        wanted = {}
        for turn in readable(self._store, session, event.start, event.stop, tenant):
            text = text_of(turn.message)
            found = digest(text)
            with space.lock:
                known = turn.number in space.catalogue.numbers(event.key)
                row = space.catalogue.add(event.key, session, turn, found)
                if not known and text.strip():
                    space.lacking.add(row)
                if row in space.lacking:
                    wanted[row] = _Wanted(row, event.key, session, turn.number, found, text)
        return wanted

    def _trim(self, tenant: str | None, space: Space, event: TurnEvent, session: str) -> None:
        """Drop turns that retention removed; their embeddings, too, which the store keeps apart from them."""
        with space.lock:
            first = next(iter(space.catalogue.numbers(event.key)), 0)
        self._pages.trim(tenant, session, event.key, event.start, first if first < event.start else 0)
        space.drop(event.key, event.start)
        self._forget_files(tenant)

    def _fill(self, tenant: str | None, space: Space, wanted: Sequence[_Wanted]) -> None:
        """Find or make the vectors of these turns."""
        left = self._from_pages(tenant, space, wanted)
        by_digest: dict[int, list[_Wanted]] = {}
        for one in left:
            by_digest.setdefault(one.digest, []).append(one)
        made = self._from_turns(space, list(by_digest))
        for found, (first, *_) in by_digest.items():
            if found not in made and (vector := self._queries.of_turn(first.text, tenant)) is not None:
                made[found] = vector
        texts = {turns[0].text: found for found, turns in by_digest.items() if found not in made}
        unwritten = [one for found in made for one in by_digest[found]]
        written = time.monotonic()
        try:
            for batch in batches(list(texts), getattr(self.embedder, "batch_size", BATCH_TEXTS)):
                if self._stopping.is_set():
                    break
                for text, vector in zip(batch, self._embed(batch, tenant), strict=True):
                    if vector is None:
                        self._skip(space, by_digest[texts[text]])
                        continue
                    made[texts[text]] = vector
                    unwritten += by_digest[texts[text]]
                if time.monotonic() - written > _WRITE_SECONDS:
                    self._keep(tenant, space, unwritten, made)
                    unwritten, written = [], time.monotonic()
        except LeftBehind:
            pass  # `stop` was called; these texts are embedded after the next start
        finally:
            self._keep(tenant, space, unwritten, made)

    def _embed(self, batch: list[str], tenant: str | None) -> list[Vector | None]:
        """The vectors of a batch. `stop` ends the wait for them soon."""
        if isinstance(self.embedder, HashingEmbedder):  # takes less time than anybody would mind
            return embed(self.embedder, batch)
        with self._queries.coming(batch, tenant) as came:
            found = until(self._stopping, lambda: embed(self.embedder, batch))
            came(found)
            return found

    def _from_pages(self, tenant: str | None, space: Space, wanted: Sequence[_Wanted]) -> list[_Wanted]:
        """Take the vectors that the store has; the turns that it has none for."""
        sessions: dict[str, list[_Wanted]] = {}
        for one in wanted:
            sessions.setdefault(one.session, []).append(one)
        left, found = [], []
        for session, turns in sessions.items():
            numbers = [one.number for one in turns]
            kept = self._pages.read(tenant, session, range(min(numbers), max(numbers) + 1))
            for one in turns:
                of_text, vector = kept.get(one.number, (None, None))
                if of_text == one.digest and vector is not None:
                    found.append((one, vector))
                else:
                    left.append(one)
        self._add(space, found)
        return left

    def of_text(self, text: str, tenant: str | None) -> Vector | None:
        """The vector of a turn of the tenant's that says just this; None if there is none in memory."""
        return next(iter(self._from_turns(self.space(tenant), [digest(text)]).values()), None)

    @staticmethod
    def _from_turns(space: Space, digests: list[int]) -> dict[int, Vector]:
        """Vectors of the tenant's turns whose texts have these digests, by the digest."""
        if not digests:
            return {}
        with space.lock:
            others = space.catalogue.with_digest(digests, without=space.lacking)
            vectors = space.vectors
        rows = {row: found for found, row in others.items()}
        ids, kept = vectors.get(list(rows))
        return {rows[row]: vector for row, vector in zip(ids.tolist(), kept, strict=True)}

    def _keep(self, tenant: str | None, space: Space, turns: Sequence[_Wanted], made: dict[int, Vector]) -> None:
        """Put vectors into the index and into the store."""
        self._add(space, [(one, made[one.digest]) for one in turns])
        sessions: dict[tuple[str, str], dict[int, tuple[int, Vector]]] = {}
        for one in turns:
            sessions.setdefault((one.session, one.key), {})[one.number] = one.digest, made[one.digest]
        for (session, key), embeddings in sessions.items():
            with space.lock:
                first = next(iter(space.catalogue.numbers(key)), 0)
            try:
                self._pages.write(tenant, session, key, embeddings, first)
            except StoreClosed:
                raise
            except StoreError as error:
                if not self._page_failures:
                    log.warning("embeddings are not kept in the store: %s", type(error).__name__)
                self._page_failures += 1

    @staticmethod
    def _add(space: Space, found: Sequence[tuple[_Wanted, Vector]]) -> None:
        with space.lock:  # what was forgotten meanwhile is lacking no more
            found = [(one, vector) for one, vector in found if one.row in space.lacking]
            space.lacking.difference_update(one.row for one, _ in found)
            space.changes += len(found)
            vectors = space.vectors
        if found:
            vectors.add([one.row for one, _ in found], np.stack([vector for _, vector in found]))

    @staticmethod
    def _skip(space: Space, turns: Sequence[_Wanted]) -> None:
        with space.lock:
            space.lacking.difference_update(one.row for one in turns)
            space.skipped += len(turns)

    def _save(self, tenant: str | None, space: Space) -> None:
        """Write the files, if they would hold nothing that was forgotten.

        The right to write is held, so vectors come and go only after it.
        """
        with space.lock:
            if space.cursor is None or space.lacking or space.doomed or space.vectors.marked:
                return
            changes, cursor, catalogue = space.changes, space.cursor, space.catalogue.state()
        files = self._vector_files(tenant)
        try:
            files.write(cursor, catalogue, space.vectors)
        except (OSError, SnapshotError) as error:
            log.warning("an index file was not written: %s", type(error).__name__)
            return
        gone = self._gone_since(tenant, cursor)
        with space.lock:
            if space.doomed or gone:  # something was forgotten just now, here or by another process
                files.remove()
            else:
                space.saved = changes

    def _gone_since(self, tenant: str | None, cursor: str) -> bool:
        """Whether turns were removed from the store after a cursor."""
        try:
            while True:
                events, after = self._store.since(cursor, tenant=tenant)
                if any(event.kind != "append" for event in events):
                    return True
                if after == cursor:
                    return False
                cursor = after
        except StoreClosed:  # whoever reads the files follows the store from their cursor on
            return False

    def _forget_files(self, tenant: str | None) -> None:
        """Remove the files, for they may hold what was forgotten, also where another process wrote them."""
        files = self._vector_files(tenant)
        files.remove_others()
        if files.remove() and self.known.is_set():
            space = self.space(tenant)
            with space.lock:
                space.saved = 0

    def _vector_files(self, tenant: str | None) -> VectorFiles:
        return VectorFiles(self._files.folder(tenant), self.embedder.name, self._dimension or 0)
