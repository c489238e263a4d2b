"""The laws of compression, each as a check of one conversation through the public surface.

Written without a look at the compressor: tokens are counted with tiktoken itself, values and symbols are found with
expressions of their own. A check that fails raises AssertionError, whose text begins with the law's name.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import conversations
import tiktoken
from values import cut_values, expand

from krunch_plugins import Krunch, Settings, restore
from krunch_plugins.settings import EfficiencySettings
from krunch_plugins.tokens import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from krunch_plugins import Exchange

Message = dict[str, Any]

MODELS = {"o200k_base": "gpt-4o", "cl100k_base": "gpt-4"}
PROFILES = ("safe", "balanced", "dense")
LETTERS = "\u0531-\u0556\u0561-\u0587\u10d0-\u10f0\u0d80-\u0dff\u0b00-\u0b7f\u1780-\u17d3"
"""Letters that may be names in `dense`, as a class of a regular expression."""

_TEMPLATE = re.compile(r"¤([0-9]+)[|;~^!].*\{\}")
"""The templates that a text defines in front of it. They are plain text: what looks like a symbol there is none."""

MEMO_SIZES = (0, 1, 3_000, 64_000_000)

ESCAPE_TOKENS = 2
"""What one more mark in a run of marks may cost at most: two tokens, one for each of its bytes."""


class Case(NamedTuple):
    """A conversation, and what it is compressed with."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    settings: Settings = Settings()
    model: str = "gpt-4o"

    def prepare(self, krunch: Krunch, stop: int | None = None, session: str | None = None) -> Exchange:
        """The request that holds the first `stop` messages (None: all)."""
        return krunch.prepare(self.messages[:stop], model=self.model, session=session, tools=self.tools)

    def sent(self, stop: int | None = None) -> list[Message]:
        """What a Krunch that has seen nothing before sends."""
        with fresh(self.settings) as krunch:
            return self.prepare(krunch, stop).messages

    def forked(self, rng: random.Random) -> Case:
        """The same settings, and messages that a client may send after these."""
        return self._replace(messages=conversations.fork(rng, self.messages))


def case(rng: random.Random, profile: str | None = None, longest: int = 60) -> Case:
    """A case whose conversation, in a third of the cases, is made of the output for one or more before it."""
    chosen = profile or rng.choice(PROFILES)
    values: dict[str, Any] = {"profile": chosen, "min_tokens": rng.choice((0, 0, 1, 16))}
    if rng.randrange(6) == 0:
        values["roles"] = frozenset(rng.sample(conversations.ROLES, rng.randrange(5)))
    if rng.randrange(6) == 0:
        values["memo_bytes"] = rng.choice((0, 1, 2_000, 20_000))
    values["cache_floor"] = rng.choice(("nothing", "nothing", "below", "everything"))
    values["cache_minimums"] = {"*": rng.choice((0, 64, 256, 1024))}
    if rng.randrange(3) == 0:
        efficiency = EfficiencySettings(efficiency_trend_window=1, min_net_efficiency=rng.choice((0.0, 0.2, 0.5)))
        values["efficiency"] = efficiency
    settings, tools = Settings(**values), conversations.tools(rng)
    model = rng.choice(tuple(MODELS.values()))
    pool: list[str] = []
    for _ in range(rng.choice((0, 0, 0, 0, 1, 2, 3))):
        older = Case(conversations.conversation(rng, pool, min(longest, 6)), tools, settings, model)
        pool = conversations.cut_and_mix(rng, older.sent())
    return Case(conversations.conversation(rng, pool, longest), tools, settings, model)


def case_of_seed(seed: int, profile: str | None = None, longest: int = 60) -> Case:
    """The case that a seed names, the same in every process."""
    return case(random.Random(seed), profile, longest)


_idle: dict[str, list[Krunch]] = {}


@contextmanager
def fresh(settings: Settings) -> Iterator[Krunch]:
    """A Krunch that has forgotten everything: making a new one for each check would be most of the time."""
    idle = _idle.setdefault(settings.model_dump_json(), [])
    krunch = idle.pop() if idle else Krunch(settings)
    with krunch:
        yield krunch
    idle.append(krunch)


