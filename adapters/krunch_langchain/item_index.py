"""Which items are nearest to a query, by the vectors of the user's embeddings: an index for each prefix searched."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from krunch_langchain.item_vectors import unit, unpacked
from krunch_plugins import BackgroundIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from krunch_langchain.item_log import Entry, Mark
    from krunch_langchain.item_selection import Place, Selection
    from krunch_langchain.item_vectors import Packed
    from krunch_langchain.namespaces import Namespace, Namespaces

_INDEXES = 256
"""Prefixes whose indexes are held in RAM."""
_AT_ONCE = 1024
"""Vectors that go into an index at a time."""
_OFF = 0.0005
"""What a cosine may be off in an index, which keeps vectors in float16."""
_FIRST = 32
_WIDER = 4
"""How many candidates are looked at besides those that are wanted; how many times more if that does not settle it."""
_MOST = 10_000
"""Candidates above which vectors that are nearly as near are not told apart any more."""


@dataclass(slots=True)
class _Held:
    """An item in an index: its vectors as they are stored, their ids, and where it stands among its namespace's."""

    vectors: Mapping[str, Packed]
    ids: list[int]
    order: int


class ItemIndex:
    """The vectors of all items below one prefix. Thread-safe; follows what all processes do.

    The index finds candidates; their vectors, as they were stored, decide. So what is found is exact as long as the
    index is, and items of equal vectors stand in their own order.

    Args:
        namespaces: where the items are.
        dimension: length of the vectors; those of another length are none here.
    """

    def __init__(self, namespaces: Namespaces, dimension: int) -> None:
        self.dimension = dimension
        self._namespaces = namespaces
        self._lock = threading.Lock()
        self._index = BackgroundIndex(dimension)
        self._seen: dict[Namespace, tuple[int, Mark]] = {}
        self._held: dict[Namespace, dict[str, _Held]] = {}
        self._places: dict[int, tuple[Namespace, str, str]] = {}
        self._zeros: set[int] = set()
        self._free: list[int] = []

    def nearest(self, query: Sequence[float], wanted: int, selection: Selection) -> list[tuple[Place, Entry, float]]:
        """The items whose nearest vectors are nearest to a query, best first, with their cosines.

        Args:
            query: its vector.
            wanted: how many items, at most.
            selection: the items; its namespaces must be all below the prefix.
        """
        among = None if selection.passes is None else selection.items()
        exact = unit(np.asarray(query, dtype=np.float64)[None])[0]
        with self._lock:
            self._follow(selection.names)
            ranks = {name: rank for rank, name in enumerate(selection.names)}
            subset = None if among is None else [one for place in among for one in self._ids(place)]
            count = wanted + _FIRST
            while True:
                ids, others = self._candidates(exact, count, subset)
                scores = self._scores(ids, exact)
                places = sorted(scores, key=lambda place: (-scores[place], ranks[place[0]], self._order(place)))
                found = self._alive(places, wanted) if among is None else {one: among[one] for one in places[:wanted]}
                settled = len(found) == wanted and (count > _MOST or scores[[*found][-1]] - _OFF > others)
                if settled or others == -np.inf:
                    return [(place, entry, scores[place]) for place, entry in found.items()]
                count *= _WIDER

    def _candidates(
        self, query: NDArray[np.float64], count: int, subset: Sequence[int] | None
    ) -> tuple[list[int], float]:
        """Ids that may be nearest, and about the score that no other has more than; -inf where there are no others."""
        zeros = set(self._zeros if query.any() else self._places)
        if subset is not None:
            zeros.intersection_update(subset)
        ids, scores = self._index.search(query, count, subset)
        return [*ids.tolist(), *zeros], float(scores[-1]) if len(ids) == count else -np.inf

    def _scores(self, ids: Iterable[int], query: NDArray[np.float64]) -> dict[Place, float]:
        """The cosine of the nearest of an item's vectors, as they are stored."""
        rows = [self._places[one] for one in ids]
        vectors = [self._held[namespace][key].vectors[field] for namespace, key, field in rows]
        # Not `matrix @ query`: its last bits depend on how many rows there are, and equal texts must stay in order.
        scores = np.einsum("ij,j->i", unpacked(vectors, self.dimension)[1], query)
        best: dict[Place, float] = {}
        for (namespace, key, _), score in zip(rows, scores.tolist(), strict=True):
            best[namespace, key] = max(score, best.get((namespace, key), -2.0))
        return best

    def _alive(self, places: Sequence[Place], wanted: int) -> dict[Place, Entry]:
        """The first of these places that hold something, as it is now."""
        found: dict[Place, Entry] = {}
        start = 0
        while len(found) < wanted and start < len(places):
            part = places[start : start + wanted - len(found)]
            start += len(part)
            keys: dict[Namespace, list[str]] = {}
            for namespace, key in part:
                keys.setdefault(namespace, []).append(key)
            there = {name: self._namespaces.log(name).some(of_name) for name, of_name in keys.items()}
            found |= {(name, key): there[name][key] for name, key in part if key in there[name]}
        return found

    def _ids(self, place: Place) -> list[int]:
        held = self._held.get(place[0], {}).get(place[1])
        return [] if held is None else held.ids

    def _order(self, place: Place) -> int:
        return self._held[place[0]][place[1]].order

    def _follow(self, names: Mapping[Namespace, int]) -> None:
        """Take in what has changed since the last search. What fails on the way is taken in by the next."""
        for namespace in self._held.keys() - names.keys():
            self._drop(self._held.pop(namespace).values())
            del self._seen[namespace]
        for namespace, version in names.items():
            seen = self._seen.get(namespace)
            if seen is None or seen[0] != version:
                mark, news, whole = self._namespaces.log(namespace).news(None if seen is None else seen[1])
                self._take_in(namespace, news, whole=whole)
                self._seen[namespace] = version, mark

    def _take_in(self, namespace: Namespace, news: Mapping[str, Entry | None], *, whole: bool) -> None:
        """Take in what a namespace's items hold now; if it is the whole namespace, there are no others."""
        held = self._held.setdefault(namespace, {})
        having = {key: entry for key, entry in news.items() if entry is not None and entry.vectors}
        gone = (held.keys() if whole else held.keys() & news.keys()) - having.keys()
        self._drop([held.pop(key) for key in gone])
        fresh: list[tuple[str, str, Packed]] = []
        for key, entry in having.items():
            before = held.get(key)
            if before is not None and before.vectors == entry.vectors:  # all of a log that was written anew
                before.vectors, before.order = entry.vectors, entry.order
                continue
            if before is not None:
                self._drop([before])
            held[key] = _Held(entry.vectors, [], entry.order)
            fresh += [(key, field, packed) for field, packed in entry.vectors.items()]
        for start in range(0, len(fresh), _AT_ONCE):
            self._put(namespace, fresh[start : start + _AT_ONCE])

    def _put(self, namespace: Namespace, rows: Sequence[tuple[str, str, Packed]]) -> None:
        """Put vectors into the index, those that are of its length and finite."""
        fit, matrix = unpacked([packed for _, _, packed in rows], self.dimension)
        ids = [self._free.pop() if self._free else len(self._places) + at for at in range(len(fit))]
        for one, at, vector in zip(ids, fit, matrix, strict=True):
            key, field, _ = rows[at]
            self._places[one] = namespace, key, field
            self._held[namespace][key].ids.append(one)
            if not vector.any():
                self._zeros.add(one)
        self._index.add(ids, matrix)

    def _drop(self, held: Iterable[_Held]) -> None:
        ids = [one for item in held for one in item.ids]
        if not ids:
            return
        self._index.remove(ids)
        for one in ids:
            del self._places[one]
        self._zeros.difference_update(ids)
        self._free += ids


class ItemIndexes:
    """The indexes of the prefixes that were searched last. Thread-safe.

    Args:
        namespaces: where the items are.
    """

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._indexes: OrderedDict[Namespace, ItemIndex] = OrderedDict()

    def of(self, prefix: Namespace, dimension: int) -> ItemIndex:
        """The index of all items below a prefix."""
        if self._process != os.getpid():  # after a fork: a lock may be held by a thread that only the parent has
            self._process, self._lock, self._indexes = os.getpid(), threading.Lock(), OrderedDict()
        with self._lock:
            index = self._indexes.get(prefix)
            if index is None or index.dimension != dimension:
                index = self._indexes[prefix] = ItemIndex(self._namespaces, dimension)
            self._indexes.move_to_end(prefix)
            if len(self._indexes) > _INDEXES:
                self._indexes.popitem(last=False)
            return index
