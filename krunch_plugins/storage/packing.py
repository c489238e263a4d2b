"""Log entries into segments: read and compressed without a lock, swapped in one transaction."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from krunch_plugins.errors import FrameDamaged
from krunch_plugins.storage import codecs, events
from krunch_plugins.storage.blocks import Columns, encode, to_text
from krunch_plugins.storage.dictionaries import SMALL, taint
from krunch_plugins.storage.records import PAGE_SHIFT, ROOT, TRIM, Entry, Page, Root, Session, Tenant, tenant_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from krunch_plugins.storage.codecs import Dictionary
    from krunch_plugins.storage.ledger import Ledger

SEGMENT_BYTES = 1 << 20
"""Plain bytes at which a segment is full. Larger ones compress better; a turn in one of these is read in 2 ms."""
_BATCH_TURNS = 4096
_BATCH_BYTES = 32 << 20
_PAGE_TURNS = 1 << PAGE_SHIFT


@dataclass(slots=True)
class _Swap:
    """Frames that are to replace those of turns `start` to before `stop`."""

    start: int
    stop: int
    old: list[str] = field(default_factory=list)
    keep: int = 0
    """Turns before this number are given up."""
    draft: bool = False
    entries: list[tuple[Entry, bytes, bytes, Dictionary | None]] = field(default_factory=list)
    """Index entry, plain bytes, payload, dictionary."""


def pack(ledger: Ledger, inside: str, *, draft: bool = False) -> int:
    """Pack all that is in a session's log.

    Args:
        ledger: where it lies.
        inside: the session's key.
        draft: the session is in use: compress quickly, and leave it to a later call to make full segments of them.

    Returns:
        How many turns were moved.

    Raises:
        FrameDamaged: a log entry is damaged; nothing of it was changed.
    """
    moved = 0
    while True:
        record = ledger.shelf.load(f"s/{inside}", Session)
        if record is None:
            return moved
        with _moving(ledger, record):
            drafts = _drafts(ledger, record)
            full = sum(entry.plain for entry in drafts) >= SEGMENT_BYTES
            if not record.log and (draft or not any(entry.draft for entry in drafts)) and not full:
                return moved
            swap = _plan_log(ledger, record, drafts, draft=draft and not full)
            if _apply(ledger, record, swap):
                moved += max(swap.stop - record.packed, 0)


def rewrite(ledger: Ledger, inside: str) -> None:
    """Write all segments of a session anew, with the codec and the dictionary that are in use now."""
    pack(ledger, inside)
    page = 0
    while True:
        record = ledger.shelf.load(f"s/{inside}", Session)
        if record is None or record.packed <= record.first:
            return
        page = max(page, record.first >> PAGE_SHIFT)
        start, stop = max(page << PAGE_SHIFT, record.first), min((page + 1) << PAGE_SHIFT, record.packed)
        if start >= stop:
            return
        with _moving(ledger, record):
            swap = _Swap(start, stop)
            swap.old = [key for key, _ in ledger.frames(record, start, stop)]
            _fill(ledger, record, swap)
            if _apply(ledger, record, swap):
                page += 1


def adopt(ledger: Ledger, tenant: str | None) -> None:
    """Write small sessions anew with the tenant's dictionary, now that there is one."""
    holder = ledger.tenant(tenant)
    if holder is None or not holder.dictionary:
        return
    for record in ledger.sessions(tenant):
        if record.size <= SMALL and record.packed > record.first and holder.dictionary not in record.dictionaries:
            rewrite(ledger, record.id)


def trim(ledger: Ledger, inside: str, keep: int) -> int:
    """Give up all turns before number `keep`, which must lie in segments, or be missing behind the last of them.

    Returns:
        How many turns were removed.
    """
    while True:
        record = ledger.shelf.load(f"s/{inside}", Session)
        if record is None or not record.first < keep <= _settled(record):
            return 0
        with _moving(ledger, record):
            page = min(keep, record.packed) - 1 >> PAGE_SHIFT
            last = ledger.page(record, page).entries if record.packed > record.first else []
            stop = max([keep, *(entry.stop for entry in last if entry.start < keep)])
            swap = _Swap(record.first, stop, keep=keep)
            swap.old = [key for key, _ in ledger.frames(record, record.first, keep)]
            if stop > keep:
                _fill(ledger, record, swap, swap.old[-1:])
            if _apply(ledger, record, swap):
                return keep - record.first


