"""Values that Python has and JSON has not: tagged on the way into the store, read back without running anything."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from krunch_plugins.errors import NotStorable

if TYPE_CHECKING:
    from collections.abc import Callable

_TAG = "$"
"""First character of the one key of a tagged value, `{"$bytes": "aGk="}`. A dict that looks so is tagged itself."""


def _items(value: Any) -> list[Any]:  # noqa: ANN401 - a set of whatever it holds
    """A set's items in an order that does not depend on the hash seed."""
    return sorted(value, key=lambda item: (type(item).__name__, repr(item)))


def _moment(value: dt.datetime | dt.time) -> list[Any]:
    """ISO 8601, and which of two equal wall-clock times it is. A named time zone becomes its offset."""
    return [value.isoformat(), value.fold]


_WRITE: dict[type, tuple[str, Callable[[Any], Any]]] = {
    tuple: ("$tuple", list),
    set: ("$set", _items),
    frozenset: ("$frozenset", _items),
    bytes: ("$bytes", lambda value: base64.b64encode(value).decode("ascii")),
    dt.datetime: ("$datetime", _moment),
    dt.date: ("$date", dt.date.isoformat),
    dt.time: ("$time", _moment),
    dt.timedelta: ("$timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    uuid.UUID: ("$uuid", str),
    Decimal: ("$decimal", str),
}
"""By exact type: the tag, and what stands behind it."""

_READ: dict[str, Callable[[Any], Any]] = {
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$bytes": base64.b64decode,
    "$datetime": lambda value: dt.datetime.fromisoformat(value[0]).replace(fold=value[1]),
    "$date": dt.date.fromisoformat,
    "$time": lambda value: dt.time.fromisoformat(value[0]).replace(fold=value[1]),
    "$timedelta": lambda value: dt.timedelta(*value),
    "$uuid": uuid.UUID,
    "$decimal": Decimal,
    "$dict": dict,
}


def to_json_value(value: Any, path: str = "value") -> Any:  # noqa: ANN401 - whatever a message holds
    """The value in JSON's types. What is in them already is not copied.

    Args:
        value: nested dicts, lists and plain values; also tuples, sets, bytes, dates and times, UUIDs and decimals.
        path: where it stands, for the error.

    Raises:
        NotStorable: something in it has none of these types.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return _dict_to_json(value, path)
    if isinstance(value, list):
        items = [to_json_value(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return value if all(map(_is, items, value)) else items
    write = _WRITE.get(type(value))
    if write is None:
        raise NotStorable(path, type(value).__name__)
    tag, change = write
    return {tag: to_json_value(change(value), path)}


def from_json_value(value: Any) -> Any:  # noqa: ANN401 - whatever a message holds
    """The value that `to_json_value` was given.

    Raises:
        ValueError: it holds a tag that means nothing here, or that something stands behind that it cannot hold.
    """
    if isinstance(value, list):
        return [from_json_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if not looks_tagged(value):
        return {key: from_json_value(item) for key, item in value.items()}
    ((tag, held),) = value.items()
    if tag not in _READ:
        raise ValueError(f"{tag!r} is no tag of a stored value; a newer version of krunch-plugins may have written it")
    return _READ[tag](from_json_value(held))


def _dict_to_json(value: dict[Any, Any], path: str) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in value) or looks_tagged(value):
        pairs = [[to_json_value(key, f"a key of {path}"), to_json_value(item, path)] for key, item in value.items()]
        return {"$dict": [{"$tuple": pair} for pair in pairs]}
    items = {key: to_json_value(item, f"{path}.{key}") for key, item in value.items()}
    return value if all(map(_is, items.values(), value.values())) else items


def looks_tagged(value: dict[Any, Any]) -> bool:
    """Whether a dict has the form of a tagged value."""
    return len(value) == 1 and str(next(iter(value))).startswith(_TAG)


def _is(one: object, other: object) -> bool:
    return one is other
