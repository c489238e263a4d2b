"""`KrunchChatMessageHistory`: LangChain's chat history on the history store."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, message_chunk_to_message
from langchain_core.runnables import history as langchain_history

from krunch_langchain.history_turns import (
    MARK,
    Claims,
    claim,
    given_before,
    in_order,
    look_back,
    match,
    message_of,
    shown,
)
from krunch_langchain.messages import openai_form, turn_metadata
from krunch_langchain.shared import shared_store
from krunch_plugins import Turn
from krunch_plugins.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, FrameType

    from krunch_plugins import ConversationStore

_ATTEMPTS = 50
_READS = 32


class KrunchChatMessageHistory(BaseChatMessageHistory):
    """The messages of one conversation: all of them, as they were, on disk when a call returns.

    Works in `RunnableWithMessageHistory`, and by itself. Cheap to make: one for each call is fine, and so is one that
    is kept. Thread-safe; any number of processes may write one session.

    - Messages come back equal: tool calls, artifacts, ids, usage, response metadata, content blocks. Chunks of a stream
      are stored as the message that they are a part of.
    - Turns that other parts of Krunch recorded in the session are part of it. What a model wrapper recorded of the very
      exchange that LangChain then hands over is not stored again.
    - Storing costs as much as what is new.

    Args:
        session_id: the conversation's id, any text.
        store: where to keep it; default `shared_store()`.
        tenant: who owns it; what belongs to one tenant is invisible to every other.
    """

    def __init__(self, session_id: str, *, store: ConversationStore | None = None, tenant: str | None = None) -> None:
        super().__init__()
        if not isinstance(session_id, str):
            raise TypeError(f"session_id is text, not {type(session_id).__name__}")
        self.session_id, self.tenant = session_id, tenant
        self.store = store or shared_store()
        self._lock = threading.Lock()
        self._given: WeakValueDictionary[int, BaseMessage] = WeakValueDictionary()
        self._reads: deque[tuple[int, Sequence[int]]] = deque(maxlen=_READS)

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]  # LangChain declares what every history computes
        """All messages, in order; a new list each time.

        Raises:
            StoreError: the store could not be read.
        """
        if _asked_at_the_end(sys._getframe(1)):  # noqa: SLF001 - the only way to know
            _asked.set(self)
            return []
        return self._read()

    async def aget_messages(self) -> list[BaseMessage]:
        """`messages`, read in a worker thread."""
        if _asked_at_the_end(sys._getframe(1)):  # noqa: SLF001 - as above
            _asked.set(self)
            return []
        return await asyncio.to_thread(self._read)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Store messages at the end, all or none, with no others in between.

        Raises:
            NotStorable: something in them (an artifact, say) cannot be stored; nothing was.
            StoreError: they could not be stored.
        """
        of_chain = _asked_at_the_end(sys._getframe(1))  # noqa: SLF001 - as above
        self._add(messages, of_chain=of_chain, with_history=self._was_asked() and of_chain)

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """`add_messages`, in a worker thread."""
        of_chain = _asked_at_the_end(sys._getframe(1))  # noqa: SLF001 - as above
        with_history = self._was_asked() and of_chain
        await asyncio.to_thread(self._add, messages, of_chain=of_chain, with_history=with_history)

    def clear(self) -> None:
        """Remove the whole session and every trace of it on disk."""
        self.store.forget(self.session_id, tenant=self.tenant)
        with self._lock:
            self._reads.clear()

    async def aclear(self) -> None:
        """`clear`, in a worker thread."""
        await asyncio.to_thread(self.clear)

    def _read(self) -> list[BaseMessage]:
        info = self.store.info(self.session_id, self.tenant)
        if info is None:
            first = stop = 0
        else:
            first, stop = info.first, info.stop
        turns = self.store.turns(self.session_id, first, stop, tenant=self.tenant)
        claims = Claims.read(self.store, self.session_id, self.tenant, range(first, stop))
        given = shown(turns, claims)
        messages = [message for _, message in given]
        with self._lock:
            self._reads.append((stop, [number for number, _ in given]))
            self._given.update((id(message), message) for message in messages)
        return messages

    def _was_asked(self) -> bool:
        """Whether what is added begins with what came from here: LangChain has just asked how much to cut off."""
        asked = _asked.get()
        _asked.set(None)
        return asked is self

    def _add(self, messages: Sequence[BaseMessage], *, of_chain: bool, with_history: bool) -> None:
        if with_history:
            messages = messages[self._given_of(messages) :]
        batch = [message_chunk_to_message(message) for message in messages]
        stored = [(openai_form(message), turn_metadata(message)) for message in batch]
        if not batch:
            return
        for _ in range(_ATTEMPTS):
            if self._store(batch, stored, of_chain=of_chain):
                return
        raise StoreError(f"other processes kept claiming turns of this session; gave up after {_ATTEMPTS} attempts")

    def _given_of(self, messages: Sequence[BaseMessage]) -> int:
        """With how many messages a list begins that came from here."""
        count = 0
        while count < len(messages) and self._given.get(id(messages[count])) is messages[count]:
            count += 1
        with self._lock:
            reads = [numbers for _, numbers in self._reads]
        if count or not messages or not any(reads):
            return count
        # Around a chat model, LangChain hands over copies.
        start, stop = (
            min(min(numbers) for numbers in reads if numbers),
            max(max(numbers) for numbers in reads if numbers),
        )
        turns = self.store.turns(self.session_id, start, stop + 1, tenant=self.tenant)
        claims = Claims.read(self.store, self.session_id, self.tenant, range(start, stop + 1))
        return given_before(messages, reads, {turn.number: message_of(turn, claims) for turn in turns})

    def _store(
        self, batch: Sequence[BaseMessage], stored: Sequence[tuple[dict[str, Any], dict[str, Any]]], *, of_chain: bool
    ) -> bool:
        """Claim what is recorded and store the rest; False if somebody else claimed some of it meanwhile."""
        info = self.store.info(self.session_id, self.tenant)
        first, stop = (info.first, info.stop) if info else (0, 0)
        turns, claims = self._newest(first, stop, len(batch))
        noted, found = Claims(), {}
        if any(MARK not in turn.metadata for turn in turns):
            reads = self._read_at(batch, stop)
            found = match(batch, turns, claims, reads, of_chain=of_chain)
            noted = claim(batch, found, turns, claims, min(reads))
            if not noted.write(self.store, self.session_id, self.tenant):
                return False
        at = round(self.store.now(), 6)
        new = []
        for position, before in in_order(len(batch), found):
            form, metadata = stored[position]
            new.append(Turn(0, form, at, None, {**metadata, MARK: {} if before is None else {"before": before}}))
        try:
            self.store.append(self.session_id, new, tenant=self.tenant)
        except BaseException:  # an interrupt too: what is claimed but not stored would be lost
            noted.erase(self.store, self.session_id, self.tenant)
            raise
        return True

    def _newest(self, first: int, stop: int, count: int) -> tuple[list[Turn], Claims]:
        """The newest turns, back to one that is stored by a history or claimed: nothing new stands before that."""
        for size in look_back(count):
            start = max(first, stop - size)
            turns = self.store.turns(self.session_id, start, stop, tenant=self.tenant)
            claims = Claims()
            if any(MARK not in turn.metadata for turn in turns):
                claims = Claims.read(self.store, self.session_id, self.tenant, range(start, stop))
            if start == first or any(MARK in turn.metadata or turn.number in claims.flags for turn in turns[:1]):
                break
        return turns, claims

    def _read_at(self, batch: Sequence[BaseMessage], stop: int) -> list[int]:
        """The session's next numbers when it was read here."""
        with self._lock:
            reads = [read for read, _ in self._reads]
        # Nothing was read here: a question and its answer may be what was recorded last, but nothing before that.
        asked = {message.type for message in batch} >= {"human", "ai"}
        return reads or [stop - len(batch) if asked else stop]


def _codes() -> frozenset[CodeType]:
    kind = getattr(langchain_history, "RunnableWithMessageHistory", None)
    methods = (getattr(kind, name, None) for name in ("_exit_history", "_aexit_history"))
    return frozenset(method.__code__ for method in methods if method is not None)


_END = _codes()
_asked: ContextVar[KrunchChatMessageHistory | None] = ContextVar("krunch_history_asked_at_the_end", default=None)
"""The history that was just asked how much there is to cut off; what comes next in the same context is the adding."""


def _asked_at_the_end(caller: FrameType) -> bool:
    """Whether it is RunnableWithMessageHistory that asks, at the end of a call.

    What it has then is the whole list that the model was given, history and all, and it wants to cut off as many
    messages as the history has *by then*. Where calls of one session overlap, or a wrapper recorded the exchange, that
    is more than it had at the beginning, and the user's message would be cut off with the rest. So it is told to
    cut off nothing, and those that came from here are left out when it adds them. Tried before: a view that stays as
    it was at the beginning. Where a program keeps one history for a session, its calls share that.
    """
    return caller.f_code in _END
