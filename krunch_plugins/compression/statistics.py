"""What happened in this process, by conversation: the monitor's series, tokens and money saved, reasons.

Figures only, never text. A conversation is known by its tenant and session; without a session by what its first request
holds. Nothing that is sent depends on what is kept here.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from krunch_plugins.compression.efficiency import RequestEfficiency, Series, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from krunch_plugins.compression.cost import Price
    from krunch_plugins.compression.encoder import EncodedMessage
    from krunch_plugins.compression.memo import Key
    from krunch_plugins.report import MessageReport, Report
    from krunch_plugins.settings import EfficiencySettings

_CONVERSATION_BYTES = 2_000
"""Bytes of memory for what is kept of a conversation beside its series; an estimate, rounded up."""

_REQUEST_BYTES = 400
"""The same for each request of a series."""


class Name(NamedTuple):
    """What a conversation is known by. `content` tells those apart that have no session; it is a hash."""

    tenant: str | None
    session: str | None
    content: Key


class Usage(NamedTuple):
    """Tokens of one reply as the provider counted them.

    Attributes:
        input: input tokens, all of them.
        cached: how many of these were read from the cache.
        written: how many of these were written to the cache.
        output: output tokens.
    """

    input: int
    cached: int
    written: int
    output: int

    @classmethod
    def of(cls, usage: Mapping[str, Any]) -> Usage:
        """Read a provider's usage, in OpenAI's, LiteLLM's, Anthropic's or DeepSeek's words. Missing counts 0."""
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        named = details.get if hasattr(details, "get") else lambda name: getattr(details, name, None)
        # LiteLLM gives both its own names and the provider's; where both stand they mean the same tokens.
        cached = _tokens(
            named("cached_tokens"), usage.get("cache_read_input_tokens"), usage.get("prompt_cache_hit_tokens")
        )
        written = _tokens(usage.get("cache_creation_input_tokens"), named("cache_creation_tokens"))
        total = _tokens(usage.get("prompt_tokens"))
        if not total:
            total = _tokens(usage.get("input_tokens"))
            if "input_tokens_details" not in usage:  # Anthropic's own count leaves out what the cache had a part in
                total += cached + written
        return cls(total, cached, written, _tokens(usage.get("completion_tokens"), usage.get("output_tokens")))


@dataclass(frozen=True, slots=True)
class Billed:
    """What the provider told about some requests, beside what Krunch had estimated for the same ones.

    Attributes:
        requests: how many replies told their usage.
        input_tokens: input tokens, as the provider counted them.
        cached_tokens: how many of them were read from the cache.
        written_tokens: how many of them were written to the cache.
        output_tokens: output tokens.
        estimated_cached_tokens: tokens that Krunch expected to be read from the cache.
        cost: US dollars for input and output at the known prices; 0.0 without prices.
    """

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    output_tokens: int = 0
    estimated_cached_tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class SessionStats:
    """One conversation.

    Attributes:
        tenant: who owns it.
        session: its id; None if its requests named none.
        turns: requests that were prepared; the same request again does not count.
        requests: the monitor's figures of each of its requests, oldest first, at most the last 1,000. They are worked
            out from the messages, so requests that another process has sent are among them.
        tokens_before: tokens of all requests prepared here, without compression.
        tokens_after: the same as sent.
        cost_plain: US dollars for the input of all requests without compression; 0.0 without prices.
        cost_sent: the same as sent.
        reasons: how many messages of the latest request were sent as they were, for which reason.
        billed: what the provider told.
    """

    tenant: str | None
    session: str | None
    turns: int
    requests: Sequence[RequestEfficiency]
    tokens_before: int
    tokens_after: int
    cost_plain: float
    cost_sent: float
    reasons: Mapping[str, int]
    billed: Billed

    @property
    def tokens_saved(self) -> int:
        """Tokens less than without compression, legends paid."""
        return self.tokens_before - self.tokens_after

    @property
    def cost_saved(self) -> float:
        """US dollars less than without compression, estimated; below 0 where it was dearer."""
        return self.cost_plain - self.cost_sent

    @property
    def symbols_available(self) -> int:
        """Definitions that the latest request carries."""
        return self.requests[-1].symbols_available if self.requests else 0


@dataclass(frozen=True, slots=True)
class Stats:
    """What is kept of all conversations.

    Attributes:
        active_conversations: conversations that are remembered.
        total_turns_processed: requests prepared since the start or the last reset; a repeated request counts once.
        symbols_in_use: definitions that the latest requests of these conversations carry.
        avg_turns_per_conversation: requests of these conversations, over their number.
        memory_usage_kb: memory for the memo and the statistics, KiB, estimated.
        config: the settings of the monitor.
        tokens_saved: over all these conversations.
        cost_saved: US dollars over all these conversations, estimated.
        reasons: of the messages of their latest requests.
        conversations: each of them, the most recently used first.
    """

    active_conversations: int
    total_turns_processed: int
    symbols_in_use: int
    avg_turns_per_conversation: float
    memory_usage_kb: float
    config: Mapping[str, Any]
    tokens_saved: int
    cost_saved: float
    reasons: Mapping[str, int]
    conversations: Sequence[SessionStats] = field(repr=False)


