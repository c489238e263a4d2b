"""What the symbols of each session's last request stand for, for the eyes of its owner. Bounded; thread-safe."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunch_plugins import Exchange

TOKENS = 4_000_000
"""Tokens of all requests whose symbols are held: a table of symbols holds on to the request that defines them."""

_lock = threading.Lock()
_held: OrderedDict[tuple[str, str], tuple[Mapping[str, str], int]] = OrderedDict()
_tokens = 0


def keep(tenant: str, session: str, exchange: Exchange, *, most: int) -> None:
    """Keep the symbols of a session's newest request; the least recently used session goes first.

    Args:
        tenant: whose session.
        session: its id.
        exchange: the request.
        most: sessions that are held.
    """
    global _tokens  # noqa: PLW0603 - one table a process is the point
    size = exchange.report.tokens_before
    with _lock:
        _drop((tenant, session))
        _held[tenant, session] = exchange.symbols, size
        _tokens += size
        while len(_held) > most or _tokens > TOKENS:
            _drop(next(iter(_held)))


def get(tenant: str, session: str) -> Mapping[str, str] | None:
    """What the last request of a session defined; None if it is not held."""
    found = _held.get((tenant, session))
    return None if found is None else found[0]


def forget(tenant: str | None, session: str | None) -> None:
    """Let go of a session, of a tenant's (no session), or of all of them (neither)."""
    with _lock:
        for key in tuple(_held):
            if tenant in {None, key[0]} and session in {None, key[1]}:
                _drop(key)


def memory_kb(tenant: str | None = None) -> float:
    """KiB of the tables that are held, at a byte for each character, of all tenants or of one."""
    with _lock:
        tables = [table for (owner, _), (table, _) in _held.items() if tenant in {None, owner}]
    return sum(len(symbol) + len(text) for table in tables for symbol, text in table.items()) / 1024


def _drop(key: tuple[str, str]) -> None:
    """Let go of one, if it is there; the lock is held."""
    global _tokens  # noqa: PLW0603 - as above
    dropped = _held.pop(key, None)
    _tokens -= 0 if dropped is None else dropped[1]
