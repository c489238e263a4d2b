"""Turns as bytes: one line of JSON about all of them, then one line of JSON for each message."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from krunch_plugins.errors import NotStorable
from krunch_plugins.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The standard library's json, because msgspec and orjson turn NaN into null and refuse lone surrogates.
_write = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_read = json.JSONDecoder().decode


def to_bytes(text: str) -> bytes:
    """UTF-8 that also takes lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def to_text(data: bytes) -> str:
    """The text that `to_bytes` took."""
    return data.decode("utf-8", "surrogatepass")


def to_json(value: Any, path: str = "value") -> bytes:  # noqa: ANN401 - any JSON
    """JSON that gives back an equal value, NaN, infinities and lone surrogates included.

    Raises:
        NotStorable: nested too deeply, or a number with too many digits.
    """
    try:
        return to_bytes(_write(value))
    except (RecursionError, ValueError) as error:
        raise NotStorable(path, f"{type(value).__name__} ({error})") from error


def from_json(data: bytes) -> Any:  # noqa: ANN401 - any JSON
    """What `to_json` was given."""
    return _read(to_text(data))


def plain_copy(value: Any, path: str) -> Any:  # noqa: ANN401 - any JSON
    """A copy that shares nothing mutable with `value`; tuples become lists, as in JSON.

    Raises:
        NotStorable: something in it has no form in JSON.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        copied = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise NotStorable(f"a key of {path}", type(key).__name__)
            copied[key] = item if item.__class__ is str else plain_copy(item, f"{path}.{key}")
        return copied
    if isinstance(value, (list, tuple)):
        return [plain_copy(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise NotStorable(path, type(value).__name__)


def make_turn(item: Turn | Mapping[str, Any], number: int, now: float, path: str) -> Turn:
    """A turn of our own, which shares nothing mutable with what the caller gave.

    Raises:
        NotStorable: it cannot be stored losslessly.
        TypeError: it is neither a message nor a turn.
    """
    try:
        if isinstance(item, Turn):
            return Turn(
                number,
                plain_copy(item.message, path),
                float(item.timestamp),
                item.tokens,
                plain_copy(item.metadata, f"{path}.metadata"),
                None if item.embedding is None else [float(x) for x in item.embedding],
            )
        if isinstance(item, Mapping):
            return Turn(number, plain_copy(item, path), round(now, 6))
    except RecursionError as error:
        raise NotStorable(path, "nested too deeply") from error
    raise TypeError(f"{path} is {type(item).__name__}; append takes message dicts or Turns")


_slots: Any = Turn
_set_number = _slots.number.__set__


def number_turns(turns: Sequence[Turn], start: int) -> None:
    """Give turns that `make_turn` made, and nobody has seen yet, the numbers they got when they were stored."""
    for number, turn in enumerate(turns, start):
        _set_number(turn, number)


def counted(turn: Turn, count: Callable[[dict[str, Any]], int]) -> Turn:
    """The turn with its tokens counted, if they were not."""
    return turn if turn.tokens is not None else replace(turn, tokens=count(turn.message))


def within(turns: Sequence[Turn], tokens: int) -> list[Turn]:
    """The newest turns that take at most so many tokens together, in order.

    Where tokens were not counted, four characters stand for one.
    """
    start = len(turns)
    while start and tokens >= 0:
        turn = turns[start - 1]
        tokens -= turn.tokens if turn.tokens is not None else -(-_characters(turn.message.get("content")) // 4)
        if tokens >= 0:
            start -= 1
    return list(turns[start:])


def _characters(content: object) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, list):
        return sum(_characters(part.get("text")) for part in content if isinstance(part, dict))
    return 0


@dataclass(slots=True)
class Columns:
    """Consecutive turns, attribute by attribute, as they are stored; messages are JSON."""

    at: list[float] = field(default_factory=list)
    tokens: list[int | None] = field(default_factory=list)
    metadata: list[dict[str, Any] | None] = field(default_factory=list)
    embeddings: list[list[str] | None] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, turns: Sequence[Turn], messages: Sequence[bytes]) -> Columns:
        """From turns and the JSON of their messages."""
        return cls(
            [turn.timestamp for turn in turns],
            [turn.tokens for turn in turns],
            [dict(turn.metadata) or None for turn in turns],
            [None if turn.embedding is None else _pack_vector(turn.embedding) for turn in turns],
            list(messages),
        )

    def extend(self, other: Columns) -> None:
        """Add the turns that follow."""
        for name in ("at", "tokens", "metadata", "embeddings", "messages"):
            getattr(self, name).extend(getattr(other, name))

    def part(self, start: int, stop: int) -> Columns:
        """Some of them."""
        names = ("at", "tokens", "metadata", "embeddings", "messages")
        return Columns(*(getattr(self, name)[start:stop] for name in names))


def encode(columns: Columns, session: str, tenant: str | None) -> bytes:
    """One block.

    The names are in it so that frames can be told apart even when every index over them is lost.

    Args:
        columns: at least one turn.
        session: whose turns they are.
        tenant: who owns the session.
    """
    head: dict[str, Any] = {"session": session, "tenant": tenant, "n": len(columns.messages)}
    head.update(_pack_times(columns.at))
    for name in ("tokens", "metadata", "embeddings"):
        values = getattr(columns, name)
        if any(value is not None for value in values):
            head[name] = values
    return b"\n".join((to_json(head, "metadata"), *columns.messages))


class Block:
    """An opened block; messages are parsed when they are asked for.

    Args:
        plain: what `encode` gave.
        start: number of its first turn.
    """

    __slots__ = ("_columns", "session", "start", "stop", "tenant")

    def __init__(self, plain: bytes, start: int) -> None:
        first, *lines = plain.split(b"\n")
        head: dict[str, Any] = from_json(first)
        count = head["n"]
        if len(lines) != count:
            raise ValueError("the block does not hold as many messages as it says")
        nothing = [None] * count
        self.session: str = head["session"]
        self.tenant: str | None = head["tenant"]
        self.start, self.stop = start, start + count
        self._columns = Columns(
            _unpack_times(head, count),
            head.get("tokens", nothing),
            head.get("metadata", nothing),
            head.get("embeddings", nothing),
            lines,
        )

    def turns(self, start: int, stop: int) -> list[Turn]:
        """The turns from number `start` to before `stop`, as far as they are in this block."""
        return [self._turn(number) for number in range(max(start, self.start), min(stop, self.stop))]

    def columns(self, start: int, stop: int) -> Columns:
        """The same, as they are stored."""
        return self._columns.part(max(start - self.start, 0), max(stop - self.start, 0))

    def timestamps(self) -> list[float]:
        """One for each turn."""
        return self._columns.at

    def _turn(self, number: int) -> Turn:
        index, columns = number - self.start, self._columns
        vector = columns.embeddings[index]
        return Turn(
            number,
            from_json(columns.messages[index]),
            columns.at[index],
            columns.tokens[index],
            columns.metadata[index] or {},
            None if vector is None else _unpack_vector(vector),
        )


def _pack_times(times: list[float]) -> dict[str, Any]:
    """Seconds as steps of whole microseconds where that is exact, as it is for our own clock: half the size."""
    first = times[0]
    if all(time == first for time in times):
        return {"at": first}
    try:
        steps = [round((later - time) * 1e6) for time, later in pairwise(times)]
    except (ValueError, OverflowError):  # NaN, infinite
        return {"at": times}
    packed = {"at": first, "steps": steps}
    return packed if _unpack_times(packed, len(times)) == times else {"at": times}


def _unpack_times(head: dict[str, Any], count: int) -> list[float]:
    at = head["at"]
    if isinstance(at, list):
        return [float(time) for time in at]
    if "steps" not in head:
        return [float(at)] * count
    micros = round(at * 1e6)
    return [at, *(total / 1e6 for total in list(accumulate(head["steps"], initial=micros))[1:])]


def _pack_vector(vector: Sequence[float]) -> list[str]:
    """Type and base64 of the smallest float type that holds every value exactly."""
    exact = np.asarray(vector, dtype="<f8")
    for kind in ("<f2", "<f4"):
        with np.errstate(over="ignore"):
            smaller = exact.astype(kind)
        if np.array_equal(smaller.astype("<f8"), exact, equal_nan=True):
            exact = smaller
            break
    return [exact.dtype.str, base64.b64encode(exact.tobytes()).decode("ascii")]


def _unpack_vector(packed: Sequence[str]) -> list[float]:
    kind, data = packed
    vector: list[float] = np.frombuffer(base64.b64decode(data), dtype=kind).astype("<f8").tolist()
    return vector
