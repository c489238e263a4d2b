"""The index of words: one database a tenant, with the terms of each turn."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from krunch_plugins.errors import StoreBusy, StoreError
from krunch_plugins.recall import word_terms as terms
from krunch_plugins.recall.database import WAIT, DatabaseReplaced, IndexDatabase
from krunch_plugins.recall.locks import begin_after_fork
from krunch_plugins.recall.reading import readable
from krunch_plugins.recall.search import holds
from krunch_plugins.recall.texts import text_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from krunch_plugins.recall.files import IndexFiles
    from krunch_plugins.turns import Turn, TurnEvent, TurnStore

VERSION = 1
HEAD = 30
"""Terms at the beginning of a turn that count for the windows it stands in: long turns would drown the others."""
FILE = "words.db"
MOST_OPEN = 64
"""Databases that are open at a time; each takes some file handles."""

LENGTH_BITS, NUMBER_BITS, SLOT_BITS = 3, 26, 34
"""What a row's id is made of: a digest of its session's name, the turn's number, and how long it is."""
MOST_TURNS = 1 << NUMBER_BITS
SHORT = 64
"""Terms up to which a turn's length class is 0; each doubling is another class."""

_TABLES = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE sessions(slot INTEGER PRIMARY KEY, key TEXT UNIQUE, name BLOB UNIQUE);
CREATE TABLE docs(id INTEGER PRIMARY KEY, time REAL, role BLOB, metadata TEXT, words TEXT);
CREATE VIRTUAL TABLE turns USING fts5(head, rest, content='', tokenize='porter ascii');
INSERT INTO meta VALUES('docs', 0), ('dirty', 0);
"""
# Contentless, because it would keep a copy of what `docs` has. The tokenizer is ASCII's, which takes every other
# character as part of a word: what a word is has been decided by `terms`.


class WordIndex:
    """An `Index` of the words of all turns. Thread-safe; several processes may write, one at a time.

    An index that was made anew has the same rows under the same ids as one that grew, so that ties fall the same way.

    Args:
        store: where the turns are read.
        files: where the databases lie.
        deleted: called as `deleted(tenant)` when traces of deleted turns are to be overwritten, sooner or later.
    """

    def __init__(self, store: TurnStore, files: IndexFiles, deleted: Callable[[str | None], None]) -> None:
        self._store, self._files, self._deleted = store, files, deleted
        self.begin()
        begin_after_fork(self)
        self._databases: OrderedDict[str | None, IndexDatabase] = OrderedDict()  # the least recently used first

    def begin(self) -> None:
        """Have no thread; see `begin_after_fork`."""
        self._lock = threading.Lock()
        self._settling: threading.Thread | None = None

    def database(self, tenant: str | None) -> IndexDatabase:
        """A tenant's database."""
        with self._lock:
            found = self._databases.get(tenant)
            if found is not None:
                self._databases.move_to_end(tenant)
                return found
            path = self._files.folder(tenant) / FILE
            version = VERSION << 8 | terms.VERSION
            found = self._databases[tenant] = IndexDatabase(path, _prepare, version, add_functions)
            spare = self._databases.popitem(last=False)[1] if len(self._databases) > MOST_OPEN else None
        if spare is not None:
            spare.close()  # who still has it in hand opens it again
        return found

    def cursor(self, tenant: str | None) -> str | None:
        """The cursor that was stored with what was applied last."""
        with self.database(tenant).reading() as connection:
            row = connection.execute("SELECT value FROM meta WHERE name='cursor'").fetchone()
            return None if row is None else str(row[0])

    def writing(self, tenant: str | None) -> AbstractContextManager[bool]:
        """The right to change a tenant's database; False if another process has it."""
        return self.database(tenant).alone()

    def apply(self, tenant: str | None, events: Sequence[TurnEvent], cursor: str | None) -> None:
        """Take in what happened, and the cursor, in one transaction."""
        with self.database(tenant).changing() as connection:
            for event in events:
                if event.kind == "reset":
                    _clear(connection)
                elif event.kind == "append":
                    self._append(connection, tenant, event)
                elif event.kind == "trim":
                    _trim(connection, event)
                else:
                    _forget(connection, "key", event.key)
            if cursor is not None:
                connection.execute("INSERT OR REPLACE INTO meta VALUES('cursor', ?)", (cursor,))
            dirty = _is_dirty(connection)
        if dirty:
            self._deleted(tenant)
        if self.database(tenant).needs_settling() and (self._settling is None or not self._settling.is_alive()):
            # Not a daemon: it would be killed at the end of the program, and the whole index made anew.
            self._settling = threading.Thread(target=_settle, args=(self.database(tenant),), name="krunch-settle")
            self._settling.start()

    def forget(self, tenant: str | None, session: str, is_gone: Callable[[str], bool]) -> int:
        """Remove a session's rows; how many there were. `scrub` overwrites what they leave behind; see `Index`.

        Raises:
            StoreBusy: another process kept writing.
        """
        database = self.database(tenant)
        with database.alone(WAIT) as mine:
            if not mine:
                raise StoreBusy(str(database.path), WAIT)
            with database.changing() as connection:
                removed = _forget_named(connection, session, is_gone)
                dirty = _is_dirty(connection)
        if dirty:
            self._deleted(tenant)
        return removed

    def is_dirty(self, tenant: str | None) -> bool:
        """Whether traces of what was deleted are left."""
        with self.database(tenant).reading() as connection:
            return _is_dirty(connection)

    def scrub(self, tenant: str | None) -> bool:
        """Leave no byte of what was deleted; False if others kept it from that for now."""
        database = self.database(tenant)
        with database.alone(WAIT) as mine:
            if not mine:
                return False
            with database.changing() as connection:
                # Deleted terms stay in the index, marked, until what holds them is merged.
                connection.execute("INSERT INTO turns(turns) VALUES('optimize')")
                connection.execute("UPDATE meta SET value=0 WHERE name='dirty'")
            if database.settle(scrub=True):
                return True
            with database.changing() as connection:
                connection.execute("UPDATE meta SET value=1 WHERE name='dirty'")
            return False

    def flush(self) -> None:
        """Everything is on disk already."""

    def close(self) -> None:
        """Close all databases."""
        if self._settling is not None:
            self._settling.join()
        with self._lock:
            databases = list(self._databases.values())
            self._databases.clear()
        for database in databases:
            database.close()

    def _append(self, connection: sqlite3.Connection, tenant: str | None, event: TurnEvent) -> None:
        assert event.session is not None
        slot = _slot(connection, event.key, event.session)
        start, stop = event.start, min(event.stop, MOST_TURNS)
        known = connection.execute("SELECT max(id) FROM docs WHERE id BETWEEN ? AND ?", span(slot)).fetchone()[0]
        if known is not None:
            start = max(start, number_of(known) + 1)  # it may be told what it knows
        rows, words = [], []
        for turn in readable(self._store, event.session, start, stop, tenant):
            found = terms.terms(text_of(turn.message))
            row = row_id(slot, turn.number, len(found))
            rows.append((row, turn.timestamp, _role(turn), _metadata(turn), " ".join(found)))
            words.append((row, *_columns(found)))
        connection.executemany("INSERT INTO docs VALUES(?, ?, ?, ?, ?)", rows)
        connection.executemany("INSERT INTO turns(rowid, head, rest) VALUES(?, ?, ?)", words)
        _count(connection, len(rows))


