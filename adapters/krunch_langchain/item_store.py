"""`KrunchStore`: LangGraph's long-term memory on the history store, with our search."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from langgraph.store.base import (
    BaseStore,
    GetOp,
    IndexConfig,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    ensure_embeddings,
    get_text_at_path,
    tokenize_path,
)

from krunch_langchain.item_filters import check_labels, fits, matches
from krunch_langchain.item_index import ItemIndexes
from krunch_langchain.item_log import Change, ItemLog
from krunch_langchain.item_ranking import by_search
from krunch_langchain.item_selection import Selection
from krunch_langchain.json_values import to_json_value
from krunch_langchain.namespaces import Namespace, Namespaces
from krunch_langchain.shared import krunch_and_store, krunch_of, place_of, shared_store
from krunch_plugins.errors import FrameDamaged, RecordsLost, SessionsDamaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from krunch_langchain.item_log import Entry
    from krunch_plugins import ConversationStore, Krunch

_KIND = "memories"
_WHOLE = "$"
_Place = tuple[Namespace, str]


class KrunchStore(BaseStore):
    """Long-term memory for LangGraph: items by namespace and key, kept on disk, found by filter and by meaning.

    Thread-safe; any number of processes may share one. A batch's puts in one namespace are stored all or none. Reads of
    a batch see what was there before it, as with LangGraph's own stores.

    - With `index`, texts are embedded by its `embed`, and a query ranks by cosine: exactly up to 10,000 vectors, and
      where a filter is given; above by a graph, built in the background, if the extra `search` is installed.
    - Without, a query asks Krunch's own search (words and the built-in embeddings) and needs no model.

    An item keeps its `created_at` when it is put again, until it is deleted or expires. What was replaced or deleted is
    given up when its namespace's log is written anew, which happens by itself, and at once with `compact`.

    Args:
        store: where to keep it; default `shared_store()`.
        tenant: who owns it; what belongs to one tenant is invisible to every other.
        index: LangGraph's `{"dims", "embed", "fields"}`; `fields` alone says what Krunch's own search sees of an item.
        ttl: LangGraph's `{"default_ttl", "refresh_on_read", "sweep_interval_minutes"}`, minutes. What has expired is
            never returned, whatever `omit_expired` says.
        krunch: who searches; it must have been made with the same store. Default: one for each store in a process.

    Raises:
        ValueError: `krunch` searches another store.
    """

    supports_ttl = True

    def __init__(
        self,
        store: ConversationStore | None = None,
        *,
        tenant: str | None = None,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        krunch: Krunch | None = None,
    ) -> None:
        if krunch is not None:
            _, store = krunch_and_store(krunch, store)
        store = store or shared_store()
        self._store, self._krunch, self.ttl_config = store, krunch, ttl
        self._tenant = place_of(_KIND, tenant)
        self._namespaces = Namespaces(store, self._tenant)
        self._indexes = ItemIndexes(self._namespaces)
        self.index_config = index
        embed = index.get("embed") if index else None
        self.embeddings = ensure_embeddings(embed) if embed is not None else None
        fields = (index or {}).get("fields") or [_WHOLE]
        self._fields = [(path, _tokens(path)) for path in fields]
        self._swept, self._sweep_lock = time.monotonic(), threading.Lock()

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Do several operations: first all reads, then all puts.

        Raises:
            InvalidNamespaceError: a label is empty, no string, or holds a period.
            NotStorable: a value holds something that cannot be stored.
            RecordsLost: damage has taken records of a namespace that is used; see `accept_loss`.
            StoreError: the store could not be read or written.
        """
        work = self._plan(ops)
        if self.embeddings is not None:
            queries = {query: self.embeddings.embed_query(query) for query in work.queries()}
            texts = work.texts()
            vectors = self.embeddings.embed_documents(texts) if texts else []
            work.embedded(queries, dict(zip(texts, vectors, strict=True)))
        return self._do(work)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """`batch` for async callers: embeds asynchronously, and reads and writes in a worker thread."""
        work = self._plan(ops)
        if self.embeddings is not None:
            asked = work.queries()
            found = await asyncio.gather(*(self.embeddings.aembed_query(query) for query in asked))
            texts = work.texts()
            vectors = await self.embeddings.aembed_documents(texts) if texts else []
            work.embedded(dict(zip(asked, found, strict=True)), dict(zip(texts, vectors, strict=True)))
        return await asyncio.to_thread(self._do, work)

    def sweep_ttl(self) -> int:
        """Remove what has expired, of all namespaces; how many items that were.

        It is done every `sweep_interval_minutes`, too, in the call that comes after.

        Raises:
            SessionsDamaged: some namespaces could not be read; it was done for all others.
        """
        return self._of_all(ItemLog.sweep, "and what has expired in them is still there")

    def compact(self) -> int:
        """Give up values that were replaced or deleted, and what has expired, of all namespaces.

        It happens by itself, too, when enough has gathered. The store overwrites the space in the background.

        Returns:
            How many entries of logs were given up.

        Raises:
            SessionsDamaged: some namespaces could not be read; it was done for all others.
        """
        return self._of_all(ItemLog.compact, "and what was replaced or deleted in them is still on the disk")

    def accept_loss(self, prefix: tuple[str, ...] = (), *, keep: bool) -> int:
        """Go on with namespaces of which records were lost to damage; until then every use of one raises `RecordsLost`.

        Args:
            prefix: the namespaces that begin with it.
            keep: keep the items that the lost records may have deleted or replaced, as they were before; else delete
                them.

        Returns:
            How many items that are.
        """
        return sum(self._namespaces.log(name).accept_loss(keep=keep) for name in self._namespaces.below(prefix))

    def _of_all(self, do: Callable[[ItemLog], int], else_: str) -> int:
        """Do something with each namespace; the sum of what it gives."""
        done, damaged = 0, []
        for name in self._namespaces.below(()):
            log = self._namespaces.log(name)
            try:
                done += do(log)
            except (RecordsLost, FrameDamaged):
                damaged.append(log.session)
        if damaged:
            raise SessionsDamaged(damaged, else_)
        return done

    def _plan(self, ops: Iterable[Op]) -> _Work:
        work = _Work([], {}, {}, {})
        for op in ops:
            check_labels(op)
            work.ops.append(op)
            if isinstance(op, PutOp):
                work.puts[op.namespace, op.key] = op  # of several for one key, the last counts
            elif not isinstance(op, (GetOp, SearchOp, ListNamespacesOp)):
                raise TypeError(f"KrunchStore knows no operation {type(op).__name__}")
        work.fields.update((place, self._texts_of(op)) for place, op in work.puts.items())
        return work

    def _texts_of(self, op: PutOp) -> dict[str, str]:
        """The texts of an item that are searched, by field."""
        if op.value is None or op.index is False:
            return {}
        value = to_json_value(dict(op.value))
        paths = self._fields if op.index is None else [(path, _tokens(path)) for path in op.index]
        texts: dict[str, str] = {}
        for path, tokens in paths:
            found = get_text_at_path(value, tokens)
            for number, text in enumerate(found):
                texts[path if len(found) == 1 else f"{path}.{number}"] = text
        return texts

    def _do(self, work: _Work) -> list[Result]:
        self._sweep_if_due()
        results: list[Result] = []
        for op in work.ops:
            if isinstance(op, GetOp):
                results.append(self._get(op))
            elif isinstance(op, SearchOp):
                results.append(self._search(op, work.query_vectors))
            elif isinstance(op, ListNamespacesOp):
                results.append(self._list(op))
            else:
                results.append(None)
        changes: dict[Namespace, list[Change]] = {}
        for (namespace, key), op in work.puts.items():
            changes.setdefault(tuple(namespace), []).append(self._change(key, op, work))
        for namespace, made in changes.items():
            self._namespaces.log(namespace).apply(made)
        return results

    def _change(self, key: str, op: PutOp, work: _Work) -> Change:
        if op.value is None:
            return Change(key)
        texts = work.fields.get((op.namespace, key), {})
        ttl = None if op.ttl is None else op.ttl * 60.0
        if self.embeddings is None:
            return Change(key, dict(op.value), ttl, "\n".join(texts.values()) or None)
        vectors = {path: work.text_vectors[text] for path, text in texts.items()}
        dimension = (self.index_config or {}).get("dims")
        for vector in vectors.values():
            if dimension is not None and len(vector) != dimension:
                raise ValueError(f"the index says {dimension} dimensions, but its embeddings have {len(vector)}")
        return Change(key, dict(op.value), ttl, None, vectors)

    def _get(self, op: GetOp) -> Item | None:
        log = self._namespaces.log(tuple(op.namespace))
        entry = log.get(op.key)
        if entry is None:
            return None
        if op.refresh_ttl:
            log.touch([op.key])
        return Item(**_facts(tuple(op.namespace), op.key, entry))

    def _list(self, op: ListNamespacesOp) -> list[Namespace]:
        found = list(self._namespaces.below(()))
        if op.match_conditions:
            found = [name for name in found if all(matches(condition, name) for condition in op.match_conditions)]
        if self.ttl_config is not None:
            found = [name for name in found if self._holds(name)]
        names = sorted(found if op.max_depth is None else {name[: op.max_depth] for name in found})
        return names[op.offset : op.offset + op.limit]

    def _holds(self, name: Namespace) -> bool:
        """Whether something in a namespace has not expired; one that cannot be read is listed."""
        try:
            return bool(self._namespaces.log(name).items(most=1))
        except (RecordsLost, FrameDamaged):
            return True

    def _search(self, op: SearchOp, vectors: Mapping[str, Sequence[float]]) -> list[SearchItem]:
        prefix, asked = tuple(op.namespace_prefix), op.filter
        passes = None if not asked else lambda entry: fits(entry.fields(asked), asked)
        selection = Selection(self._namespaces, self._namespaces.below(prefix), passes)
        wanted = op.offset + op.limit
        if not op.query:
            best, skipped = [], op.offset
        elif self.embeddings is not None:
            query = vectors[op.query]
            best = self._indexes.of(prefix, len(query)).nearest(query, wanted, selection)
            skipped = 0  # as `InMemoryStore`
        else:
            krunch = self._krunch or krunch_of(self._store)
            best = by_search(krunch, op.query, self._tenant, selection, wanted)
            skipped = max(op.offset - len(best), 0)
        found: dict[_Place, tuple[Entry, float | None]] = {
            place: (entry, score) for place, entry, score in best[op.offset : wanted]
        }
        # What a query says nothing about comes last, where there is room: then all that it finds is known.
        room = op.limit - len(found)
        others = selection.items(skipped + room, without={place for place, _, _ in best}) if room else {}
        found |= {place: (entry, None) for place, entry in islice(others.items(), skipped, None)}
        if op.refresh_ttl:
            for name in {place[0] for place in found}:
                self._namespaces.log(name).touch(place[1] for place in found if place[0] == name)
        return [SearchItem(**_facts(*place, entry), score=score) for place, (entry, score) in found.items()]

    def _sweep_if_due(self) -> None:
        minutes = (self.ttl_config or {}).get("sweep_interval_minutes")
        if not minutes or time.monotonic() - self._swept < minutes * 60:
            return
        if self._sweep_lock.acquire(blocking=False):
            try:
                self._swept = time.monotonic()
                self.sweep_ttl()
            except SessionsDamaged:  # whoever uses one of these is told
                pass
            finally:
                self._sweep_lock.release()


