"""How a window lets messages leave: in large steps, and by the message list alone."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from agents import agent_conversation, requests

from krunch_plugins import ContextReport, Krunch, Settings, is_recalled, restore

if TYPE_CHECKING:
    from pathlib import Path

Message = dict[str, Any]

WINDOW = 1_200


def opened(home: Path, **options: Any) -> Krunch:
    """A Krunch with a store and a window."""
    return Krunch(Settings(home=str(home), context_window=WINDOW, recall={"voices": ["words"]}, **options))


def prepared(krunch: Krunch, messages: list[Message]) -> tuple[list[Message], ContextReport]:
    """What is left of a request, without what is put in, and what the report says of it."""
    exchange = krunch.prepare(messages, model="gpt-4o", session="s")
    assert exchange.report.context is not None
    return [one for one in restore(exchange.messages) if not is_recalled(one)], exchange.report.context


def test_messages_leave_in_large_steps(tmp_path: Path) -> None:
    """A request that exceeds the window is cut to about half of it, and then grows until it exceeds it again."""
    messages: list[Message] = [{"role": "system", "content": "You help."}, {"role": "user", "content": "Hello."}]
    reports = []
    with opened(tmp_path, context_recall=0.0) as krunch:  # otherwise some of the window is kept free for that
        for number in range(150):
            role = ("assistant", "user")[number % 2]
            words = " ".join(f"item{number}x{at}" for at in range(8))
            messages.append({"role": role, "content": f"Of number {number}: {words}"})
            reports.append(prepared(krunch, messages)[1])

    steps = [(before, after) for before, after in pairwise(reports) if after.cuts > before.cuts]
    assert len(steps) >= 5
    for before, after in steps:
        assert after.cuts == before.cuts + 1
        assert before.tokens_after > WINDOW * 0.9
        assert WINDOW * 0.4 < after.tokens_after <= WINDOW * 0.55  # half, and what stays
    assert max(report.tokens_after for report in reports) <= WINDOW


def test_what_leaves_follows_from_the_messages_alone(tmp_path: Path) -> None:
    """A worker with a store of its own, which sees a request for the first time, lets the same messages leave."""
    messages = agent_conversation(random.Random(5), 20)
    with opened(tmp_path / "grown") as krunch:
        grown = []
        for request in requests(messages):
            grown.append(prepared(krunch, request))
            krunch.store.append("other", [request[-1]])  # type: ignore[union-attr]  # it has a home
    assert grown[-1][1].cuts >= 3
    for number, request in enumerate(requests(messages)):
        if number % 3 == 0:
            with opened(tmp_path / str(number)) as krunch:
                said, report = prepared(krunch, request)
            assert said == grown[number][0]
            assert (report.cuts, report.left) == (grown[number][1].cuts, grown[number][1].left)
