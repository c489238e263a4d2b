"""What conversations cost, plain and as Krunch sends them: plays the client, counts tokens, prices provider caching."""

from __future__ import annotations

import copy
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from krunch_plugins.compression.decoder import restore
from krunch_plugins.errors import RestoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_plugins.compression.efficiency import RequestEfficiency
    from krunch_plugins.conversations import Conversation
    from krunch_plugins.krunch import Krunch
    from krunch_plugins.tokens import Tokenizer
    from krunch_plugins.turns import Message

CACHE_READ = 0.1
CACHE_WRITE = 1.25
CACHE_MINIMUM = 1_024
"""Prefix caching as providers price it (Anthropic's list of 2025), in units of one plain input token: a token read from
the cache, a token written to it, and how many tokens a prefix must have to be cached at all."""


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """One request, plain against sent. Tokens are those of roles, texts, tool names and arguments, not of `tools`.

    Attributes:
        messages: how many messages it holds.
        plain_tokens: tokens of the request without Krunch.
        sent_tokens: tokens of the request as sent, legends included.
        legend_tokens: how many of `sent_tokens` are legends.
        entries: definitions in its legends.
        plain_cost: its price without Krunch, with prefix caching, in plain input tokens.
        sent_cost: its price as sent, likewise.
        changed: something that an earlier request had sent was sent differently.
        restored: `restore()` gave back every message, exactly.
        milliseconds: wall time in `prepare()`.
        new_tokens: plain tokens that no request before it held.
    """

    messages: int
    plain_tokens: int
    sent_tokens: int
    legend_tokens: int
    entries: int
    plain_cost: float
    sent_cost: float
    changed: bool
    restored: bool
    milliseconds: float
    new_tokens: int

    @property
    def saved_tokens(self) -> int:
        """Tokens less than the plain request has."""
        return self.plain_tokens - self.sent_tokens

    @property
    def net(self) -> float:
        """Net efficiency: share of the plain tokens that is saved, legends paid; 1 is all."""
        return self.saved_tokens / self.plain_tokens if self.plain_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Played:
    """All requests of one conversation.

    Attributes:
        conversation: what was played.
        requests: figures of each request, in order; at least one.
        reasons: how many messages of the last request were sent as they were for which reason.
        estimated: the model's own tokenizer is not public, another one counted.
        efficiency: the monitor's figures of each request, in order; of long conversations the last 1,000.
    """

    conversation: Conversation
    requests: Sequence[RequestFigures]
    reasons: Counter[str] = field(default_factory=Counter)
    estimated: bool = False
    efficiency: Sequence[RequestEfficiency] = ()


@dataclass(slots=True)
class Totals:
    """Sums over conversations. Attributes are named like those of `RequestFigures`; these are beside them.

    Attributes:
        last_plain: plain tokens of each conversation's last request.
        last_sent: sent tokens of each conversation's last request.
        worst: the lowest net efficiency of a single request.
        changed: requests that changed something sent before.
        restored: requests that `restore()` gave back exactly.
    """

    conversations: int = 0
    requests: int = 0
    plain_tokens: int = 0
    sent_tokens: int = 0
    last_plain: int = 0
    last_sent: int = 0
    worst: float = 1.0
    plain_cost: float = 0.0
    sent_cost: float = 0.0
    changed: int = 0
    restored: int = 0
    milliseconds: float = 0.0
    new_tokens: int = 0

    def add(self, requests: Sequence[RequestFigures]) -> None:
        """Add one conversation."""
        self.conversations += 1
        self.last_plain += requests[-1].plain_tokens
        self.last_sent += requests[-1].sent_tokens
        for request in requests:
            self.requests += 1
            self.plain_tokens += request.plain_tokens
            self.sent_tokens += request.sent_tokens
            self.plain_cost += request.plain_cost
            self.sent_cost += request.sent_cost
            self.changed += request.changed
            self.restored += request.restored
            self.milliseconds += request.milliseconds
            self.new_tokens += request.new_tokens
            self.worst = min(self.worst, request.net)

    @property
    def net(self) -> float:
        """Share saved of the last request of each conversation: how much smaller a whole history is."""
        return 1 - self.last_sent / self.last_plain if self.last_plain else 0.0

    @property
    def saved(self) -> float:
        """Share saved over all requests."""
        return 1 - self.sent_tokens / self.plain_tokens if self.plain_tokens else 0.0

    @property
    def cost(self) -> float:
        """Price of the input as sent over its price without Krunch, both with prefix caching; below 1 is cheaper."""
        return self.sent_cost / self.plain_cost if self.plain_cost else 1.0

    @property
    def milliseconds_per_1000(self) -> float:
        """Milliseconds in `prepare()` for every 1,000 plain tokens that were new."""
        return 1_000 * self.milliseconds / self.new_tokens if self.new_tokens else 0.0

    @property
    def sound(self) -> bool:
        """Every request could be restored, and nothing that was sent changed later."""
        return self.restored == self.requests and not self.changed


