"""LiteLLM hands on dicts in one place and objects of its own in the next: one way to read and change both."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Mapping


def get(holder: Any, name: str) -> Any:  # noqa: ANN401 - whatever it holds
    """A key of a dict, an attribute of an object; None if it is not there."""
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)


def put(holder: Any, name: str, value: object) -> None:  # noqa: ANN401 - dict or object
    """Set a key of a dict, or an attribute of an object."""
    if isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)


def word(holder: Any, name: str) -> str:  # noqa: ANN401 - dict or object
    """A key that names a kind of thing, be it a string or an enum's member; "" if it is not there."""
    value = get(holder, name)
    value = getattr(value, "value", value)
    return value if isinstance(value, str) else ""


def items(holder: Any, name: str) -> list[Any]:  # noqa: ANN401 - dict or object
    """A key that holds a list; an empty one if it is not there."""
    value = get(holder, name)
    return value if isinstance(value, list) else []


def twin(value: Any) -> Any:  # noqa: ANN401 - dict or object
    """A copy that can be changed without anybody else's seeing it."""
    return value.model_copy(deep=True) if isinstance(value, BaseModel) else copy.deepcopy(value)


def as_usage(usage: Any) -> Mapping[str, Any] | None:  # noqa: ANN401 - dict or object
    """What a provider counted, as a mapping."""
    if isinstance(usage, BaseModel):
        usage = usage.model_dump(exclude_none=True)
    return usage if isinstance(usage, dict) and usage else None
