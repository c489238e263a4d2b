from __future__ import annotations

import gc
import json
import random
import threading
import tracemalloc
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from own_process import in_own_process
from texts import rich

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from krunch_plugins.turns import Message

MODEL = "gpt-4o"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def turns(count: int, seed: int = 0) -> list[Message]:
    """A conversation of so many requests."""
    messages: list[Message] = []
    for number in range(count):
        messages += [
            {"role": "user", "content": rich(100 * seed + number)},
            {"role": "assistant", "content": f"Done with {number}."},
        ]
    return messages[:-1]


def play(krunch: Krunch, messages: list[Message], session: str | None, tenant: str | None = None) -> None:
    """Send a conversation as its client would, one request for each reply."""
    for stop in range(1, len(messages) + 1, 2):
        krunch.prepare(messages[:stop], model=MODEL, session=session, tenant=tenant)


def test_the_figures_are_those_of_the_requests() -> None:
    """Conversations, turns, symbols, memory, tokens, money and reasons add up to what the reports said."""
    with Krunch(Settings(cache_floor="nothing")) as krunch:
        play(krunch, turns(3, seed=1), "a")
        play(krunch, turns(5, seed=2), "b")
        last = krunch.prepare(turns(5, seed=2), model=MODEL, session="b").report
        stats = krunch.stats()
        session = krunch.stats(session="b")

    assert stats.active_conversations == 2
    assert stats.total_turns_processed == 8
    assert stats.avg_turns_per_conversation == 4
    assert stats.memory_usage_kb > 1
    assert stats.config == Settings().efficiency.model_dump()
    assert [one.session for one in stats.conversations] == ["b", "a"]
    assert stats.symbols_in_use == sum(one.requests[-1].symbols_available for one in stats.conversations) > 0
    assert stats.tokens_saved == sum(one.tokens_saved for one in stats.conversations) > 0
    assert stats.cost_saved == pytest.approx(sum(one.cost_saved for one in stats.conversations))
    assert session is not None
    assert len(session.requests) == session.turns == 5
    assert session.requests[-1].tokens_after == last.tokens_after
    assert sum(session.reasons.values()) == len(last.messages)
    assert session.reasons["compressed"] == 5
    json.dumps(asdict(stats))  # it can be served as it is


def test_the_same_request_again_is_no_new_turn() -> None:
    """A retry costs money and is counted there, but the conversation has not grown."""
    with Krunch(Settings()) as krunch:
        once = krunch.prepare(turns(1), model=MODEL, session="a").report
        krunch.prepare(turns(1), model=MODEL, session="a")
        stats = krunch.stats(session="a")

    assert stats is not None
    assert stats.turns == 1
    assert len(stats.requests) == 1
    assert stats.tokens_before == 2 * once.tokens_before


def test_an_edited_history_has_the_series_of_its_new_messages() -> None:
    """When the client changes what it had said, the figures are those of what it says now."""
    messages = turns(4)
    edited = [{"role": "user", "content": "Something else."}, *messages[1:]]
    with Krunch(Settings()) as krunch, Krunch(Settings()) as fresh:
        play(krunch, messages, "a")
        krunch.prepare(edited, model=MODEL, session="a")
        fresh.prepare(edited, model=MODEL, session="a")
        known, expected = krunch.stats(session="a"), fresh.stats(session="a")

    assert known is not None
    assert expected is not None
    assert known.requests == expected.requests


def test_tenants_never_meet() -> None:
    """The same session of two tenants is two conversations, and neither sees the other's."""
    with Krunch(Settings()) as krunch:
        play(krunch, turns(2), "s", "ann")
        play(krunch, turns(3), "s", "bob")
        ann, bob = krunch.stats(session="s", tenant="ann"), krunch.stats(session="s", tenant="bob")

        assert ann is not None
        assert bob is not None
        assert (ann.turns, bob.turns) == (2, 3)
        assert krunch.stats(session="s") is None
        assert [one.tenant for one in krunch.stats(tenant="ann").conversations] == ["ann"]
        assert krunch.stats(tenant="ann").total_turns_processed == 2
        assert krunch.stats(tenant="eve").active_conversations == 0
        assert krunch.stats(tenant="ann").memory_usage_kb < krunch.stats().memory_usage_kb


def test_without_a_session_the_content_tells_conversations_apart() -> None:
    """Requests of one conversation are counted together, those of another are not, nor those of another tenant."""
    with Krunch(Settings()) as krunch:
        play(krunch, turns(3, seed=1), None)
        play(krunch, turns(2, seed=2), None)
        play(krunch, turns(2, seed=2), None, "ann")
        found = krunch.stats().conversations

    assert [(one.tenant, one.session, one.turns) for one in found] == [
        ("ann", None, 2),
        (None, None, 2),
        (None, None, 3),
    ]