def _settled(record: Session) -> int:
    """Up to which turn nothing lies in the log."""
    stop = record.packed
    for start, end in sorted(record.missing):
        if not record.log and start <= stop:
            stop = max(stop, end)
    return stop


@contextmanager
def _moving(ledger: Ledger, seen: Session) -> Iterator[None]:
    """Frames that were not where they should be have moved while we read them, or are damaged."""
    try:
        yield
    except FrameDamaged:
        now = ledger.shelf.load(f"s/{seen.id}", Session)
        if now is not None and now.revision == seen.revision:
            raise


def _drafts(ledger: Ledger, record: Session) -> list[Entry]:
    """The segments at the end that are to be written anew with what follows: drafts, and one that is not full."""
    found: list[Entry] = []
    expected = record.packed
    # Drafts may go on in the page before; that ends where a page begins with something else.
    while expected > record.first and (not found or expected % _PAGE_TURNS == 0):
        try:
            entries = ledger.page(record, expected - 1 >> PAGE_SHIFT).entries
        except FrameDamaged:
            break  # left for check() to find; the log must not wait for that
        for entry in reversed(entries):
            grows = not found and entry.plain < SEGMENT_BYTES // 2 and entry.stop % _PAGE_TURNS
            if entry.stop != expected or not (entry.draft or grows):
                return found
            found.insert(0, entry)
            expected = entry.start
        if not entries:
            break
    return found


def _plan_log(ledger: Ledger, record: Session, drafts: list[Entry], *, draft: bool) -> _Swap:
    """Take as many log entries as fit into memory comfortably, and the drafts before them."""
    keys: list[str] = []
    stop, size = record.packed, 0
    for index, start in enumerate(record.log):
        if keys and (stop - record.log[0] >= _BATCH_TURNS or size >= _BATCH_BYTES):
            break
        keys.append(f"l/{record.id}/{start}")
        after = record.log[index + 1] if index + 1 < len(record.log) else record.next
        # Where an entry lies in quarantine, the one before it ends earlier.
        stop = min([after, *(gap[0] for gap in record.missing if gap[0] > start)])
        size += len(ledger.cold.get(keys[-1]) or b"")
    begin = record.log[0] if record.log else record.packed
    if drafts and not draft and (drafts[-1].stop == begin or not keys):
        merged = _Swap(drafts[0].start, stop, [*(f"g/{record.id}/{entry.start}" for entry in drafts), *keys])
        try:
            _fill(ledger, record, merged)
        except FrameDamaged as error:
            if not keys or not error.segment.startswith("g/"):
                raise
        else:
            return merged  # else the damaged segment is left for check() to find
    swap = _Swap(begin, stop, keys, draft=draft)
    _fill(ledger, record, swap)
    return swap


def _fill(ledger: Ledger, record: Session, swap: _Swap, frames: list[str] | None = None) -> None:
    """Read the turns of the old frames (or of some of them) and compress them into segments."""
    holder = ledger.shelf.need(f"t/{record.tenant}", Tenant)
    dictionary = ledger.dictionary(holder, holder.dictionary) if holder.dictionary else None
    columns, start = Columns(), 0
    for key in swap.old if frames is None else frames:
        block = ledger.block(record, key, int(key.rpartition("/")[2]))
        first = max(swap.start, swap.keep, block.start)
        if columns.messages and start + len(columns.messages) != first:
            _cut(ledger, record, swap, dictionary, (start, columns))
            columns = Columns()
        if not columns.messages:
            start = first
        columns.extend(block.columns(first, swap.stop))
    if columns.messages:
        _cut(ledger, record, swap, dictionary, (start, columns))


