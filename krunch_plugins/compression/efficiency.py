"""Whether new entries pay: the figures of each request, their trend, and when to stop buying.

A request is one call to the model, and the messages tell where one ended: each assistant message but a leading one is
the reply to the request of all messages before it. So the series of a conversation, and every decision here, is a
function of its messages; the monitor is a value that the encoder carries along, and losing it costs nothing.

What is decided is only whether a text may define new phrases. Entries that exist, references, folded JSON and
templates are applied always: they cost nothing but themselves.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from krunch_plugins.report import Trend, trend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_plugins.compression.encoder import EncodedMessage
    from krunch_plugins.settings import EfficiencySettings

Status = Literal["starting", "active", "paused", "forced", "disabled"]
"""Whether new entries are bought.

- `starting`: the first window is not over; they are.
- `active`: they pay; they are.
- `paused`: they have paid too little; they are not, but what they would have saved is counted, so that it can end.
- `forced`: `force_compression` is set; they are, whatever they pay.
- `disabled`: the monitor is not `enabled`; they are.
"""

SERIES = 1_000
"""Requests of a conversation that a series keeps."""


class Evidence(NamedTuple):
    """What the entries of the last window did in some text.

    Attributes:
        saved: tokens that they saved there, less their definitions.
        tokens: tokens of the text, if any of them occurs in it.
    """

    saved: int = 0
    tokens: int = 0

    def plus(self, other: Evidence) -> Evidence:
        """The sum of both."""
        return Evidence(self.saved + other.saved, self.tokens + other.tokens)


class Monitor(NamedTuple):
    """What the encoder knows of the past when it decides about new entries. A value; each message makes the next.

    Attributes:
        requests: how many requests are complete, which is how many assistant messages there have been.
        window: evidence of the last complete requests and of the one that is growing, oldest first.
        starts: how many definitions there were when each of these began.
    """

    requests: int = 0
    window: tuple[Evidence, ...] = (Evidence(),)
    starts: tuple[int, ...] = (0,)

    def next_request(self, definitions: int, settings: EfficiencySettings) -> Monitor:
        """The monitor when a request is complete; `definitions` is how many there are by then."""
        kept = settings.efficiency_trend_window
        window = (*self.window[-kept:], Evidence())
        return Monitor(self.requests + 1, window, (*self.starts[-kept:], definitions))

    def after(self, evidence: Evidence) -> Monitor:
        """The monitor after one more text."""
        if not evidence.tokens:
            return self
        return self._replace(window=(*self.window[:-1], self.window[-1].plus(evidence)))

    def is_recent(self, position: int) -> bool:
        """Whether a definition, by its position in the dictionary, was bought within the window."""
        return position >= self.starts[0]

    def efficiency(self, evidence: Evidence = Evidence()) -> float | None:  # noqa: B008 - a tuple, never changed
        """What entries of the window, and of one more text, saved: a share of the text they occur in. None: of none."""
        total = evidence
        for one in self.window:
            total = total.plus(one)
        return total.saved / total.tokens if total.tokens else None

    def threshold(self, settings: EfficiencySettings) -> float:
        """What new entries have to save now, as a share of the text that they occur in."""
        if self.requests >= settings.long_conversation_threshold:
            return settings.long_conversation_min_efficiency
        return settings.min_net_efficiency

    def allows(self, evidence: Evidence, settings: EfficiencySettings) -> bool:
        """Whether a text may define the new entries that `evidence` is about.

        That text's own evidence counts, and is enough by itself: a pause spares texts in which entries hardly pay, and
        a long listing in a quiet chat does not have to wait for an average. (Without this coding_chat lost 0.6 points
        instead of 0.3.)
        """
        if self._always(settings) or self.requests < settings.efficiency_trend_window:
            return True
        efficiency = self.efficiency(evidence)
        own = evidence.saved / evidence.tokens if evidence.tokens else 0.0
        return efficiency is None or max(own, efficiency) >= self.threshold(settings)

    def status(self, settings: EfficiencySettings) -> Status:
        """What the monitor decides now, in one word."""
        if always := self._always(settings):
            return always
        if self.requests < settings.efficiency_trend_window:
            return "starting"
        return "active" if self.allows(Evidence(), settings) else "paused"

    def _always(self, settings: EfficiencySettings) -> Status | None:
        """Why new entries are bought whatever they save, or None."""
        if not settings.enabled:
            return "disabled"
        return "forced" if settings.force_compression else None


@dataclass(frozen=True, slots=True)
class RequestEfficiency:
    """One request of a conversation, the whole history that it carries.

    Attributes:
        request: its number in the conversation, from 1.
        tokens_before: tokens of its texts without compression.
        tokens_after: tokens of its texts as sent, legends included.
        overhead_tokens: how many of `tokens_after` are legends.
        symbols_available: definitions that it carries.
        symbols_used: references to them in it.
        symbols_added: how many of the definitions are new in it.
        entry_efficiency: what the new phrases of the last window saved, less their definitions, as a share of the
            text that they occur in, counting those that would have been bought; None if there were none.
        trend: of the net efficiency, over the last window.
        status: whether new entries are bought.
    """

    request: int
    tokens_before: int
    tokens_after: int
    overhead_tokens: int
    symbols_available: int
    symbols_used: int
    symbols_added: int
    entry_efficiency: float | None
    trend: Trend
    status: Status

    @property
    def compression_ratio(self) -> float:
        """Share of the tokens that references replaced, legends not counted; 0 to 1."""
        return self._share(self.tokens_before - self.tokens_after + self.overhead_tokens)

    @property
    def overhead_ratio(self) -> float:
        """Legend tokens over tokens before; 0 to 1."""
        return self._share(self.overhead_tokens)

    @property
    def net_efficiency(self) -> float:
        """`compression_ratio` - `overhead_ratio`: the share of tokens that is really saved."""
        return self._share(self.tokens_before - self.tokens_after)

    def _share(self, tokens: int) -> float:
        return tokens / self.tokens_before if self.tokens_before else 0.0


class Standing(NamedTuple):
    """What figures need of the state after a message: a state itself would hold the texts of its whole conversation."""

    known: int
    monitor: Monitor

    @classmethod
    def after(cls, encoded: EncodedMessage) -> Standing:
        """Of the state after this message."""
        return cls(encoded.state.known, encoded.state.monitor)


class Series:
    """The requests of one growing conversation.

    Attributes:
        requests: the complete ones, at most the last `SERIES`; the last request of all is told by `current`.
        messages: how many messages have been counted.
    """

    __slots__ = ("_after", "_before", "_complete", "_known", "_overhead", "_used", "messages", "requests")

    def __init__(self) -> None:
        self.requests: deque[RequestEfficiency] = deque(maxlen=SERIES)
        self.messages = self._complete = 0
        self._before = self._after = self._overhead = self._used = self._known = 0

    def add(self, encoded: Sequence[EncodedMessage], settings: EfficiencySettings) -> None:
        """Count the messages that come after those counted before; `encoded` is the whole conversation."""
        for position in range(self.messages, len(encoded)):
            report = encoded[position].report
            if position and report.role == "assistant":
                self.requests.append(self.current(Standing.after(encoded[position - 1]), settings))
                self._complete += 1
                self._known = encoded[position - 1].state.known
            self._before += report.tokens_before
            self._after += report.tokens_after
            self._overhead += report.overhead_tokens
            self._used += report.symbols_used
        self.messages = len(encoded)

    def current(self, last: Standing, settings: EfficiencySettings) -> RequestEfficiency:
        """The request that ends with the last message counted."""
        net = 1 - self._after / self._before if self._before else 0.0
        return RequestEfficiency(
            request=self._complete + 1,
            tokens_before=self._before,
            tokens_after=self._after,
            overhead_tokens=self._overhead,
            symbols_available=last.known,
            symbols_used=self._used,
            symbols_added=last.known - self._known,
            entry_efficiency=last.monitor.efficiency(),
            trend=trend([*(one.net_efficiency for one in self._last(settings)), net]),
            status=last.monitor.status(settings),
        )

    def _last(self, settings: EfficiencySettings) -> list[RequestEfficiency]:
        """The complete requests that share a window with the current one."""
        count = settings.efficiency_trend_window - 1
        return list(islice(self.requests, max(len(self.requests) - count, 0), None))