def test_reset_forgets_a_session_a_tenant_or_everything() -> None:
    """Only what is named is forgotten, and what is sent stays the same."""
    messages = turns(2)
    with Krunch(Settings()) as krunch:
        for tenant in (None, "ann", "bob"):
            play(krunch, messages, "s", tenant)
            play(krunch, messages, "t", tenant)
        before = krunch.prepare(messages, model=MODEL, session="s").messages
        full = krunch.stats().memory_usage_kb

        krunch.reset("s")
        assert krunch.stats(session="s") is None
        assert krunch.stats(session="t") is not None
        assert krunch.stats(session="s", tenant="ann") is not None
        assert krunch.prepare(messages, model=MODEL, session="s").messages == before
        krunch.reset(tenant="ann")
        assert krunch.stats(tenant="ann").active_conversations == 0
        assert krunch.stats(tenant="ann").total_turns_processed == 0
        assert krunch.stats(tenant="bob").active_conversations == 2
        krunch.reset(session="t", tenant="bob")
        assert [one.session for one in krunch.stats(tenant="bob").conversations] == ["s"]
        assert krunch.stats().memory_usage_kb < full
        krunch.reset()
        assert krunch.stats().active_conversations == 0
        assert krunch.stats().total_turns_processed == 0
        assert krunch.stats().memory_usage_kb == 0


def held_without_a_memo() -> tuple[int, int]:
    """Bytes that are held after some conversations, and characters of one of their texts."""
    rng = random.Random(5)
    texts = ["\n".join(f"{rng.random()} and {rng.random()}" for _ in range(2_000)) for _ in range(12)]
    with Krunch(Settings(memo_bytes=0, profile="safe")) as krunch:
        krunch.prepare([{"role": "user", "content": texts[0]}], model="gpt-4o", session="first")
        tracemalloc.start()
        try:
            for number, text in enumerate(texts):
                krunch.prepare([{"role": "user", "content": text}], model="gpt-4o", session=f"s{number}")
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    return held, len(texts[0])


def test_statistics_hold_no_texts() -> None:
    """Where the memo keeps nothing, nothing is kept of a conversation but its figures."""
    held, characters = in_own_process(held_without_a_memo)

    assert held < characters


def test_no_more_conversations_are_kept_than_allowed() -> None:
    """The least recently used one goes first; the memo is bounded likewise."""
    with Krunch(Settings(efficiency={"max_conversations": 3})) as krunch:
        for number in range(3):
            krunch.prepare(turns(1, seed=number), model=MODEL, session=str(number))
        krunch.prepare(turns(1, seed=0), model=MODEL, session="0")
        three = krunch.stats().memory_usage_kb
        krunch.prepare(turns(1, seed=3), model=MODEL, session="3")
        stats = krunch.stats()

    assert [one.session for one in stats.conversations] == ["3", "0", "2"]
    assert stats.total_turns_processed == 4
    assert stats.memory_usage_kb < three * 1.2


def test_idle_conversations_are_dropped() -> None:
    """After the cleanup interval without a request nothing is kept of a conversation."""
    clock = Clock()
    with Krunch(Settings(efficiency={"cleanup_interval": 60}), clock=clock) as krunch:
        krunch.prepare(turns(1), model=MODEL, session="old")
        clock.now += 40
        krunch.prepare(turns(1), model=MODEL, session="new")
        clock.now += 20
        assert [one.session for one in krunch.stats().conversations] == ["new", "old"]
        clock.now += 1
        assert [one.session for one in krunch.stats().conversations] == ["new"]
        assert krunch.stats(session="old") is None


def test_threads_lose_no_request() -> None:
    """Eight threads on eight sessions and one shared one: every request is counted once."""
    messages = turns(4)
    with Krunch(Settings()) as krunch:

        def work(number: int) -> None:
            play(krunch, messages, f"own {number}")
            for _ in range(10):
                krunch.prepare(messages, model=MODEL, session="shared")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shared, stats = krunch.stats(session="shared"), krunch.stats()
        expected = krunch.prepare(messages, model=MODEL, session="x").report

    assert shared is not None
    assert shared.tokens_before == 80 * expected.tokens_before
    assert shared.tokens_after == 80 * expected.tokens_after
    assert stats.active_conversations == 9
    assert stats.total_turns_processed == 8 * 4 + 1
    assert all(len(one.requests) == 4 for one in stats.conversations)


def test_nothing_is_recorded_that_was_not_looked_at() -> None:
    """With compression off there is nothing to tell."""
    with Krunch(Settings(mode="off")) as krunch:
        krunch.prepare(turns(2), model=MODEL, session="s")

        assert krunch.stats().active_conversations == 0