class _Conversation:
    """What is kept of one conversation. What is told of its latest request is worked out when somebody asks."""

    __slots__ = ("billed", "cost_plain", "cost_sent", "key", "last", "messages", "series", "tokens", "turns", "used")

    def __init__(self) -> None:
        self.series = Series()
        self.last: Standing | None = None
        self.key: Key = b""
        self.turns = 0
        self.tokens = [0, 0]
        self.cost_plain = self.cost_sent = 0.0
        self.messages: Sequence[MessageReport] = ()
        self.billed = Billed()
        self.used = 0.0

    def stats(self, name: Name, settings: EfficiencySettings) -> SessionStats:
        current = () if self.last is None else (self.series.current(self.last, settings),)
        return SessionStats(
            tenant=name.tenant,
            session=name.session,
            turns=self.turns,
            requests=(*self.series.requests, *current),
            tokens_before=self.tokens[0],
            tokens_after=self.tokens[1],
            cost_plain=self.cost_plain,
            cost_sent=self.cost_sent,
            reasons=dict(Counter(message.reason for message in self.messages)),
            billed=self.billed,
        )


class Statistics:
    """Figures by conversation, bounded in number and age. Thread-safe.

    Args:
        settings: how many conversations, and for how long.
        clock: seconds, from any start.
    """

    def __init__(self, settings: EfficiencySettings, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self._lock = threading.Lock()
        self._conversations: OrderedDict[Name, _Conversation] = OrderedDict()
        self._total: Counter[str | None] = Counter()

    def record(self, name: Name, keys: Sequence[Key], encoded: Sequence[EncodedMessage], report: Report) -> None:
        """Take in one request: its messages' keys and what became of them."""
        if not encoded:
            return
        now = self._clock()
        with self._lock:
            known = self._conversations.get(name)
            if known is None:
                known = self._conversations[name] = _Conversation()
            else:
                self._conversations.move_to_end(name)
            known.used = now
            if known.key != keys[-1]:
                known.turns += 1
                self._total[name.tenant] += 1
            counted = known.series.messages
            if counted > len(keys) or (counted and keys[counted - 1] != known.key):
                known.series = Series()  # the client edited what it had said before
            known.series.add(encoded, self._settings)
            known.last = Standing.after(encoded[-1])
            known.key = keys[-1]
            known.tokens[0] += report.tokens_before
            known.tokens[1] += report.tokens_after
            if report.cost is not None:
                known.cost_plain += report.cost.plain
                known.cost_sent += report.cost.sent
            known.messages = report.messages
            self._clean_up(now)

    def note_usage(self, name: Name, usage: Mapping[str, Any], price: Price | None, report: Report) -> None:
        """Take in what a reply told about its tokens."""
        told = Usage.of(usage)
        plain = max(told.input - told.cached - told.written, 0)
        cost = 0.0
        if price is not None:
            cost = price.input * plain + price.read * told.cached + price.write * told.written
            cost += price.output * told.output
        with self._lock:
            known = self._conversations.get(name)
            if known is None:  # forgotten meanwhile
                return
            before = known.billed
            known.billed = Billed(
                requests=before.requests + 1,
                input_tokens=before.input_tokens + told.input,
                cached_tokens=before.cached_tokens + told.cached,
                written_tokens=before.written_tokens + told.written,
                output_tokens=before.output_tokens + told.output,
                estimated_cached_tokens=before.estimated_cached_tokens
                + (report.cost.cached_sent if report.cost is not None else 0),
                cost=before.cost + cost,
            )

    def stats(self, memo_bytes: int, tenant: str | None = None) -> Stats:
        """All conversations, or with a tenant only its own."""
        with self._lock:
            self._clean_up(self._clock())
            found = [
                one.stats(name, self._settings)
                for name, one in reversed(self._conversations.items())
                if tenant in (None, name[0])
            ]
            total = self._total.total() if tenant is None else self._total[tenant]
            size = memo_bytes if tenant is None else 0
        size += sum(_CONVERSATION_BYTES + _REQUEST_BYTES * len(one.requests) for one in found)
        return Stats(
            active_conversations=len(found),
            total_turns_processed=total,
            symbols_in_use=sum(one.symbols_available for one in found),
            avg_turns_per_conversation=sum(one.turns for one in found) / len(found) if found else 0.0,
            memory_usage_kb=size / 1024,
            config=self._settings.model_dump(),
            tokens_saved=sum(one.tokens_saved for one in found),
            cost_saved=sum(one.cost_saved for one in found),
            reasons=dict(sum((Counter(one.reasons) for one in found), Counter())),
            conversations=found,
        )

    def session(self, session: str, tenant: str | None) -> SessionStats | None:
        """One session of one tenant; None if nothing is remembered of it."""
        name = Name(tenant, session, b"")
        with self._lock:
            self._clean_up(self._clock())
            known = self._conversations.get(name)
            return known.stats(name, self._settings) if known is not None else None

    def forget(self, session: str | None = None, tenant: str | None = None) -> None:
        """Forget one session; without one all of a tenant; without either everything."""
        with self._lock:
            if session is not None:
                self._conversations.pop(Name(tenant, session, b""), None)
            elif tenant is not None:
                for name in [name for name in self._conversations if name.tenant == tenant]:
                    del self._conversations[name]
                del self._total[tenant]
            else:
                self._conversations.clear()
                self._total.clear()

    def _clean_up(self, now: float) -> None:
        """Drop what is too old or too much."""
        while self._conversations:
            oldest = next(iter(self._conversations.values()))
            idle = now - oldest.used > self._settings.cleanup_interval
            if not idle and len(self._conversations) <= self._settings.max_conversations:
                return
            self._conversations.popitem(last=False)


def _tokens(*candidates: object) -> int:
    """The first number above 0 among what a provider may call the same thing, or 0."""
    for value in candidates:
        if isinstance(value, int) and value > 0:
            return int(value)
    return 0
