"""A mapping that is kept as a log: every change is a turn of one session, and reading it folds them together."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from krunch_langchain.item_vectors import pack
from krunch_langchain.json_values import from_json_value, looks_tagged, to_json_value
from krunch_plugins import Turn
from krunch_plugins.errors import RecordsLost

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from krunch_langchain.item_vectors import Packed
    from krunch_plugins import ConversationStore

    Mark = tuple[int, int]

ROLE = "item"
"""Role of the turns' messages; no model ever sees them."""
_ATTEMPTS = 20
_SLACK = 64
"""Turns that a log may hold beside twice as many as there are items, before it is written anew."""
_EPOCHS = count()
_REMEDY = (
    "What they removed would be back. Restore a backup, or call accept_loss(): with keep=False, what they may have "
    "removed or replaced goes; with keep=True, it stays as it was"
)


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
        order: higher for those that were put for the first time later.
    """

    value: Any
    number: int
    created: float
    updated: float
    ttl: float | None = None
    expires: float | None = None
    text: str | None = None
    vectors: Mapping[str, Packed] = field(default_factory=dict)
    order: int = 0

    def alive(self, now: float) -> bool:
        """Whether it has not expired at a time."""
        return self.expires is None or self.expires > now

    def fresh(self) -> Any:  # noqa: ANN401 - whatever was put
        """The value, a copy of the caller's own."""
        return from_json_value(self.value)

    def fields(self, names: Iterable[str]) -> dict[str, Any]:
        """Some fields of a value that is a dict, those that it has; less work than `fresh`."""
        if looks_tagged(self.value):
            whole = self.fresh()
            return {name: whole[name] for name in names if name in whole}
        return {name: from_json_value(self.value[name]) for name in names if name in self.value}


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
        self._first = self._next = 0
        self._key: str | None = None
        self._order = count()
        self._begin()

    def items(
        self, passes: Callable[[Entry], bool] | None = None, most: int | None = None, without: Collection[str] = ()
    ) -> dict[str, Entry]:
        """The items that have not expired, as they are now, by all processes.

        Args:
            passes: only those that it says True of.
            most: only the first so many of these.
            without: but not these.
        """
        with self._lock:
            self._catch_up()
            now = self._store.now()
            alive = ((key, entry) for key, entry in self._items.items() if entry.alive(now) and key not in without)
            return dict(islice(alive if passes is None else (pair for pair in alive if passes(pair[1])), most))

    def some(self, keys: Iterable[str]) -> dict[str, Entry]:
        """Those of these items that are there and have not expired."""
        with self._lock:
            self._catch_up()
            now = self._store.now()
            return {key: entry for key in keys if (entry := self._items.get(key)) is not None and entry.alive(now)}

    def get(self, key: str) -> Entry | None:
        """One item, if it is there and has not expired."""
        return self.some([key]).get(key)

    def count(self) -> int:
        """How many items there are, about: with those that have expired."""
        with self._lock:
            self._catch_up()
            return len(self._items)

    def news(self, mark: Mark | None) -> tuple[Mark, dict[str, Entry | None], bool]:
        """What was put or removed since a mark that was given before.

        Returns:
            The mark to ask with next time; the keys and what they hold, None if nothing, whether it has expired or not;
            and whether these are all there are, because it is not known what has changed.
        """
        with self._lock:
            self._catch_up()
            now = self._epoch, len(self._changed)
            if mark is None or mark[0] != self._epoch:
                return now, dict(self._items), True
            return now, {key: self._items.get(key) for key in self._changed[mark[1] :]}, False

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
            gone = [key for key, entry in self._items.items() if not entry.alive(now)]
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

    def accept_loss(self, *, keep: bool) -> int:
        """Go on with what is left after records were lost; how many items are doubtful.

        Doubtful is what no record after the loss speaks of: it may have been removed, or replaced, by one that is lost.

        Args:
            keep: keep what is doubtful, as it was; else remove it.
        """
        with self._lock:
            self._read()
            doubtful = [key for key, entry in self._items.items() if entry.number < self._certain]
            if self._lost:
                self._rewrite(() if keep else doubtful)
            return len(doubtful)

    def _begin(self) -> None:
        """Start from nothing; whoever has a mark has to compare."""
        self._items: dict[str, Entry] = {}
        self._changed: list[str] = []
        self._epoch = next(_EPOCHS)
        self._lost = self._certain = 0

    def _catch_up(self) -> None:
        """Fold in what is new.

        Raises:
            RecordsLost: records are missing. One that removed a key may be among them, and the key would be back.
        """
        self._read()
        if self._lost:
            raise RecordsLost(self.session, self._lost, _REMEDY)

    def _read(self) -> None:
        """Fold in what is new, around what is lost."""
        info = self._store.info(self.session, self._tenant)
        if info is None or info.key != self._key or info.first > (self._certain - 1 if self._lost else self._next):
            # Begun anew, or given up to a point that we have not reached: from there on the log holds everything.
            self._begin()
            self._next = info.first if info else 0
            self._key = info.key if info else None
        if info is None:
            return
        self._first = info.first
        if info.stop <= self._next:
            return
        turns = self._store.turns(self.session, self._next, info.stop, tenant=self._tenant)
        if len(turns) < info.stop - self._next:
            again = self._store.info(self.session, self._tenant)
            if again is None or again.key != self._key or again.first > self._next:
                self._read()  # another process has written it anew meanwhile
                return
        for turn in turns:
            self._fold(turn, turn.number - self._next)
            self._next = turn.number + 1
        self._miss(info.stop - self._next)
        self._next = info.stop

    def _miss(self, lost: int) -> None:
        """Note that records are missing where the next one was to be."""
        if lost:
            self._lost += lost
            self._certain = self._next + lost

    def _fold(self, turn: Turn, lost: int) -> None:
        """Take in one record, before which some are lost."""
        self._miss(lost)
        facts = turn.metadata
        if facts.get("anew"):
            self._begin()
        key = facts.get("key")
        if not isinstance(key, str):
            return
        entry = self._items.get(key)
        if "value" not in facts and "expires" in facts:
            if entry is not None:
                entry.expires = facts["expires"]
            return
        self._changed.append(key)
        if "value" not in facts:
            self._items.pop(key, None)
            return
        ttl = facts.get("ttl")
        at = turn.timestamp
        if entry is not None and not entry.alive(at):
            del self._items[key]  # what expired and comes again is new, and stands at the end
            entry = None
        self._items[key] = Entry(
            value=facts["value"],
            number=turn.number,
            created=facts.get("created", at if entry is None else entry.created),
            updated=at,
            ttl=ttl,
            expires=facts.get("expires", None if ttl is None else at + ttl),
            text=turn.message.get("content"),
            vectors=facts.get("vectors") or {},
            order=next(self._order) if entry is None else entry.order,
        )

    def _tidy(self) -> None:
        if self._next - self._first > 2 * len(self._items) + _SLACK or not self._items:
            self._rewrite()

    def _rewrite(self, without: Collection[str] = ()) -> None:
        """Write the items that are left at the end of the log, and give up what stands before."""
        for _ in range(_ATTEMPTS):
            self._read()
            start, now = self._next, self._store.now()
            items = {key: entry for key, entry in self._items.items() if entry.alive(now) and key not in without}
            turns = [_kept(key, entry, first=index == 0) for index, (key, entry) in enumerate(items.items())]
            if turns and self._store.append_if(self.session, turns, expect=start, tenant=self._tenant) is None:
                continue  # another process was quicker
            self._store.trim(self.session, start, tenant=self._tenant)
            if not turns:
                self._begin()
            self._read()
            return


def _changing(change: Change, now: float) -> Turn:
    """The turn that makes a change."""
    if change.value is None:
        return Turn(0, {"role": ROLE}, now, None, {"key": change.key})
    facts: dict[str, Any] = {"key": change.key, "value": to_json_value(change.value)}
    if change.ttl is not None:
        facts["ttl"] = change.ttl
    if change.vectors:
        facts["vectors"] = {name: pack(vector) for name, vector in change.vectors.items()}
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
