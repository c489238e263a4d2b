"""The window and compression: the one decides what is in a request, the other how it is written."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from agents import agent_conversation, requests

from krunch_plugins import Krunch, Settings, is_recalled, restore

if TYPE_CHECKING:
    from pathlib import Path

Message = dict[str, Any]
WORDS = {"voices": ["words"]}  # what vectors find depends on how far the background has come

NOON = 1_709_294_400.0
"""Quotes say to the minute when something was said, so two runs that are compared need one clock."""


def played(krunch: Krunch, messages: list[Message]) -> list[list[Message]]:
    """Each request of a conversation as sent."""
    sent = []
    for request in requests(messages):
        exchange = krunch.prepare(request, model="claude-sonnet-4-5", session="s")
        exchange.finish(messages[len(request)])
        assert exchange.report.problems == []
        sent.append(exchange.messages)
    return sent


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "dense"},
        {"cache_floor": "below"},
        {"rebase": "cold"},
        {"rebase": "always"},
        {"memo_bytes": 0},
    ],
    ids="-".join,
)
def test_what_is_sent_stands_for_the_request_after_recall(tmp_path: Path, options: dict[str, Any]) -> None:
    """However requests are compressed, `restore` gives what the window made of them, quotes included."""
    messages = agent_conversation(random.Random(7), 14)
    facts: dict[str, Any] = {"context_window": 900, "recall": WORDS}
    with Krunch(Settings(home=str(tmp_path / "plain"), roles=[], **facts), clock=lambda: NOON) as krunch:
        plain = played(krunch, messages)
    with Krunch(Settings(home=str(tmp_path / "sent"), **facts, **options), clock=lambda: NOON) as krunch:
        sent = played(krunch, messages)

    assert [restore(request) for request in sent] == plain
    assert any(is_recalled(message) for request in plain for message in request)


def test_an_insert_defines_nothing(tmp_path: Path) -> None:
    """A text that would define symbols as a message of its own defines none where it is quoted: quotes leave."""
    rows = "\n".join(f"10:{n:02}:00 INFO ferry harbour berth-{n % 3} moored after {n} minutes" for n in range(20))
    log = {"role": "user", "content": f"The harbour log of Monday, keep it in mind:\n{rows}"}
    hello = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    other = [
        {"role": ("user", "assistant")[n % 2], "content": " ".join(f"w{n}x{index}" for index in range(80))}
        for n in range(12)
    ]
    question = {"role": "user", "content": "What did the harbour log of Monday say of berth-2?"}
    facts: dict[str, Any] = {"model": "gpt-4o", "session": "s"}
    with Krunch(Settings(home=str(tmp_path), context_window=3000, context_recall=0.4, recall=WORDS)) as krunch:
        before = krunch.prepare([*hello, log], **facts)
        exchange = krunch.prepare([*hello, log, {"role": "assistant", "content": "Kept."}, *other, question], **facts)

    (insert,) = exchange.no_definitions
    assert before.report.messages[2].entries_added > 0
    assert insert == len(exchange.messages) - 2
    assert rows in restore(exchange.messages)[insert]["content"]
    assert exchange.report.messages[insert].entries_added == 0


def test_statistics_go_on_over_cuts(tmp_path: Path) -> None:
    """Each request is counted once, and the tokens counted are those of the requests after recall."""
    messages = agent_conversation(random.Random(3), 20)
    with Krunch(Settings(home=str(tmp_path), context_window=600)) as krunch:
        sent = played(krunch, messages)
        stats = krunch.stats("s")

    assert stats is not None
    assert stats.turns == len(sent)
    assert stats.tokens_before >= stats.tokens_after > 0