class _Work:
    """One batch: its operations, and what has to be embedded for them."""

    def __init__(
        self,
        ops: list[Op],
        puts: dict[_Place, PutOp],
        fields: dict[_Place, dict[str, str]],
        query_vectors: Mapping[str, Sequence[float]],
    ) -> None:
        self.ops, self.puts, self.fields, self.query_vectors = ops, puts, fields, query_vectors
        self.text_vectors: Mapping[str, Sequence[float]] = {}

    def queries(self) -> list[str]:
        """What is asked, each once."""
        return list(dict.fromkeys(op.query for op in self.ops if isinstance(op, SearchOp) and op.query))

    def texts(self) -> list[str]:
        """What is to be embedded, each text once."""
        return list(dict.fromkeys(text for texts in self.fields.values() for text in texts.values()))

    def embedded(self, queries: Mapping[str, Sequence[float]], texts: Mapping[str, Sequence[float]]) -> None:
        """Take the vectors."""
        self.query_vectors, self.text_vectors = queries, texts


def _tokens(path: str) -> str | list[str]:
    return path if path == _WHOLE else tokenize_path(path)


def _facts(namespace: Namespace, key: str, entry: Entry) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "key": key,
        "value": entry.fresh(),
        "created_at": datetime.fromtimestamp(entry.created, UTC),
        "updated_at": datetime.fromtimestamp(entry.updated, UTC),
    }
