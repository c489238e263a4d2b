from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import conversations
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import WORDS, prose

from krunch_plugins import Krunch, MemoryStore, Settings, restore
from krunch_plugins.conversations import demo_conversations

if TYPE_CHECKING:
    from krunch_plugins.turns import Message

MODEL = "gpt-4o"  # forgets after an hour at most


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def scattered(count: int, seed: int = 0) -> list[Message]:
    """A conversation whose repeated phrases stand in different messages, so that one message alone shows nothing."""
    phrases = [prose(seed + number, 9) for number in range(12)]
    messages: list[Message] = []
    for number in range(count):
        text = " ".join(f"{phrase} {WORDS[(number * 7 + place) % len(WORDS)]}" for place, phrase in enumerate(phrases))
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": f"Noted {number}."}]
    return messages[:-1]


def cold(store: MemoryStore, clock: Clock, **options: Any) -> Krunch:
    """A worker that rebases when the cache has gone cold."""
    return Krunch(Settings(rebase="cold", cache_floor="nothing", **options), memo_store=store, clock=clock)


def send(krunch: Krunch, messages: list[Message], session: str = "s", tenant: str | None = None) -> list[Message]:
    """What is sent for one request; it can be restored."""
    sent = krunch.prepare(messages, model=MODEL, session=session, tenant=tenant).messages
    assert restore(sent) == messages
    return sent


def never(messages: list[Message]) -> list[Message]:
    """What is sent without a rebase."""
    with Krunch(Settings(cache_floor="nothing")) as krunch:
        return send(krunch, messages)


def tokens(krunch: Krunch, messages: list[Message]) -> int:
    """Tokens of one request as sent."""
    return krunch.prepare(messages, model=MODEL, session="s").report.tokens_after


def test_a_cold_history_is_encoded_at_once_and_stays_so() -> None:
    """After the cache's lifetime everything is written anew, smaller; what comes later is added behind it."""
    messages, clock = scattered(8), Clock()
    with cold(MemoryStore(), clock) as krunch:
        warm = send(krunch, messages[:7])
        clock.now += 3_601
        rebased = send(krunch, messages[:9])
        clock.now += 60
        later = send(krunch, messages[:11])
        report = krunch.prepare(messages[:11], model=MODEL, session="s").report

    assert warm == never(messages[:7])
    assert rebased != never(messages[:9])
    assert later[:9] == rebased
    with Krunch(Settings(cache_floor="nothing")) as krunch:
        assert report.tokens_after < tokens(krunch, messages[:11]) * 0.8
    assert any(message.reason == "rebased" for message in report.messages)


def test_a_warm_history_is_left_alone() -> None:
    """Within the lifetime nothing that was sent changes, however long the conversation lasts."""
    messages, clock = scattered(8), Clock()
    with cold(MemoryStore(), clock) as krunch:
        for stop in range(1, 16, 2):
            assert send(krunch, messages[:stop]) == never(messages[:stop])
            clock.now += 3_599


def test_the_lifetime_can_be_set() -> None:
    """The provider's lifetime comes from the settings, if they say one."""
    messages, clock = scattered(4), Clock()
    with cold(MemoryStore(), clock, cache_lifetimes={"gpt-*": 10.0}) as krunch:
        send(krunch, messages[:5])
        clock.now += 11
        assert send(krunch, messages) != never(messages)


def test_an_unknown_last_request_does_not_count_as_cold() -> None:
    """A conversation that the store does not know may be one that another store's workers keep warm."""
    messages, clock = scattered(4), Clock()
    with cold(MemoryStore(), clock) as krunch:
        assert send(krunch, messages) == never(messages)
    with Krunch(Settings(rebase="cold", cache_floor="nothing"), clock=clock) as krunch:
        send(krunch, messages)
        clock.now += 1e6
        assert send(krunch, messages) == never(messages)


def test_a_rebase_survives_restarts_and_other_workers() -> None:
    """A new process with the same store sends the same bytes, and so does another worker beside it."""
    messages, clock, store = scattered(8), Clock(), MemoryStore()
    with cold(store, clock) as first:
        send(first, messages[:5])
        clock.now += 4_000
        rebased = send(first, messages[:9])
    with cold(store, clock) as second, cold(store, clock) as third:
        assert send(second, messages[:9]) == rebased
        later = send(second, messages[:11])
        assert later[:9] == rebased
        assert send(third, messages[:11]) == later
        second.reset("s")
        assert send(second, messages[:11]) == later


def test_traffic_of_one_worker_keeps_the_cache_warm_for_all() -> None:
    """One worker's silence is not the session's."""
    messages, clock, store = scattered(8), Clock(), MemoryStore()
    with cold(store, clock) as busy, cold(store, clock) as idle:
        send(idle, messages[:3])
        for stop in (5, 7, 9):
            clock.now += 3_000
            send(busy, messages[:stop])
        clock.now += 3_000
        assert send(idle, messages[:11]) == never(messages[:11])


def test_a_second_rebase_takes_the_place_of_the_first() -> None:
    """The history that was rebased may go cold again, and what has come meanwhile is encoded with it."""
    messages = [*scattered(4), {"role": "assistant", "content": "Go on."}, *scattered(8, seed=100)]
    clock, store = Clock(), MemoryStore()
    with cold(store, clock) as krunch:
        send(krunch, messages[:5])
        clock.now += 4_000
        send(krunch, messages[:7])
        once = tokens(krunch, messages)
        clock.now += 4_000
        twice = send(krunch, messages)
        assert tokens(krunch, messages) < once * 0.8
        more = [*messages, {"role": "assistant", "content": "Done."}]
        assert send(krunch, more)[: len(twice)] == twice


