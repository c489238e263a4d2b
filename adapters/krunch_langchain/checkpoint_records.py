"""How checkpoints are written down: values once, lists as what was added to an earlier list, records as deltas.

A thread's log is a sequence of records; reading it from the front rebuilds everything. Each record is compressed with
what stood before it as the dictionary, so what is repeated from step to step takes a few bytes.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import zstandard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langgraph.checkpoint.serde.base import SerializerProtocol

ROLE = "checkpoint"
"""Role of the turns' messages; they hold no text, so no search sees them."""

_LEVEL = 9
_WINDOW = 8192
"""Bytes of earlier records that a record is compressed against."""
_MOST = 1 << 30
"""Bytes that a record may have when it is read."""
_LIST = "list"
"""Kind of a value that is a list: its items are values of their own."""

_write = msgspec.msgpack.Encoder().encode


class Added(msgspec.Struct, array_like=True):
    """A new value: bytes as the serializer made them, or a list.

    Attributes:
        kind: the serializer's name for the bytes, or `_LIST`.
        data: the bytes; of a list, nothing.
        base: of a list: the number of the list that it begins like, or -1.
        keep: of a list: how many items of that list it begins with.
        items: of a list: numbers of the items that follow.
    """

    kind: str
    data: bytes = b""
    base: int = -1
    keep: int = 0
    items: list[int] = []


class Put(msgspec.Struct, array_like=True, tag="p"):
    """A checkpoint.

    Attributes:
        ns: its namespace.
        id: its id.
        parent: the id of the one before it, or None.
        skeleton: number of the value that is the checkpoint without its channels' values.
        metadata: number of the value that is its metadata.
        values: by channel the numbers of the values that are not its parent's.
        gone: channels that its parent has a value of and it has not.
    """

    ns: str
    id: str
    parent: str | None
    skeleton: int
    metadata: int
    values: dict[str, int]
    gone: list[str] = []


class Writes(msgspec.Struct, array_like=True, tag="w"):
    """What one task wrote to channels after a checkpoint: index, channel and number of the value of each."""

    ns: str
    id: str
    task: str
    path: str
    writes: list[tuple[int, str, int]]


class Record(msgspec.Struct, array_like=True):
    """One entry of the log.

    Attributes:
        what: what happened; None: the log begins anew here, and holds everything that is left.
        added: new values; their numbers follow those of the values there are.
    """

    what: Put | Writes | None
    added: list[Added] = []


_read = msgspec.msgpack.Decoder(Record).decode


class Window:
    """Compresses records, each with those before it as the dictionary."""

    def __init__(self) -> None:
        self._seen = b""

    def pack(self, record: Record) -> dict[str, Any]:
        """The message that holds a record; `passed` must be told when it was written."""
        begins = record.what is None
        compressor = zstandard.ZstdCompressor(_LEVEL, dict_data=_raw(b"" if begins else self._seen))
        data = base64.b85encode(compressor.compress(_write(record))).decode("ascii")
        return {"role": ROLE, "data": data, "anew": True} if begins else {"role": ROLE, "data": data}

    def passed(self, record: Record) -> None:
        """Go on to the next record."""
        self._seen = (b"" if record.what is None else self._seen + _write(record))[-_WINDOW:]

    def unpack(self, message: dict[str, Any]) -> Record:
        """The record in a message, which has passed then.

        Raises:
            ValueError: it holds none.
        """
        try:
            data = base64.b85decode(message["data"])
            seen = b"" if message.get("anew") else self._seen
            decompressor = zstandard.ZstdDecompressor(dict_data=_raw(seen))
            record = _read(decompressor.decompress(data, max_output_size=_MOST))
        except (zstandard.ZstdError, msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
            raise ValueError("a turn holds no checkpoint that this version can read") from error
        self.passed(record)
        return record


def _raw(seen: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(seen, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


class Values:
    """The values of one thread by number; equal ones have one number."""

    def __init__(self) -> None:
        self._values: list[Added] = []
        self._numbers: dict[bytes, int] = {}
        self._items: dict[int, tuple[int, ...]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, added: Added) -> int:
        """Take a value that was read from the log, or is going to be written to it."""
        number = len(self._values)
        self._values.append(added)
        self.bytes += len(added.data) + 8 * len(added.items) + 64
        if added.kind == _LIST:
            before = self._items.get(added.base, ())[: added.keep]
            self._items[number] = (*before, *added.items)
        self._numbers.setdefault(self._digest(number), number)
        return number

    def cut(self, count: int) -> None:
        """Let go of all values from this number on: they were not written."""
        for number in range(count, len(self._values)):
            digest = self._digest(number)
            if self._numbers.get(digest) == number:
                del self._numbers[digest]
        for number in range(count, len(self._values)):
            self._items.pop(number, None)
        del self._values[count:]

    def load(self, number: int, serde: SerializerProtocol) -> Any:  # noqa: ANN401 - any state
        """A value, as a fresh object."""
        value = self._values[number]
        if value.kind == _LIST:
            return [self.load(item, serde) for item in self._items[number]]
        return serde.loads_typed((value.kind, value.data))

    def take(self, value: Any, serde: SerializerProtocol, base: int, added: list[Added]) -> int:  # noqa: ANN401
        """The number of a value; new ones are put into `added`, and taken in here at once.

        Args:
            value: any state.
            serde: makes bytes of it.
            base: number of a list that it may begin like, or -1.
            added: where new values go.
        """
        if type(value) is list:
            items = tuple(self._data(*serde.dumps_typed(item), added) for item in value)
            return self._list(items, base, added)
        return self._data(*serde.dumps_typed(value), added)

    def copy_from(self, other: Values, number: int, base: int, added: list[Added]) -> int:
        """The number here of a value that has another one there."""
        value = other._values[number]
        if value.kind != _LIST:
            return self._data(value.kind, value.data, added)
        items = tuple(self.copy_from(other, item, -1, added) for item in other._items[number])
        return self._list(items, base, added)

    def _data(self, kind: str, data: bytes, added: list[Added]) -> int:
        number = self._numbers.get(_digest_of(kind, bytes(data)))
        if number is not None:
            return number
        added.append(Added(kind, bytes(data)))
        return self.add(added[-1])

    def _list(self, items: tuple[int, ...], base: int, added: list[Added]) -> int:
        number = self._numbers.get(_digest_of(_LIST, repr(items).encode()))
        if number is not None:
            return number
        before = self._items.get(base, ())
        keep = _common(before, items)
        added.append(Added(_LIST, b"", base if keep else -1, keep, list(items[keep:])))
        return self.add(added[-1])

    def _digest(self, number: int) -> bytes:
        value = self._values[number]
        return _digest_of(value.kind, repr(self._items[number]).encode() if value.kind == _LIST else value.data)


def _digest_of(kind: str, data: bytes) -> bytes:
    return hashlib.blake2b(kind.encode() + b"\x00" + data, digest_size=16).digest()


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many numbers both begin with."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
