"""Tool definitions: never changed, but counted, and scanned for literals that look like symbols."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from krunch_plugins.compression import legend, memo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_plugins.tokens import Tokenizer


class ToolTexts(NamedTuple):
    """What the tool definitions of a request say: their tokens, and the literals in them that look like symbols."""

    tokens: int
    literals: frozenset[str]


_NONE = ToolTexts(0, frozenset())


class SeenTools:
    """Tool definitions that were looked at, the least recently used forgotten first. Thread-safe.

    Each session's by themselves: how long a request takes tells nobody which tools others have.

    Args:
        limit: how many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[memo.Owner, memo.Key], ToolTexts] = OrderedDict()

    def look(self, tools: Sequence[Mapping[str, Any]] | None, tokenizer: Tokenizer, owner: memo.Owner) -> ToolTexts:
        """What is said by the tool definitions of a request that is the owner's."""
        if not tools:
            return _NONE
        text = json.dumps(tools, ensure_ascii=False, default=str)
        key = owner, memo.root([tokenizer.name, text])
        with self._lock:
            seen = self._seen.get(key)
            if seen is not None:
                self._seen.move_to_end(key)
                return seen
        seen = ToolTexts(tokenizer.count(text), frozenset(legend.literal_names(text)))
        with self._lock:
            self._seen[key] = seen
            while len(self._seen) > self._limit:
                self._seen.popitem(last=False)
        return seen

    def forget(self, tenant: str | None, session: str | None) -> None:
        """Forget those of one session; without one all of a tenant."""
        with self._lock:
            for key in [key for key in self._seen if key[0][0] == tenant and session in (None, key[0][1])]:
                del self._seen[key]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._seen.clear()
