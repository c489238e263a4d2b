"""ConversationStore: what both tiers look like from outside."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from krunch_plugins.errors import StoreClosed
from krunch_plugins.storage import blocks, events, transfer
from krunch_plugins.storage.blocks import to_text
from krunch_plugins.storage.check import check
from krunch_plugins.storage.hot import RamTier
from krunch_plugins.storage.opening import Opened, place
from krunch_plugins.storage.packing import pack
from krunch_plugins.storage.removal import Removal
from krunch_plugins.storage.reports import SessionInfo
from krunch_plugins.storage.tiers import PACK_TURNS, Tiers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from krunch_plugins.storage.codecs import CodecName
    from krunch_plugins.storage.cold import ColdTier, Durability
    from krunch_plugins.storage.hot import HotTier
    from krunch_plugins.storage.ledger import Ledger
    from krunch_plugins.storage.reports import CheckReport, StoreStats
    from krunch_plugins.storage.retention import Forgotten
    from krunch_plugins.storage.tiers import EvictListener
    from krunch_plugins.turns import Message, Turn, TurnEvent

_EXPORTED_AT_ONCE = 256


class ConversationStore:
    """The whole history of all conversations: the newest turns in RAM, everything on disk.

    An append is on disk before it returns; RAM is only a cache. Thread-safe, and any number of processes may have the
    same directory open. Sessions belong to a tenant (None is a tenant of its own), and what belongs to one tenant is
    invisible to every other. A context manager; `close` does the same.

    Args:
        directory: where the data lies; made, for its owner only, if it is missing. None: `default_directory()`.
        durability: what an acknowledged append survives: "process" the death of the process, "power" also a power cut.
        codec: how new frames are written; what is there stays readable, whatever it was written with.
        hot_bytes: bytes of RAM for turns over all sessions, estimated. The least recently used session leaves first.
        hot_turns: newest turns of one session held in RAM.
        hot_ttl: seconds after which a session that nobody used leaves RAM.
        retention_days: turns older than this are removed by `expire` and by the background thread; None: kept for ever.
        retention_turns: of each session at most so many turns are kept, the newest; None: all.
        tenant_quota_bytes: bytes on disk that one tenant's sessions may take; None: no limit.
        on_evict: called as `on_evict(session, turns, reason, tenant)` before turns leave RAM, with no lock held.
        count_tokens: counts a message's tokens when it is appended without a count; None: they are not counted.
        upkeep_seconds: how often the background thread looks for what is due; 0: there is none, and packing happens in
            the calls that make it due.
        hot: another hot tier; the `hot_*` limits are then its own business.
        cold: another cold tier; `directory` and `durability` are then its own business.
        clock: seconds since the epoch. It may jump: order is by number.

    Raises:
        StoreUnavailable: the directory cannot be used.
    """

    def __init__(  # noqa: PLR0913 - each is an option that somebody needs, and all have defaults
        self,
        directory: str | Path | None = None,
        *,
        durability: Durability = "process",
        codec: CodecName = "zstd",
        hot_bytes: int = 64_000_000,
        hot_turns: int = 20,
        hot_ttl: float = 1800.0,
        retention_days: float | None = None,
        retention_turns: int | None = None,
        tenant_quota_bytes: int | None = None,
        on_evict: EvictListener | None = None,
        count_tokens: Callable[[Message], int] | None = None,
        upkeep_seconds: float = 60.0,
        hot: HotTier | None = None,
        cold: ColdTier | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._count_tokens = clock, count_tokens
        opened = Opened(place(directory) if cold is None else None, cold, durability, codec, tenant_quota_bytes)
        hot = hot or RamTier(hot_bytes, hot_turns, hot_ttl, clock)
        keeps_all = retention_days is None and retention_turns is None
        self._tiers = Tiers(hot, opened, clock, upkeep_seconds, None if keeps_all else self.expire)
        if on_evict:
            self._tiers.listeners.append(on_evict)
        self._removal = Removal(self._tiers, retention_days, retention_turns)
        self._tiers.upkeep.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def directory(self) -> Path | None:
        """Where the data lies; None if the cold tier is another one."""
        return self._tiers.opened.directory

    def close(self) -> None:
        """Stop the background thread, let all turns leave RAM (reason "close"), pack what is not packed. Safe twice."""
        self._tiers.close()

    def append(self, session: str, messages: Iterable[Message | Turn], *, tenant: str | None = None) -> range:
        """Store messages at the end of a session. When it returns they are on disk.

        All of them or none are stored, in order and without others' in between. Safe from any thread and process.

        Args:
            session: any text; it is begun if it is new.
            messages: message dicts, or Turns, which keep their timestamp, tokens, metadata and embedding.
            tenant: who owns the session.

        Returns:
            The numbers that they got.

        Raises:
            NotStorable: something in them has no form in JSON.
            QuotaExceeded, StoreFull, StoreBusy, StoreUnavailable: nothing was stored.
            FrameDamaged, DatabaseDamaged: what must be read first is damaged; nothing was stored.
        """
        numbers = self.append_if(session, messages, expect=None, tenant=tenant)
        assert numbers is not None
        return numbers

    def append_if(
        self, session: str, messages: Iterable[Message | Turn], *, expect: int | None, tenant: str | None = None
    ) -> range | None:
        """`append`, but only if `expect` is the session's next number; None if somebody else was quicker."""
        ledger = self._ledger(session)
        if isinstance(messages, (str, bytes, dict)):
            raise TypeError("messages must be a sequence of message dicts or Turns")
        now = self._clock()
        turns = [blocks.make_turn(item, 0, now, f"messages[{index}]") for index, item in enumerate(messages)]
        if self._count_tokens:
            turns = [blocks.counted(turn, self._count_tokens) for turn in turns]
        if not turns:
            record = ledger.steady(lambda: ledger.find(session, tenant))
            end = record.next if record else 0
            return range(end, end) if expect in (None, end) else None
        data = [blocks.to_json(turn.message, f"messages[{index}]") for index, turn in enumerate(turns)]
        parts = ledger.parts(turns, data, session, tenant)
        appended = ledger.append(session, tenant, parts, now, expect)
        if appended is None:
            return None
        record, start = appended
        blocks.number_turns(turns, start)
        self._tiers.stats.appended += len(turns)
        self._tiers.warm(record.id, session, tenant, turns)
        if record.next - record.packed >= PACK_TURNS:
            self._tiers.upkeep.due(record.id)
        self._tiers.tell(tenant)
        return range(start, start + len(turns))

    def turns(self, session: str, start: int = 0, stop: int | None = None, *, tenant: str | None = None) -> list[Turn]:
        """Turns `start` to before `stop` (None: to the end), in order, from whichever tier has them.

        What lies beyond the session's ends is left out, as in a slice; a session that does not exist has no turns.

        Raises:
            ValueError: a negative number.
            FrameDamaged: a frame that holds some of them is damaged; ask for others to read around it.
        """
        if start < 0 or (stop is not None and stop < 0):
            raise ValueError(f"turns({start}, {stop}): turns are counted from 0; recent() counts from the end")
        self._ledger(session)
        known = self._tiers.know(session, tenant)
        if known is None:
            return []
        stop = known.next if stop is None else min(stop, known.next)
        start = max(start, known.first)
        if start >= stop:
            return []
        held = self._tiers.held(known, start, stop)
        return self._tiers.from_cold(session, tenant, start, stop) if held is None else held

    def recent(self, session: str, n: int = 20, *, tokens: int | None = None, tenant: str | None = None) -> list[Turn]:
        """The newest turns, in order: the hot path.

        Args:
            session: whose turns.
            n: at most so many.
            tokens: at most so many tokens together; turns without a count are estimated at four characters a token.
            tenant: who owns the session.
        """
        known = self._tiers.know(session, tenant)
        count = min(n, known.next - known.first) if known else 0
        if known is None or count <= 0:
            return []
        turns = self._tiers.held(known, known.next - count, known.next)
        if turns is None:
            turns = self._tiers.from_cold(session, tenant, known.next - count, known.next)
            self._tiers.warm(known.key, session, tenant, turns)
        return turns if tokens is None else blocks.within(turns, tokens)

    def evict(self, session: str, *, tenant: str | None = None) -> None:
        """Let a session leave RAM and pack its log, now."""
        known = self._tiers.know(session, tenant)
        if known is not None:
            self._tiers.let_go(self._tiers.hot.take(known.key, "size"))
            self._tiers.stats.packed += pack(self._ledger(session), known.key)

    def compact(self) -> int:
        """Pack all logs, train dictionaries where they pay, and give free space back to the disk.

        Returns:
            Bytes on disk that were saved.

        Raises:
            FrameDamaged: a frame is damaged; everything else was compacted.
        """
        return self._tiers.compact()

    def tenants(self) -> list[str | None]:
        """All tenants that ever had a session."""
        return self._ledger().steady(self._ledger().tenants)

    def sessions(self, tenant: str | None = None) -> list[str]:
        """Ids of a tenant's sessions, the last used first."""
        ledger = self._ledger()
        return [to_text(record.name) for record in sorted(ledger.sessions(tenant), key=lambda record: -record.used)]

    def info(self, session: str, tenant: str | None = None) -> SessionInfo | None:
        """What is known about a session without reading its turns; None if there is none."""
        ledger = self._ledger(session)

        def read() -> SessionInfo | None:
            record = ledger.find(session, tenant)
            return SessionInfo.of(record, ledger.profile(record)) if record else None

        return ledger.steady(read)

    def last_used(self, session: str, *, tenant: str | None = None) -> float | None:
        """When the session was last appended to or given state; None if there is none."""
        ledger = self._ledger(session)
        record = ledger.steady(lambda: ledger.find(session, tenant))
        return record.used if record else None

    def set_summary(self, session: str, text: str | None, *, tenant: str | None = None) -> None:
        """Keep a text about the session (its topic, its key points) with it; None removes it."""
        summary = b"" if text is None else blocks.to_bytes(text)
        self._ledger(session).set_profile(session, tenant, self._clock(), summary=summary)

    def set_metadata(self, session: str, metadata: Mapping[str, Any], *, tenant: str | None = None) -> None:
        """Replace the session's metadata, any JSON object."""
        data = blocks.to_json(blocks.plain_copy(metadata, "metadata"), "metadata")
        self._ledger(session).set_profile(session, tenant, self._clock(), metadata=data)

    def update_state(
        self, session: str, name: str, change: Callable[[bytes | None], bytes], *, tenant: str | None = None
    ) -> bytes:
        """Change state in one step: what others put at the same time is seen by `change` or comes after it.

        Args:
            session: whose state; begun if it is new.
            name: the state's name.
            change: given what is there, or None, returns what is to be there. Quick: everybody else waits for it.
            tenant: who owns the session.

        Returns:
            What is there now.
        """
        data = self._ledger(session).put_state(session, name, change, tenant, self._clock())
        assert data is not None
        return data

    def get_state(self, session: str, name: str, *, tenant: str | None = None) -> bytes | None:
        """Bytes that a wing keeps with the session, or None."""
        ledger = self._ledger(session)
        return ledger.steady(lambda: ledger.get_state(session, name, tenant))

    def put_state(
        self, session: str, name: str, data: bytes, *, tenant: str | None = None, turn: int | None = None
    ) -> None:
        """Keep bytes with the session; durable when it returns, forgotten with the session.

        Args:
            session: whose state; begun if it is new.
            name: the state's name.
            data: the bytes.
            tenant: who owns the session.
            turn: the bytes hold text of turns, of which this number is the oldest. They go when retention or `trim`
                removes that turn, and `retention_days` after they were put.
        """
        self._ledger(session).put_state(session, name, data, tenant, self._clock(), turn=turn)

    def swap_state(  # noqa: PLR0913 - as `put_state`, and on which condition
        self,
        session: str,
        name: str,
        data: bytes,
        *,
        expect: bytes | None,
        tenant: str | None = None,
        turn: int | None = None,
    ) -> bool:
        """`put_state`, but only if `expect` is what lies there (None: nothing); whether it was.

        No other process comes in between. A session that does not exist is not begun: it may just have been forgotten.
        """

        def swap(found: bytes | None) -> bytes | None:
            return data if found == expect else None

        put = self._ledger(session).put_state(session, name, swap, tenant, self._clock(), turn=turn, begin=False)
        return put is not None

    def put_state_if(self, session: str, name: str, data: bytes, *, key: str, tenant: str | None = None) -> bool:
        """`put_state`, but only if the session is there and still the one of this key; see `TurnEvent.key`.

        It does not count as use of the session.

        Returns:
            Whether it was. What is derived in the background must not begin a session again that was forgotten.
        """
        put = self._ledger(session).put_state(session, name, data, tenant, self._clock(), begin=False, key=key)
        return put is not None

    def stats(self) -> StoreStats:
        """What happened in this process since the store was opened, and what is held now."""
        tiers = self._tiers
        disk = 0 if tiers.closed else tiers.opened.size()
        return tiers.stats.now(tiers.hot.size(), len(tiers.hot.keys()), disk)

    def now(self) -> float:
        """The store's clock."""
        return self._clock()

    def note_failure(self) -> None:
        """Count an exchange that could not be recorded."""
        self._tiers.stats.record_failures += 1

    def check(self, repair: bool = False) -> CheckReport:  # noqa: FBT001, FBT002 - fixed by the public contract
        """Read everything and say what is damaged.

        Args:
            repair: move damaged frames into quarantine, and rebuild what can be rebuilt. A database that cannot be read
                is replaced by one with every intact frame of it, and kept in the quarantine too. Nothing is deleted.

        Raises:
            StoreBusy: the database must be replaced, and another process has it open.
        """
        if self._tiers.closed:
            raise StoreClosed
        report = check(self._tiers.opened, repair=repair)
        if repair:
            self._tiers.reset()
        return report

    def quarantined(self) -> Iterator[tuple[str, bytes]]:
        """What lies in quarantine: the name and the bytes of each damaged frame and database."""
        self._ledger()
        yield from self._tiers.opened.quarantined()

    def forget(self, session: str, *, tenant: str | None = None) -> Forgotten:
        """Remove a session and every trace of its text, from RAM, frames, indexes, dictionaries and free space.

        Returns:
            What was removed; all zero if there was no such session.
        """
        self._ledger(session)
        return self._removal.forget(session, tenant)

    def trim(self, session: str, start: int, *, tenant: str | None = None) -> int:
        """Remove a session's turns before number `start`; the numbers of those that stay do not change.

        The background thread overwrites the space they leave, as after `expire`.

        Returns:
            How many turns were removed.
        """
        self._ledger(session)
        return self._removal.trim(session, tenant, start)

    def expire(self, now: float | None = None) -> Forgotten:
        """Apply `retention_days` and `retention_turns`, from the front of each session up to the first turn that stays.

        What the store keeps elsewhere of the text of those turns goes, too; see `put_state` and `on_trim`.

        Args:
            now: seconds since the epoch; None: the clock's.

        Raises:
            FrameDamaged: a session is damaged and was left as it is; all others are done.
        """
        return self._removal.expire(self._clock() if now is None else now)

    def _ledger(self, session: str = "") -> Ledger:
        if not isinstance(session, str):
            raise TypeError(f"a session's id is a string, not {type(session).__name__}")
        return self._tiers.ledger()

    def export(self, session: str, *, tenant: str | None = None) -> Iterator[str]:
        """The session as lines of JSON, lossless: one about the session, then one for each turn."""
        info = self.info(session, tenant)
        if info is None:
            return
        yield transfer.header(info)
        start, stop = info.first, info.first
        while True:
            stop = start + _EXPORTED_AT_ONCE
            turns = self.turns(session, start, stop, tenant=tenant)
            yield from map(transfer.turn_line, turns)
            known = self._tiers.know(session, tenant)
            if known is None or stop >= known.next:
                return
            start = stop

    def import_(self, lines: Iterable[str], *, session: str | None = None, tenant: str | None = None) -> list[str]:
        """Store what `export` gave, all of it or nothing of a session; numbers and times stay as they were.

        Args:
            lines: of one or more exported sessions.
            session: another id for it, when there is only one.
            tenant: who is to own them; the tenant they were exported from does not matter.

        Returns:
            The sessions' ids.

        Raises:
            SessionExists: it has turns already.
            ValueError: a line is not what `export` writes; names its number.
        """
        names = transfer.import_lines(self._ledger(), lines, session, tenant, self._clock())
        self._tiers.tell(tenant)
        return names

    def subscribe(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        """Have `callback(tenant)` called after each change this process makes; see `TurnLog`."""
        self._tiers.followers.append(callback)
        return lambda: _take_out(self._tiers.followers, callback)

    def since(self, cursor: str | None, *, tenant: str | None = None, limit: int = 1000) -> tuple[list[TurnEvent], str]:
        """What happened to a tenant's sessions after `cursor`; see `TurnLog`."""
        ledger = self._ledger()
        if cursor is not None:
            news = ledger.steady(lambda: events.news(ledger.shelf, ledger.tenant(tenant), cursor, limit))
            if news is not None:
                return news
        with ledger.cold.transaction():
            return events.everything(ledger.shelf, ledger.tenant(tenant), reset=cursor is not None)

    def on_evict(self, listener: EvictListener) -> Callable[[], None]:
        """Have `listener(session, turns, reason, tenant)` called, too, before turns leave RAM.

        Returns:
            A function that ends this.
        """
        self._tiers.listeners.append(listener)
        return lambda: _take_out(self._tiers.listeners, listener)

    def on_forget(self, forgetter: Callable[[str, str | None], int]) -> Callable[[], None]:
        """Have `forgetter(session, tenant)` called when a session was forgotten, to remove what lies elsewhere.

        It returns how many things it removed.

        Returns:
            A function that ends this.
        """
        self._removal.forgetters.append(forgetter)
        return lambda: _take_out(self._removal.forgetters, forgetter)

    def on_trim(self, trimmer: Callable[[str | None, Mapping[str, int]], int]) -> Callable[[], None]:
        """Have `trimmer(tenant, firsts)` called when turns of a tenant's sessions were removed, not all of them.

        `firsts` has the number of the oldest turn that is left, by session. It returns how many things it removed.

        Returns:
            A function that ends this.
        """
        self._removal.trimmers.append(trimmer)
        return lambda: _take_out(self._removal.trimmers, trimmer)


def _take_out(items: list[Any], item: object) -> None:
    """Take something out of a list, if it is still there."""
    if item in items:
        items.remove(item)