@contextmanager
def nothing_logged() -> Iterator[None]:
    """Fail if the `krunch` logger reports an error: a gate that had to hold something back."""
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    handler, logger = Handler(logging.ERROR), logging.getLogger("krunch")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert not seen, f"quiet: {seen}"


def check(given: Case) -> Exchange:
    """The laws that one request shows by itself; returns the exchange."""
    snapshot, identities = repr(given.messages), _identities(given.messages)
    with nothing_logged(), fresh(given.settings) as krunch:
        exchange = given.prepare(krunch)
    assert not exchange.report.problems, f"problems: {exchange.report.problems}"
    assert repr(given.messages) == snapshot, "untouched: the caller's messages were changed"
    assert _identities(given.messages) == identities, "untouched: objects in the caller's messages were replaced"
    check_exact(given.messages, exchange.messages)
    check_shape(given.messages, exchange.messages)
    check_growth(given, exchange)
    check_report(given, exchange)
    check_symbols(given, exchange)
    return exchange


def check_exact(messages: Sequence[Message], sent: Sequence[Message]) -> None:
    """Law 3: the request alone gives the messages back, also after a trip over the wire."""
    before = repr(sent)
    assert repr(restore(sent)) == repr(messages), "exact: restore(sent) is not the original"
    assert repr(sent) == before, "exact: restore() changed what it was given"
    if not any("\ud800" <= character <= "\udfff" for message in messages for character in "".join(texts(message))):
        arrived = json.loads(json.dumps(sent))
        assert repr(restore(arrived)) == repr(json.loads(json.dumps(messages))), "exact: not after JSON"


def check_shape(messages: Sequence[Message], sent: Sequence[Message]) -> None:
    """Nothing but text changes: number, order, roles, keys, parts and everything unknown stay."""
    assert repr([_blank(message) for message in sent]) == repr([_blank(message) for message in messages]), (
        "shape: something that is no text was changed"
    )


def check_growth(given: Case, exchange: Exchange) -> None:
    """Law 2, counted independently: no message grows, but for literals that look like ours, a little, and reported."""
    encoding = tiktoken.get_encoding(exchange.report.encoding)
    for message, sent, row in zip(given.messages, exchange.messages, exchange.report.messages, strict=True):
        before, after = (sum(_count(encoding, text) for text in texts(each)) for each in (message, sent))
        assert row.tokens_before == before, f"counts: before {row.tokens_before}, really {before}"
        assert row.tokens_after == after, f"counts: after {row.tokens_after}, really {after}"
        assert row.reason != "error", "error: compressing a message failed"
        assert (row.reason == "compressed") == (after < before), f"reason: {row.reason} at {before} -> {after}"
        if sent != message and row.reason != "compressed":
            assert row.reason == "escaped", f"reason: changed, but {row.reason}"
        if row.reason == "escaped":
            most = ESCAPE_TOKENS * sum(_literals(text) for text in texts(message))
            assert sent != message, "reason: escaped, but nothing was changed"
            assert before <= after <= before + most, f"growth: {before} -> {after}, at most {most} for escapes"
        elif row.reason != "compressed":
            assert sent == message, "growth: changed without a reason"
        if row.role not in given.settings.roles:
            assert row.reason in {"excluded_role", "escaped", "not_text"}, f"reason: excluded, but {row.reason}"


