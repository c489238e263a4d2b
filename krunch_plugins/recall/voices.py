"""What a voice of the search is: something that finds turns, over an index that follows the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from krunch_plugins.turns import SearchHit, Turn

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from krunch_plugins.turns import Message, SearchQuery

UNREAD: Message = {}
"""The message of a turn that still has to be read from the store, told by identity; see `found`."""


def found(session: str, number: int, score: float) -> SearchHit:
    """A hit of a built-in voice. Only the turns that survive the fusion are read from the store, at its end."""
    return SearchHit(Turn(number, UNREAD, 0.0), session, score)


class Voice(Protocol):
    """Finds old turns. Each voice is a plugin of its own, so that a hit says who found it.

    Thread-safe.
    """

    def search(self, query: SearchQuery) -> Sequence[SearchHit]:
        """The best hits first, made by `found`, at most `query.k`; exact on what all of the query's filters leave."""

    def version(self, tenant: str | None) -> Hashable:
        """Something that differs from before when the same query may have another answer. Cheap."""

    def flush(self, timeout: float | None = None) -> bool:
        """Have everything searchable and on disk; False if that did not work in time."""

    def forget(self, session: str, tenant: str | None) -> int:
        """Remove every trace of a session from the index, on disk too; how much was removed."""

    def close(self) -> None:
        """Let go of everything. Safe to call twice."""
