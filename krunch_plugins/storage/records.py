"""What lies in the cold tier under which key. Keys are computed, never searched for.

    root                    the store: its epoch, its tenants' directory, work that was left over
    t/TENANT                a tenant: counters, its sessions' directory, the newest events, its dictionaries
    d/OWNER/BUCKET          a part of a directory: names and what they are called inside
    s/SESSION               a session: its numbers and what it consists of
    l/SESSION/NUMBER        a log entry: the turns of one append, from that number on
    g/SESSION/NUMBER        a segment: many turns, compressed together, from that number on
    i/SESSION/PAGE          which segments hold the turns from PAGE * 1,024 on
    p/SESSION               a session's metadata and summary
    x/SESSION/NAME          state that a wing keeps with a session
    e/TENANT/PAGE           older events
    z/TENANT/NUMBER         a trained dictionary
    q/SESSION/KEY           a damaged frame in quarantine

TENANT and SESSION are random: an id that a user chose is data, stands only inside frames, and leaves no trace in keys.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import msgspec

from krunch_plugins.errors import FrameDamaged
from krunch_plugins.storage import codecs
from krunch_plugins.storage.blocks import to_bytes, to_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from krunch_plugins.storage.cold import ColdTier

PAGE_SHIFT = 10
"""Segments never cross a multiple of 1,024 turns, so that the page that lists a turn's segment is known."""

ROOT = "root"
APPEND, FORGET, TRIM = 0, 1, 2


class Event(msgspec.Struct, array_like=True):
    """One thing that happened. An append takes as many sequence numbers as it has turns, anything else one."""

    seq: int
    kind: int
    session: str
    start: int
    stop: int


class Tail(msgspec.Struct, array_like=True):
    """A page of older events."""

    events: list[Event]


class Root(msgspec.Struct, array_like=True):
    """The store itself."""

    epoch: str
    tenants: bytes = bytes(32)
    scrub: bool = False
    """Something was forgotten whose bytes may still lie in free pages."""
    orphans: list[str] = []
    """Frames in quarantine that cannot be told to belong to any session."""


class Tenant(msgspec.Struct, array_like=True):
    """A tenant's counters and the newest events."""

    id: str
    name: bytes
    seq: int = 0
    size: int = 0
    """Bytes of its log entries, segments and state, as stored."""
    sessions: int = 0
    directory: bytes = bytes(32)
    first_page: int = 0
    next_page: int = 0
    events: list[Event] = []
    dictionary: int = 0
    """Number of the one in use; 0: none."""
    dictionaries: list[int] = []
    """Those that new frames may be written with."""
    tainted: list[int] = []
    """Those that saw text which was forgotten since; they go when no frame needs them any more."""
    next_dictionary: int = 1


class Bucket(msgspec.Struct, array_like=True):
    """A 256th of a directory."""

    names: dict[bytes, str]


class Session(msgspec.Struct, array_like=True):
    """A session: turns from `first` to before `next`; those before `packed` lie in segments, the others in the log."""

    id: str
    tenant: str
    tenant_name: bytes
    name: bytes
    created: float
    used: float
    first: int = 0
    next: int = 0
    packed: int = 0
    revision: int = 0
    """Changes whenever frames are replaced or removed; appends leave it."""
    log: list[int] = []
    size: int = 0
    states: dict[str, int] = {}
    """The NAME in the keys of its states, and their bytes as stored."""
    profile: bool = False
    dictionaries: list[int] = []
    """Those that its frames were written with."""
    missing: list[tuple[int, int]] = []
    """Ranges of turns that lie in quarantine."""
    quarantined: list[str] = []
    aging: dict[str, tuple[int, float]] = {}
    """Of the states that hold text of turns: NAME, number of the oldest of these turns, and when they were last put."""


class Entry(msgspec.Struct, array_like=True):
    """One segment: turns from `start` to before `stop`."""

    start: int
    stop: int
    plain: int
    stored: int
    newest: float
    """Latest timestamp in it."""
    dictionary: int = 0
    draft: bool = False
    """Compressed quickly, because more was to follow."""


class Page(msgspec.Struct, array_like=True):
    """The segments of 1,024 turns, in order."""

    entries: list[Entry]


class Trained(msgspec.Struct, array_like=True):
    """A trained dictionary and the sessions whose text it saw."""

    data: bytes
    saw: list[str]


