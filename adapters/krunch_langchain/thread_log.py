"""The checkpoints of one thread: a log in the store, and what it adds up to."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import WRITES_IDX_MAP

from krunch_langchain.checkpoint_records import Added, Put, Record, Values, Window, Writes
from krunch_plugins.errors import RecordsLost, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from krunch_plugins import ConversationStore

log = logging.getLogger("krunch")

Place = tuple[str, str]
"""A checkpoint's namespace and id."""

_ATTEMPTS = 50
_REMEDY = (
    "The checkpoints after them cannot be rebuilt. Restore a backup, or let the thread begin anew: delete_thread()"
)
_PACKED_EVERY, _PACKED_BELOW = 32, 64_000
"""A log of fewer bytes is packed whenever it has so many new records. Larger ones wait for the store to do it."""


@dataclass(slots=True)
class Saved:
    """One checkpoint; numbers are those of `Values`."""

    parent: str | None
    skeleton: int
    metadata: int
    values: dict[str, int]


@dataclass(slots=True)
class State:
    """What a log adds up to."""

    window: Window = field(default_factory=Window)
    values: Values = field(default_factory=Values)
    checkpoints: dict[Place, Saved] = field(default_factory=dict)
    writes: dict[Place, dict[tuple[str, int], tuple[str, str, int]]] = field(default_factory=dict)
    """By place, task and index: path, channel, value."""
    newest: dict[tuple[str, str], int] = field(default_factory=dict)
    """By namespace and channel: the value that was last put."""

    def apply(self, record: Record) -> None:
        """Take in one record; its new values have their numbers already, or get them here."""
        what = record.what
        if isinstance(what, Put):
            before = self.checkpoints.get((what.ns, what.parent)) if what.parent is not None else None
            values = dict(before.values) if before else {}
            for channel in what.gone:
                values.pop(channel, None)
            values.update(what.values)
            self.checkpoints[what.ns, what.id] = Saved(what.parent, what.skeleton, what.metadata, values)
            self.newest.update(((what.ns, channel), number) for channel, number in what.values.items())
        elif isinstance(what, Writes):
            held = self.writes.setdefault((what.ns, what.id), {})
            for index, channel, number in what.writes:
                held[what.task, index] = what.path, channel, number

    def ordered_writes(self, place: Place) -> list[tuple[str, str, int]]:
        """Task, channel and value of what was written after a checkpoint, in the order in which it counts."""
        held = self.writes.get(place, {})
        keys = sorted(held, key=lambda key: (held[key][0], *key))  # the path of the task, its id, the index
        return [(key[0], held[key][1], held[key][2]) for key in keys]


