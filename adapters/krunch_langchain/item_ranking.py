"""What Krunch's own search finds among the items of a long-term memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_langchain.item_log import Entry
    from krunch_langchain.item_selection import Place, Selection
    from krunch_langchain.namespaces import Namespace
    from krunch_plugins import Krunch, SearchHit

_WIDE = 4
"""How many times more hits are asked for than there are items, because versions that were replaced are found as well;
and how many times more when that was not enough."""
_LEAST = 50
"""Hits that are asked for at first where there are many items; more only if they are not enough. Each is read."""
_MOST = 1000
"""Items up to which all of them are ranked."""


def by_search(
    krunch: Krunch, query: str, tenant: str, selection: Selection, wanted: int
) -> list[tuple[Place, Entry, float]]:
    """What Krunch's search says about some items, whatever else it finds; the best first.

    A search cannot be narrowed to the items that a prefix and a filter leave, so more and more hits are asked for until
    all items are among them or there are no more hits. That would take long where very much is stored: with more than a
    thousand items, or hits, as many items as are wanted are enough. Those that are not found are less relevant than all
    that are.

    Args:
        krunch: who searches.
        query: what for.
        tenant: who owns the items.
        selection: the items.
        wanted: how many are enough.
    """
    items = _few(selection)
    if items == 0:
        return []
    names = {selection.namespaces.session_of(name): name for name in selection.names}
    session = next(iter(names)) if len(names) == 1 else None
    k = _LEAST if items is None else min(_WIDE * items + 10, _MOST)
    while items is None and k < _WIDE * wanted + 10:
        k *= _WIDE
    while True:
        hits = krunch.search(query, session=session, tenant=tenant, k=k)
        found = _items(selection, [(names[hit.session], hit) for hit in hits if hit.session in names])
        if len(found) == items or len(hits) < k or (len(found) >= wanted and (items is None or k >= _MOST)):
            return found
        k *= _WIDE


def _few(selection: Selection) -> int | None:
    """How many items a search can find; None where there are so many that it is not worth it to count them."""
    total = 0
    for name in selection.names:
        total += selection.log(name).count()
        if total > _MOST:
            return None
    return sum(entry.text is not None for entry in selection.items().values())


def _items(selection: Selection, hits: Sequence[tuple[Namespace, SearchHit]]) -> list[tuple[Place, Entry, float]]:
    """The items that hits are of, without what was replaced since, and what the selection leaves out."""
    turns = [(name, str(hit.turn.metadata.get("key")), hit.turn.number, hit.score) for name, hit in hits]
    keys: dict[Namespace, list[str]] = {}
    for name, key, _, _ in turns:
        keys.setdefault(name, []).append(key)
    there = {name: selection.log(name).some(of_name) for name, of_name in keys.items()}
    current = ((name, key, there[name].get(key), number, score) for name, key, number, score in turns)
    return [
        ((name, key), entry, score)
        for name, key, entry, number, score in current
        if entry is not None and entry.number == number and (selection.passes is None or selection.passes(entry))
    ]
