"""What must go: forgetting sessions without a trace, and retention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from krunch_plugins.errors import FrameDamaged, StoreBusy, StoreFull
from krunch_plugins.storage import dictionaries, events
from krunch_plugins.storage.blocks import to_text
from krunch_plugins.storage.packing import adopt, mark_unscrubbed, pack, rewrite, trim
from krunch_plugins.storage.records import FORGET, PAGE_SHIFT, ROOT, Root, Session, Tenant, enter, tenant_text
from krunch_plugins.turns import APART

if TYPE_CHECKING:
    from krunch_plugins.storage.ledger import Ledger


@dataclass(slots=True)
class Forgotten:
    """What `forget` or `expire` removed.

    Attributes:
        sessions: sessions that are gone entirely.
        turns: turns.
        segments: frames of packed turns.
        log_entries: frames of turns that were not packed yet.
        states: states that wings kept with the sessions.
        dictionaries: trained dictionaries that had seen the text; they were rebuilt or dropped.
        quarantined: damaged frames in quarantine, and whole damaged databases.
        elsewhere: what those who asked to be told (search indexes, snapshots) removed.
        scrubbed: no byte of it is left in free pages or in the database's log. False if another process was reading
            just then, or the disk has no room to rebuild the database: the background thread tries again.
    """

    sessions: int = 0
    turns: int = 0
    segments: int = 0
    log_entries: int = 0
    states: int = 0
    dictionaries: int = 0
    quarantined: int = 0
    elsewhere: int = 0
    scrubbed: bool = True


def remove(
    ledger: Ledger, session: str, tenant: str | None, report: Forgotten, unless_used_since: float | None = None
) -> str | None:
    """Remove a session in one transaction; what still has to be cleaned up is noted in the same one.

    Args:
        ledger: where the session lies.
        session: its name.
        tenant: whose it is.
        report: is added to.
        unless_used_since: leave a session that has been used since this time; seconds since the epoch.

    Returns:
        The session's key, or None if there is no such session.
    """
    with ledger.cold.transaction():
        record = ledger.find(session, tenant)
        if record is None or (unless_used_since is not None and record.used >= unless_used_since):
            return None
        holder = ledger.shelf.need(f"t/{record.tenant}", Tenant)
        for number in record.log:
            report.log_entries += ledger.cold.delete(f"l/{record.id}/{number}")
        report.segments += _remove_segments(ledger, record)
        for name in record.states:
            report.states += ledger.cold.delete(f"x/{record.id}/{name}")
        for key in record.quarantined:
            report.quarantined += ledger.cold.delete(key)
        for key in (f"p/{record.id}", f"s/{record.id}"):
            ledger.cold.delete(key)
        report.dictionaries += dictionaries.taint(ledger, holder, record.id)
        events.record(ledger.shelf, holder, FORGET, record.id)
        holder.directory = enter(ledger.shelf, holder.id, holder.directory, record.name, None)
        holder.sessions -= 1
        holder.size -= record.size
        ledger.shelf.save(f"t/{holder.id}", holder)
        mark_unscrubbed(ledger)
        report.sessions += 1
        report.turns += record.next - record.first
    ledger.forget_names()
    return record.id


def _remove_segments(ledger: Ledger, record: Session) -> int:
    removed = 0
    if record.packed > record.first:
        for number in range(record.first >> PAGE_SHIFT, (record.packed - 1 >> PAGE_SHIFT) + 1):
            try:
                entries = ledger.page(record, number).entries
            except FrameDamaged:
                # Without its page a segment's number is unknown, but there are only so many that it can be.
                first, last = max(number << PAGE_SHIFT, record.first), min((number + 1) << PAGE_SHIFT, record.packed)
                removed += sum(ledger.cold.delete(f"g/{record.id}/{start}") for start in range(first, last))
            else:
                removed += sum(ledger.cold.delete(f"g/{record.id}/{entry.start}") for entry in entries)
            ledger.cold.delete(f"i/{record.id}/{number}")
    return removed


def settle(ledger: Ledger) -> bool:
    """Finish what forgetting left over: replace tainted dictionaries, then overwrite free space.

    Safe to interrupt and to repeat.

    Returns:
        Whether nothing is left over.
    """
    for tenant in ledger.tenants():
        holder = ledger.tenant(tenant)
        if holder is None or not holder.tainted:
            continue
        dictionaries.train(ledger, tenant)
        for record in ledger.sessions(tenant):
            if set(record.dictionaries) & set(holder.tainted):
                _free_of(ledger, record.id, set(holder.tainted))
        adopt(ledger, tenant)
        _drop_tainted(ledger, holder)
    if not ledger.shelf.need(ROOT, Root).scrub:
        return True
    if not ledger.cold.scrub():
        return False
    with ledger.cold.transaction():
        root = ledger.shelf.need(ROOT, Root)
        root.scrub = False
        ledger.shelf.save(ROOT, root)
    return True


def settle_soon(ledger: Ledger, report: Forgotten) -> None:
    """`settle`, as far as others and the disk allow; the report says whether something is left for the background."""
    try:
        report.scrubbed = settle(ledger)
    except (StoreBusy, StoreFull):  # rebuilding the file takes room, and forgetting is how one makes some
        report.scrubbed = False


def _free_of(ledger: Ledger, inside: str, tainted: set[int]) -> None:
    """Write a session's frames without these dictionaries."""
    try:
        rewrite(ledger, inside)
    except FrameDamaged:
        return  # its dictionary stays until the damaged frame was moved aside
    with ledger.cold.transaction():
        record = ledger.shelf.load(f"s/{inside}", Session)
        if record is not None:
            record.dictionaries = [number for number in record.dictionaries if number not in tainted]
            ledger.shelf.save(f"s/{inside}", record)


