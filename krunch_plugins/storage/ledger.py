"""Sessions in the cold tier: who is there, appending, reading. Every change is one transaction."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

from krunch_plugins.errors import FrameDamaged, QuotaExceeded
from krunch_plugins.storage import codecs, events
from krunch_plugins.storage.blocks import Block, Columns, encode, to_bytes, to_text
from krunch_plugins.storage.codecs import CodecName, Dictionary
from krunch_plugins.storage.dictionaries import SMALL
from krunch_plugins.storage.records import (
    APPEND,
    PAGE_SHIFT,
    ROOT,
    Page,
    Profile,
    Root,
    Session,
    Shelf,
    State,
    Tenant,
    Trained,
    enter,
    listing,
    lookup,
    state_name,
    tenant_bytes,
    tenant_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from krunch_plugins.storage.cold import ColdTier
    from krunch_plugins.turns import Turn

T = TypeVar("T")

_NAMES_KEPT = 50_000
_COMPRESS_FROM = 2048
"""Bytes. A log entry below this is not compressed without a dictionary: it lives briefly and would gain a third."""
_LOG_BYTES = 1 << 20
_LOG_TURNS = 128


@dataclass(slots=True)
class Part:
    """Turns that become one log entry, encoded before the lock is taken."""

    count: int
    plain: bytes
    payload: bytes
    codec: CodecName
    dictionary: Dictionary | None


class Ledger:
    """The logic between the store and its cold tier. Thread-safe.

    Args:
        cold: the tier.
        codec: how new frames are written.
        quota: bytes that a tenant may take as stored, or None.
    """

    def __init__(self, cold: ColdTier, codec: CodecName, quota: int | None) -> None:
        self.cold, self.shelf, self.codec, self._quota = cold, Shelf(cold), codec, quota
        self._ids: dict[tuple[bytes, bytes], str] = {}
        self._tenants: dict[bytes, str] = {}
        self._dictionaries: dict[tuple[str, int], Dictionary] = {}
        self._current: dict[str | None, Dictionary | None] = {}
        if self.shelf.load(ROOT, Root) is None:
            with cold.transaction():
                if self.shelf.load(ROOT, Root) is None:
                    if next(iter(cold.keys()), None) is not None:
                        raise FrameDamaged(None, ROOT, "", "it is missing, though the database is not empty")
                    self.shelf.save(ROOT, Root(secrets.token_hex(4)))

    def steady(self, read: Callable[[], T]) -> T:
        """A read that others' changes cannot spoil.

        Reading takes several steps, and between two of them a frame can move. Then something is missing; a second look
        with the lock held tells moved from lost.
        """
        try:
            return read()
        except FrameDamaged:
            self._dictionaries.clear()
            with self.cold.transaction():
                return read()

    def tenant(self, tenant: str | None) -> Tenant | None:
        """A tenant's record."""
        name = tenant_bytes(tenant)
        known = self._tenants.get(name)
        record = self.shelf.load(f"t/{known}", Tenant) if known else None
        if record is None:
            found = lookup(self.shelf, "root", self.shelf.need(ROOT, Root).tenants, name)
            if found is None:
                return None
            record = self.shelf.need(f"t/{found}", Tenant)
            self._tenants[name] = found
        return record

    def tenants(self) -> list[str | None]:
        """All tenants that ever had a session."""
        names = listing(self.shelf, "root", self.shelf.need(ROOT, Root).tenants)
        return sorted((tenant_text(name) for name, _ in names), key=lambda name: (name is not None, name or ""))

    def find(self, session: str, tenant: str | None) -> Session | None:
        """A session's record."""
        name, owner = to_bytes(session), tenant_bytes(tenant)
        known = self._ids.get((owner, name))
        if known:
            record = self.shelf.load(f"s/{known}", Session)
            if record is not None:
                return record
        holder = self.tenant(tenant)
        found = lookup(self.shelf, holder.id, holder.directory, name) if holder else None
        if found is None:
            return None
        if len(self._ids) >= _NAMES_KEPT:
            self._ids.clear()
        self._ids[owner, name] = found
        return self.shelf.need(f"s/{found}", Session)

    def sessions(self, tenant: str | None) -> list[Session]:
        """Records of all sessions of a tenant."""

        def read() -> list[Session]:
            holder = self.tenant(tenant)
            names = listing(self.shelf, holder.id, holder.directory) if holder else ()
            return [self.shelf.need(f"s/{inside}", Session) for _, inside in names]

        return self.steady(read)

    def obtain(self, session: str, tenant: str | None, now: float) -> tuple[Tenant, Session]:
        """The two records, made where they are missing; within a transaction. The caller saves both."""
        holder = self.tenant(tenant)
        if holder is None:
            holder = Tenant(secrets.token_hex(8), tenant_bytes(tenant))
            root = self.shelf.need(ROOT, Root)
            root.tenants = enter(self.shelf, "root", root.tenants, holder.name, holder.id)
            self.shelf.save(ROOT, root)
            self.shelf.save(f"t/{holder.id}", holder)
        record = self.find(session, tenant)
        if record is None:
            record = Session(secrets.token_hex(8), holder.id, holder.name, to_bytes(session), created=now, used=now)
            holder.directory = enter(self.shelf, holder.id, holder.directory, record.name, record.id)
            holder.sessions += 1
        return holder, record

    def parts(self, turns: Sequence[Turn], messages: Sequence[bytes], session: str, tenant: str | None) -> list[Part]:
        """Encode turns for `append`, outside of any lock; their numbers do not matter yet."""
        dictionary = self._current.get(tenant)
        parts = []
        start = 0
        while start < len(turns):
            stop, size = start + 1, len(messages[start])
            while stop < len(turns) and stop - start < _LOG_TURNS and size + len(messages[stop]) <= _LOG_BYTES:
                size += len(messages[stop])
                stop += 1
            plain = encode(Columns.of(turns[start:stop], messages[start:stop]), session, tenant)
            parts.append(self._part(stop - start, plain, dictionary))
            start = stop
        return parts

    def _part(self, count: int, plain: bytes, dictionary: Dictionary | None) -> Part:
        dictionary = dictionary if self.codec == "zstd" and len(plain) <= SMALL else None
        codec: CodecName = self.codec
        if codec == "zstd" and dictionary is None and len(plain) < _COMPRESS_FROM:
            codec = "none"
        return Part(count, plain, codecs.compress(plain, codec, dictionary=dictionary), codec, dictionary)

    def append(
        self, session: str, tenant: str | None, parts: list[Part], now: float, expect: int | None = None
    ) -> tuple[Session, int] | None:
        """Give the turns their numbers and make them durable.

        Args:
            session: whose turns.
            tenant: who owns the session.
            parts: from `parts`.
            now: seconds since the epoch.
            expect: append only if this is the next number.

        Returns:
            The session's record afterwards and the first turn's number; None if it was not the expected one.

        Raises:
            QuotaExceeded: the tenant has no room left.
        """
        with self.cold.transaction():
            holder, record = self.obtain(session, tenant, now)
            if len(self._current) >= _NAMES_KEPT:
                self._current.clear()
            # What the next append is written with; if that is gone by then, it is noticed below.
            self._current[tenant] = self.dictionary(holder, holder.dictionary) if holder.dictionary else None
            start = record.next
            if expect is not None and expect != start:
                return None
            for part in parts:
                if part.dictionary and part.dictionary.id not in holder.dictionaries:
                    # Dropped since we looked, because of something forgotten.
                    part = self._part(part.count, part.plain, None)  # noqa: PLW2901 - the same part, written anew
                key = f"l/{record.id}/{record.next}"
                frame = codecs.seal(
                    part.plain, part.payload, part.codec, dictionary=part.dictionary, context=key.encode()
                )
                self.cold.put(key, frame)
                record.log.append(record.next)
                record.next += part.count
                self.grow(holder, record, len(frame))
                if part.dictionary and part.dictionary.id not in record.dictionaries:
                    record.dictionaries.append(part.dictionary.id)
            if self._quota is not None and holder.size > self._quota:
                raise QuotaExceeded(tenant, holder.size, self._quota)
            record.used = max(record.used, now)
            if record.next > start:
                events.record(self.shelf, holder, APPEND, record.id, range(start, record.next))
            self.save(holder, record)
        return record, start

    def save(self, holder: Tenant, record: Session) -> None:
        """Put both records back."""
        self.shelf.save(f"s/{record.id}", record)
        self.shelf.save(f"t/{holder.id}", holder)

    @staticmethod
    def grow(holder: Tenant, record: Session, size: int) -> None:
        """Count bytes that came (or, negative, went)."""
        record.size += size
        holder.size += size

    def read(self, record: Session, start: int, stop: int) -> list[Turn]:
        """Turns `start` to before `stop`, as far as the session has them.

        Raises:
            FrameDamaged: a frame that should hold some of them is damaged or missing.
        """
        turns: list[Turn] = []
        at = start = max(start, record.first)
        for block in self.blocks(record, start, min(stop, record.next)):
            at = self._covered(record, at, block.start)
            turns += block.turns(at, stop)
            at = max(at, block.stop)
        self._covered(record, at, min(stop, record.next))
        return turns

    def _covered(self, record: Session, at: int, until: int) -> int:
        """Check that all turns from `at` to before `until` are known to be missing. Returns the later of both."""
        while at < until:
            gap = next((gap for gap in record.missing if gap[0] <= at < gap[1]), None)
            if gap is None:
                self.damaged(record, f"g/{record.id}/{at}", f"no frame holds turn {at}")
            at = gap[1]
        return at

    def blocks(self, record: Session, start: int, stop: int) -> Iterator[Block]:
        """The opened blocks that hold turns `start` to before `stop`, in order."""
        for key, number in self.frames(record, start, stop):
            yield self.block(record, key, number)

    def frames(self, record: Session, start: int, stop: int) -> Iterator[tuple[str, int]]:
        """Keys of the frames that hold turns `start` to before `stop`, and the number of the first turn in each."""
        if start >= stop:
            return
        packed = min(stop, record.packed)
        if start < packed:
            for number in range(start >> PAGE_SHIFT, (packed - 1 >> PAGE_SHIFT) + 1):
                for entry in self.page(record, number).entries:
                    if entry.stop > start and entry.start < packed:
                        yield f"g/{record.id}/{entry.start}", entry.start
        for index, number in enumerate(record.log):
            after = record.log[index + 1] if index + 1 < len(record.log) else record.next
            if after > start and number < stop:
                yield f"l/{record.id}/{number}", number

    def page(self, record: Session, number: int) -> Page:
        """One page of the session's index."""
        try:
            return self.shelf.need(f"i/{record.id}/{number}", Page)
        except FrameDamaged as error:
            self.damaged(record, error.segment, error.why, error.codec)

    def block(self, record: Session, key: str, number: int) -> Block:
        """One frame, opened."""
        frame = self.cold.get(key)
        if frame is None:
            self.damaged(record, key, "it is missing")
        try:
            plain = codecs.decode(frame, context=key.encode(), dictionary=lambda n: self._trained(record.tenant, n))
            return Block(plain, number)
        except FrameDamaged as error:
            self.damaged(record, key, error.why, error.codec)
        except (ValueError, KeyError, TypeError):
            self.damaged(record, key, "it is whole, but of another form")

    @staticmethod
    def damaged(record: Session, key: str, why: str, codec: str = "") -> NoReturn:
        """Raise the error that names the session."""
        raise FrameDamaged(to_text(record.name), key, codec, why)

    def dictionary(self, holder: Tenant, number: int) -> Dictionary | None:
        """A tenant's dictionary, or None where it cannot be read: new frames then do without."""
        try:
            return self._trained(holder.id, number)
        except FrameDamaged:
            return None

    def _trained(self, tenant: str, number: int) -> Dictionary:
        found = self._dictionaries.get((tenant, number))
        if found is None:
            found = Dictionary(number, self.shelf.need(f"z/{tenant}/{number}", Trained).data)
            self._dictionaries[tenant, number] = found
        return found

    def forget_names(self) -> None:
        """Drop what is remembered of names and dictionaries."""
        self._ids.clear()
        self._tenants.clear()
        self._dictionaries.clear()
        self._current.clear()

    def get_state(self, session: str, name: str, tenant: str | None) -> bytes | None:
        """Bytes that a wing keeps with a session."""
        record = self.find(session, tenant)
        inside = state_name(name)
        if record is None or inside not in record.states:
            return None
        return self.shelf.need(f"x/{record.id}/{inside}", State).data

    def put_state(  # noqa: PLR0913 - who, what, when, and on which condition
        self, session: str, name: str, data: bytes | Callable[[bytes | None], bytes | None], tenant: str | None,
        now: float, *, turn: int | None = None, begin: bool = True, key: str | None = None,
    ) -> bytes | None:  # fmt: skip
        """Keep bytes with a session, in one step that no other process comes into.

        Args:
            session: whose state.
            name: the state's name.
            data: the bytes; or what makes them of those that are there, and None where these are to stay.
            tenant: who owns the session.
            now: seconds since the epoch.
            turn: number of the oldest turn whose text they hold.
            begin: begin the session if it is not there.
            key: only if the session has this key; it does not count as use then.

        Returns:
            What was put; None if nothing was.
        """
        with self.cold.transaction():
            found = None if begin else self.find(session, tenant)
            if not begin and (found is None or key not in (None, found.id)):
                return None
            # What lies there may be damaged; who only puts something new does not have to know.
            put = data(self.get_state(session, name, tenant)) if callable(data) else data
            if put is None:
                return None
            holder, record = self.obtain(session, tenant, now)
            inside = state_name(name)
            size = self.shelf.save(f"x/{record.id}/{inside}", State(to_bytes(name), put, now, turn))
            self.grow(holder, record, size - record.states.get(inside, 0))
            if self._quota is not None and holder.size > self._quota:
                raise QuotaExceeded(tenant, holder.size, self._quota)
            record.states[inside] = size
            record.aging.pop(inside, None)
            if turn is not None:
                record.aging[inside] = turn, now
            if key is None:
                record.used = max(record.used, now)
            self.save(holder, record)
        return put

    def profile(self, record: Session) -> Profile:
        """A session's metadata and summary."""
        return self.shelf.need(f"p/{record.id}", Profile) if record.profile else Profile()

    def set_profile(
        self,
        session: str,
        tenant: str | None,
        now: float,
        *,
        metadata: bytes | None = None,
        summary: bytes | None = None,
    ) -> None:
        """Change a session's metadata (JSON) or its summary (b"" removes it); None leaves what is there."""
        with self.cold.transaction():
            holder, record = self.obtain(session, tenant, now)
            profile = self.profile(record)
            if metadata is not None:
                profile.metadata = metadata
            if summary is not None:
                profile.summary = summary or None
            self.shelf.save(f"p/{record.id}", profile)
            record.profile = True
            self.save(holder, record)
