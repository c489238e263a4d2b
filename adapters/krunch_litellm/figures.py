"""Figures of all workers of a proxy, in one small SQLite database: counts and ids, never message text.

Workers add to the same rows, so nothing has to be gathered when somebody asks, and what a worker that died has counted
stays. (Rejected: a file for each process, added up on reading: each change rewrote the whole file, and the files of
dead processes had to be found and folded in.)
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from krunch_litellm import tables
from krunch_litellm.entries import BILLED, SUMS, Batch, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from krunch_litellm.entries import Entry, Sums

FILE = "figures.db"
SERIES = 100
"""Requests of one conversation that its series keeps."""
HOURS = 48
"""Hours of which there are figures by model: the last that had requests, of whichever tenant and model."""
RESETS = 1_000
"""Resets that are kept for workers that have not heard of them; a worker that missed more than that forgets all."""

_NEWEST = ("model", "symbols", "reasons", "legend", "scope", "deployment")
"""Columns of a conversation that tell of its last request."""

_SUMMED = ", ".join(f"sum({column}) AS {column}" for column in SUMS + BILLED)
_OLDEST = """
WITH RECURSIVE last (hour) AS (
    SELECT max(hour) FROM hours
    UNION ALL SELECT (SELECT max(hour) FROM hours WHERE hour < last.hour) FROM last WHERE hour IS NOT NULL
) SELECT hour FROM last LIMIT 1 OFFSET ? - 1
"""
"""The last hours one by one: a step for each through the index, where DISTINCT would read each row of them."""


class Reset(NamedTuple):
    """What is to be forgotten: of a session, of a tenant (no session), or everything (neither)."""

    tenant: str | None
    session: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What all workers have counted, of one tenant or of all.

    Attributes:
        conversations: those used of late, the last used first; a row each, by column.
        models: totals by model; a row each.
        hours: the same of each of the last `HOURS` hours in which there were requests, by whomever; oldest first.
        problems: how often what went wrong, by place and error.
        requests: how many there were since the last reset.
        memory_kb: what the workers that are alive hold in memory.
        workers: how many are alive.
    """

    conversations: Sequence[Mapping[str, Any]]
    models: Sequence[Mapping[str, Any]]
    hours: Sequence[Mapping[str, Any]]
    problems: Sequence[Mapping[str, Any]]
    requests: int
    memory_kb: float = 0.0
    workers: int = 0
    series: Mapping[bytes, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """The last requests of each conversation, by its name."""


class Figures:
    """The database. Thread-safe; any number of processes may have it open.

    Args:
        directory: where it lies, private to its owner; None: in memory, of this process alone.
        max_conversations: how many are kept; the least recently used goes first.
        max_idle: seconds without a request after which one is dropped.
        clock: seconds since the epoch.

    Attributes:
        key: of this database, for hashes of what must not stand in it.

    Raises:
        sqlite3.Error, OSError: it cannot be opened.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        max_conversations: int = 1_000,
        max_idle: float = 3_600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits, self._clock = (max_conversations, max_idle), clock
        self._lock = threading.Lock()
        where = ":memory:" if directory is None else str(directory / FILE)
        self._base = sqlite3.connect(where, timeout=5.0, check_same_thread=False, isolation_level=None)
        self._base.row_factory = sqlite3.Row
        try:
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=OFF")  # figures: a power cut may cost the last ones
            self.key = tables.make(self._base)
            self._applied = self.last_reset()
        except BaseException:  # nobody else could close it
            self._base.close()
            raise

    def close(self) -> None:
        """Close the database. Safe to call twice."""
        with self._lock:
            self._base.close()

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in what happened, all of it or nothing.

        Raises:
            sqlite3.Error: it could not be written.
        """
        with self._lock, self._base:
            self._base.execute("BEGIN IMMEDIATE")
            batch = Batch(self._after_resets(entries))
            for name, one in batch.conversations.items():
                self._conversation(name, one)
            for (tenant, model), sums in batch.models.items():
                self._total("models", {"tenant": tenant, "model": model}, sums)
            for (tenant, model, hour), sums in batch.hours.items():
                self._total("hours", {"tenant": tenant, "model": model, "hour": hour}, sums)
            self._base.executemany(
                "INSERT INTO problems VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                [(*which, count) for which, count in batch.problems.items()],
            )
            self._clean_up()

    def lost(self, count: int) -> None:
        """Note that so many entries could not be added.

        Raises:
            sqlite3.Error: it could not be written.
        """
        with self._lock:
            self._base.execute(
                "INSERT INTO problems VALUES ('', 'figures', 'dropped', ?)"
                " ON CONFLICT DO UPDATE SET count = count + excluded.count",
                (count,),
            )

    def seen(self, worker: str, memory_kb: float) -> None:
        """Note that a worker lives and what it holds in memory."""
        with self._lock:
            self._base.execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?)", (worker, memory_kb, self._clock()))

    def gone(self, is_alive: Callable[[str], bool]) -> None:
        """Drop workers that are not alive. What they have counted stays."""
        with self._lock:
            for (worker,) in self._base.execute("SELECT worker FROM workers").fetchall():
                if not is_alive(worker):
                    self._base.execute("DELETE FROM workers WHERE worker = ?", (worker,))

    def summary(self, tenant: str | None, *, series: int = 0) -> Summary:
        """What was counted, of all tenants if `tenant` is None; with the series of the last `series` conversations."""
        oldest = self._clock() - self._limits[1]
        whose, key = ("1", ()) if tenant is None else ("tenant = ?", (tenant,))
        with self._lock:
            conversations = self._rows(
                f"SELECT * FROM conversations WHERE {whose} AND used >= ? ORDER BY used DESC",  # noqa: S608 - constants
                (*key, oldest),
            )
            models = self._rows(f"SELECT * FROM models WHERE {whose} ORDER BY model, tenant", key)  # noqa: S608 - as above
            problems = self._rows(f"SELECT * FROM problems WHERE {whose} ORDER BY place, error", key)  # noqa: S608 - as above
            hours = self._rows(
                f"SELECT model, hour, {_SUMMED} FROM hours WHERE {whose} GROUP BY hour, model ORDER BY hour, model",  # noqa: S608 - as above
                key,
            )
            workers = self._rows("SELECT * FROM workers", ())
            kept = {one["name"]: self._series(one["name"]) for one in conversations[:series]}
        return Summary(
            conversations,
            models,
            hours,
            problems,
            requests=sum(model["requests"] for model in models),
            memory_kb=sum(worker["memory_kb"] for worker in workers),
            workers=len(workers),
            series=kept,
        )

    def sessions(self, tenant: str | None, session: str) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
        """What was counted of a session, with its series: of a tenant, or of each that has one of this id.

        Of one tenant's, the conversation that was used last comes first.
        """
        whose, key = ("1", ()) if tenant is None else ("tenant = ?", (tenant,))
        with self._lock:
            rows = self._rows(
                f"SELECT * FROM conversations WHERE {whose} AND session = ? ORDER BY tenant, used DESC",  # noqa: S608 - as above
                (*key, session),
            )
            return [(row, self._series(row["name"])) for row in rows]

    def reset(self, tenant: str | None, session: str | None = None) -> int:
        """Forget what was counted: of a session of a tenant, of a tenant, or everything.

        Returns:
            The number of this reset, for `resets_since`.
        """
        cleared = ("conversations",) if session is not None else ("conversations", "models", "hours", "problems")
        conditions = [("tenant", tenant), ("session", session)]
        where = " AND ".join(f"{column} = ?" for column, value in conditions if value is not None) or "1"
        values = tuple(value for _, value in conditions if value is not None)
        with self._lock, self._base:
            self._base.execute("BEGIN IMMEDIATE")
            for table in cleared:
                self._base.execute(f"DELETE FROM {table} WHERE {where}", values)  # noqa: S608 - constants
            self._base.execute("DELETE FROM series WHERE name NOT IN (SELECT name FROM conversations)")
            number = self._base.execute(
                "INSERT INTO resets (tenant, session, at) VALUES (?, ?, ?)", (tenant, session, self._clock())
            ).lastrowid
            assert number is not None
            self._base.execute("DELETE FROM resets WHERE number <= ?", (number - RESETS,))
        return number

    def resets_since(self, number: int, *, own: Collection[int] = ()) -> tuple[list[Reset], int]:
        """The resets after number `number` less those in `own`, oldest first, and the number to ask with next time."""
        with self._lock:
            rows = self._base.execute(
                "SELECT number, tenant, session FROM resets WHERE number > ? ORDER BY number", (number,)
            ).fetchall()
        if rows and rows[0]["number"] > number + 1:  # some are not kept any more
            return [Reset(None, None)], rows[-1]["number"]
        others = [Reset(row["tenant"], row["session"]) for row in rows if row["number"] not in own]
        return others, rows[-1]["number"] if rows else number

    def last_reset(self) -> int:
        """The number of the last reset, 0 if there was none."""
        with self._lock:
            return int(self._base.execute("SELECT coalesce(max(number), 0) FROM resets").fetchone()[0])

    def _after_resets(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries less those from before a reset that another process made meanwhile."""
        resets = self._base.execute("SELECT * FROM resets WHERE number > ?", (self._applied,)).fetchall()
        if not resets:
            return list(entries)
        self._applied = max(reset["number"] for reset in resets)
        return [entry for entry in entries if not any(_covers(reset, entry) for reset in resets)]

    def _conversation(self, name: bytes, one: Sums) -> None:
        if one.last is None:  # replies alone: to a conversation that was dropped meanwhile they count for nothing
            self._bill("conversations", {"name": name}, one)
            return
        last = one.last
        values = (last.model, last.symbols, json.dumps(dict(last.reasons)), last.legend, last.scope, last.deployment)
        columns = ("name", "tenant", "session", "used", *_NEWEST, *SUMS, *BILLED)
        (number,) = self._base.execute(
            f"INSERT INTO conversations ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - as above
            f" ON CONFLICT DO UPDATE SET {_newest(_NEWEST)}, {_added(SUMS + BILLED)},"
            " used = max(used, excluded.used) RETURNING requests",
            (name, last.tenant, last.session, max(request.at for request in one.requests), *values,
             *one.sent, *one.billed),
        ).fetchone()  # fmt: skip
        self._base.executemany(
            "INSERT OR REPLACE INTO series VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (name, at, each.at, each.tokens_before, each.tokens_after, each.overhead_tokens, each.symbols)
                for at, each in enumerate(one.requests, number - len(one.requests) + 1)
            ],
        )
        if number > SERIES:
            self._base.execute("DELETE FROM series WHERE name = ? AND number <= ?", (name, number - SERIES))

    def _total(self, table: str, keys: Mapping[str, object], one: Sums) -> None:
        if one.last is None:
            self._bill(table, keys, one)
            return
        columns = (*keys, *SUMS, *BILLED)
        self._base.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - as above
            f" ON CONFLICT DO UPDATE SET {_added(SUMS + BILLED)}",
            (*keys.values(), *one.sent, *one.billed),
        )

    def _bill(self, table: str, keys: Mapping[str, object], one: Sums) -> None:
        """Add replies to a row if it is there."""
        changes = ", ".join(f"{column} = {column} + ?" for column in BILLED)
        which = " AND ".join(f"{column} = ?" for column in keys)
        self._base.execute(f"UPDATE {table} SET {changes} WHERE {which}", (*one.billed, *keys.values()))  # noqa: S608 - as above

    def _clean_up(self) -> None:
        """Drop conversations that are too old or too many, and hours before the last ones that had requests."""
        self._base.execute(f"DELETE FROM hours WHERE hour < ({_OLDEST})", (HOURS,))  # noqa: S608 - a constant
        count, idle = self._limits
        dropped = self._base.execute(
            "DELETE FROM conversations WHERE used < ? RETURNING name", (self._clock() - idle,)
        ).fetchall()
        (kept,) = self._base.execute("SELECT count(*) FROM conversations").fetchone()
        if kept > count:
            dropped += self._base.execute(
                "DELETE FROM conversations WHERE name IN (SELECT name FROM conversations ORDER BY used LIMIT ?)"
                " RETURNING name",
                (kept - count,),
            ).fetchall()
        # By name: to look for series without a conversation would read all of them, with each batch of a busy proxy.
        self._base.executemany("DELETE FROM series WHERE name = ?", map(tuple, dropped))

    def _series(self, name: bytes) -> list[Mapping[str, Any]]:
        return self._rows("SELECT * FROM series WHERE name = ? ORDER BY number", (name,))

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[Mapping[str, Any]]:
        return [dict(row) for row in self._base.execute(query, values)]


def _newest(columns: Iterable[str]) -> str:
    """Workers write in no order: what another one has served since and written before stays."""
    return ", ".join(f"{one} = CASE WHEN excluded.used < used THEN {one} ELSE excluded.{one} END" for one in columns)


def _added(columns: Iterable[str]) -> str:
    return ", ".join(f"{column} = {column} + excluded.{column}" for column in columns)


def _covers(reset: sqlite3.Row, entry: Entry) -> bool:
    """Whether a reset was about what an entry tells, and came after it."""
    if entry.at >= reset["at"] or reset["tenant"] not in {None, entry.tenant}:
        return False
    return reset["session"] is None or (isinstance(entry, Prepared) and entry.session == reset["session"])
