"""Fusing what all plugins found, and a cache for what is asked again."""

from __future__ import annotations

import json
from collections import OrderedDict
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from krunch_plugins.recall.locks import Lock
from krunch_plugins.turns import characters

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from krunch_plugins.turns import SearchHit, SearchQuery, Turn


def fuse(
    answers: Mapping[str, Sequence[SearchHit]], weights: Mapping[str, float], constant: float, k: int
) -> list[SearchHit]:
    """Weighted reciprocal-rank fusion (Cormack, Clarke, Büttcher 2009): a turn's score is Σ weight / (constant + rank).

    Args:
        answers: each plugin's hits by its name, the best first. A turn that a plugin names twice counts once.
        weights: of the plugins; those that are not named weigh 1. With 0 a plugin only adds what nobody else found.
        constant: how little the first ranks stand out.
        k: how many hits at most.

    Returns:
        The best first; each with the fused score and the rank that each plugin gave it, from 1. Equal scores stand in
        the order of the best rank, then of session and number.
    """
    scores: dict[tuple[str, int], float] = {}
    ranks: dict[tuple[str, int], dict[str, int]] = {}
    hits: dict[tuple[str, int], SearchHit] = {}
    for name in sorted(answers):  # sums of floats depend on their order
        weight = weights.get(name, 1.0)
        for rank, hit in enumerate(answers[name], 1):
            key = hit.session, hit.turn.number
            found_by = ranks.setdefault(key, {})
            if name in found_by:
                continue
            found_by[name] = rank
            scores[key] = scores.get(key, 0.0) + weight / (constant + rank)
            hits[key] = hit
    order = sorted(scores, key=lambda key: (-scores[key], min(ranks[key].values()), key))
    return [replace(hits[key], score=scores[key], found_by=ranks[key]) for key in order[:k]]


def passes(query: SearchQuery, session: str, turn: Turn) -> bool:
    """Whether a turn is among those that the query asks about."""
    return (
        (query.session is None or session == query.session)
        and (query.after is None or turn.timestamp >= query.after)
        and (query.before is None or turn.timestamp < query.before)
        and (query.roles is None or turn.message.get("role") in query.roles)
        and holds(turn.metadata, query.metadata or {})
    )


def holds(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether metadata has all of what is wanted."""
    return all(key in metadata and metadata[key] == value for key, value in wanted.items())


_MOST_CHARACTERS = 16_000_000
"""Characters of the turns in all answers that are kept: a thousand answers with long logs would fill the memory."""


class QueryCache:
    """Answers to the last queries, each good as long as nothing changed. Thread-safe.

    Args:
        size: answers that are kept; 0: none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = Lock()
        self._answers: OrderedDict[str, tuple[Hashable, str | None, list[SearchHit]]] = OrderedDict()
        self._characters = 0

    def get(self, query: SearchQuery, version: Hashable) -> list[SearchHit] | None:
        """The answer to a query, if it was given when `version` was the same; None otherwise."""
        key = _key(query)
        with self._lock:
            kept = self._answers.get(key)
            if kept is None or kept[0] != version:
                return None
            self._answers.move_to_end(key)
        return [_copy(hit) for hit in kept[2]]

    def put(self, query: SearchQuery, version: Hashable, hits: Sequence[SearchHit]) -> None:
        """Keep an answer."""
        if not self._size or _characters(hits) > _MOST_CHARACTERS:
            return
        key, copies = _key(query), [_copy(hit) for hit in hits]
        with self._lock:
            self._drop(key)
            self._answers[key] = version, query.tenant, copies
            self._characters += _characters(copies)
            while len(self._answers) > self._size or self._characters > _MOST_CHARACTERS:
                self._drop(next(iter(self._answers)))

    def drop(self, tenant: str | None) -> None:
        """Let go of a tenant's answers."""
        with self._lock:
            for key in [key for key, (_, owner, _) in self._answers.items() if owner == tenant]:
                self._drop(key)

    def _drop(self, key: str) -> None:
        """Let go of an answer, if it is there. The lock is held."""
        _, _, hits = self._answers.pop(key, (None, None, []))
        self._characters -= _characters(hits)


def _characters(hits: Sequence[SearchHit]) -> int:
    return sum(characters(hit.turn.message) for hit in hits)


def _copy(hit: SearchHit) -> SearchHit:
    """The caller may change what it gets; what is kept must not change with it."""
    turn = replace(hit.turn, message=deepcopy(hit.turn.message), metadata=deepcopy(hit.turn.metadata))
    return replace(hit, turn=turn, found_by=dict(hit.found_by))


def _key(query: SearchQuery) -> str:
    """A query in one string; metadata is JSON-like, so it has no hash."""
    roles = None if query.roles is None else sorted(query.roles)
    fields = [query.text, query.session, query.tenant, query.k, query.after, query.before, roles, query.metadata]
    return json.dumps(fields, sort_keys=True, default=repr)
