"""What a query finds among the items of a long-term memory: by the user's embeddings, or by Krunch's own search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_langchain.item_log import Entry, ItemLog
    from krunch_langchain.namespaces import Namespace
    from krunch_plugins import Krunch

    Place = tuple[Namespace, str]

_WIDE = 4
"""How many times more hits are asked for than there are items, because versions that were replaced are found as well;
and how many times more when that was not enough."""
_MOST = 1000
"""Hits that are asked for at first, at most."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One item that was found.

    Attributes:
        place: its namespace and key.
        score: higher is better; None if the query says nothing about it.
    """

    place: Place
    score: float | None


def by_vectors(
    query: Sequence[float], items: Mapping[Place, Entry], logs: Sequence[tuple[Namespace, ItemLog]]
) -> dict[Place, float]:
    """Cosine of the query and each item, of its nearest vector; in the items' order, without those that have none."""
    wanted = np.asarray(query, dtype=np.float64)
    norm = np.linalg.norm(wanted)
    if norm:
        wanted = wanted / norm
    nearest: dict[Place, float] = {}
    for namespace, log in logs:
        keys, matrix = log.vectors(len(wanted))
        # Not `matrix @ wanted`: its last bits depend on how many rows there are, and equal texts must stay in order.
        for key, score in zip(keys, np.einsum("ij,j->i", matrix, wanted).tolist(), strict=True):
            place = namespace, key
            if place in items and score > nearest.get(place, -2.0):
                nearest[place] = score
    return {place: nearest[place] for place in items if place in nearest}


def by_search(
    krunch: Krunch, query: str, places: Mapping[tuple[str, int], Place], tenant: str, wanted: int
) -> dict[Place, float]:
    """What Krunch's search says about some items, whatever else it finds; the best first.

    A search cannot be narrowed to the items that a prefix and a filter leave, so more and more hits are asked for until
    all items are among them or there are no more hits. That would take long where very much is stored: from a thousand
    hits on, as many items as are wanted are enough, and those that are not found are less relevant than all that are.

    Args:
        krunch: who searches.
        query: what for.
        places: the items that may be found, by the session and the number of the turn that holds each.
        tenant: who owns them.
        wanted: how many are enough.
    """
    sessions = {session for session, _ in places}
    if not sessions:
        return {}
    session = sessions.pop() if len(sessions) == 1 else None
    k = min(_WIDE * len(places) + 10, _MOST)
    while True:
        hits = krunch.search(query, session=session, tenant=tenant, k=k)
        keys = ((hit.session, hit.turn.number) for hit in hits)
        found = {places[key]: hit.score for key, hit in zip(keys, hits, strict=True) if key in places}
        if len(found) == len(places) or len(hits) < k or (k >= _MOST and len(found) >= wanted):
            return found
        k *= _WIDE
