"""Stored turns, searches over them, and what the store and the wings that use it offer each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

Message = dict[str, Any]
"""One chat message in OpenAI's format. Keys that Krunch does not know pass through untouched."""

EventKind = Literal["append", "forget", "trim", "reset"]
"""What a `TurnEvent` tells: turns came; a session is gone; a session's oldest turns are gone; start from nothing."""

APART = "\x1f"
"""First character of tenants whose sessions are no conversations but logs of something else (checkpoints, say).

No retention removes their turns, and nobody is told when these leave RAM.
"""

EvictReason = Literal["size", "ttl", "forget", "close"]
"""Why turns leave the hot tier: no room, too old, the session is forgotten, the store is closed."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation as stored.

    Attributes:
        number: position in the session, from 0, without gaps. Order is by number, never by time.
        message: the message, whole, OpenAI format.
        timestamp: when it was stored, seconds since the epoch, UTC.
        tokens: tokens of its text, or None if they were not counted.
        metadata: what the one who stored it wants kept with it; JSON-like.
        embedding: its vector, or None.
    """

    number: int
    message: Message
    timestamp: float
    tokens: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    embedding: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """One search for old turns.

    Attributes:
        text: what to look for, in plain words; it is never parsed as a query language.
        session: only in this session; None: in all sessions of the tenant.
        tenant: whose turns; None is a tenant of its own.
        k: how many hits are wanted, at least 1.
        after: only turns stored at or after this time, seconds since the epoch.
        before: only turns stored before this time, seconds since the epoch.
        roles: only messages of these roles.
        metadata: only turns whose metadata holds all of these.
    """

    text: str
    session: str | None = None
    tenant: str | None = None
    k: int = 10
    after: float | None = None
    before: float | None = None
    roles: frozenset[str] | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One turn that was found.

    Attributes:
        turn: the turn itself.
        session: the session it belongs to.
        score: the finder's own score, higher is better; after fusion, the fused score.
        found_by: which plugin found it at which rank, from 1. Filled in by the fusion.
    """

    turn: Turn
    session: str
    score: float
    found_by: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """One thing that happened to a session, as those who follow the store see it.

    Attributes:
        kind: "append": turns `start` to before `stop` came. "trim": turns before `start` are gone. "forget": the
            session is gone. "reset": drop everything of this tenant; what follows tells it from the beginning.
        key: names the session for good. One that is forgotten and begun again under the same id has another key.
            "" for "reset".
        session: the session's id; None for "forget" and "reset", because nothing of it is kept.
        start: a turn's number.
        stop: a turn's number, or 0.
    """

    kind: EventKind
    key: str
    session: str | None
    start: int
    stop: int


class TurnLog(Protocol):
    """How to follow the store: be woken, then read what is new."""

    def subscribe(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        """Have `callback(tenant)` called after each change that this process commits.

        It is called before the call that made the change returns, in the same thread, with no lock held. What it
        raises is logged and counted.

        Returns:
            A function that ends the subscription.
        """

    def since(self, cursor: str | None, *, tenant: str | None = None, limit: int = 1000) -> tuple[list[TurnEvent], str]:
        """What happened to a tenant's sessions after `cursor`, by all processes, in the order of the commits.

        Args:
            cursor: what the last call returned, or None for everything there is.
            tenant: whose sessions.
            limit: about how many events to return at most; the first answer may be longer.

        Returns:
            The events, and the cursor to ask with next time. Nothing is new when that is the one that was given; there
            may be no events otherwise too, because turns that came and went again are none.
        """


class MemoStore(Protocol):
    """Where a wing keeps bytes with a session, shared by all workers; they are forgotten with the session.

    A store of conversations has these two methods, and `MemoryStore` is one in memory.
    """

    def get_state(self, session: str, name: str, *, tenant: str | None = None) -> bytes | None:
        """What was last put under this name, or None."""

    def put_state(self, session: str, name: str, data: bytes, *, tenant: str | None = None) -> None:
        """Keep `data` under this name."""


class TurnStore(TurnLog, MemoStore, Protocol):
    """What recall needs of the store: to follow it, to read turns, and to keep bytes with a session."""

    @property
    def directory(self) -> Path | None:
        """Where the store's data lies, and where indexes over it may lie; None if it is not on this disk."""

    def turns(self, session: str, start: int = 0, stop: int | None = None, *, tenant: str | None = None) -> list[Turn]:
        """Turns `start` to before `stop`, in order; what is not there is left out."""

    def recent(self, session: str, n: int = 20, *, tokens: int | None = None, tenant: str | None = None) -> list[Turn]:
        """The newest turns, in order."""

    def put_state_if(self, session: str, name: str, data: bytes, *, key: str, tenant: str | None = None) -> bool:
        """`put_state`, unless the session is not there or no longer the one of this key (`TurnEvent.key`).

        It does not count as use. Returns whether it was done: what is derived from a session in the background must not
        begin it again after it was forgotten.
        """

    def sessions(self, tenant: str | None = None) -> list[str]:
        """Ids of a tenant's sessions, the last used first."""

    def tenants(self) -> list[str | None]:
        """All tenants that ever had a session."""

    def on_forget(self, forgetter: Callable[[str, str | None], int]) -> Callable[[], None]:
        """Have `forgetter(session, tenant)` called when a session was forgotten; it returns how much it removed.

        Returns:
            A function that ends this.
        """


class Embedder(Protocol):
    """Turns texts into vectors. Near meanings should get near vectors (by cosine).

    Called in batches, from a background thread and from the thread of a search, possibly at the same time. It may also
    have `batch_size`, how many texts it likes in a call; `max_characters`, above which a text loses its middle before
    it is embedded; and `embed_query(text)`, which gives the vector of a query, shape (dimension,), where that is not
    made as a document's is.

    Both attributes may be plain ones.
    """

    @property
    def name(self) -> str:
        """Names the model for good; vectors of another name are never compared with these."""

    @property
    def dimension(self) -> int:
        """Length of each vector."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts: float32, shape (len(texts), dimension). What it raises is retried later."""


def characters(message: Message) -> int:
    """Characters of the text that there is to work through: content and tool-call arguments."""
    content, calls = message.get("content"), message.get("tool_calls")
    texts = [content]
    if isinstance(content, list):
        texts += [part.get("text") for part in content if isinstance(part, dict)]
    if isinstance(calls, list):
        functions = [call.get("function") for call in calls if isinstance(call, dict)]
        texts += [function.get("arguments") for function in functions if isinstance(function, dict)]
    return sum(len(text) for text in texts if isinstance(text, str))
