"""The tables of the figures' database: how a new one is made, and how an older one is brought up to date."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

_SCHEMA = """
CREATE TABLE IF NOT EXISTS conversations (
    name BLOB PRIMARY KEY, tenant TEXT NOT NULL, session TEXT, model TEXT NOT NULL, used REAL NOT NULL,
    requests INTEGER NOT NULL, tokens_before INTEGER NOT NULL, tokens_after INTEGER NOT NULL,
    cost_plain REAL NOT NULL, cost_sent REAL NOT NULL, symbols INTEGER NOT NULL, reasons TEXT NOT NULL,
    replies INTEGER NOT NULL DEFAULT 0, partial INTEGER NOT NULL DEFAULT 0, input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0, written_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS by_use ON conversations (used);
CREATE INDEX IF NOT EXISTS by_session ON conversations (session, tenant);
CREATE TABLE IF NOT EXISTS series (
    name BLOB NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, tokens_before INTEGER NOT NULL,
    tokens_after INTEGER NOT NULL, overhead_tokens INTEGER NOT NULL, symbols INTEGER NOT NULL,
    PRIMARY KEY (name, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS models (
    tenant TEXT NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL DEFAULT 0,
    tokens_before INTEGER NOT NULL DEFAULT 0, tokens_after INTEGER NOT NULL DEFAULT 0,
    cost_plain REAL NOT NULL DEFAULT 0, cost_sent REAL NOT NULL DEFAULT 0, replies INTEGER NOT NULL DEFAULT 0,
    partial INTEGER NOT NULL DEFAULT 0, input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0, written_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (tenant, model)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hours (
    hour INTEGER NOT NULL, model TEXT NOT NULL, tenant TEXT NOT NULL, requests INTEGER NOT NULL,
    tokens_before INTEGER NOT NULL, tokens_after INTEGER NOT NULL, cost_plain REAL NOT NULL, cost_sent REAL NOT NULL,
    replies INTEGER NOT NULL, partial INTEGER NOT NULL, input_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    written_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, PRIMARY KEY (hour, model, tenant)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_tenant ON hours (tenant, hour, model);
CREATE TABLE IF NOT EXISTS problems (
    tenant TEXT NOT NULL, place TEXT NOT NULL, error TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (tenant, place, error)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS resets (
    number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT, session TEXT, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS workers (
    worker TEXT PRIMARY KEY, memory_kb REAL NOT NULL, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS keys (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL);
"""
_LATER = {
    "legend": "BLOB NOT NULL DEFAULT x''",
    "scope": "BLOB NOT NULL DEFAULT x''",
    "deployment": "TEXT NOT NULL DEFAULT ''",
}
"""Columns of `conversations` that the first databases did not have; new ones get them in the same way."""
_KEY_BYTES = 32


def make(base: sqlite3.Connection) -> bytes:
    """Make the tables that are missing, and the columns. Any number of processes may do so at once.

    Args:
        base: the database, in autocommit mode.

    Returns:
        The database's key, for hashes that only those who share it can compare.

    Raises:
        sqlite3.Error: it could not be written.
    """
    base.executescript(_SCHEMA)
    key = _key(base)
    if key is None or _missing(base):
        with base:
            base.execute("BEGIN IMMEDIATE")
            for column in _missing(base):  # anew: another process may have been faster
                base.execute(f"ALTER TABLE conversations ADD COLUMN {column} {_LATER[column]}")
            base.execute("INSERT OR IGNORE INTO keys VALUES (1, ?)", (os.urandom(_KEY_BYTES),))
        key = _key(base)
    assert key is not None
    return key


def _key(base: sqlite3.Connection) -> bytes | None:
    found = base.execute("SELECT key FROM keys").fetchone()
    return None if found is None else bytes(found[0])


def _missing(base: sqlite3.Connection) -> list[str]:
    there = {column[1] for column in base.execute("PRAGMA table_info(conversations)")}
    return [column for column in _LATER if column not in there]
