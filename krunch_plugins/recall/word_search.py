"""Ranking turns by their words: BM25 of the turn, and of the window of turns in which it stands."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from krunch_plugins.recall import word_terms as terms
from krunch_plugins.recall.word_index import LENGTH_BITS, encoded, slot_of, span

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from krunch_plugins.turns import SearchQuery

BEFORE, AFTER = 2, 1
"""Turns of a window before and after the one that it stands for. What a turn means stands partly in its neighbours."""
FADE = 0.8
"""What a turn's score is multiplied with for each doubling of its length beyond `SHORT` terms: long turns match by
chance more often than BM25 allows for."""
SATURATION = 1.2
"""BM25's k1 for windows, as SQLite has it for turns."""
ROWS = 6000
"""Rows of the index that a query may look at, about, of those that its filters leave. Its rarest terms come first; what
is too common for that says little where so much is stored."""
CANDIDATES = 300
"""Turns that are ranked by each of both scores before these are added up."""
COUNTED, MOST_TERMS = 1024, 128
"""Different terms of a query whose rows are counted, and of these the rarest, which are looked for. Of a longer text
the longest ones are counted, in bytes, so that scripts without spaces get their share."""

_CLASSES = (1 << LENGTH_BITS) - 1
_FADES = f"CASE turns.rowid & {_CLASSES} {' '.join(f'WHEN {n} THEN {FADE**n!r}' for n in range(_CLASSES + 1))} END"

_FEW = 1000
"""Turns of a session up to which all of them are looked at, instead of one after the other."""

Rows = tuple[int, int]


class Scored(NamedTuple):
    """A row that was found, and its score; the higher, the better."""

    id: int
    score: float


def rank(connection: sqlite3.Connection, query: SearchQuery, window_weight: float) -> list[Scored]:
    """The rows that fit a query best, at most `query.k`, the best first; equal ones in the order of their ids.

    Args:
        connection: to the index.
        query: what is asked.
        window_weight: what a window's score counts beside the turn's own; 0: windows are not looked at.
    """
    rows = _rows(connection, query)
    if rows is None:
        return []
    filtering = _Filter(query)
    chosen = _choose(connection, query.text, rows, filtering)
    if not chosen:
        return []
    wanted = max(CANDIDATES, query.k)
    turns = _turns(connection, chosen, rows, filtering, wanted)
    scores = turns
    if window_weight:
        windows = _Windows(connection, chosen, rows)
        found = list(dict.fromkeys([*turns, *windows.best(connection, wanted, filtering)]))
        around = (window_weight * windows.scores(found)).tolist()
        scores = {row: turns.get(row, 0.0) + score for row, score in zip(found, around, strict=True)}
    best = sorted(((-score * _fade(row), row) for row, score in scores.items() if score > 0))
    return [Scored(row, -score) for score, row in best[: query.k]]


def _rows(connection: sqlite3.Connection, query: SearchQuery) -> Rows | None:
    """The first and the last id that can be among the answers; None if there is no such session."""
    if query.session is None:
        return 0, (1 << 63) - 1
    slot = slot_of(connection, query.session)
    return None if slot is None else span(slot)


def _choose(connection: sqlite3.Connection, text: str, rows: Rows, filtering: _Filter) -> list[str]:
    """The terms to look for, as FTS5 expressions of one quoted word each: the rarest first, until there are enough.

    Of a term that is too common beside others, it is enough to know that it is, so no more than that is counted.

    Which terms are too common is a matter of the turns that the filter leaves: a word that is rare in all turns may be
    in none of these.
    """
    found = list(dict.fromkeys(terms.terms(text, asked=True)))
    if len(found) > COUNTED:
        found = sorted(found, key=lambda term: (-len(term.encode()), term))[:COUNTED]
    counted = []
    for term in found:
        # Quoted, so that it is never an operator of the query language; a term holds no quotes.
        expression = f'"{term}" *' if terms.is_unspaced(term) else f'"{term}"'
        if count := _matching(connection, expression, rows):
            counted.append((count, expression))
    if filtering.sql and (len(counted) > MOST_TERMS or sum(count for count, _ in counted) > ROWS):
        left = ((_matching(connection, expression, rows, filtering), expression) for _, expression in counted)
        counted = [(count, expression) for count, expression in left if count]
    chosen: list[str] = []
    total = 0
    for count, expression in sorted(counted)[:MOST_TERMS]:
        total += count
        if chosen and total > ROWS:
            break
        chosen.append(expression)
    return chosen