def row_id(slot: int, number: int, length: int) -> int:
    """The id of a turn's row, below 2**63; rows of one session lie side by side."""
    long = min(max(length - 1, 0) // SHORT, (1 << (1 << LENGTH_BITS) - 1) - 1).bit_length()
    return (slot << NUMBER_BITS | number) << LENGTH_BITS | long


def number_of(row: int) -> int:
    """The turn's number."""
    return row >> LENGTH_BITS & MOST_TURNS - 1


def slot_in(row: int) -> int:
    """Where the rows of the turn's session lie."""
    return row >> LENGTH_BITS + NUMBER_BITS


def span(slot: int) -> tuple[int, int]:
    """The first and the last id that rows of a session can have."""
    return row_id(slot, 0, 0), row_id(slot + 1, 0, 0) - 1


def slot_of(connection: sqlite3.Connection, session: str) -> int | None:
    """Where a session's rows lie, if it has any."""
    row = connection.execute("SELECT slot FROM sessions WHERE name=?", (encoded(session),)).fetchone()
    return None if row is None else int(row[0])


def session_of(connection: sqlite3.Connection, row: int) -> str:
    """The session of a row."""
    name: bytes = connection.execute("SELECT name FROM sessions WHERE slot=?", (slot_in(row),)).fetchone()[0]
    return name.decode("utf-8", "surrogatepass")


def _settle(database: IndexDatabase) -> None:
    with contextlib.suppress(StoreError, DatabaseReplaced):  # tried again after the next append
        database.settle()


def add_functions(connection: sqlite3.Connection) -> None:
    """What searches use beside SQLite's own functions."""
    connection.create_function("holds", 2, _holds, deterministic=True)


def _holds(stored: str | None, wanted: str) -> bool:
    return stored is not None and holds(json.loads(stored), json.loads(wanted))


def _prepare(connection: sqlite3.Connection) -> None:
    for statement in _TABLES.split(";"):  # not `executescript`, which would end the transaction
        connection.execute(statement)


def encoded(text: str) -> bytes:
    """A name as it is stored: any string, lone surrogates and zero characters too."""
    return text.encode("utf-8", "surrogatepass")


def _slot(connection: sqlite3.Connection, key: str, session: str) -> int:
    """Where a session's rows go: at a digest of its name, or behind it where two names have the same one."""
    row = connection.execute("SELECT slot FROM sessions WHERE key=?", (key,)).fetchone()
    if row is not None:
        return int(row[0])
    name = encoded(session)
    _forget(connection, "name", name)  # an earlier session of that name
    slot = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) % (1 << SLOT_BITS)
    while connection.execute("SELECT 1 FROM sessions WHERE slot=?", (slot,)).fetchone():
        slot = (slot + 1) % (1 << SLOT_BITS)
    connection.execute("INSERT INTO sessions VALUES(?, ?, ?)", (slot, key, name))
    return slot