class State(msgspec.Struct, array_like=True):
    """Bytes that a wing keeps with a session."""

    name: bytes
    data: bytes
    at: float
    turn: int | None = None
    """It holds text of turns from this number on, and goes when that one goes."""


class Profile(msgspec.Struct, array_like=True):
    """JSON of a session's metadata, and its summary."""

    metadata: bytes = b"{}"
    summary: bytes | None = None


R = TypeVar("R", bound=msgspec.Struct)
_pack = msgspec.msgpack.Encoder().encode


@cache
def _decoder(kind: type[R]) -> msgspec.msgpack.Decoder[R]:
    return msgspec.msgpack.Decoder(kind)


def tenant_bytes(tenant: str | None) -> bytes:
    """A tenant's name as it stands in records; None is a tenant of its own."""
    return b"" if tenant is None else b"=" + to_bytes(tenant)


def tenant_text(name: bytes) -> str | None:
    """The tenant that `tenant_bytes` was given."""
    return to_text(name[1:]) if name else None


def state_name(name: str) -> str:
    """A state's NAME in its key; names are free text, so it is a hash."""
    return hashlib.blake2b(to_bytes(name), digest_size=8).hexdigest()


class Shelf:
    """Typed, checked access to a cold tier.

    Args:
        cold: the tier; frames are bound to their keys.
    """

    def __init__(self, cold: ColdTier) -> None:
        self.cold = cold

    def load(self, key: str, kind: type[R]) -> R | None:
        """The record under `key`, or None.

        Raises:
            FrameDamaged: it is there and damaged.
        """
        frame = self.cold.get(key)
        if frame is None:
            return None
        try:
            record: R = _decoder(kind).decode(codecs.decode(frame, context=key.encode()))
        except FrameDamaged as error:
            raise FrameDamaged(None, key, error.codec, error.why) from error
        except msgspec.MsgspecError as error:
            raise FrameDamaged(None, key, "none", "it is whole, but of another form") from error
        return record

    def need(self, key: str, kind: type[R]) -> R:
        """The record under `key`, which must be there. Raises FrameDamaged if not."""
        record = self.load(key, kind)
        if record is None:
            raise FrameDamaged(None, key, "", "it is missing")
        return record

    def save(self, key: str, record: msgspec.Struct) -> int:
        """Put a record; how many bytes it takes."""
        plain = _pack(record)
        frame = codecs.seal(plain, plain, "none", context=key.encode())
        self.cold.put(key, frame)
        return len(frame)


def bucket_of(name: bytes) -> int:
    """Which of a directory's 256 buckets a name belongs into."""
    return hashlib.blake2b(name, digest_size=1).digest()[0]


def lookup(shelf: Shelf, owner: str, directory: bytes, name: bytes) -> str | None:
    """What a directory says about a name.

    The owner's bitmap says which buckets there are. So a name is missing only if a checked record says so: a row that
    was lost to damage is noticed, and never taken for a session that does not exist.
    """
    number = bucket_of(name)
    if not directory[number >> 3] >> (number & 7) & 1:
        return None
    return shelf.need(f"d/{owner}/{number:02x}", Bucket).names.get(name)


def enter(shelf: Shelf, owner: str, directory: bytes, name: bytes, inside: str | None) -> bytes:
    """Set (or with None remove) a name; the owner's new bitmap."""
    number = bucket_of(name)
    key = f"d/{owner}/{number:02x}"
    bits = bytearray(directory)
    there = bits[number >> 3] >> (number & 7) & 1
    bucket = shelf.need(key, Bucket) if there else Bucket({})
    if inside is None:
        bucket.names.pop(name, None)
    else:
        bucket.names[name] = inside
    if bucket.names:
        shelf.save(key, bucket)
        bits[number >> 3] |= 1 << (number & 7)
    elif there:
        shelf.cold.delete(key)
        bits[number >> 3] &= ~(1 << (number & 7))
    return bytes(bits)


def listing(shelf: Shelf, owner: str, directory: bytes) -> Iterator[tuple[bytes, str]]:
    """All names of a directory, in no particular order."""
    for number in range(256):
        if directory[number >> 3] >> (number & 7) & 1:
            yield from shelf.need(f"d/{owner}/{number:02x}", Bucket).names.items()
