"""Sessions as lines of JSON, out and in."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from krunch_plugins.errors import SessionExists
from krunch_plugins.storage.blocks import from_json, make_turn, to_bytes, to_json
from krunch_plugins.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from krunch_plugins.storage.ledger import Ledger
    from krunch_plugins.storage.reports import SessionInfo

FORMAT = 1
_BATCH = 64


def header(info: SessionInfo) -> str:
    """The line about the session."""
    return _line(
        {
            "krunch_session": FORMAT,
            "session": info.session,
            "tenant": info.tenant,
            "created": info.created,
            "last_used": info.last_used,
            "first": info.first,
            "metadata": info.metadata,
            "summary": info.summary,
        }
    )


def turn_line(turn: Turn) -> str:
    """The line about one turn."""
    line: dict[str, Any] = {"number": turn.number, "timestamp": turn.timestamp, "message": turn.message}
    if turn.tokens is not None:
        line["tokens"] = turn.tokens
    if turn.metadata:
        line["metadata"] = turn.metadata
    if turn.embedding is not None:
        line["embedding"] = list(turn.embedding)
    return _line(line)


def import_lines(
    ledger: Ledger, lines: Iterable[str], session: str | None, tenant: str | None, now: float
) -> list[str]:
    """Store exported sessions, each in one transaction.

    Raises:
        SessionExists: one of them has turns already; those before it were imported.
        ValueError: a line is not what an export holds.
    """
    done: list[str] = []
    for head, turns in _sections(lines):
        if session is not None and done:
            raise ValueError("the lines hold several sessions, which cannot all be imported under one id")
        name = head["session"] if session is None else session
        _import(ledger, name, tenant, head, turns, now)
        done.append(name)
    return done


def _import(  # noqa: PLR0913, PLR0917 - whose, what and when
    ledger: Ledger, session: str, tenant: str | None, head: dict[str, Any], turns: Iterator[Turn], now: float
) -> None:
    with ledger.cold.transaction():
        holder, record = ledger.obtain(session, tenant, float(head["created"]))
        if record.next > record.first or record.missing:
            raise SessionExists(session, record.next - record.first)
        record.first = record.next = record.packed = int(head["first"])
        ledger.save(holder, record)
        batch: list[Turn] = []
        for turn in turns:
            if batch and (turn.number != batch[-1].number + 1 or len(batch) >= _BATCH):
                _store(ledger, session, tenant, batch, now)
                batch = []
            batch.append(turn)
        if batch:
            _store(ledger, session, tenant, batch, now)
        summary = None if head["summary"] is None else to_bytes(head["summary"])
        if head["metadata"] or summary is not None:
            ledger.set_profile(session, tenant, now, metadata=to_json(head["metadata"]), summary=summary)
        holder, record = ledger.obtain(session, tenant, now)
        record.used = float(head["last_used"])
        ledger.save(holder, record)


def _store(ledger: Ledger, session: str, tenant: str | None, batch: list[Turn], now: float) -> None:
    """Append turns under the numbers that they have."""
    holder, record = ledger.obtain(session, tenant, now)
    start = batch[0].number
    if start < record.next:
        raise ValueError(f"turn {start} of session {session!r} comes after turn {record.next - 1}")
    if start > record.next:
        record.missing.append((record.next, start))  # it was missing already where it was exported
        record.next = start
        ledger.save(holder, record)
    data = [to_json(turn.message, f"turn {turn.number}") for turn in batch]
    ledger.append(session, tenant, ledger.parts(batch, data, session, tenant), now)


def _sections(lines: Iterable[str]) -> Iterator[tuple[dict[str, Any], Iterator[Turn]]]:
    """Each session's head and its turns, which are read as they are asked for."""
    numbered = enumerate(lines, 1)
    following: list[dict[str, Any]] = []

    def turns() -> Iterator[Turn]:
        for number, text in numbered:
            if not text.strip():
                continue
            line = _parse(number, text)
            if "krunch_session" in line:
                following.append(line)
                return
            try:
                metadata, embedding = line.get("metadata", {}), line.get("embedding")
                turn = Turn(line["number"], line["message"], line["timestamp"], line.get("tokens"), metadata, embedding)
                yield make_turn(turn, int(turn.number), 0.0, f"line {number}")
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"line {number} is no turn as export() writes it: {error}") from error

    if any(True for _ in turns()):
        raise ValueError("the first line must be about a session, as export() writes it")
    while following:
        head = following.pop()
        if head["krunch_session"] != FORMAT or not {
            "session",
            "created",
            "last_used",
            "first",
            "metadata",
            "summary",
        } <= set(head):
            raise ValueError(
                f"a session was exported in format {head['krunch_session']!r}; this version reads {FORMAT}"
            )
        rest = turns()
        yield head, rest
        for _ in rest:
            pass


def _parse(number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
        if isinstance(line, dict) and set(line) == {"encoded"}:
            line = from_json(base64.b64decode(line["encoded"], validate=True))
    except (ValueError, TypeError, binascii.Error) as error:
        raise ValueError(f"line {number} is not JSON as export() writes it: {error}") from error
    if not isinstance(line, dict):
        raise ValueError(f"line {number} is not a JSON object as export() writes it")  # noqa: TRY004 - about the data
    return line


def _line(value: dict[str, Any]) -> str:
    text = json.dumps(value, separators=(",", ":"))
    if json.loads(text) != value and to_json(json.loads(text)) != to_json(value):
        # Two lone surrogates side by side, which JSON's escapes would join into one character.
        return json.dumps({"encoded": base64.b64encode(to_json(value)).decode("ascii")})
    return text
