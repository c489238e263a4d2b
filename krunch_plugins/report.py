"""What Krunch did to one request, and why: figures and reason codes, no text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Reason = Literal[
    "compressed",
    "escaped",
    "too_short",
    "no_gain",
    "paused",
    "cache_floor",
    "rebased",
    "excluded_role",
    "not_text",
    "tokenizer_unavailable",
    "error",
    "off",
]
"""Why a message was sent as it was sent.

- `compressed`: it is smaller than it came.
- `escaped`: it holds literals that look like Krunch's marks; they were escaped, which may cost a few tokens.
- `too_short`: fewer tokens than `Settings.min_tokens`.
- `no_gain`: nothing in it repeats enough to pay for its legend.
- `paused`: new entries would save something, but have saved too little of late (`Settings.efficiency`).
- `cache_floor`: it would be smaller, but the provider would not cache the conversation then (`Settings.cache_floor`).
- `rebased`: the whole history was encoded at once, and this message defines what later ones use; it is larger than it
  came, all together are smaller.
- `excluded_role`: its role is not in `Settings.roles`.
- `not_text`: it has no text content (None, images, tool calls only).
- `tokenizer_unavailable`: tokens cannot be counted for this model now, so nothing was touched.
- `error`: compressing it failed; it went out as it came, and the `krunch` logger says why.
- `off`: `Settings.mode` is "off".
"""

Trend = Literal["improving", "stable", "declining"]
"""Which way the net efficiency went over the last `efficiency_trend_window` requests."""

STEADY = 0.01
"""Net efficiencies that differ by no more than this are stable: one point is what a reader of a table would notice."""


def trend(efficiencies: Sequence[float]) -> Trend:
    """Which way some net efficiencies went, oldest first; fewer than two are stable."""
    change = efficiencies[-1] - efficiencies[0] if efficiencies else 0.0
    if abs(change) <= STEADY:
        return "stable"
    return "improving" if change > 0 else "declining"


@dataclass(frozen=True, slots=True)
class MessageReport:
    """What became of one message.

    Attributes:
        index: its position in the request, from 0.
        role: its role ("" if it has none).
        tokens_before: tokens of its text as compression received it.
        tokens_after: tokens of its text as sent, legend included.
        overhead_tokens: how many of `tokens_after` are legend.
        entries_added: definitions that its legend gives.
        symbols_used: references to definitions in its text.
        reason: why it is as it is.
    """

    index: int
    role: str
    tokens_before: int
    tokens_after: int
    overhead_tokens: int
    entries_added: int
    symbols_used: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Problem:
    """A plugin that failed. What it had changed was undone.

    Attributes:
        plugin: its name.
        hook: the hook that raised.
        error: class name of the exception, or `store_failed` if an exchange was not recorded. The exception's text may
            hold message text, so it stands nowhere; the `krunch` logger has, at debug level, the lines it came from.
    """

    plugin: str
    hook: str
    error: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What the input of one request costs, in US dollars, as far as Krunch counts it: texts and tool definitions.

    It is assumed that the provider has cached the request before this one, if it is long enough for that.

    Attributes:
        plain: without compression.
        sent: as sent.
        cached_plain: tokens that would have been read from the cache without compression.
        cached_sent: tokens that are read from the cache as sent.
        source: where the prices come from: "settings", "litellm", or "snapshot" and its date.
    """

    plain: float
    sent: float
    cached_plain: int
    cached_sent: int
    source: str

    @property
    def saved(self) -> float:
        """US dollars that compression saves; below 0 where it costs more than it saves."""
        return self.plain - self.sent


ContextReason = Literal[
    "fits",
    "left",
    "would_leave",
    "nothing_can_leave",
    "no_session",
    "no_store",
    "tokenizer_unavailable",
    "store_failed",
    "error",
]
"""Why messages left a request, or did not.

- `fits`: the request is within the window.
- `left`: old messages left it.
- `would_leave`: they would, but `Settings.mode` is "observe".
- `nothing_can_leave`: it is too long, but holds only what stays: messages of the system, pinned ones, the last one.
- `no_session`: it has no session, so what left could not be found again; it is sent whole.
- `no_store`: there is no store that would have what left; it is sent whole.
- `tokenizer_unavailable`: tokens cannot be counted for this model now; it is sent whole.
- `store_failed`: the store could not take or give what is needed; it is sent whole.
- `error`: deciding failed; it is sent whole, and the `krunch` logger says with what.
"""

