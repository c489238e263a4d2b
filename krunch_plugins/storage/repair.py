"""Putting a damaged store in order again: every intact frame stays, everything else is moved aside."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from krunch_plugins.errors import DatabaseDamaged, FrameDamaged
from krunch_plugins.storage import codecs
from krunch_plugins.storage import salvage as sqlite_pages
from krunch_plugins.storage.blocks import Block, to_bytes
from krunch_plugins.storage.records import (
    PAGE_SHIFT,
    ROOT,
    Entry,
    Page,
    Profile,
    Root,
    Session,
    Shelf,
    State,
    Tenant,
    Trained,
    enter,
    tenant_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins.storage.cold import ColdTier
    from krunch_plugins.storage.opening import Opened

R = TypeVar("R", bound=msgspec.Struct)

_KINDS = frozenset({ROOT, "t", "d", "s", "l", "g", "i", "p", "x", "e", "z", "q"})


def salvage(opened: Opened) -> int:
    """Replace a database that cannot be read by one that holds every intact frame of it.

    Returns:
        How many frames were saved.

    Raises:
        StoreBusy: another process has the store open.
    """
    files = opened.database_files()
    assert files is not None
    found: dict[str, bytes] = {}
    with opened.alone():  # while it is read, too: what somebody stored after that would be lost
        for key, frame in sqlite_pages.rows(*files):
            # In quarantine lies what is damaged already; it is kept as it is. Anything else must be whole.
            if key.startswith("q/") or _whole(key, frame):
                found[key] = frame  # noqa: PERF403 - later versions replace earlier ones, on purpose
        if ROOT not in found:
            found[ROOT] = _framed(ROOT, Root(secrets.token_hex(4)))
        opened.fill_anew(found)
    return len(found)


def rebuild(opened: Opened) -> tuple[int, int]:
    """Make all indexes anew from the frames, in one transaction.

    Returns:
        How many frames were put into quarantine, and how many turns no intact frame holds.
    """
    cold = opened.cold
    if cold is None:
        raise opened.broken or DatabaseDamaged("", "there is nothing to repair")
    with cold.transaction():
        work = _Rebuild(cold)
        work.run()
    opened.reopen()
    return work.quarantined, work.missing


def _whole(key: str, frame: bytes) -> bool:
    """Whether a frame is intact and belongs to this key; where that needs a dictionary, it is looked at later."""
    try:
        if not codecs.describe(frame, context=key.encode())[1]:
            codecs.decode(frame, context=key.encode())
    except FrameDamaged:
        return False
    return True


def _framed(key: str, record: msgspec.Struct) -> bytes:
    plain = msgspec.msgpack.encode(record)
    return codecs.seal(plain, plain, "none", context=key.encode())


@dataclass(slots=True)
class _Frames:
    """Keys that belong to one session, by kind."""

    segments: list[int] = field(default_factory=list)
    log: list[int] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)

    def add(self, kind: str, key: str, last: str) -> None:
        """Sort one in; `last` is the key's last part."""
        if kind in ("l", "g"):
            (self.log if kind == "l" else self.segments).append(int(last))
        elif kind == "i":
            self.pages.append(key)
        elif kind == "x":
            self.states.append(last)
        elif kind == "q":
            self.quarantined.append(key)


