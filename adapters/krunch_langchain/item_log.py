"""A mapping that is kept as a log: every change is a turn of one session, and reading it folds them together."""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from krunch_langchain.json_values import from_json_value, to_json_value
from krunch_plugins import Turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from krunch_plugins import ConversationStore

ROLE = "item"
"""Role of the turns' messages; no model ever sees them."""
_ATTEMPTS = 20
_SLACK = 64
"""Turns that a log may hold beside twice as many as there are items, before it is written anew."""


@dataclass(slots=True)
class Entry:
    """One item as it stands.

    Attributes:
        value: JSON-like, as `to_json_value` made it.
        number: the turn that holds it.
        created: when the key was first put, seconds since the epoch.
        updated: when it was last put.
        ttl: seconds that it lives after it was last put or read; None: for ever.
        expires: when that is over.
        text: what searches see of it, or None.
        vectors: packed vectors by field.
    """

    value: Any
    number: int
    created: float
    updated: float
    ttl: float | None = None
    expires: float | None = None
    text: str | None = None
    vectors: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def fresh(self) -> Any:  # noqa: ANN401 - whatever was put
        """The value, a copy of the caller's own."""
        return from_json_value(self.value)


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done to one key; a `value` of None removes it.

    Attributes:
        key: which.
        value: what it is to hold.
        ttl: seconds that it lives.
        text: what searches are to see of it.
        vectors: by field.
    """

    key: str
    value: Any = None
    ttl: float | None = None
    text: str | None = None
    vectors: Mapping[str, Sequence[float]] = field(default_factory=dict)


class ItemLog:
    """Items by key, in the order in which they were first put. Thread-safe; any number of processes may share one.

    What was removed or replaced stays in the log for a while: when the log has grown to more than twice what it holds,
    it is written anew, and the old part is given up.

    Args:
        store: where the log lies.
        session: its id.
        tenant: who owns it.
    """

    def __init__(self, store: ConversationStore, session: str, tenant: str) -> None:
        self._store, self.session, self._tenant = store, session, tenant
        self._lock = threading.RLock()
        self._items: dict[str, Entry] = {}
        self._first = self._next = 0
        self._key: str | None = None
        self._matrix: tuple[tuple[int, int], list[str], NDArray[np.float64]] | None = None

    def items(self) -> dict[str, Entry]:
        """All items that have not expired, as they are now, by all processes."""
        with self._lock:
            self._catch_up()
            now = self._store.now()
            return {key: entry for key, entry in self._items.items() if entry.expires is None or entry.expires > now}

    def get(self, key: str) -> Entry | None:
        """One item, if it is there and has not expired."""
        with self._lock:
            self._catch_up()
            entry = self._items.get(key)
            alive = entry is not None and (entry.expires is None or entry.expires > self._store.now())
            return entry if alive else None

    def apply(self, changes: Iterable[Change]) -> None:
        """Make changes, all or nothing; they are on disk when it returns. A key that is not there is removed already.

        Raises:
            NotStorable: a value has no form in JSON; nothing was changed.
            StoreError: as `ConversationStore.append`.
        """
        with self._lock:
            self._catch_up()
            now = round(self._store.now(), 6)
            wanted = [change for change in changes if change.value is not None or change.key in self._items]
            turns = [_changing(change, now) for change in wanted]
            if turns:
                self._store.append(self.session, turns, tenant=self._tenant)
                self._catch_up()
                self._tidy()

    def touch(self, keys: Iterable[str]) -> None:
        """Let items live on for their time to live, from now. A change of less than a hundredth is not written down."""
        with self._lock:
            now = self._store.now()
            turns = []
            for key in keys:
                entry = self._items.get(key)
                if entry is None or entry.ttl is None or entry.expires is None:
                    continue
                if now + entry.ttl - entry.expires > entry.ttl / 100:
                    turns.append(Turn(0, {"role": ROLE}, now, None, {"key": key, "expires": now + entry.ttl}))
            if turns:
                self._store.append(self.session, turns, tenant=self._tenant)
                self._catch_up()
                self._tidy()

    def sweep(self) -> int:
        """Remove what has expired; how many items that were."""
        with self._lock:
            self._catch_up()
            now = self._store.now()
            gone = [key for key, entry in self._items.items() if entry.expires is not None and entry.expires <= now]
            self.apply(Change(key) for key in gone)
            if gone:
                self._rewrite()
            return len(gone)

    def compact(self) -> int:
        """Give up what was replaced, removed or has expired; how many turns of the log that were."""
        with self._lock:
            self._catch_up()
            gone = self._next - self._first - len(self.items())
            if gone > 0:
                self._rewrite()
            return gone

    def vectors(self, dimension: int) -> tuple[list[str], NDArray[np.float64]]:
        """All vectors of this length, scaled to 1 (or zero), and the key that each belongs to; shape (n, dimension)."""
        with self._lock:
            self._catch_up()
            if self._matrix is None or self._matrix[0] != (self._next, dimension):
                pairs = [(key, packed) for key, entry in self._items.items() for packed in entry.vectors.values()]
                rows = [(key, row) for key, packed in pairs if len(row := _unpack(packed)) == dimension]
                matrix = np.stack([row for _, row in rows]) if rows else np.zeros((0, dimension))
                self._matrix = (self._next, dimension), [key for key, _ in rows], matrix
            return self._matrix[1], self._matrix[2]

    def _catch_up(self) -> None:
        """Fold in what is new."""
        info = self._store.info(self.session, self._tenant)
        if info is None or info.key != self._key or info.first > self._next:
            # Begun anew, or given up to a point that we have not reached: from there on the log holds everything.
            self._items, self._matrix = {}, None
            self._next = info.first if info else 0
            self._key = info.key if info else None
        if info is None:
            return
        self._first = info.first
        if info.stop > self._next:
            for turn in self._store.turns(self.session, self._next, info.stop, tenant=self._tenant):
                self._fold(turn)
            self._next = info.stop

    def _fold(self, turn: Turn) -> None:
        facts = turn.metadata
        if facts.get("anew"):
            self._items.clear()
        key = facts.get("key")
        if not isinstance(key, str):
            return
        entry = self._items.get(key)
        if "value" in facts:
            ttl = facts.get("ttl")
            at = turn.timestamp
            alive = entry is not None and (entry.expires is None or entry.expires > at)
            if entry is not None and not alive:
                del self._items[key]  # what expired and comes again is new, and stands at the end
            created = facts.get("created", entry.created if entry is not None and alive else at)
            expires = facts.get("expires", None if ttl is None else at + ttl)
            text = turn.message.get("content")
            vectors = facts.get("vectors") or {}
            self._items[key] = Entry(facts["value"], turn.number, created, at, ttl, expires, text, vectors)
        elif "expires" in facts:
            if entry is not None:
                entry.expires = facts["expires"]
        else:
            self._items.pop(key, None)

    def _tidy(self) -> None:
        if self._next - self._first > 2 * len(self._items) + _SLACK or not self._items:
            self._rewrite()

    def _rewrite(self) -> None:
        """Write the items that are left at the end of the log, and give up what stands before."""
        for _ in range(_ATTEMPTS):
            self._catch_up()
            start, items = self._next, self.items()
            turns = [_kept(key, entry, first=index == 0) for index, (key, entry) in enumerate(items.items())]
            if turns and self._store.append_if(self.session, turns, expect=start, tenant=self._tenant) is None:
                continue  # another process was quicker
            self._store.trim(self.session, start, tenant=self._tenant)
            self._catch_up()
            return


def _changing(change: Change, now: float) -> Turn:
    """The turn that makes a change."""
    if change.value is None:
        return Turn(0, {"role": ROLE}, now, None, {"key": change.key})
    facts: dict[str, Any] = {"key": change.key, "value": to_json_value(change.value)}
    if change.ttl is not None:
        facts["ttl"] = change.ttl
    if change.vectors:
        facts["vectors"] = {name: _pack(vector) for name, vector in change.vectors.items()}
    return Turn(0, _said(change.text), now, None, facts)


def _kept(key: str, entry: Entry, *, first: bool) -> Turn:
    """The turn that holds an item in a log written anew."""
    facts: dict[str, Any] = {"key": key, "value": entry.value, "created": entry.created}
    if entry.ttl is not None:
        facts.update(ttl=entry.ttl, expires=entry.expires)
    if entry.vectors:
        facts["vectors"] = entry.vectors
    if first:
        facts["anew"] = True
    return Turn(0, _said(entry.text), entry.updated, None, facts)


def _said(text: str | None) -> dict[str, Any]:
    return {"role": ROLE} if text is None else {"role": ROLE, "content": text}


def _pack(vector: Sequence[float]) -> list[str]:
    """Type and base64 of the smallest float type that holds every value exactly."""
    exact = np.asarray(vector, dtype="<f8")
    for kind in ("<f2", "<f4"):
        with np.errstate(over="ignore"):
            smaller = exact.astype(kind)
        if np.array_equal(smaller.astype("<f8"), exact, equal_nan=True):
            exact = smaller
            break
    return [exact.dtype.str, base64.b64encode(exact.tobytes()).decode("ascii")]


def _unpack(packed: Sequence[str]) -> NDArray[np.float64]:
    kind, data = packed
    vector = np.frombuffer(base64.b64decode(data), dtype=kind).astype("<f8")
    norm = np.linalg.norm(vector)
    return vector / norm if norm else vector