def check_report(given: Case, exchange: Exchange) -> None:
    """The report's sums and ratios agree with its rows."""
    report = exchange.report
    rows = report.messages
    assert [row.index for row in rows] == list(range(len(given.messages))), "report: not one row for each message"
    assert [row.role for row in rows] == [message.get("role", "") for message in given.messages], "report: roles"
    assert report.tokens_before == sum(row.tokens_before for row in rows), "report: tokens_before is no sum"
    assert report.tokens_after == sum(row.tokens_after for row in rows), "report: tokens_after is no sum"
    assert report.overhead_tokens == sum(row.overhead_tokens for row in rows), "report: overhead_tokens is no sum"
    assert report.tokens_saved == report.tokens_before - report.tokens_after, "report: tokens_saved"
    assert all(0 <= row.overhead_tokens <= row.tokens_after for row in rows), "report: a legend larger than its message"
    assert all(row.overhead_tokens for row in rows if row.entries_added), "report: entries that cost nothing"
    assert abs(report.compression_ratio - report.overhead_ratio - report.net_ratio) < 1e-9, "report: ratios"
    if report.tokens_before:
        assert report.net_ratio * report.tokens_before - report.tokens_saved < 1e-6, "report: net_ratio"
        assert report.overhead_ratio >= 0, "report: overhead_ratio"
    assert sum(row.entries_added for row in rows) >= len(exchange.symbols), "report: symbols that no message has added"


def check_symbols(given: Case, exchange: Exchange) -> None:
    """Each symbol is used; and, but in `dense`, none stands for part of a word, number, date or identifier."""
    sent = [text for message in exchange.messages for text in texts(message)]
    found = Counter(name for text in sent for name in re.findall(f"¤[0-9]+|[{LETTERS}]", text))
    unused = sorted(name for name in exchange.symbols if found[name] < 2)  # where it is defined, and where it is used
    assert not unused, f"used: {unused} are defined and never used"
    seen: set[str] = set()
    templates: set[str] = set()
    for text in sent if given.settings.profile != "dense" else ():
        cut = cut_values(*expand(_without_templates(text, templates), exchange.symbols, seen))
        assert not cut, f"borders: a symbol ends inside {cut[0]!r} ({given.settings.profile})"


def _without_templates(text: str, known: set[str]) -> str:
    """A text without the lines that define templates, whose numbers are added; rows may hold a literal `{}`, too."""
    lines = text.split("\n")
    start = next((at for at, line in enumerate(lines) if not line.startswith("¤N")), len(lines))
    stop = start
    while stop < len(lines) and (found := _TEMPLATE.match(lines[stop])) and found[1] not in known:
        known.add(found[1])
        stop += 1
    return "\n".join(lines[:start] + lines[stop:])


def check_replies(given: Case, exchange: Exchange, rng: random.Random) -> None:
    """A reply that repeats what was sent for a message is that message; and the same in any pieces.

    Two exceptions: a mark at the very beginning of a message is escaped there, and would not be in the middle of a
    reply; and references and rows that mean several things stay as they are.
    """
    for message, sent in zip(given.messages, exchange.messages, strict=True):
        for text, written in zip(texts(message), texts(sent), strict=True):
            result = exchange.finish({"role": "assistant", "content": written})["content"]
            stream, place, pieces = exchange.stream(), 0, []
            while place < len(written):
                size = rng.randrange(1, 40)
                chunk = {"choices": [{"index": 0, "delta": {"content": written[place : place + size]}}]}
                pieces += stream.feed(chunk)
                place += size
            pieces += stream.flush()
            streamed = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
            assert streamed == result, "reply: streamed, it is another one"
            left = [line for line in result.split("\n") if line not in text.split("\n")]
            assert text.startswith("¤") or all("¤" in line for line in left), f"reply: {left[0]!r} was not there"
    assert not exchange.report.problems, f"reply: {exchange.report.problems}"