class _Rebuild:
    """One repair, within one transaction.

    Args:
        cold: the tier.
    """

    def __init__(self, cold: ColdTier) -> None:
        self._cold, self._shelf = cold, Shelf(cold)
        self._root = self._load(ROOT, Root) or Root(secrets.token_hex(4))
        self._tenants: dict[str, Tenant] = {}
        self._by_name: dict[bytes, str] = {}
        self._trained: dict[tuple[str, int], codecs.Dictionary] = {}
        self.quarantined = self.missing = 0

    def run(self) -> None:
        """Sort all frames by what they belong to, then write everything that refers to them."""
        sessions: dict[str, _Frames] = {}
        # Dictionaries come first: whether other frames can be read depends on them.
        for key in sorted(self._cold.keys(), key=lambda key: (not key.startswith("z/"), key)):
            kind, _, rest = key.partition("/")
            owner, _, last = rest.partition("/")
            if kind not in _KINDS or (kind in ("l", "g", "z") and not last.isdecimal()):
                self._aside(key, "", self._root.orphans)  # damage in the key itself
            elif kind == "t":
                self._keep_tenant(key)
            elif kind in ("d", "e"):
                self._cold.delete(key)  # made anew below, from what they were made from
            elif kind == "z":
                self._keep_dictionary(key, owner, int(last))
            elif kind != ROOT:
                sessions.setdefault(owner, _Frames()).add(kind, key, last)
        # Those whose own record is whole know their tenant, which the others may need.
        known = {inside: self._load(f"s/{inside}", Session) for inside in sessions}
        for inside in sorted(sessions, key=lambda inside: known[inside] is None):
            self._keep_session(inside, sessions[inside], known[inside])
        self._root.tenants = bytes(32)
        for holder in self._tenants.values():
            self._root.tenants = enter(self._shelf, "root", self._root.tenants, holder.name, holder.id)
            self._shelf.save(f"t/{holder.id}", holder)
        self._root.epoch = secrets.token_hex(4)  # who follows the store has to begin anew
        self._root.scrub = True
        self._shelf.save(ROOT, self._root)

    def _load(self, key: str, kind: type[R]) -> R | None:
        with contextlib.suppress(FrameDamaged):
            return self._shelf.load(key, kind)
        return None

    def _keep_tenant(self, key: str) -> None:
        holder = self._load(key, Tenant)
        if holder is None:
            self._cold.delete(key)  # it holds nothing that its sessions' frames do not say
            return
        self._tenants[holder.id] = holder
        self._by_name[holder.name] = holder.id
        holder.seq = holder.size = holder.sessions = holder.first_page = holder.next_page = 0
        holder.events, holder.directory = [], bytes(32)
        # Only dictionaries that can still be read are entered again.
        holder.dictionaries, holder.dictionary = [n for n in holder.dictionaries if (holder.id, n) in self._trained], 0

    def _keep_dictionary(self, key: str, owner: str, number: int) -> None:
        trained = self._load(key, Trained)
        if trained is None:
            self._aside(key, "", self._root.orphans)
        else:
            self._trained[owner, number] = codecs.Dictionary(number, trained.data)

    def _keep_session(self, inside: str, frames: _Frames, record: Session | None) -> None:
        blocks, aside = self._blocks(inside, frames, record)
        if record is None and blocks:
            record = self._guess(inside, [block for _, block, _ in blocks])
        if record is None:
            for key in [
                f"s/{inside}",
                f"p/{inside}",
                *frames.pages,
                *aside,
                *(f"x/{inside}/{n}" for n in frames.states),
            ]:
                self._aside(key, inside, self._root.orphans)
            self._root.orphans += [key for key in frames.quarantined if key not in self._root.orphans]
            return
        holder = self._holder(record)
        record.quarantined = sorted({*record.quarantined, *frames.quarantined})
        for key in aside:
            self._aside(key, inside, record.quarantined)
        for key in frames.pages:
            self._cold.delete(key)
        self._index(record, blocks)
        self._extras(record, frames)
        record.revision += 1
        holder.size += record.size
        holder.sessions += 1
        holder.directory = enter(self._shelf, holder.id, holder.directory, record.name, inside)
        self._shelf.save(f"s/{inside}", record)

    def _blocks(
        self, inside: str, frames: _Frames, record: Session | None
    ) -> tuple[list[tuple[str, Block, bytes]], list[str]]:
        """The intact blocks without overlaps, in order, and the keys of the others."""
        found: list[tuple[str, Block, bytes]] = []
        aside: list[str] = []
        keys = [(n, f"g/{inside}/{n}") for n in frames.segments] + [(n, f"l/{inside}/{n}") for n in frames.log]
        at = record.first if record else 0
        # Segments first: a log entry among them is an old version of what a segment holds too.
        for number, key in sorted(keys, key=lambda pair: (pair[1].startswith("l/"), pair[0])):
            frame = self._cold.get(key) or b""
            block = self._open(key, number, frame, record, inside)
            if block is None or block.start < at:
                aside.append(key)
            else:
                found.append((key, block, frame))
                at = block.stop
        return found, aside

    def _open(self, key: str, number: int, frame: bytes, record: Session | None, inside: str) -> Block | None:
        try:
            return Block(codecs.decode(frame, context=key.encode(), dictionary=self._finder(record, inside)), number)
        except (FrameDamaged, ValueError, KeyError, TypeError):
            return None

    def _finder(self, record: Session | None, inside: str) -> Callable[[int], codecs.Dictionary]:
        def find(number: int) -> codecs.Dictionary:
            owners = [record.tenant] if record else [owner for owner, n in self._trained if n == number]
            for owner in owners:
                if (owner, number) in self._trained:
                    return self._trained[owner, number]
            raise FrameDamaged(None, inside, "zstd", f"dictionary {number} is lost")

        return find

    def _guess(self, inside: str, blocks: list[Block]) -> Session:
        """A session's record from its turns."""
        times = [time for block in blocks for time in block.timestamps()]
        name = tenant_bytes(blocks[0].tenant)
        tenant = self._by_name.get(name)
        if tenant is None:
            tenant = secrets.token_hex(8)
            self._enter_tenant(tenant, name)
        session = to_bytes(blocks[0].session)
        return Session(inside, tenant, name, session, min(times), max(times), first=blocks[0].start)

    def _holder(self, record: Session) -> Tenant:
        """The session's tenant, made anew from what the session says if its own record is lost."""
        known = self._by_name.get(record.tenant_name)
        if known is None:
            known = record.tenant
            self._enter_tenant(known, record.tenant_name)
        record.tenant = known
        return self._tenants[known]

    def _enter_tenant(self, inside: str, name: bytes) -> None:
        numbers = [number for owner, number in self._trained if owner == inside]
        holder = Tenant(inside, name, dictionaries=numbers, next_dictionary=max(numbers, default=0) + 1)
        self._tenants[inside] = holder
        self._by_name[name] = inside

    def _index(self, record: Session, blocks: list[tuple[str, Block, bytes]]) -> None:
        """Pages, log and gaps from the blocks there are."""
        pages: dict[int, list[Entry]] = {}
        record.log, record.size, record.dictionaries, record.missing = [], 0, [], []
        record.next = max([record.next, *(block.stop for _, block, _ in blocks)])
        packed = [block.stop for key, block, _ in blocks if key.startswith("g/")]
        first_logged = min([block.start for key, block, _ in blocks if key.startswith("l/")], default=record.next)
        record.packed = max([record.first, *packed, min(record.packed, first_logged)])
        at = record.first
        for key, block, frame in blocks:
            if block.start > at:
                record.missing.append((at, block.start))
            at = block.stop
            record.size += len(frame)
            _, number, plain = codecs.describe(frame, context=key.encode())
            if number and number not in record.dictionaries:
                record.dictionaries.append(number)
            if key.startswith("l/"):
                record.log.append(block.start)
                continue
            entry = Entry(block.start, block.stop, plain, len(frame), max(block.timestamps()), number)
            pages.setdefault(block.start >> PAGE_SHIFT, []).append(entry)
        if at < record.next:
            record.missing.append((at, record.next))
        self.missing += sum(stop - start for start, stop in record.missing)
        if record.packed > record.first:
            for number in range(record.first >> PAGE_SHIFT, (record.packed - 1 >> PAGE_SHIFT) + 1):
                self._shelf.save(f"i/{record.id}/{number}", Page(pages.get(number, [])))

    def _extras(self, record: Session, frames: _Frames) -> None:
        """States and profile, as far as they are whole."""
        record.states, record.aging = {}, {}
        for name in frames.states:
            key = f"x/{record.id}/{name}"
            state = self._load(key, State)
            if state is None:
                self._aside(key, record.id, record.quarantined)
            else:
                record.states[name] = len(self._cold.get(key) or b"")
                record.size += record.states[name]
                if state.turn is not None:
                    record.aging[name] = state.turn, state.at
        record.profile = self._load(f"p/{record.id}", Profile) is not None
        if not record.profile:
            self._aside(f"p/{record.id}", record.id, record.quarantined)

    def _aside(self, key: str, inside: str, kept: list[str]) -> None:
        """Move a frame into quarantine, byte by byte as it is."""
        frame = self._cold.get(key)
        if frame is None:
            return
        kind, _, rest = key.partition("/")
        place = f"q/{inside or 'none'}/{kind}-{rest.rpartition('/')[2]}-{secrets.token_hex(3)}"
        self._cold.put(place, frame)
        self._cold.delete(key)
        kept.append(place)
        self.quarantined += 1