def test_an_edited_history_is_encoded_as_if_it_had_never_been_rebased() -> None:
    """A record that does not fit the messages is not used."""
    messages, clock = scattered(6), Clock()
    with cold(MemoryStore(), clock) as krunch:
        send(krunch, messages[:7])
        clock.now += 4_000
        send(krunch, messages[:9])
        edited = [{"role": "user", "content": "Something else."}, *messages[1:9]]
        assert send(krunch, edited) == never(edited)


def test_tenants_and_sessions_are_rebased_by_their_own_clocks() -> None:
    """What one tenant does makes nothing of another's warm or cold."""
    messages, clock, store = scattered(6), Clock(), MemoryStore()
    with cold(store, clock) as krunch:
        send(krunch, messages[:5], tenant="ann")
        clock.now += 4_000
        assert send(krunch, messages[:7], tenant="bob") == never(messages[:7])
        assert send(krunch, messages[:7], session="t", tenant="ann") == never(messages[:7])
        assert send(krunch, messages[:7], tenant="ann") != never(messages[:7])


class Broken:
    """A memo store whose disk is full, or that holds what somebody else wrote."""

    def __init__(self, data: bytes | None) -> None:
        self.data = data

    def get_state(self, session: str, name: str, *, tenant: str | None = None) -> bytes | None:
        """Whatever it holds."""
        return self.data

    def put_state(self, session: str, name: str, data: bytes, *, tenant: str | None = None) -> None:
        """Fails, unless it holds something."""
        if self.data is None:
            raise OSError("disk full")


@pytest.mark.parametrize("data", [None, b"", b"{", b"[]", b'{"last_request": "x", "messages": 1, "key": ""}', b"\xff"])
def test_a_broken_store_costs_the_rebase_and_nothing_else(data: bytes | None) -> None:
    """The request goes out as without one."""
    messages = scattered(4)
    with Krunch(Settings(rebase="cold", cache_floor="nothing"), memo_store=Broken(data)) as krunch:
        assert send(krunch, messages) == never(messages)


def test_always_encodes_each_request_whole() -> None:
    """Every request is as small as it can be, the same by any worker, without a store."""
    messages = scattered(8)
    always = Settings(rebase="always", cache_floor="nothing")
    with Krunch(always) as krunch, Krunch(always) as other, Krunch(Settings(cache_floor="nothing")) as plain:
        for stop in range(1, 16, 2):
            assert send(krunch, messages[:stop]) == send(other, messages[:stop], "another session")
            assert tokens(krunch, messages[:stop]) <= tokens(plain, messages[:stop])
        assert tokens(krunch, messages) < tokens(plain, messages) * 0.8


@pytest.mark.parametrize("profile", ["safe", "balanced", "dense"])
def test_real_conversations_come_back_exactly(profile: str) -> None:
    """Whole histories of recorded conversations are restored, and are no larger than message by message."""
    with (
        Krunch(Settings.model_validate({"rebase": "always", "profile": profile})) as always,
        Krunch(Settings.model_validate({"profile": profile})) as plain,
    ):
        for conversation in demo_conversations():
            whole = always.prepare(conversation.messages, model=MODEL, tools=conversation.tools)
            causal = plain.prepare(conversation.messages, model=MODEL, tools=conversation.tools)
            assert restore(whole.messages) == conversation.messages
            assert whole.report.tokens_after <= causal.report.tokens_after


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["safe", "balanced", "dense"]), st.integers(1, 8))
def test_hostile_conversations_come_back_exactly(seed: int, profile: str, point: int) -> None:
    """Literals that look like marks survive a rebase and what comes after it."""
    messages = conversations.conversation(random.Random(seed), longest=16)
    clock = Clock()
    options = Settings.model_validate({"rebase": "cold", "profile": profile, "min_tokens": 0})
    with Krunch(options, memo_store=MemoryStore(), clock=clock) as krunch:
        krunch.prepare(messages[:1], model=MODEL, session="s")
        clock.now += 1e6
        rebased = send(krunch, messages[:point])
        assert send(krunch, messages)[: len(rebased)] == rebased


def test_the_cost_of_a_rebase_is_that_of_a_lost_cache() -> None:
    """When the cache is cold neither side reads from it; when every request is rewritten only the plain one would."""
    prices = {"gpt-4o": {"input": 2.0, "output": 8.0, "cache_read": 0.2, "cache_write": 2.5}}
    messages, clock = scattered(16), Clock()
    with cold(MemoryStore(), clock, prices=prices, cache_minimums={"*": 0}) as krunch:
        krunch.prepare(messages[:29], model=MODEL, session="s")
        clock.now += 4_000
        at = krunch.prepare(messages, model=MODEL, session="s").report.cost
        after = krunch.prepare(messages, model=MODEL, session="s").report.cost
    with Krunch(Settings(rebase="always", prices=prices, cache_minimums={"*": 0})) as krunch:
        always = krunch.prepare(messages, model=MODEL, session="s").report.cost

    assert at is not None
    assert after is not None
    assert always is not None
    assert at.cached_plain == at.cached_sent == 0
    assert 0 < after.cached_sent < after.cached_plain
    assert always.cached_sent == 0 < always.cached_plain
