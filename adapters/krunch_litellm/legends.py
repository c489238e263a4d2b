"""What the symbols of each session's last request stand for, for the eyes of its owner. Bounded; thread-safe.

The worker that served it holds that in memory. Any other one works it out from the history, and tells what comes out
only if its hash is the one that was noted with the request's figures: what symbols mean may depend on what is not
recorded, such as tools, and to show another meaning than the model saw is worse than none. (Rejected: to compare
figures. A literal in a tool shifts all symbols, to the same figures.)
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from krunch_plugins import Krunch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_litellm.configuration import Configuration, Scope
    from krunch_plugins import Exchange, Settings
    from krunch_plugins.turns import Message

TOKENS = 4_000_000
"""Tokens of all requests whose symbols are held: a table of symbols holds on to the request that defines them."""

_HASH = 16
"""Bytes of a hash."""

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


def digest(key: bytes, symbols: Mapping[str, str]) -> bytes:
    """A hash of what symbols stand for; without the key it confirms nobody's guess of the text."""
    return _hash(key, sorted(symbols.items()))


def scope(key: bytes, chosen: Scope) -> bytes:
    """A hash of each of those whom a scope names: a name may be a secret, or somebody's."""
    return b"".join(_hash(key, one) for one in chosen)


def told(configuration: Configuration, key: bytes, row: Mapping[str, Any]) -> Mapping[str, str] | None:
    """What the symbols of a session's last request stood for; None if that cannot be known here.

    Args:
        configuration: whose settings serve which request, and where its messages are recorded.
        key: of the database that `row` is from.
        row: what was counted of the session.
    """
    noted, held = row["legend"], get(row["tenant"], row["session"])
    if held is not None and noted in {b"", digest(key, held)}:
        return held
    if noted == digest(key, {}):
        return {}
    settings = _settings(configuration, key, row["scope"])
    if not noted or configuration.main.store is None or settings is None:
        return None
    turns = configuration.main.store.turns(row["session"], tenant=row["tenant"])
    symbols = _worked_out(settings, [turn.message for turn in turns], row)
    return symbols if digest(key, symbols) == noted else None


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


def _hash(key: bytes, facts: Sequence[Any]) -> bytes:
    return hashlib.blake2b(json.dumps(facts).encode(), key=key, digest_size=_HASH).digest()


def _settings(configuration: Configuration, key: bytes, noted: bytes) -> Settings | None:
    """The settings that served a request, by the hashes of its scope; None if the config has changed."""
    known = {_hash(key, one): one for one in configuration.scopes} if noted else {}
    chosen = [known.get(noted[start : start + _HASH]) for start in range(0, len(noted), _HASH)]
    found = tuple(one for one in chosen if one is not None)
    return configuration.settings_of(found) if len(found) == len(chosen) else None


def _worked_out(settings: Settings, messages: list[Message], row: Mapping[str, Any]) -> dict[str, str]:
    """What the symbols of a session stand for if its recorded messages are all that was sent.

    Outside plugins are not asked: nobody has made this request. Where one changes requests, the hash will not agree.
    """
    while messages and messages[-1].get("role") == "assistant":  # the reply to the last request
        messages.pop()
    with Krunch(settings.model_copy(update={"home": None})) as reader:
        for plugin in reader.plugins():
            if not plugin.builtin:
                reader.unregister(plugin.name)
        exchange = reader.prepare(messages, model=row["deployment"], session=row["session"], tenant=row["tenant"])
        return dict(exchange.symbols)
