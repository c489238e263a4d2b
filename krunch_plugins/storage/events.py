"""What happened to a tenant's sessions, in order, for those who follow the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from krunch_plugins.storage.blocks import to_text
from krunch_plugins.storage.records import (
    APPEND,
    FORGET,
    ROOT,
    TRIM,
    Event,
    Root,
    Session,
    Shelf,
    Tail,
    Tenant,
    listing,
)
from krunch_plugins.turns import TurnEvent

if TYPE_CHECKING:
    from krunch_plugins.turns import EventKind

_TAIL = 32
"""Events that a tenant's record holds, which each append rewrites; a full tail becomes a page."""
_PAGES = 1024
"""Pages that are kept. Who is further behind starts anew from the list of sessions."""
_KINDS: dict[int, EventKind] = {APPEND: "append", FORGET: "forget", TRIM: "trim"}


@dataclass(frozen=True, slots=True)
class _Cursor:
    epoch: str
    seq: int

    @classmethod
    def parse(cls, text: str) -> _Cursor | None:
        epoch, _, seq = text.rpartition(":")
        return cls(epoch, int(seq)) if seq.isdigit() else None

    def __str__(self) -> str:
        return f"{self.epoch}:{self.seq}"


def record(shelf: Shelf, tenant: Tenant, kind: int, session: str, numbers: range = range(0)) -> None:
    """Add an event about turns of these numbers to the tenant's record; the caller saves it in the same transaction."""
    start, stop = numbers.start, numbers.stop
    last = tenant.events[-1] if tenant.events else None
    if kind == APPEND and last and last.kind == APPEND and last.session == session and last.stop == start:
        last.stop = stop
    else:
        if len(tenant.events) >= _TAIL:
            shelf.save(f"e/{tenant.id}/{tenant.next_page}", Tail(tenant.events))
            tenant.next_page += 1
            tenant.events = []
            if tenant.next_page - tenant.first_page > _PAGES:
                shelf.cold.delete(f"e/{tenant.id}/{tenant.first_page}")
                tenant.first_page += 1
        tenant.events.append(Event(tenant.seq, kind, session, start, stop))
    tenant.seq += stop - start if kind == APPEND else 1


def news(shelf: Shelf, tenant: Tenant | None, cursor: str, limit: int) -> tuple[list[TurnEvent], str] | None:
    """Events after a cursor, oldest first, and the cursor after them; None if one has to begin anew.

    Needs no lock: pages never change, and the tenant's record says which belong to it.
    """
    at = _Cursor.parse(cursor)
    if at is None or at.epoch != shelf.need(ROOT, Root).epoch:
        return None
    if tenant is None:
        return ([], cursor) if at.seq == 0 else None
    stored = _after(shelf, tenant, at.seq) if at.seq <= tenant.seq else None
    return None if stored is None else _told(shelf, stored, at, limit)


def everything(shelf: Shelf, tenant: Tenant | None, *, reset: bool) -> tuple[list[TurnEvent], str]:
    """What there is now, as events, and the cursor for what comes after; within a transaction, so that both agree."""
    told = [TurnEvent("reset", "", None, 0, 0)] if reset else []
    for name, inside in listing(shelf, tenant.id, tenant.directory) if tenant else ():
        session = shelf.need(f"s/{inside}", Session)
        if session.next > session.first:
            told.append(TurnEvent("append", inside, to_text(name), session.first, session.next))
    return told, str(_Cursor(shelf.need(ROOT, Root).epoch, tenant.seq if tenant else 0))


def _after(shelf: Shelf, tenant: Tenant, seq: int) -> list[Event] | None:
    """Stored events that end after `seq`, oldest first; None if some of them are no longer kept."""
    events = list(tenant.events)
    page = tenant.next_page
    while page > 0 and (not events or events[0].seq > seq):
        page -= 1
        if page < tenant.first_page:
            return None
        events = shelf.need(f"e/{tenant.id}/{page}", Tail).events + events
    return [event for event in events if _end(event) > seq]


def _end(event: Event) -> int:
    return event.seq + (event.stop - event.start if event.kind == APPEND else 1)


def _told(shelf: Shelf, stored: list[Event], at: _Cursor, limit: int) -> tuple[list[TurnEvent], str]:
    names: dict[str, str | None] = {}
    told: list[TurnEvent] = []
    seq = at.seq
    for event in stored:
        if len(told) >= limit:  # not counted are those that are no news: an empty answer says that nothing is new
            break
        if event.session not in names:
            session = shelf.load(f"s/{event.session}", Session)
            names[event.session] = to_text(session.name) if session else None
        name = names[event.session]
        # A cursor may stand in the middle of an append that grew after it was read.
        start = event.start + max(seq - event.seq, 0) if event.kind == APPEND else event.start
        seq = _end(event)
        if event.kind != APPEND or name is not None:  # what was appended and has been forgotten since is no news
            told.append(TurnEvent(_KINDS[event.kind], event.session, name, start, event.stop))
    return told, str(_Cursor(at.epoch, seq))