def check_causal(given: Case) -> None:
    """Law 1: sent for a prefix is a prefix of sent for all, by one Krunch turn by turn and by a fresh one each."""
    whole = repr_each(given.sent())
    with fresh(given.settings) as krunch:
        for stop in range(1, len(given.messages) + 1):
            grown = repr_each(given.prepare(krunch, stop).messages)
            assert grown == whole[:stop], f"causal: at {stop} messages, fed turn by turn"
        again = given.prepare(krunch)
        assert repr_each(again.messages) == whole, "causal: the same request again"
    for stop in {1, len(given.messages) // 2, len(given.messages) - 1}:
        assert repr_each(given.sent(stop)) == whole[:stop], f"causal: at {stop} messages, by a fresh one"


def check_forks(given: Case, rng: random.Random) -> None:
    """Messages edited, dropped, repeated or moved are sent as by a Krunch that has never seen the others."""
    with fresh(given.settings) as krunch:
        given.prepare(krunch)
        for _ in range(3):
            forked = given.forked(rng)
            exchange = forked.prepare(krunch)
            check_exact(forked.messages, exchange.messages)
            with fresh(forked.settings) as other:
                alone = forked.prepare(other)
            assert repr_each(exchange.messages) == repr_each(alone.messages), "fork: differs from a fresh encoding"
            assert dict(exchange.symbols) == dict(alone.symbols), "fork: carries symbols of another line"
        assert repr_each(given.prepare(krunch).messages) == repr_each(given.sent()), "fork: the first line changed"


def check_memo(given: Case, sizes: Sequence[int] = MEMO_SIZES) -> None:
    """A memo that holds nothing, little, or everything: the same bytes."""
    expected = repr_each(given.sent())
    for memo_bytes in sizes:
        settings = given.settings.model_copy(update={"memo_bytes": memo_bytes})
        with fresh(settings) as krunch:
            for stop in (*range(1, len(given.messages), 3), None, None):
                sent = repr_each(given.prepare(krunch, stop, session=f"s{(stop or 0) % 2}").messages)
                assert sent == expected[:stop], f"memo: other bytes with memo_bytes={memo_bytes}"
            krunch.close()
            assert repr_each(given.prepare(krunch).messages) == expected, "memo: other bytes after close()"


def check_threads(cases: Sequence[Case], threads: int = 8) -> None:
    """One Krunch, many sessions at once, and one session many times at once: the same bytes."""
    expected = [repr_each(each.sent()) for each in cases]
    symbols = [_symbols_by_turn(each) for each in cases]
    jobs = [(index, stop) for index, each in enumerate(cases) for stop in range(1, len(each.messages) + 1)] * 2
    random.Random(len(jobs)).shuffle(jobs)
    with fresh(cases[0].settings) as krunch, ThreadPoolExecutor(threads) as pool:

        def run(job: tuple[int, int]) -> bool:
            index, stop = job
            exchange = cases[index].prepare(krunch, stop, session=("one", None, "two")[index % 3])
            return (
                dict(exchange.symbols) == symbols[index][stop - 1]
                and repr_each(exchange.messages) == expected[index][:stop]
            )

        wrong = [job for job, right in zip(jobs, pool.map(run, jobs), strict=True) if not right]
    assert not wrong, f"threads: other bytes for (case, messages) {wrong[:5]}"


def texts(message: Message) -> list[str]:
    """The texts of a message: string content, and the text of text parts."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if _is_text(part)]


def repr_each(messages: Sequence[Message]) -> list[str]:
    """Each message so that what differs in any way differs here: types, order of keys, surrogates."""
    return [repr(message) for message in messages]


def digest(messages: Sequence[Message]) -> str:
    """A short name for exactly these messages."""
    return hashlib.sha256(repr(messages).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def warm() -> None:
    """Load the tokenizers, so that no check is the one that waits for them."""
    for encoding in MODELS:
        load(encoding, wait=True)


def _symbols_by_turn(given: Case) -> list[dict[str, str]]:
    """The symbols of the request of one message, of two, and so on."""
    with fresh(given.settings) as krunch:
        return [dict(given.prepare(krunch, stop).symbols) for stop in range(1, len(given.messages) + 1)]


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _blank(message: Message) -> Message:
    """The message without its texts."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": ""}
    if isinstance(content, list):
        return {**message, "content": [{**part, "text": ""} if _is_text(part) else part for part in content]}
    return copy.copy(message)


def _identities(value: Any) -> list[int]:
    """The identity of a value and of all in it, in order."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [id(value), *(identity for item in inside for identity in _identities(item))]


def _literals(text: str) -> int:
    """How many pieces of a text look like marks: runs of the mark itself, and letters that may be names."""
    return len(re.findall(f"¤+|[{LETTERS}]", text))


def _count(encoding: tiktoken.Encoding, text: str) -> int:
    return len(encoding.encode(text, disallowed_special=()))
