"""The hot tier: the newest turns of the sessions in use, in RAM."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from krunch_plugins.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from krunch_plugins.turns import EvictReason, Message

_TURN_OVERHEAD = 700
"""Bytes that a turn takes in RAM beside its text: the objects around it (measured with tracemalloc)."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Turns that are about to leave: still held, and told to nobody else.

    Attributes:
        key: the session's key.
        turns: the turns, in order.
        reason: why they leave.
        whole: nothing of the session stays.
    """

    key: str
    turns: list[Turn]
    reason: EvictReason
    whole: bool


class HotTier(Protocol):
    """A bounded cache of the newest turns by session. Thread-safe. It may lose anything at any time."""

    def append(self, key: str, turns: Sequence[Turn]) -> None:
        """Hold turns that follow (or replace) what is held. What it holds of a session is always a gapless run.

        Turns older than what is held are ignored. Afterwards the tier may be over its limits,
        until what `leaving` and `trim` hand out was dropped.
        """

    def recent(self, key: str, count: int) -> list[Turn]:
        """The newest turns held, at most `count`, in order. What the caller does to them does not reach the tier."""

    def leaving(self, now: float) -> list[Leaving]:
        """What must leave to keep the limits. Each turn is handed out once and stays readable until `drop`."""

    def trim(self, key: str) -> Leaving | None:
        """The oldest turns of one session, as many as it holds too many; None if it does not."""

    def take(self, key: str, reason: EvictReason) -> Leaving | None:
        """All of a session, as something that must leave; None if nothing is held."""

    def drop(self, leaving: Leaving) -> None:
        """Let go of what `leaving` or `take` handed out."""

    def keys(self) -> list[str]:
        """Keys of all sessions held, the least recently used first."""

    def size(self) -> int:
        """Bytes held."""


@dataclass(slots=True)
class _Held:
    turns: list[Turn] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    flat: bool = True
    """No message holds anything mutable, so that copies are cheap."""
    size: int = 0
    used: float = 0.0
    told: int = 0
    """Number up to which turns have been handed out as leaving."""


class RamTier:
    """The hot tier in this process.

    Args:
        max_bytes: of RAM over all sessions; the least recently used session leaves first.
        max_turns: turns held of one session.
        ttl: seconds after which a session that nobody used leaves.
        clock: seconds since any moment.
    """

    def __init__(self, max_bytes: int, max_turns: int, ttl: float, clock: Callable[[], float]) -> None:
        self._max_bytes, self._max_turns, self._ttl, self._clock = max_bytes, max_turns, ttl, clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, _Held] = OrderedDict()
        self._size = 0

    def append(self, key: str, turns: Sequence[Turn]) -> None:
        """Hold turns that follow (or replace) what is held."""
        if not turns:
            return
        sizes = [_size(turn) for turn in turns]
        flat = all(_is_flat(turn) for turn in turns)
        with self._lock:
            held = self._sessions.get(key)
            if held is None:
                held = self._sessions[key] = _Held()
            held.used = self._clock()
            self._sessions.move_to_end(key)
            following = held.turns[-1].number + 1 if held.turns else turns[0].number
            skip = following - turns[0].number
            more = bool(held.turns) and turns[0].number < held.turns[0].number and turns[-1].number >= following - 1
            if skip < 0 or more:
                # A gap (another thread's turns are on their way, or another process wrote), or more than we held.
                self._size -= held.size
                held.turns, held.sizes, held.size, held.flat, held.told, skip = [], [], 0, True, 0, 0
            if skip >= len(turns):
                return
            held.turns += turns[skip:]
            held.sizes += sizes[skip:]
            held.flat = held.flat and flat
            added = sum(sizes[skip:])
            held.size += added
            self._size += added

    def replace(self, key: str, first: int, messages: Sequence[Message], now: float) -> None:
        """Hold these messages, numbered from `first`, instead of what is held of a session; nobody is told of that.

        What is the same as before stays, with its time; of the others a copy is held. A conversation that grows costs
        what is new of it.
        """
        with self._lock:
            before = self._sessions.pop(key, None) or _Held()
            held = self._sessions[key] = _Held(used=self._clock())
            offset = first - before.turns[0].number if before.turns else 0
            for place, message in enumerate(messages, offset):
                turn = before.turns[place] if 0 <= place < len(before.turns) else None
                # Numbers and truth values may be equal and not the same.
                if turn is None or turn.message != message or not all(type(said) is str for said in message.values()):
                    turn = Turn(first + place - offset, _deep(message), now)
                    held.flat = held.flat and _is_flat(turn)
                    held.sizes.append(_size(turn))
                else:
                    held.sizes.append(before.sizes[place])
                held.turns.append(turn)
            held.size = sum(held.sizes)
            self._size += held.size - before.size

    def recent(self, key: str, count: int) -> list[Turn]:
        """The newest turns held, at most `count`, in order; copies."""
        with self._lock:
            held = self._sessions.get(key)
            if held is None:
                return []
            held.used = self._clock()
            self._sessions.move_to_end(key)
            turns, flat = held.turns[-count:] if count > 0 else [], held.flat
        return [_copy_flat(turn) for turn in turns] if flat else [_copy(turn) for turn in turns]

    def leaving(self, now: float) -> list[Leaving]:
        """What must leave to keep the limits."""
        found = []
        with self._lock:
            size = self._size
            for key, held in self._sessions.items():  # least recently used first
                if now - held.used >= self._ttl:
                    reason: EvictReason = "ttl"
                elif size > self._max_bytes:
                    reason = "size"
                else:
                    break
                size -= held.size
                found += self._hand_out(key, held, len(held.turns), reason)
        return found

    def trim(self, key: str) -> Leaving | None:
        """The oldest turns of one session, as many as it holds too many."""
        with self._lock:
            held = self._sessions.get(key)
            if held is None or len(held.turns) <= self._max_turns:
                return None
            found = self._hand_out(key, held, len(held.turns) - self._max_turns, "size")
            return found[0] if found else None

    def take(self, key: str, reason: EvictReason) -> Leaving | None:
        """All of a session, as something that must leave."""
        with self._lock:
            held = self._sessions.get(key)
            found = self._hand_out(key, held, len(held.turns), reason) if held else []
            return found[0] if found else None

    def drop(self, leaving: Leaving) -> None:
        """Let go of what was handed out."""
        stop = leaving.turns[-1].number + 1
        with self._lock:
            held = self._sessions.get(leaving.key)
            if held is None:
                return
            count = sum(turn.number < stop for turn in held.turns)
            freed = sum(held.sizes[:count])
            del held.turns[:count], held.sizes[:count]
            held.size -= freed
            self._size -= freed
            if not held.turns:
                del self._sessions[leaving.key]

    def keys(self) -> list[str]:
        """Keys of all sessions held, the least recently used first."""
        with self._lock:
            return list(self._sessions)

    def size(self) -> int:
        """Bytes held, estimated."""
        with self._lock:
            return self._size

    @staticmethod
    def _hand_out(key: str, held: _Held, count: int, reason: EvictReason) -> list[Leaving]:
        turns = [turn for turn in held.turns[:count] if turn.number >= held.told]
        if not turns:
            return []
        held.told = turns[-1].number + 1
        copy = _copy_flat if held.flat else _copy
        return [Leaving(key, [copy(turn) for turn in turns], reason, count == len(held.turns))]


def _size(turn: Turn) -> int:
    return _TURN_OVERHEAD + _weigh(turn.message) + _weigh(turn.metadata) + 32 * len(turn.embedding or ())


def _weigh(value: object) -> int:
    if value.__class__ is str:
        return sys.getsizeof(value)
    if isinstance(value, dict):
        return 64 + sum(_weigh(item) for item in value.values())
    if isinstance(value, list):
        return 64 + sum(map(_weigh, value))
    return 16


def _is_flat(turn: Turn) -> bool:
    if turn.metadata or turn.embedding is not None:
        return False
    return all(value.__class__ is str or not isinstance(value, (dict, list)) for value in turn.message.values())


# A frozen dataclass sets its fields through object.__setattr__, at 1.3 µs a turn; its slots can be set at half of that,
# and twenty turns are copied on the hot path.
_new = Turn.__new__
_slots: Any = Turn
_number, _message, _timestamp = _slots.number.__set__, _slots.message.__set__, _slots.timestamp.__set__
_tokens, _metadata, _embedding = _slots.tokens.__set__, _slots.metadata.__set__, _slots.embedding.__set__


def _copy_flat(turn: Turn) -> Turn:
    copied = _new(Turn)
    _number(copied, turn.number)
    _message(copied, turn.message.copy())
    _timestamp(copied, turn.timestamp)
    _tokens(copied, turn.tokens)
    _metadata(copied, {})
    _embedding(copied, None)
    return copied


def _copy(turn: Turn) -> Turn:
    embedding = None if turn.embedding is None else list(turn.embedding)
    return Turn(turn.number, _deep(turn.message), turn.timestamp, turn.tokens, _deep(turn.metadata), embedding)


def _deep(value: object) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {key: _deep(item) if isinstance(item, (dict, list)) else item for key, item in value.items()}
    if isinstance(value, list):
        return [_deep(item) if isinstance(item, (dict, list)) else item for item in value]
    return value