def _matching(connection: sqlite3.Connection, expression: str, rows: Rows, filtering: _Filter | None = None) -> int:
    """How many turns match an expression, and pass the filter if there is one.

    Above `ROWS` it is an estimate, by how far one must look to find so many: sessions lie in the order of a digest.
    """
    join, conditions, values = "", "", []
    if filtering is not None:
        join, conditions, values = " JOIN docs ON docs.id = turns.rowid", filtering.sql, filtering.values
    found = f"FROM turns{join} WHERE turns MATCH ? AND turns.rowid BETWEEN ? AND ?{conditions}"
    given = (expression, *rows, *values, ROWS)
    # Nothing in these comes from the query's text.
    count = connection.execute(f"SELECT count(*) FROM (SELECT 1 {found} LIMIT ? + 1)", given).fetchone()[0]  # noqa: S608
    if count <= ROWS:
        return int(count)
    last = connection.execute(f"SELECT turns.rowid {found} LIMIT 1 OFFSET ?", given).fetchone()[0]
    return int(max(count, count * (rows[1] - rows[0] + 1) // (last - rows[0] + 1)))


class _Filter:
    """What a query asks of a turn besides its words, as SQL over `docs`."""

    def __init__(self, query: SearchQuery) -> None:
        conditions: list[str] = []
        self.values: list[object] = []
        if query.after is not None:
            conditions.append("docs.time >= ?")
            self.values.append(query.after)
        if query.before is not None:
            conditions.append("docs.time < ?")
            self.values.append(query.before)
        if query.roles is not None:
            conditions.append(f"docs.role IN ({', '.join('?' * len(query.roles))})")
            self.values += [encoded(role) for role in sorted(query.roles)]
        if query.metadata:
            conditions.append("holds(docs.metadata, ?)")
            self.values.append(json.dumps(query.metadata))
        self.sql = "".join(f" AND {condition}" for condition in conditions)


def _turns(
    connection: sqlite3.Connection, chosen: Sequence[str], rows: Rows, filtering: _Filter, wanted: int
) -> dict[int, float]:
    """BM25 of the turns that hold any of the terms, for the best of them."""
    join = " JOIN docs ON docs.id = turns.rowid" if filtering.sql else ""
    sql = (  # nothing in it comes from the query's text
        f"SELECT turns.rowid, -bm25(turns) AS score FROM turns{join}"  # noqa: S608
        f" WHERE turns MATCH ? AND turns.rowid BETWEEN ? AND ?{filtering.sql}"
        f" ORDER BY score * {_FADES} DESC, turns.rowid LIMIT ?"
    )
    values = (" OR ".join(chosen), *rows, *filtering.values, wanted)
    return dict(connection.execute(sql, values).fetchall())


class _Windows:
    """BM25 of windows, worked out from which turns hold a term near their beginning; no index of its own is needed.

    A term counts once for each turn of a window that holds it. Windows are not told apart by length: each of their
    turns has at most `HEAD` terms.
    """

    def __init__(self, connection: sqlite3.Connection, chosen: Sequence[str], rows: Rows) -> None:
        self._rows = rows
        self._total = total = _count(connection, rows)
        places, gains = [], []
        for expression in chosen:
            sql = "SELECT rowid FROM turns WHERE turns MATCH ? AND rowid BETWEEN ? AND ?"
            found = connection.execute(sql, (f"head : {expression}", *rows)).fetchall()
            at = np.fromiter((row[0] for row in found), np.int64, len(found)) >> LENGTH_BITS
            centres, times = np.unique(
                np.concatenate([at + shift for shift in range(-AFTER, BEFORE + 1)]), return_counts=True
            )
            rarity = math.log((total - len(centres) + 0.5) / (len(centres) + 0.5)) if len(centres) < total else 0.0
            places.append(centres)
            gains.append(max(rarity, 1e-6) * times * (SATURATION + 1) / (times + SATURATION))
        self._places, inverse = np.unique(np.concatenate(places), return_inverse=True)
        self._scores = np.bincount(inverse, np.concatenate(gains), len(self._places)).astype(np.float64)

    def scores(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """The scores of the windows around turns."""
        places = np.array(rows, dtype=np.int64) >> LENGTH_BITS
        if not len(self._places):
            return np.zeros(len(places))
        at = np.minimum(np.searchsorted(self._places, places), len(self._places) - 1)
        return np.where(self._places[at] == places, self._scores[at], 0.0)

    def best(self, connection: sqlite3.Connection, wanted: int, filtering: _Filter) -> list[int]:
        """The turns in the middle of the best windows, as far as they are there and pass the filter."""
        if self._total <= _FEW:
            sql = f"SELECT id FROM docs WHERE id BETWEEN ? AND ?{filtering.sql}"  # noqa: S608 - not from the text
            rows = [row[0] for row in connection.execute(sql, (*self._rows, *filtering.values))]
            order = np.lexsort((rows, -self.scores(rows)))[:wanted]
            return [rows[at] for at in order.tolist()]
        found: list[int] = []
        sql = (
            "SELECT docs.id FROM json_each(?) AS place CROSS JOIN docs"  # noqa: S608 - not from the text
            f" ON docs.id BETWEEN place.value AND place.value + {_CLASSES}{filtering.sql} ORDER BY place.key"
        )
        order = np.lexsort((self._places, -self._scores))
        for start in range(0, len(order), wanted):
            firsts = self._places[order[start : start + wanted]] << LENGTH_BITS
            found += [row[0] for row in connection.execute(sql, (json.dumps(firsts.tolist()), *filtering.values))]
            if len(found) >= wanted:
                break
        return found[:wanted]


def _count(connection: sqlite3.Connection, rows: Rows) -> int:
    if rows[0]:
        return int(connection.execute("SELECT count(*) FROM docs WHERE id BETWEEN ? AND ?", rows).fetchone()[0])
    return int(connection.execute("SELECT value FROM meta WHERE name='docs'").fetchone()[0])


def _fade(row: int) -> float:
    return float(FADE ** (row & _CLASSES))
