"""Which items a search means: filters over values, and patterns over namespaces, as LangGraph's stores have them."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, Op, PutOp, SearchOp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from langgraph.store.base import MatchCondition

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def check_labels(op: Op) -> None:
    """Check the labels of an operation's namespaces, which LangGraph does only for those who do not call `batch`.

    Raises:
        InvalidNamespaceError: a label is empty, no text, or holds a period or a NUL.
    """
    paths: Sequence[Sequence[str]] = ()
    if isinstance(op, (GetOp, PutOp)):
        paths = [op.namespace]
    elif isinstance(op, SearchOp):
        paths = [op.namespace_prefix]
    elif isinstance(op, ListNamespacesOp):
        paths = [condition.path for condition in op.match_conditions or ()]
    for label in (label for path in paths for label in path):
        if not isinstance(label, str):
            raise InvalidNamespaceError(f"the labels of a namespace are texts, not {type(label).__name__}")
        if not label or "." in label or "\x00" in label:
            raise InvalidNamespaceError(f"{label!r} is no label: it is empty, or holds a period or a NUL character")


def fits(value: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Whether an item's value has everything that a filter asks for.

    Raises:
        ValueError: the filter uses an operator that there is not.
    """
    return all(_equals(value.get(key), asked) for key, asked in (wanted or {}).items())


def _equals(value: Any, asked: Any) -> bool:  # noqa: ANN401 - any JSON
    if isinstance(asked, dict):
        if any(key.startswith("$") for key in asked):
            return all(_holds(value, name, limit) for name, limit in asked.items())
        return isinstance(value, dict) and all(_equals(value.get(key), item) for key, item in asked.items())
    if isinstance(asked, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(asked)
        return same and all(map(_equals, value, asked))
    return bool(value == asked)


def _holds(value: Any, name: str, limit: Any) -> bool:  # noqa: ANN401 - any JSON
    """One operator. Numbers are compared as numbers, other texts as texts; what cannot be compared does not pass."""
    if name == "$eq":
        return bool(value == limit)
    if name == "$ne":
        return bool(value != limit)
    compare = _ORDER.get(name)
    if compare is None:
        raise ValueError(f"a filter holds the operator {name!r}; there are $eq, $ne, {', '.join(_ORDER)}")
    try:
        return compare(float(value), float(limit))
    except (TypeError, ValueError):
        return isinstance(value, str) and isinstance(limit, str) and compare(value, limit)


def matches(condition: MatchCondition, namespace: tuple[str, ...]) -> bool:
    """Whether a namespace begins or ends as a condition says; "*" stands for any label."""
    path = condition.path
    if len(namespace) < len(path):
        return False
    if condition.match_type == "prefix":
        part = namespace[: len(path)]
    elif condition.match_type == "suffix":
        part = namespace[len(namespace) - len(path) :]
    else:
        raise ValueError(f"a namespace is matched by its prefix or its suffix, not by its {condition.match_type!r}")
    return all(asked in ("*", label) for label, asked in zip(part, path, strict=True))