def _drop_tainted(ledger: Ledger, holder: Tenant) -> None:
    with ledger.cold.transaction():
        fresh = ledger.shelf.need(f"t/{holder.id}", Tenant)
        used: set[int] = set()
        for record in ledger.sessions(tenant_text(holder.name)):
            used.update(record.dictionaries)
        for number in [number for number in fresh.tainted if number not in used]:
            ledger.cold.delete(f"z/{holder.id}/{number}")
            fresh.tainted.remove(number)
        ledger.shelf.save(f"t/{holder.id}", fresh)
        mark_unscrubbed(ledger)
    ledger.forget_names()


def cut(ledger: Ledger, session: str, tenant: str | None, start: int) -> tuple[str, int]:
    """Give up a session's turns before number `start`.

    Returns:
        The session's key ("" if there is none), and how many turns were removed.
    """
    record = ledger.find(session, tenant)
    if record is None or start <= record.first:
        return "", 0
    pack(ledger, record.id)
    return record.id, trim(ledger, record.id, min(start, record.next))


def expire(
    ledger: Ledger, cutoff: float | None, keep_turns: int | None, report: Forgotten
) -> tuple[list[tuple[str, str, str | None]], list[str], FrameDamaged | None]:
    """Apply retention: from the front of each session, up to the first turn that is to be kept.

    Args:
        ledger: where the sessions lie.
        cutoff: turns stored before this time go; seconds since the epoch.
        keep_turns: of each session at most so many turns are kept, the newest.
        report: is added to.

    Returns:
        Key, session and tenant of those that had to do with it; keys of those that have states which must go, too; and
        what is wrong with a session that was left as it is, because it is damaged.
    """
    touched: list[tuple[str, str, str | None]] = []
    aged: list[str] = []
    failed = None
    for tenant in ledger.tenants():
        if tenant is not None and tenant.startswith(APART):
            continue
        for record in ledger.sessions(tenant):
            try:
                found = ledger.steady(partial(_first_kept, ledger, record.id, cutoff, keep_turns))
                if found is None:  # removed meanwhile
                    continue
                record, keep = found  # noqa: PLW2901 - the same session, as it is now
                if _aged(record, keep, cutoff):
                    aged.append(record.id)
                if _expire_session(ledger, record, keep, cutoff, report):
                    touched.append((record.id, to_text(record.name), tenant))
            except FrameDamaged as error:
                failed = error  # the others must not be kept for ever because of this one
    return touched, aged, failed


def _first_kept(
    ledger: Ledger, inside: str, cutoff: float | None, keep_turns: int | None
) -> tuple[Session, int] | None:
    """A session as it is now, and the number of its first turn that retention lets stay; None if it is gone."""
    record = ledger.shelf.load(f"s/{inside}", Session)
    if record is None:
        return None
    keep = record.first if keep_turns is None else max(record.first, record.next - keep_turns)
    return record, keep if cutoff is None else max(keep, _first_since(ledger, record, keep, cutoff))


def _expire_session(ledger: Ledger, record: Session, keep: int, cutoff: float | None, report: Forgotten) -> bool:
    """Give up a session's turns before number `keep`, or all of it; whether there was anything to give up."""
    if keep >= record.next and cutoff is not None and record.used < cutoff:
        name, tenant = to_text(record.name), tenant_text(record.tenant_name)
        return remove(ledger, name, tenant, report, unless_used_since=cutoff) is not None
    if keep > record.first:
        pack(ledger, record.id)
        report.turns += trim(ledger, record.id, min(keep, record.next))
        report.scrubbed = False
        return True
    return False


def drop_states(ledger: Ledger, inside: str, cutoff: float | None, report: Forgotten) -> None:
    """Remove a session's states that hold text of turns which are gone.

    Args:
        ledger: where the session lies.
        inside: its key.
        cutoff: those that were put before this time go, too; seconds since the epoch.
        report: is added to.
    """
    with ledger.cold.transaction():
        record = ledger.shelf.load(f"s/{inside}", Session)
        names = [] if record is None else _aged(record, record.first, cutoff)
        if record is None or not names:
            return
        holder = ledger.shelf.need(f"t/{record.tenant}", Tenant)
        for name in names:
            ledger.cold.delete(f"x/{inside}/{name}")
            ledger.grow(holder, record, -record.states.pop(name, 0))
            del record.aging[name]
        ledger.save(holder, record)
        mark_unscrubbed(ledger)
    report.states += len(names)
    report.scrubbed = False


def _aged(record: Session, first: int, cutoff: float | None) -> list[str]:
    """Which states hold text of turns before `first`, or were put before the cutoff."""
    return [name for name, (turn, at) in record.aging.items() if turn < first or (cutoff is not None and at < cutoff)]


def _first_since(ledger: Ledger, record: Session, start: int, cutoff: float) -> int:
    """Number of the first turn from `start` on that is not older than `cutoff`."""
    for block in ledger.blocks(record, start, record.next):
        for offset, timestamp in enumerate(block.timestamps()):
            if timestamp >= cutoff and block.start + offset >= start:
                return block.start + offset
    return record.next