class Meter:
    """Counts the requests of one conversation, in order.

    Args:
        tokenizer: what counts.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._plain, self._sent = _Side(tokenizer), _Side(tokenizer)
        self._seen = 0

    def add(
        self,
        plain: Sequence[Message],
        sent: Sequence[Message],
        *,
        entries: int = 0,
        legend_tokens: int = 0,
        milliseconds: float = 0.0,
    ) -> RequestFigures:
        """The next request, as the client gave it and as it went out; restores it to see whether it can be."""
        plain_tokens, plain_cost, _ = self._plain.add(plain)
        sent_tokens, sent_cost, changed = self._sent.add(sent)
        new_tokens = self._plain.tokens_from(self._seen)
        self._seen = len(plain)
        return RequestFigures(
            messages=len(plain),
            plain_tokens=plain_tokens,
            sent_tokens=sent_tokens,
            legend_tokens=legend_tokens,
            entries=entries,
            plain_cost=plain_cost,
            sent_cost=sent_cost,
            changed=changed,
            restored=_restores(sent, plain),
            milliseconds=milliseconds,
            new_tokens=new_tokens,
        )


def play(conversation: Conversation, krunch: Krunch, tokenizer: Tokenizer, *, model: str) -> Played:
    """Play a conversation as its client would: one request for each assistant turn, with the whole history so far."""
    meter, requests = Meter(tokenizer), []
    # What Krunch gets is its own copy, so that the comparison would notice if it were changed.
    given = copy.deepcopy(conversation.messages)
    for stop in conversation.requests():
        start = time.perf_counter()
        exchange = krunch.prepare(given[:stop], model=model, session=conversation.id, tools=conversation.tools)
        milliseconds = 1_000 * (time.perf_counter() - start)
        report = exchange.report
        requests.append(
            meter.add(
                conversation.messages[:stop],
                exchange.messages,
                entries=sum(message.entries_added for message in report.messages),
                legend_tokens=report.overhead_tokens,
                milliseconds=milliseconds,
            )
        )
    reasons = Counter(str(message.reason) for message in report.messages)
    stats = krunch.stats(session=conversation.id)
    return Played(conversation, requests, reasons, report.estimated, stats.requests if stats else ())


class _Side:
    """The requests of a conversation on one side, plain or sent: their tokens, and a provider that caches prefixes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._messages: list[Message] = []
        self._ids: list[list[int]] = []

    def add(self, messages: Sequence[Message]) -> tuple[int, float, bool]:
        """Tokens of the next request, its price, and whether it broke the prefix that the one before it had cached."""
        before = self._ids
        same = 0
        while same < min(len(messages), len(self._messages)) and messages[same] == self._messages[same]:
            same += 1
        self._ids = before[:same] + [self._encode(message) for message in messages[same:]]
        self._messages = list(messages)
        tokens = self.tokens_from(0)
        hit = sum(map(len, before[:same])) + _common(self._ids[same:], before[same:])
        changed = hit < sum(map(len, before))
        cached = hit if hit >= CACHE_MINIMUM else 0
        return tokens, CACHE_READ * cached + CACHE_WRITE * (tokens - cached), changed

    def tokens_from(self, index: int) -> int:
        """Tokens of the latest request's messages from `index` on."""
        return sum(map(len, self._ids[index:]))

    def _encode(self, message: Message) -> list[int]:
        texts = [str(message.get("role", ""))]
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts += [str(part.get("text", "")) for part in content if isinstance(part, dict)]
        for call in message.get("tool_calls") or ():
            function = call.get("function", {})
            texts += [str(function.get("name", "")), str(function.get("arguments", ""))]
        return self._tokenizer.encode("\x1e".join(texts))


def _restores(sent: Sequence[Message], plain: Sequence[Message]) -> bool:
    try:
        return restore(sent) == list(plain)
    except RestoreError:
        return False


def _common(now: Sequence[Sequence[int]], before: Sequence[Sequence[int]]) -> int:
    """Tokens that two requests have in common from the start, wherever their messages begin and end."""
    length = 0
    for left, right in zip(chain.from_iterable(now), chain.from_iterable(before), strict=False):
        if left != right:
            break
        length += 1
    return length
