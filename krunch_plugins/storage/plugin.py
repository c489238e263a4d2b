"""The wing's door: records what passes through."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from krunch_plugins.errors import StoreClosed, StoreError
from krunch_plugins.hookspecs import hookimpl
from krunch_plugins.report import Problem
from krunch_plugins.storage.recorder import Digest, compare, digest
from krunch_plugins.turns import Turn

if TYPE_CHECKING:
    from krunch_plugins.exchange import Exchange, Reply
    from krunch_plugins.storage.recent import RecentTurns
    from krunch_plugins.storage.store import ConversationStore

log = logging.getLogger("krunch")

STORE_FAILED = "store_failed"
"""What the report says instead of an error's name: the exchange went on, but was not recorded."""

_SESSIONS = 4096
_HEAD, _TAIL = 64, 4096
"""Turns from a session's beginning (pinned messages) and end that requests are compared with after a restart."""
_ATTEMPTS = 20


@dataclass(slots=True)
class _Recorder:
    """What was recorded of one session, as digests."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    digests: list[Digest] = field(default_factory=list)
    view: list[Digest] = field(default_factory=list)
    """The client's last request and its reply."""
    next: int = 0
    key: str | None = None


class StoragePlugin:
    """Records the messages of each exchange and its reply, once each.

    - What is recorded is what the caller gave (`exchange.original`) and got, not what was sent.
    - Clients resend the whole conversation with each request; only what is new is recorded. What a client drops stays;
      what it edits is recorded beside what it was.
    - Exchanges without a session are not recorded.
    - Of several choices, number 0 is recorded. If the client goes on with another one, that arrives as a message of its
      next request and is recorded then.
    - A reply that was broken off is recorded, too, if it has any text or tool call; its turn's metadata says `partial`.
      If the client goes on with what it got, this is not recorded again.
    - Two adapters that see the same exchange record it once.
    - If recording fails, the exchange goes on; the report names the problem `store_failed`, the store counts it.

    Args:
        store: where to.
    """

    name = "storage"

    def __init__(self, store: ConversationStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._recorders: OrderedDict[tuple[str | None, str], _Recorder] = OrderedDict()
        self._leave = store.on_forget(self._forget)
        self._closed = False

    def close(self) -> None:
        """Record nothing any more, and let go of the store, which may live on. Safe to call twice."""
        self._closed = True
        self._leave()

    @hookimpl(trylast=True)
    def post_response(self, exchange: Exchange, reply: Reply) -> None:
        """Record the request's new messages and the reply."""
        if exchange.session is None or reply.choice != 0:
            return
        try:
            self._record(exchange, reply, exchange.session)
        except (StoreError, OSError, TypeError, ValueError) as error:
            self._store.note_failure()
            exchange.report.problems.append(Problem(self.name, "post_response", STORE_FAILED))
            log.warning("an exchange was not recorded (%s): %s", STORE_FAILED, type(error).__name__)

    def record_request(self, exchange: Exchange) -> None:
        """Record the request's new messages now, before there is a reply, as what is to leave it must lie in the store.

        Raises:
            StoreError: it could not be recorded.
            ValueError: the exchange has no session.
        """
        if exchange.session is None:
            raise ValueError("record_request() needs an exchange with a session; without one nothing is recorded")
        self._record(exchange, None, exchange.session)

    def _record(self, exchange: Exchange, reply: Reply | None, session: str) -> None:
        if self._closed:
            raise StoreClosed
        recorder = self._recorder(exchange.tenant, session)
        sent = [digest(message) for message in exchange.original]
        answer = digest(reply.message) if reply is not None and _says_something(reply) else None
        with recorder.lock:
            for _ in range(_ATTEMPTS):
                self._catch_up(recorder, session, exchange.tenant)
                if self._append_new(recorder, exchange, reply, sent, answer):
                    return
        raise StoreError(f"other processes kept appending to this session; gave up after {_ATTEMPTS} attempts")

    def _append_new(
        self, recorder: _Recorder, exchange: Exchange, reply: Reply | None, sent: list[Digest], answer: Digest | None
    ) -> bool:
        """Append what is not recorded, unless somebody else appended first."""
        assert exchange.session is not None
        new, answer_is_new = compare((recorder.view, recorder.digests), sent, answer)
        kept = exchange.turn_metadata or [None] * len(sent)
        turns = [Turn(0, exchange.original[index], self._store.now(), None, kept[index] or {}) for index in new]
        digests = [sent[index] for index in new]
        if reply is not None and answer is not None and answer_is_new:
            metadata = {"model": exchange.model, **({"partial": True} if reply.partial else {}), **reply.metadata}
            turns.append(Turn(0, reply.message, self._store.now(), None, metadata))
            digests.append(answer)
        if turns:
            numbers = self._store.append_if(exchange.session, turns, expect=recorder.next, tenant=exchange.tenant)
            if numbers is None:
                return False
            recorder.digests += digests
            recorder.next = numbers.stop
        recorder.view = sent if answer is None else [*sent, answer]
        return True

    def _catch_up(self, recorder: _Recorder, session: str, tenant: str | None) -> None:
        """Learn what was recorded before we started, and by other processes since."""
        info = self._store.info(session, tenant)
        if info is None or info.key != recorder.key:
            recorder.digests, recorder.view, recorder.next = [], [], 0
            recorder.key = info.key if info else None
        if info is None or info.stop == recorder.next:
            return
        if recorder.next == 0 and info.stop - info.first > _HEAD + _TAIL:
            turns = self._store.turns(session, info.first, info.first + _HEAD, tenant=tenant)
            turns += self._store.turns(session, info.stop - _TAIL, info.stop, tenant=tenant)
        else:
            turns = self._store.turns(session, recorder.next, info.stop, tenant=tenant)
        recorder.digests += [digest(turn.message) for turn in turns]
        recorder.next = info.stop

    def _forget(self, session: str, tenant: str | None) -> int:
        """Drop the digests of a session that is forgotten; whether there were any."""
        with self._lock:
            return int(self._recorders.pop((tenant, session), None) is not None)

    def _recorder(self, tenant: str | None, session: str) -> _Recorder:
        with self._lock:
            recorder = self._recorders.setdefault((tenant, session), _Recorder())
            self._recorders.move_to_end((tenant, session))
            if len(self._recorders) > _SESSIONS:
                self._recorders.popitem(last=False)
            return recorder


class RecentTurnsPlugin:
    """Holds the end of each conversation in RAM, where there is no store.

    Args:
        recent: what holds it.
    """

    name = "recent"  # not "storage": a StoragePlugin over a store of the user's own may stand beside it

    def __init__(self, recent: RecentTurns) -> None:
        self._recent = recent

    @hookimpl(trylast=True)
    def post_response(self, exchange: Exchange, reply: Reply) -> None:
        """Hold the request's last messages and the reply."""
        self._recent.hold(exchange, reply)


def _says_something(reply: Reply) -> bool:
    message = reply.message
    return any(message.get(key) for key in ("content", "tool_calls", "function_call", "refusal", "audio"))