RecallReason = Literal[
    "",
    "recalled",
    "replayed",
    "in_window",
    "nothing_asked",
    "nothing_found",
    "no_room",
    "not_the_users",
    "off",
    "search_failed",
    "not_recorded",
]
"""Why old turns were recalled for the last message, or were not. "": no message has left.

- `recalled`: they were put in right before it.
- `replayed`: they were recalled when this request was first sent, and stand in it again.
- `in_window`: it is about what is in the request already.
- `nothing_asked`: it has no word to look for ("yes", "go on").
- `nothing_found`: the search found nothing that may be recalled.
- `no_room`: the share of the window that is for recalled turns is used up until the next cut.
- `not_the_users`: the last message is not the user's.
- `off`: `Settings.context_recall` is 0.
- `search_failed`: searching failed; what left is in the store all the same.
- `not_recorded`: what was recalled could not be recorded with the session, so it was not sent.
"""


@dataclass(slots=True)
class ContextReport:
    """What left a request because of `Settings.context_window`, and what was recalled. Tokens as before compression.

    Attributes:
        window: tokens that the request may have.
        reason: why messages left, or did not.
        recall: why turns were recalled for the last message, or were not.
        tokens_before: tokens of the request as the plugins left it, at four a message beside its text.
        tokens_after: the same without what left and with what was recalled (in "observe": without what would leave).
        left: how many messages left (in "observe": would leave).
        left_tokens: their tokens.
        cuts: how many times messages have left this conversation so far. The provider's cached prefix breaks when
            this grows, and at no other time.
        inserts: how many messages with recalled turns stand in the request, those of earlier requests included.
        recalled_tokens: their tokens.
        recalled: session and number of each turn that was put in before the last message, with its neighbours.
    """

    window: int
    reason: ContextReason = "fits"
    recall: RecallReason = ""
    tokens_before: int = 0
    tokens_after: int = 0
    left: int = 0
    left_tokens: int = 0
    cuts: int = 0
    inserts: int = 0
    recalled_tokens: int = 0
    recalled: tuple[tuple[str, int], ...] = ()

    @property
    def over_window(self) -> bool:
        """Whether the request is longer than the window all the same: what stays takes too much, or nothing left."""
        return self.tokens_after > self.window


@dataclass(slots=True)
class Report:
    """What compression did to one request, and why.

    Attributes:
        mode: "on", "observe" (figures only, nothing was changed) or "off".
        encoding: name of the tiktoken encoding that counted.
        estimated: True when the model's own tokenizer is not public and `encoding` stands in for it.
        tokens_before: tokens of all message texts as compression received them, without `tools_tokens`.
        tokens_after: tokens of all message texts as sent (in "observe": as they would have been), legends included.
        overhead_tokens: how many of `tokens_after` are legends.
        tools_tokens: tokens of the tool definitions as JSON; they are never changed.
        milliseconds: wall time of compression.
        messages: one entry per message, in order.
        problems: plugins that failed, in the order in which they did.
        symbols_expanded: symbols and other marks that were expanded in the reply so far.
        cost: what the input costs plain and as sent; None if nobody knows the model's prices.
        context: what left the request because it was too long, and what was recalled; None without a
            `Settings.context_window`, or if `Settings.mode` is "off".
    """

    mode: Literal["on", "observe", "off"] = "on"
    encoding: str = ""
    estimated: bool = False
    tokens_before: int = 0
    tokens_after: int = 0
    overhead_tokens: int = 0
    tools_tokens: int = 0
    milliseconds: float = 0.0
    messages: list[MessageReport] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    symbols_expanded: int = 0
    cost: Cost | None = None
    context: ContextReport | None = None

    @property
    def tokens_saved(self) -> int:
        """Tokens removed, net of legends; negative only where literals had to be escaped."""
        return self.tokens_before - self.tokens_after

    @property
    def compression_ratio(self) -> float:
        """Share of the tokens that references replaced, legends not counted; 0 to 1."""
        return self._share(self.tokens_saved + self.overhead_tokens)

    @property
    def overhead_ratio(self) -> float:
        """Legend tokens over tokens before; 0 to 1."""
        return self._share(self.overhead_tokens)

    @property
    def net_ratio(self) -> float:
        """Net efficiency: `compression_ratio` - `overhead_ratio`, the share of tokens that is really saved."""
        return self._share(self.tokens_saved)

    def _share(self, tokens: int) -> float:
        return tokens / self.tokens_before if self.tokens_before else 0.0