class ThreadLog:
    """One thread. Thread-safe; any number of processes may write the same one.

    Args:
        store: where the log lies.
        session: the thread's id.
        tenant: under which tenant of the store.
    """

    def __init__(self, store: ConversationStore, session: str, tenant: str) -> None:
        self._store, self._session, self._tenant = store, session, tenant
        self.lock = threading.RLock()
        self._state = State()
        self._next = 0
        self._key: str | None = None
        self._packed = self._size = 0

    @property
    def bytes(self) -> int:
        """What it takes in RAM, estimated."""
        return self._state.values.bytes

    def state(self) -> State:
        """What the log adds up to now, by all processes; to be read with `lock` held."""
        info = self._store.info(self._session, self._tenant)
        if info is None or info.key != self._key or info.first > self._next:
            self._state, self._next = State(), info.first if info else 0
            self._key = info.key if info else None
        self._packed, self._size = (info.packed, info.bytes) if info else (0, 0)
        if info is not None and info.stop > self._next:
            turns = self._store.turns(self._session, self._next, info.stop, tenant=self._tenant)
            begins = max((index for index, turn in enumerate(turns) if "anew" in turn.message), default=None)
            first = self._next if begins is None else turns[begins].number
            turns = turns[begins or 0 :]  # what stands before is given up
            lost = info.stop - first - len(turns)
            again = self._store.info(self._session, self._tenant) if lost else None
            if again is not None and again.first <= first:
                # Values are numbered in the order of the records: what follows a lost one would be read wrongly.
                raise RecordsLost(self._session, lost, _REMEDY)
            for turn in turns:
                self._fold(turn.message)
            self._next = info.stop
        return self._state

    def put(  # noqa: PLR0913, PLR0917 - a checkpoint has so many parts
        self,
        place: Place,
        parent: str | None,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        changed: Iterable[str],
        serde: SerializerProtocol,
    ) -> None:
        """Write a checkpoint down.

        Args:
            place: where it belongs.
            parent: id of the one before it.
            checkpoint: it.
            metadata: about it.
            changed: channels that have a new version; others are as in the parent, if that has them.
            serde: makes bytes of values.
        """
        fresh = set(changed)
        given = checkpoint["channel_values"]
        rest = {key: value for key, value in checkpoint.items() if key != "channel_values"}

        def record(state: State) -> Record:
            before = state.checkpoints.get((place[0], parent)) if parent is not None else None
            known = before.values if before else {}
            added: list[Added] = []
            values = {}
            for channel, value in given.items():
                if channel in fresh or channel not in known:
                    base = known.get(channel, state.newest.get((place[0], channel), -1))
                    number = state.values.take(value, serde, base, added)
                    if known.get(channel) != number:
                        values[channel] = number
            skeleton = state.values.take(rest, serde, -1, added)
            about = state.values.take(metadata, serde, -1, added)
            gone = [channel for channel in known if channel not in given]
            return Record(Put(*place, parent, skeleton, about, values, gone), added)

        self._append(record)

    def put_writes(
        self, place: Place, writes: Sequence[tuple[str, Any]], task: str, path: str, serde: SerializerProtocol
    ) -> None:
        """Write down what a task wrote; what it wrote before at the same index stays, but for errors and the like."""

        def record(state: State) -> Record | None:
            held = state.writes.get(place, {})
            added: list[Added] = []
            rows = []
            for position, (channel, value) in enumerate(writes):
                index = WRITES_IDX_MAP.get(channel, position)
                if index >= 0 and (task, index) in held:
                    continue
                base = state.newest.get((place[0], channel), -1)
                rows.append((index, channel, state.values.take(value, serde, base, added)))
            return Record(Writes(*place, task, path, rows), added) if rows else None

        self._append(record)

    def keep(self, choose: Callable[[State], Iterable[Place]]) -> None:
        """Give up all checkpoints but some, and their writes; the thread itself, if none is left.

        Args:
            choose: says which stay. Asked again when another process has written meanwhile, which is not to be lost.
        """
        with self.lock:
            for _ in range(_ATTEMPTS):
                state = self.state()
                wanted = set(choose(state))
                kept = [place for place in state.checkpoints if place in wanted]
                if len(kept) == len(state.checkpoints) and not set(state.writes) - set(kept):
                    return
                if not kept:
                    self.forget()
                    return
                start = self._next
                if self._store.append_if(self._session, _anew(state, kept), expect=start, tenant=self._tenant):
                    self._store.trim(self._session, start, tenant=self._tenant)
                    return
            raise StoreError(f"other processes kept writing to this thread; gave up after {_ATTEMPTS} attempts")

    def copy_to(self, target: ThreadLog) -> None:
        """Add everything here to another thread."""
        with self.lock:
            state = self.state()
            messages = _anew(state, list(state.checkpoints))
        if len(messages) == 1 or target.begin(messages):
            return
        window, source = Window(), Values()
        for message in messages:
            record = window.unpack(message)
            for added in record.added:
                source.add(added)
            if record.what is not None:
                target.add_copy(record.what, source)

    def begin(self, messages: Sequence[dict[str, Any]]) -> bool:
        """Begin with a log that was made elsewhere; False if there is one already."""
        return self._store.append_if(self._session, messages, expect=0, tenant=self._tenant) is not None

    def add_copy(self, what: Put | Writes, source: Values) -> None:
        """Take in what another thread holds."""

        def record(state: State) -> Record:
            added: list[Added] = []

            def number(old: int, base: int = -1) -> int:
                return state.values.copy_from(source, old, base, added)

            if isinstance(what, Writes):
                rows = [(index, channel, number(old)) for index, channel, old in what.writes]
                return Record(Writes(what.ns, what.id, what.task, what.path, rows), added)
            values = {
                channel: number(old, state.newest.get((what.ns, channel), -1)) for channel, old in what.values.items()
            }
            new = Put(what.ns, what.id, what.parent, number(what.skeleton), number(what.metadata), values, what.gone)
            return Record(new, added)

        self._append(record)

    def forget(self) -> None:
        """Remove the thread and every trace of it."""
        with self.lock:
            self._state, self._next, self._key = State(), 0, None
            self._store.forget(self._session, tenant=self._tenant)

    def _append(self, make: Callable[[State], Record | None]) -> None:
        """Write a record that is made of the state as it is; made again, if another process was quicker."""
        with self.lock:
            for _ in range(_ATTEMPTS):
                state = self.state()
                count, written = len(state.values), False
                try:
                    record = make(state)
                    if record is None:
                        return
                    message = state.window.pack(record)
                    done = self._store.append_if(self._session, [message], expect=self._next, tenant=self._tenant)
                    written = done is not None
                finally:
                    if not written:
                        state.values.cut(count)
                if done is None:
                    continue
                state.window.passed(record)
                state.apply(record)
                self._next = done.stop
                if self._key is None:
                    info = self._store.info(self._session, self._tenant)
                    self._key = info.key if info else None
                self._pack_if_small()
                return
            raise StoreError(f"other processes kept writing to this thread; gave up after {_ATTEMPTS} attempts")

    def _pack_if_small(self) -> None:
        if self._size > _PACKED_BELOW or self._next - self._packed < _PACKED_EVERY:
            return
        try:
            self._store.evict(self._session, tenant=self._tenant)
        except StoreError as error:  # what was to be written is written; check() finds what is wrong
            log.warning("the checkpoints of a thread could not be packed: %s", type(error).__name__)

    def _fold(self, message: dict[str, Any]) -> None:
        record = self._state.window.unpack(message)
        if record.what is None:
            self._state = State(window=self._state.window)
        for added in record.added:
            self._state.values.add(added)
        self._state.apply(record)


