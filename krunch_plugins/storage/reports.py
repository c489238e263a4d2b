"""What the store tells about itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from krunch_plugins.storage.blocks import from_json, to_text
from krunch_plugins.storage.records import tenant_text

if TYPE_CHECKING:
    from krunch_plugins.storage.records import Profile, Session
    from krunch_plugins.turns import EvictReason


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session, without its turns.

    Attributes:
        session: its id.
        tenant: who owns it.
        key: what events call it.
        created: when it was begun, seconds since the epoch.
        last_used: when it was last appended to or given state.
        turns: how many turns it has.
        first: number of its oldest turn; above 0 where retention removed some.
        stop: the number that its next turn will get.
        bytes: what it takes on disk, without the database's own overhead.
        packed: turns up to this number lie in segments, the others in the log.
        metadata: what `set_metadata` kept.
        summary: what `set_summary` kept, or None.
        missing: ranges of turns whose frames were damaged and lie in quarantine, as (start, stop).
    """

    session: str
    tenant: str | None
    key: str
    created: float
    last_used: float
    turns: int
    first: int
    stop: int
    bytes: int
    packed: int
    metadata: dict[str, Any]
    summary: str | None
    missing: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, record: Session, profile: Profile) -> Self:
        """From the records."""
        missing = tuple((start, stop) for start, stop in record.missing)
        return cls(
            session=to_text(record.name),
            tenant=tenant_text(record.tenant_name),
            key=record.id,
            created=record.created,
            last_used=record.used,
            turns=record.next - record.first - sum(stop - start for start, stop in missing),
            first=record.first,
            stop=record.next,
            bytes=record.size,
            packed=record.packed,
            metadata=from_json(profile.metadata),
            summary=None if profile.summary is None else to_text(profile.summary),
            missing=missing,
        )


@dataclass(slots=True)
class StoreStats:
    """What happened in this process since the store was opened.

    Attributes:
        appended: turns stored.
        packed: turns moved from logs into segments.
        hot_hits: reads that RAM answered.
        hot_misses: reads that went to disk.
        evicted: turns that left RAM, by reason.
        listener_failures: times that an `on_evict` listener or a follower raised.
        pack_failures: times that packing failed in the background; the turns stay in the log.
        record_failures: exchanges that could not be recorded.
        hot_bytes: bytes that the hot tier holds now, estimated.
        hot_sessions: sessions that the hot tier holds now.
        disk_bytes: size of the database and its log now.
    """

    appended: int = 0
    packed: int = 0
    hot_hits: int = 0
    hot_misses: int = 0
    evicted: dict[EvictReason, int] = field(default_factory=dict)
    listener_failures: int = 0
    pack_failures: int = 0
    record_failures: int = 0
    hot_bytes: int = 0
    hot_sessions: int = 0
    disk_bytes: int = 0

    def now(self, hot_bytes: int, hot_sessions: int, disk_bytes: int) -> StoreStats:
        """A copy, with what is held now."""
        return replace(
            self, evicted=dict(self.evicted), hot_bytes=hot_bytes, hot_sessions=hot_sessions, disk_bytes=disk_bytes
        )


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was written.

    Attributes:
        key: the frame's key in the cold tier, or the database's file name.
        session: the session it belongs to, where that is known.
        tenant: who owns the session.
        why: what is wrong.
    """

    key: str
    session: str | None
    tenant: str | None
    why: str


@dataclass(slots=True)
class CheckReport:
    """What `check` found.

    Attributes:
        tenants: tenants looked at.
        sessions: sessions looked at.
        turns: turns that were read and are whole.
        frames: frames that were read and are whole.
        damage: what is not; with `repair=True`, what was not before the repair.
        quarantined: damaged frames and databases that were moved aside.
        salvaged: frames that were taken out of a database that could not be read.
        missing: turns that no intact frame holds any more.
    """

    tenants: int = 0
    sessions: int = 0
    turns: int = 0
    frames: int = 0
    damage: list[Damage] = field(default_factory=list)
    quarantined: int = 0
    salvaged: int = 0
    missing: int = 0

    @property
    def ok(self) -> bool:
        """Nothing is damaged."""
        return not self.damage