def _cut(ledger: Ledger, record: Session, swap: _Swap, dictionary: Dictionary | None, run: tuple[int, Columns]) -> None:
    """Compress a gapless run of turns into segments of the right size."""
    session, tenant = to_text(record.name), tenant_text(record.tenant_name)
    number, columns = run
    begin = size = 0
    for index in range(len(columns.messages) + 1):
        ends = index == len(columns.messages)
        if not ends and (index == begin or ((number + index) % _PAGE_TURNS and size < SEGMENT_BYTES)):
            size += len(columns.messages[index])
            continue
        part = columns.part(begin, index)
        plain = encode(part, session, tenant)
        trained = dictionary if ledger.codec == "zstd" and len(plain) <= SMALL else None
        level = (codecs.DRAFT_LEVEL if swap.draft else codecs.SEGMENT_LEVEL) if ledger.codec == "zstd" else None
        payload = codecs.compress(plain, ledger.codec, level=level, dictionary=trained)
        entry = Entry(
            number + begin, number + index, len(plain), 0, max(part.at), trained.id if trained else 0, swap.draft
        )
        swap.entries.append((entry, plain, payload, trained))
        begin, size = index, 0 if ends else len(columns.messages[index])


def _apply(ledger: Ledger, seen: Session, swap: _Swap) -> bool:
    """Swap the frames, unless the session has changed since `seen`."""
    with ledger.cold.transaction():
        record = ledger.shelf.load(f"s/{seen.id}", Session)
        if record is None or record.revision != seen.revision:
            return False
        holder = ledger.shelf.need(f"t/{record.tenant}", Tenant)
        if any(trained and trained.id not in holder.dictionaries for *_, trained in swap.entries):
            ledger.forget_names()
            return False
        for key in swap.old:
            frame = ledger.cold.get(key)
            ledger.grow(holder, record, -len(frame or b""))
            ledger.cold.delete(key)
        pages: dict[int, Page] = {}
        for number in range(swap.start >> PAGE_SHIFT, (swap.stop - 1 >> PAGE_SHIFT) + 1):
            there = record.packed > record.first and number <= record.packed - 1 >> PAGE_SHIFT
            page = ledger.page(record, number) if there else Page([])
            page.entries = [e for e in page.entries if e.stop <= swap.start or e.start >= swap.stop]
            pages[number] = page
        for entry, plain, payload, trained in swap.entries:
            key = f"g/{record.id}/{entry.start}"
            frame = codecs.seal(plain, payload, ledger.codec, dictionary=trained, context=key.encode())
            ledger.cold.put(key, frame)
            entry.stored = len(frame)
            ledger.grow(holder, record, len(frame))
            pages[entry.start >> PAGE_SHIFT].entries.append(entry)
            if trained and trained.id not in record.dictionaries:
                record.dictionaries.append(trained.id)
        for number, page in pages.items():
            page.entries.sort(key=lambda entry: entry.start)
            ledger.shelf.save(f"i/{record.id}/{number}", page)
        gone = set(swap.old)
        record.log = [number for number in record.log if f"l/{record.id}/{number}" not in gone]
        record.packed = max(record.packed, swap.stop)
        record.revision += 1
        if swap.keep:
            _give_up(ledger, holder, record, swap.keep)
        ledger.save(holder, record)
    return True


def _give_up(ledger: Ledger, holder: Tenant, record: Session, keep: int) -> None:
    """Forget that there were turns before `keep`."""
    stop = keep >> PAGE_SHIFT if keep < record.packed else (keep - 1 >> PAGE_SHIFT) + 1
    for number in range(record.first >> PAGE_SHIFT, stop):
        ledger.cold.delete(f"i/{record.id}/{number}")
    record.first = keep
    record.missing = [gap for gap in record.missing if gap[1] > keep]
    events.record(ledger.shelf, holder, TRIM, record.id, range(keep, record.next))
    taint(ledger, holder, record.id)
    mark_unscrubbed(ledger)


def mark_unscrubbed(ledger: Ledger) -> None:
    """Note that something was removed whose bytes may lie in free space; within the transaction that removes it."""
    root = ledger.shelf.need(ROOT, Root)
    if not root.scrub:
        root.scrub = True
        ledger.shelf.save(ROOT, root)