def _anew(state: State, places: Sequence[Place]) -> list[dict[str, Any]]:
    """A log that holds these checkpoints and their writes, and nothing else."""
    fresh = State()
    messages = [fresh.window.pack(Record(None))]
    for place in places:
        for record in (_put_again(state, fresh, place), *_writes_again(state, fresh, place)):
            messages.append(fresh.window.pack(record))
            fresh.window.passed(record)
            fresh.apply(record)
    return messages


def _put_again(state: State, fresh: State, place: Place) -> Record:
    saved = state.checkpoints[place]
    added: list[Added] = []
    before = fresh.checkpoints.get((place[0], saved.parent)) if saved.parent is not None else None
    known = before.values if before else {}
    values = {}
    for channel, old in saved.values.items():
        base = known.get(channel, fresh.newest.get((place[0], channel), -1))
        number = fresh.values.copy_from(state.values, old, base, added)
        if known.get(channel) != number:
            values[channel] = number
    skeleton = fresh.values.copy_from(state.values, saved.skeleton, -1, added)
    about = fresh.values.copy_from(state.values, saved.metadata, -1, added)
    gone = [channel for channel in known if channel not in saved.values]
    return Record(Put(*place, saved.parent, skeleton, about, values, gone), added)


def _writes_again(state: State, fresh: State, place: Place) -> list[Record]:
    """One record for each task: its new values must get their numbers in the order of the records."""
    tasks: dict[tuple[str, str], list[tuple[int, str, int]]] = {}
    for (task, index), (path, channel, old) in state.writes.get(place, {}).items():
        tasks.setdefault((task, path), []).append((index, channel, old))
    records = []
    for (task, path), writes in tasks.items():
        added: list[Added] = []
        rows = [
            (index, channel, fresh.values.copy_from(state.values, old, -1, added)) for index, channel, old in writes
        ]
        records.append(Record(Writes(*place, task, path, rows), added))
    return records
