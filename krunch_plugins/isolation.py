"""One call of one plugin's hook: what a failing one changed is undone, what it left is checked, who failed is said."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from krunch_plugins.exchange import Exchange, Reply
from krunch_plugins.turns import SearchHit, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pluggy import HookImpl

    from krunch_plugins.turns import SearchQuery

log = logging.getLogger("krunch")


def copy_tree(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """A copy of nested dicts, lists and tuples; everything else is shared.

    Where something is nested deeper than Python can follow, only messages and lists of them are copied.
    """
    try:
        return _copied(value)
    except RecursionError:
        if isinstance(value, list):
            return [dict(item) if isinstance(item, dict) else item for item in value]
        return dict(value) if isinstance(value, dict) else value


def _copied(value: Any) -> Any:  # noqa: ANN401 - as above
    if isinstance(value, dict):
        return {key: _copied(item) if isinstance(item, _NESTED) else item for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) if isinstance(item, _NESTED) else item for item in value]
    if isinstance(value, tuple):
        return tuple(_copied(item) for item in value)
    return value


_NESTED = (dict, list, tuple)


def call(implementation: HookImpl, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what the hook returns
    """What a hook returns for the arguments that it takes. Raises what it raises, TypeError for a coroutine."""
    result = implementation.function(*(arguments[name] for name in implementation.argnames))
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("the hook returned a coroutine, which nobody awaits")
    return result


@lru_cache(maxsize=2)
def _kept(exchange: bool) -> tuple[str, ...]:  # noqa: FBT001 - which of the two
    """The attributes of an exchange, or else of a reply, that are put back after a failure."""
    return tuple(field.name for field in fields(Exchange if exchange else Reply) if field.name != "report")


def remember(thing: Exchange | Reply, in_place: Sequence[str]) -> Callable[[], None]:
    """A function that puts back what a hook changed; of the attributes `in_place` copies are kept."""
    before = {name: getattr(thing, name) for name in _kept(isinstance(thing, Exchange))}
    for name in in_place:
        before[name] = copy_tree(before[name])

    def undo() -> None:
        for name, value in before.items():
            setattr(thing, name, value)

    return undo


def are_dicts(messages: Iterable[object]) -> bool:
    """Whether all of them are dicts. There may be a thousand, and all have one class then."""
    return all(issubclass(kind, dict) for kind in set(map(type, messages)))


def check_request(exchange: Exchange) -> None:
    """Raises TypeError if a `pre_request` has left something that nobody could send."""
    if not isinstance(exchange.messages, list) or not are_dicts(exchange.messages):
        raise TypeError("exchange.messages is no list of dicts")


def check_reply(reply: Reply) -> None:
    """Raises TypeError if a `post_response` has left something that is no message."""
    if not isinstance(reply.message, dict):
        raise TypeError("reply.message is no dict")


def checked_hits(found: Any, query: SearchQuery) -> list[SearchHit]:  # noqa: ANN401 - whatever a plugin returned
    """What an `on_search` found, at most `query.k`. Raises TypeError for what is no list of whole hits."""
    hits = [] if found is None else list(found)
    if not all(isinstance(hit, SearchHit) and _is_whole(hit) for hit in hits):
        raise TypeError("on_search returned something that is no SearchHit, or one without a turn")
    return hits[: query.k]


def _is_whole(hit: SearchHit) -> bool:
    """Whether the parts of a hit that others work with are what they should be."""
    turn = hit.turn
    return (
        isinstance(hit.session, str)
        and isinstance(turn, Turn)
        and isinstance(turn.number, int)
        and isinstance(turn.timestamp, (int, float))
        and isinstance(turn.message, dict)
        and isinstance(turn.metadata, Mapping)
    )


def log_failure(plugin: str, hook: str, error: Exception, consequence: str) -> None:
    """Say who failed and, at debug level, where; the error's own text may hold message text, so it is not logged."""
    log.warning("plugin %r raised %s in %s; %s", plugin, type(error).__name__, hook, consequence)
    if log.isEnabledFor(logging.DEBUG):
        places = "".join(traceback.format_tb(error.__traceback__))
        log.debug("%s of plugin %r:\n%s", type(error).__name__, plugin, places)
