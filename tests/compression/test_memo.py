"""What is remembered of earlier requests: that it serves, that it is bounded, and that it is told truly."""

from __future__ import annotations

import gc
import random
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from own_process import in_own_process
from texts import prose, rich, tokens

from krunch_plugins import Krunch, Settings, restore
from krunch_plugins.tokens import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins.turns import Message

MODEL = "gpt-4o"

LIMIT = 1_000_000


def short_lines(rng: random.Random) -> str:
    """Hundreds of lines of a few characters, each unlike all others."""
    return "\n".join(f"{rng.randrange(10**6)} {rng.choice('abc')}" for _ in range(400))


def numbered_lines(rng: random.Random) -> str:
    """A file as a tool prints it."""
    return "\n".join(f"{number}\t{prose(rng.randrange(10**6), 7)}" for number in range(1, 121))


def one_line(rng: random.Random) -> str:
    """Long prose."""
    return prose(rng.randrange(10**6), 700)


def unicode_lines(rng: random.Random) -> str:
    """Lines of characters that take four bytes each in memory."""
    return "\n".join(chr(0x1F600 + rng.randrange(60)) * rng.randrange(5, 30) + str(rng.random()) for _ in range(100))


def held_after_conversations(make: Callable[[random.Random], str]) -> tuple[int, float]:
    """Bytes that are held after many conversations, and what the statistics say."""
    rng = random.Random(make.__name__)
    with Krunch(Settings(memo_bytes=LIMIT, efficiency={"max_conversations": 100_000})) as krunch:
        krunch.prepare([{"role": "user", "content": make(rng)}], model=MODEL, session="warm")
        krunch.reset()
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(80):
                messages: list[Message] = [{"role": "user", "content": make(rng)} for _ in range(4)]
                krunch.prepare(messages, model=MODEL, session=str(number))
            del messages
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        return held, krunch.stats().memory_usage_kb * 1024


@pytest.mark.parametrize("make", [short_lines, numbered_lines, one_line, unicode_lines])
def test_memory_is_bounded_by_bytes(make: Callable[[random.Random], str]) -> None:
    """Whatever the texts are like, about as much is held as `memo_bytes` allows, and as the statistics say."""
    held, told = in_own_process(held_after_conversations, make)

    assert LIMIT / 3 < held < 2 * LIMIT
    assert held / 2 < told < 2 * held


def held_after_edits() -> int:
    """Bytes that are held after a client has edited its last message again and again."""
    rng = random.Random(5)
    messages: list[Message] = [{"role": "user", "content": short_lines(rng)} for _ in range(8)]
    with Krunch(Settings(memo_bytes=LIMIT, efficiency={"max_conversations": 100_000})) as krunch:
        krunch.prepare(messages, model=MODEL, session="s")
        krunch.reset()
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(60):
                edited = [*messages[:-1], {"role": "user", "content": f"Edited for the {number}th time."}]
                krunch.prepare(edited, model=MODEL, session="s")
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    return held


def test_memory_is_bounded_where_clients_edit_old_messages() -> None:
    """Each edit starts another line of messages, which holds what came before it once more."""
    assert in_own_process(held_after_edits) < 2 * LIMIT


def test_a_known_history_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unchanged history is hashed and nothing else: not one of its texts is cut into tokens."""
    messages: list[Message] = [{"role": "user", "content": rich(number)} for number in range(6)]
    counted: list[str] = []
    encode = Tokenizer.encode

    def noting(self: Tokenizer, text: str) -> list[int]:
        counted.append(text)
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", noting)
    with Krunch(Settings()) as krunch:
        sent = krunch.prepare(messages, model=MODEL, session="s").messages
        assert counted
        counted.clear()
        assert krunch.prepare(messages, model=MODEL, session="s").messages == sent
        assert not counted
        krunch.prepare([*messages, {"role": "user", "content": "And what now?"}], model=MODEL, session="s")
        assert "".join(counted).replace("And what now?", "") == ""
        counted.clear()
        assert krunch.prepare(messages, model=MODEL, session="t").messages == sent
        assert counted  # another session shares nothing, not even time


def test_tools_are_remembered_for_each_session_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tools of a session are counted once, and no other session with the same ones is faster for that."""
    tools = [{"type": "function", "function": {"name": "look", "description": rich(1), "parameters": {}}}]
    messages: list[Message] = [{"role": "user", "content": "Look."}]
    counted: list[str] = []
    encode = Tokenizer.encode

    def noting(self: Tokenizer, text: str) -> list[int]:
        counted.append(text)
        return encode(self, text)

    def times(krunch: Krunch, **whose: Any) -> int:
        counted.clear()
        krunch.prepare(messages, model=MODEL, tools=tools, **whose)
        return sum("look" in text for text in counted)

    monkeypatch.setattr(Tokenizer, "encode", noting)
    with Krunch(Settings()) as krunch:
        assert [times(krunch, session="s", tenant=tenant) for tenant in ("a", "a", "b", "b")] == [1, 0, 1, 0]
        assert times(krunch, session="t", tenant="a") == 1
        krunch.reset(session="s", tenant="a")
        assert [times(krunch, session="s", tenant=tenant) for tenant in ("a", "b")] == [1, 0]


def test_ten_thousand_definitions_cost_a_request_nothing_beyond_what_it_uses() -> None:
    """A long conversation's dictionary is in its old messages only, and is gone with those that the client drops."""
    phrases = [f"{prose(number, 4)} number {number}" for number in range(10_000)]
    messages: list[Message] = [
        {"role": "user", "content": "\n".join(f"{one}; {one}; {one}" for one in phrases[start : start + 250])}
        for start in range(0, len(phrases), 250)
    ]
    plain = prose(77, 60)
    settings: dict[str, Any] = {"efficiency": {"enabled": False}}
    with Krunch(Settings(**settings)) as krunch:
        krunch.prepare(messages, model=MODEL, session="s")
        whole = krunch.prepare([*messages, {"role": "user", "content": plain}], model=MODEL, session="s")
        using = krunch.prepare(
            [*messages, {"role": "user", "content": f"{plain} {phrases[9]}."}], model=MODEL, session="s"
        )
        dropped = krunch.prepare(
            [messages[-1], {"role": "user", "content": f"{plain} {phrases[9]}."}], model=MODEL, session="s"
        )

    assert len(whole.symbols) > 9_000
    assert whole.messages[-1]["content"] == plain
    assert whole.report.messages[-1].overhead_tokens == whole.report.messages[-1].symbols_used == 0
    assert using.report.messages[-1].symbols_used == 1
    assert using.report.messages[-1].overhead_tokens == 0
    assert tokens(str(using.messages[-1]["content"])) < tokens(plain) + 8
    assert 0 < len(dropped.symbols) < 300
    assert phrases[9] in str(dropped.messages[-1]["content"])
    assert restore(dropped.messages)[0] == messages[-1]
