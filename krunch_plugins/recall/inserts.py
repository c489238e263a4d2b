"""What was recalled into a session's requests, kept with the session, so that each worker sends it again at its place.

One record a session, changed by compare-and-swap: of two workers that recall for one request at the same time the first
one counts for both. It is forgotten with the session. What quotes turns that retention removed goes with them: insert
by insert where a `Window` is there when it happens, else the whole record.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from krunch_plugins.errors import StoreError
from krunch_plugins.recall.selection import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from krunch_plugins.turns import Message

STATE_NAME = "recall"
"""Under which name the record lies in the store."""

_VERSION = 2
_KEPT = 64
"""Inserts that are kept for other branches of a conversation, beside those that are in the request at hand."""
_ATTEMPTS = 20


class InsertStore(Protocol):
    """Where records lie."""

    def get_state(self, session: str, name: str, *, tenant: str | None = None) -> bytes | None:
        """What was last put under this name, or None."""

    def swap_state(  # noqa: PLR0913 - what, on which condition, and until when
        self,
        session: str,
        name: str,
        data: bytes,
        *,
        expect: bytes | None,
        tenant: str | None = None,
        turn: int | None = None,
    ) -> bool:
        """Keep `data` if `expect` is what lies there; whether it was. A session that is not there is not begun.

        Args:
            session: whose state.
            name: its name.
            data: the bytes.
            expect: what must lie there.
            tenant: who owns the session.
            turn: `data` holds text of the session's turns from this number on, and goes when that turn goes.
        """


@dataclass(frozen=True, slots=True)
class Insert:
    """One message of recalled turns.

    Attributes:
        key: digest of the messages up to the one that it stands before.
        content: the message's text.
        tokens: what the message takes.
        places: where the turns in it stand.
        others: what the store calls each other session in it, by id: one that was begun again is another one.
    """

    key: str
    content: str
    tokens: int
    places: tuple[Place, ...]
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def message(self) -> Message:
        """The message."""
        return {"role": "user", "content": self.content}


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a session.

    Attributes:
        stored: digest of the messages before the cut up to which the store was seen to have them all; "" for none.
        inserts: the inserts, the oldest first.
    """

    stored: str = ""
    inserts: tuple[Insert, ...] = ()

    def to_bytes(self) -> bytes:
        """As JSON."""
        inserts = [[one.key, one.content, one.tokens, one.places, dict(one.others)] for one in self.inserts]
        text = json.dumps([_VERSION, self.stored, inserts], ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogatepass")

    @classmethod
    def of(cls, data: bytes | None) -> Record:
        """The inverse of `to_bytes`; an empty one for anything else."""
        try:
            version, stored, inserts = json.loads((data or b"").decode("utf-8", "surrogatepass"))
            if version == _VERSION:
                return cls(str(stored), tuple(_insert(*one) for one in inserts))
        except (ValueError, TypeError, AttributeError):
            pass
        return cls()


def _insert(key: str, content: str, tokens: int, places: list[list[Any]], others: dict[str, Any]) -> Insert:
    known = {str(session): str(name) for session, name in others.items()}
    return Insert(str(key), str(content), int(tokens), tuple(Place(str(a), int(b)) for a, b in places), known)


class Inserts:
    """The records of all sessions. Thread-safe, and safe between processes.

    Args:
        store: where they lie.
    """

    def __init__(self, store: InsertStore) -> None:
        self._store = store

    def of(self, session: str, tenant: str | None) -> Record:
        """A session's record.

        Raises:
            StoreError: it could not be read.
        """
        return Record.of(self._store.get_state(session, STATE_NAME, tenant=tenant))

    def note_stored(self, key: str, session: str, tenant: str | None) -> Record:
        """Note that the store has everything before a cut; the record then.

        Raises:
            StoreError: it could not be noted.
        """
        return self._change(lambda record: replace(record, stored=key), session, tenant)

    def add(self, insert: Insert, alive: Collection[str], session: str, tenant: str | None) -> Record:
        """Record an insert, unless there is one for the same place; the record then.

        Args:
            insert: the new one.
            alive: keys of the inserts that are in the request at hand; they are kept in any case.
            session: whose.
            tenant: who owns it.

        Raises:
            StoreError: it could not be recorded.
        """

        def added(record: Record) -> Record:
            if any(one.key == insert.key for one in record.inserts):
                return record
            others = [one.key for one in record.inserts if one.key not in alive][-_KEPT:]
            kept = tuple(one for one in record.inserts if one.key in alive or one.key in others)
            return replace(record, inserts=(*kept, insert))

        return self._change(added, session, tenant)

    def drop(self, gone: Callable[[Insert], bool], session: str, tenant: str | None) -> int:
        """Remove the inserts that quote turns which are gone from a session's record; how many that were.

        Raises:
            StoreError: they could not be removed.
        """
        removed = 0

        def cleaned(record: Record) -> Record:
            nonlocal removed
            kept = tuple(one for one in record.inserts if not gone(one))
            removed = len(record.inserts) - len(kept)
            return replace(record, inserts=kept)

        self._change(cleaned, session, tenant)
        return removed

    def _change(self, change: Callable[[Record], Record], session: str, tenant: str | None) -> Record:
        for _ in range(_ATTEMPTS):
            before = self._store.get_state(session, STATE_NAME, tenant=tenant)
            old = Record.of(before)
            new = change(old)
            if new == old and (before is not None or new == Record()):
                return old
            own = [place.number for one in new.inserts for place in one.places if place.session == session]
            oldest = min(own, default=None)
            data = new.to_bytes()
            if self._store.swap_state(session, STATE_NAME, data, expect=before, tenant=tenant, turn=oldest):
                return new
        raise StoreError("what was recalled could not be recorded: the session is gone, or others kept changing it")
