"""What a query finds among the items of a long-term memory: by the user's embeddings, or by Krunch's own search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from krunch_langchain.item_log import Entry, ItemLog
    from krunch_langchain.namespaces import Namespace
    from krunch_plugins import Krunch

    Place = tuple[Namespace, str]

_WIDE = 4
"""How many times more hits are asked for than there are items: versions that were replaced are found as well."""
_MOST = 1000


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
        for key, score in zip(keys, (matrix @ wanted).tolist(), strict=True):
            place = namespace, key
            if place in items and score > nearest.get(place, -2.0):
                nearest[place] = score
    return {place: nearest[place] for place in items if place in nearest}


def by_search(
    krunch: Krunch,
    query: str,
    items: Mapping[Place, Entry],
    where: tuple[str | None, str],
    namespace_of: Callable[[str], Namespace],
) -> dict[Place, float]:
    """What Krunch's search says about the items; hits on what was replaced since do not count.

    Args:
        krunch: who searches.
        query: what for.
        items: those that may be found.
        where: the session, None for all, and the tenant.
        namespace_of: the namespace that a session holds.
    """
    session, tenant = where
    places = {(place[0], entry.number): place for place, entry in items.items()}
    hits = krunch.search(query, session=session, tenant=tenant, k=min(_WIDE * len(items) + 10, _MOST))
    found: dict[Place, float] = {}
    for hit in hits:
        place = places.get((namespace_of(hit.session), hit.turn.number))
        if place is not None:
            found.setdefault(place, hit.score)
    return found
