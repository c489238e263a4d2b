"""What workers of a proxy note of requests, replies and failures: counts and ids, never message text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SUMS = ("requests", "tokens_before", "tokens_after", "cost_plain", "cost_sent")
"""Columns that requests add to."""
BILLED = ("replies", "partial", "input_tokens", "cached_tokens", "written_tokens", "output_tokens")
"""Columns that replies add to."""
HOUR = 3600
"""Seconds."""


class Prepared(NamedTuple):
    """What one request adds.

    Attributes:
        name: the conversation, hashed; of all workers alike.
        tenant: who owns it.
        session: its id, or None.
        model: the model's name.
        at: when, seconds since the epoch.
        tokens_before, tokens_after, overhead_tokens: tokens of its texts plain, as sent, and legend among the latter.
        cost_plain, cost_sent: US dollars; 0.0 without prices.
        symbols: definitions that it carries.
        reasons: how many of its messages were sent as they were, for which reason.
        legend: what its symbols stand for, hashed; empty where nobody will ask.
        scope: what the config says of whom that served it, hashed; empty if it says nothing of its own.
        deployment: the model's name by which its tokens were counted.
    """

    name: bytes
    tenant: str
    session: str | None
    model: str
    at: float
    tokens_before: int
    tokens_after: int
    overhead_tokens: int
    cost_plain: float
    cost_sent: float
    symbols: int
    reasons: Mapping[str, int]
    legend: bytes = b""
    scope: bytes = b""
    deployment: str = ""


class Replied(NamedTuple):
    """What one reply adds; the tokens are the provider's own count, 0 where it told none.

    Attributes:
        asked: when its request was prepared, as `Prepared.at` says; 0.0 if that is not known.
    """

    name: bytes
    tenant: str
    model: str
    at: float
    partial: bool
    input_tokens: int
    cached_tokens: int
    written_tokens: int
    output_tokens: int
    asked: float = 0.0


class Failed(NamedTuple):
    """Something that went wrong, or was ignored, once."""

    tenant: str
    at: float
    place: str
    error: str


Entry = Prepared | Replied | Failed


class Sums:
    """What a batch adds to one conversation, to one model of a tenant, or to an hour of that.

    Attributes:
        requests: those that were prepared, in order.
        billed: sums over the replies, as `BILLED` names them.
    """

    __slots__ = ("billed", "requests")

    def __init__(self) -> None:
        self.requests: list[Prepared] = []
        self.billed = [0] * len(BILLED)

    @property
    def last(self) -> Prepared | None:
        """The last request, if there is one."""
        return self.requests[-1] if self.requests else None

    @property
    def sent(self) -> tuple[float, ...]:
        """Sums over the requests, as `SUMS` names them."""
        return (
            len(self.requests),
            sum(one.tokens_before for one in self.requests),
            sum(one.tokens_after for one in self.requests),
            sum(one.cost_plain for one in self.requests),
            sum(one.cost_sent for one in self.requests),
        )

    def reply(self, one: Replied) -> None:
        """Add a reply."""
        told = (1, int(one.partial), one.input_tokens, one.cached_tokens, one.written_tokens, one.output_tokens)
        self.billed = [before + more for before, more in zip(self.billed, told, strict=True)]


class Batch:
    """Entries added up: one statement for a conversation, not one for each thing that happened in it.

    Each statement lets go of the interpreter's lock, and has to get it back from the thread that serves requests.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.conversations: dict[bytes, Sums] = {}
        self.models: dict[tuple[str, str], Sums] = {}
        self.hours: dict[tuple[str, str, int], Sums] = {}
        self.problems: Counter[tuple[str, str, str]] = Counter()
        for entry in map(_storable, entries):
            if isinstance(entry, Failed):
                self.problems[entry.tenant, entry.place, entry.error] += 1
                continue
            of_conversation = self.conversations.setdefault(entry.name, Sums())
            of_model = self.models.setdefault((entry.tenant, entry.model), Sums())
            of_hour = self.hours.setdefault((entry.tenant, entry.model, _hour(entry)), Sums())
            for sums in (of_conversation, of_model, of_hour):
                if isinstance(entry, Prepared):
                    sums.requests.append(entry)
                else:
                    sums.reply(entry)


def _hour(entry: Prepared | Replied) -> int:
    """The hour of a request, counted from the epoch; a reply belongs to that of its request, however late it comes."""
    at = entry.at if isinstance(entry, Prepared) else entry.asked or entry.at
    return int(at // HOUR)


def storable(text: str) -> str:
    """A text that SQLite and Prometheus can take: JSON lets half of a surrogate pair through, UTF-8 does not."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _storable(entry: Entry) -> Entry:
    """An entry whose names can be written."""
    changed: dict[str, Any] = {
        name: storable(text)
        for name in ("tenant", "session", "model", "deployment", "place", "error")
        if isinstance(text := getattr(entry, name, None), str) and not text.isascii()
    }
    return entry._replace(**changed) if changed else entry