def _columns(words: Sequence[str]) -> tuple[str, str]:
    return " ".join(words[:HEAD]), " ".join(words[HEAD:])


def _role(turn: Turn) -> bytes | None:
    role = turn.message.get("role")
    return encoded(role) if isinstance(role, str) else None


def _metadata(turn: Turn) -> str | None:
    return json.dumps(turn.metadata) if turn.metadata else None


def _clear(connection: sqlite3.Connection) -> None:
    if connection.execute("SELECT 1 FROM docs LIMIT 1").fetchone():
        _mark_dirty(connection)
    connection.execute("INSERT INTO turns(turns) VALUES('delete-all')")
    connection.execute("DELETE FROM docs")
    connection.execute("DELETE FROM sessions")
    connection.execute("DELETE FROM meta WHERE name='cursor'")
    connection.execute("UPDATE meta SET value=0 WHERE name='docs'")


def _forget(connection: sqlite3.Connection, column: str, value: str | bytes) -> int:
    """Remove a session, by its "key" or its "name"; how many rows it had."""
    row = connection.execute(f"SELECT slot FROM sessions WHERE {column}=?", (value,)).fetchone()  # noqa: S608 - ours
    if row is None:
        return 0
    removed = _delete(connection, *span(row[0]))
    connection.execute("DELETE FROM sessions WHERE slot=?", row)
    return removed


def _forget_named(connection: sqlite3.Connection, session: str, is_gone: Callable[[str], bool]) -> int:
    """Remove a session by its id, if the one of its key is gone."""
    row = connection.execute("SELECT key FROM sessions WHERE name=?", (encoded(session),)).fetchone()
    if row is None or not is_gone(row[0]):
        return 0
    return _forget(connection, "key", row[0])


def _trim(connection: sqlite3.Connection, event: TurnEvent) -> None:
    row = connection.execute("SELECT slot FROM sessions WHERE key=?", (event.key,)).fetchone()
    if row is not None:
        _delete(connection, span(row[0])[0], row_id(row[0], event.start, 0) - 1)


def _delete(connection: sqlite3.Connection, first: int, last: int) -> int:
    """Remove rows by their ids; how many there were."""
    rows = connection.execute("SELECT id, words FROM docs WHERE id BETWEEN ? AND ?", (first, last)).fetchall()
    connection.executemany(
        "INSERT INTO turns(turns, rowid, head, rest) VALUES('delete', ?, ?, ?)",
        [(row, *_columns(words.split(" ") if words else [])) for row, words in rows],
    )
    connection.execute("DELETE FROM docs WHERE id BETWEEN ? AND ?", (first, last))
    if rows:
        _count(connection, -len(rows))
        _mark_dirty(connection)
    return len(rows)


def _count(connection: sqlite3.Connection, more: int) -> None:
    connection.execute("UPDATE meta SET value=value+? WHERE name='docs'", (more,))


def _is_dirty(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT value FROM meta WHERE name='dirty'").fetchone()[0])


def _mark_dirty(connection: sqlite3.Connection) -> None:
    """Note that traces of what was deleted are left, until the index is scrubbed."""
    connection.execute("UPDATE meta SET value=1 WHERE name='dirty' AND value=0")
