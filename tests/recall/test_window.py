"""The window: old messages leave long requests, and what matters of them comes back."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from agents import agent_conversation, pairs, prose, requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krunch_plugins import ContextReport, Exchange, Krunch, Settings, is_recalled, restore

if TYPE_CHECKING:
    from pathlib import Path

Message = dict[str, Any]

SYSTEM = {"role": "system", "content": "You help with the harbour's paperwork."}


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def bot(text: str) -> Message:
    """The assistant's."""
    return {"role": "assistant", "content": text}


def small_talk(number: int) -> list[Message]:
    """A question and its answer, about 90 tokens, that nobody asks about later."""
    words = " ".join(f"item{number}x{index}" for index in range(12))
    return [user(f"Sort list {number} please: {words}"), bot(f"List {number} sorted: {words}")]


def long_talk(rounds: int = 20) -> list[Message]:
    """A conversation that tells something at its beginning, and is about other things for long after."""
    told = [user("My ferry ticket has the number QX-7781, keep that."), bot("Noted: QX-7781.")]
    opening = [SYSTEM, user("Hello, this is about several things."), bot("Go ahead.")]
    return [*opening, *told, *(message for number in range(rounds) for message in small_talk(number))]


def report(exchange: Exchange) -> ContextReport:
    """The part of the report that is about the window."""
    assert exchange.report.context is not None
    return exchange.report.context


def talk(krunch: Krunch, messages: list[Message], session: str | None = "s", **facts: Any) -> Exchange:
    """One request and its reply."""
    exchange = krunch.prepare(messages, model="gpt-4o", session=session, **facts)
    exchange.finish(bot("Here you are."))
    return exchange


def opened(home: Path | str, window: int | None = 600, **options: Any) -> Krunch:
    """A Krunch with a store and a window."""
    return Krunch(Settings(home=str(home), context_window=window, **options))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False), st.sampled_from((400, 900, 2500)))
def test_the_prefix_breaks_at_a_cut_and_nowhere_else(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random, window: int
) -> None:
    """Over long agent conversations, each request begins with the one before it unless messages have left in between.

    Instructions and the first message stay, no result is parted from its call, and another worker sends the same.
    """
    messages = agent_conversation(rng)
    sent: list[Message] = []
    before: list[Message] = []
    settled: list[tuple[list[Message], list[Message]]] = []
    cuts = 0
    home = tmp_path_factory.mktemp("home")
    with opened(home, window) as krunch:
        for request in requests(messages):
            exchange = krunch.prepare(request, model="gpt-4o", session="s")
            exchange.finish(messages[len(request)])
            plain = restore(exchange.messages)
            found = report(exchange)
            if found.cuts == cuts:
                assert plain[: len(before)] == before
                assert exchange.messages[: len(sent)] == sent
            assert found.cuts >= cuts
            assert exchange.report.problems == []
            said = [message for message in plain if not is_recalled(message)]
            kept = _positions(said, request)
            assert all(at in kept for at, one in enumerate(request) if one["role"] in ("system", "developer"))
            first = next(at for at, one in enumerate(request) if one["role"] == "user")
            assert first in kept or window == 400  # which the longest first message takes more than half of
            assert len(request) - 1 in kept
            assert all((call in kept) == (result in kept) for call, result in pairs(request))
            assert len(request) - len(said) == found.left
            sent, before, cuts = exchange.messages, plain, found.cuts
            if found.recall in ("recalled", "not_the_users"):
                settled.append((request, sent))
    with opened(home, window) as other:
        for request, sent in settled[-6:]:
            assert other.prepare(request, model="gpt-4o", session="s").messages == sent


def _positions(kept: list[Message], request: list[Message]) -> set[int]:
    """Where the messages that were kept stood; they are the request's own objects' equals, in order, the end first."""
    positions = set()
    at = len(request)
    for message in reversed(kept):
        at -= 1
        while request[at] != message:
            at -= 1
        positions.add(at)
    return positions


def test_a_request_within_the_window_is_left_alone(tmp_path: Path) -> None:
    """Nothing leaves, nothing is recalled, and the report says that it fits."""
    messages = [SYSTEM, user("Hello."), bot("Good morning."), user("How are you?")]
    with opened(tmp_path) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4o", session="s")

    assert restore(exchange.messages) == messages
    assert report(exchange) == ContextReport(600, tokens_before=report(exchange).tokens_before,
                                             tokens_after=report(exchange).tokens_before)  # fmt: skip


def test_without_a_window_there_is_no_report_of_one(tmp_path: Path) -> None:
    """It is off by default, and when compression is off nothing is touched either."""
    messages = long_talk()
    with opened(tmp_path / "a", None) as krunch:
        plain = krunch.prepare(messages[:-1], model="gpt-4o", session="s")
    with opened(tmp_path / "b", mode="off") as krunch:
        off = krunch.prepare(messages[:-1], model="gpt-4o", session="s")

    assert plain.report.context is None
    assert off.report.context is None
    assert off.messages == messages[:-1]


def test_what_left_is_recalled_when_it_is_asked_for(tmp_path: Path) -> None:
    """A fact from the beginning, long gone from the request, comes back right before the question about it."""
    with opened(tmp_path) as krunch:
        talk(krunch, long_talk()[:-1])
        exchange = krunch.prepare(
            [*long_talk(), user("Which number has my ferry ticket?")], model="gpt-4o", session="s"
        )

    found = report(exchange)
    plain = restore(exchange.messages)
    assert (found.reason, found.recall) == ("left", "recalled")
    assert is_recalled(plain[-2])
    assert "QX-7781" in plain[-2]["content"]
    assert plain[-1]["content"] == "Which number has my ferry ticket?"
    assert [is_recalled(message) for message in plain].count(True) == found.inserts == 1
    assert ("s", 3) in found.recalled
    assert found.tokens_after <= 600
    assert plain[:2] == long_talk()[:2]


def test_the_first_request_of_a_session_may_exceed_the_window(tmp_path: Path) -> None:
    """A client that comes with a long history loses nothing: it is recorded before any of it leaves."""
    messages = [*long_talk(), user("Which number has my ferry ticket?")]
    with opened(tmp_path) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4o", session="s")
        assert krunch.store is not None
        stored = [turn.message for turn in krunch.store.turns("s")]
        reply = exchange.finish(bot("QX-7781."))
        after = [turn.message for turn in krunch.store.turns("s")]

    assert report(exchange).recall == "recalled"
    assert "QX-7781" in restore(exchange.messages)[-2]["content"]
    assert stored == messages
    assert after == [*messages, reply]


def test_an_insert_is_sent_again_at_its_place_by_every_worker(tmp_path: Path) -> None:
    """After a restart, and in another process, the same requests are the same bytes: what was recalled is recorded."""
    history = [*long_talk(), user("Which number has my ferry ticket?")]
    longer = [*history, bot("QX-7781."), user("Thanks, nothing more.")]
    with opened(tmp_path) as krunch:
        talk(krunch, long_talk()[:-1])
        first = talk(krunch, history).messages
    with opened(tmp_path) as krunch:
        again = krunch.prepare(history, model="gpt-4o", session="s")
        second = krunch.prepare(longer, model="gpt-4o", session="s")
    program = (
        "import json, sys; from krunch_plugins import Krunch, Settings\n"
        "home, histories = json.load(sys.stdin)\n"
        "with Krunch(Settings(home=home, context_window=600)) as krunch:\n"
        "    print(json.dumps([krunch.prepare(one, model='gpt-4o', session='s').messages for one in histories]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps([str(tmp_path), [history, longer]]),
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert again.messages == first
    assert report(again).recall == "replayed"
    assert report(again).recalled
    assert second.messages[: len(first)] == first
    assert json.loads(done.stdout) == [first, second.messages]


def test_an_insert_leaves_with_a_cut(tmp_path: Path) -> None:
    """Once the message that it stood before has left, so has the insert; and it can be recalled again."""
    messages = [*long_talk(), user("Which number has my ferry ticket?")]
    with opened(tmp_path) as krunch:
        talk(krunch, messages)
        messages += [bot("QX-7781."), *(one for number in range(30, 50) for one in small_talk(number))]
        later = krunch.prepare([*messages, user("Sort list 70 please.")], model="gpt-4o", session="s")
        asked = krunch.prepare(
            [*messages, user("Once more the ferry ticket, which number?")], model="gpt-4o", session="s"
        )

    assert "QX-7781" not in str(restore(later.messages))
    assert report(asked).recall == "recalled"
    assert "QX-7781" in restore(asked.messages)[-2]["content"]


def test_nothing_is_recalled_in_a_loop_of_tool_calls(tmp_path: Path) -> None:
    """When the last message is a tool's, nothing is put in; the user's question stays, though it is many calls back."""
    messages = [*long_talk(), user("Look for the ferry ticket number everywhere, please.")]
    with opened(tmp_path) as krunch:
        for number in range(12):
            call = {"id": f"c{number}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            messages += [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": f"c{number}", "content": prose(random.Random(number), 60)},
            ]
            exchange = talk(krunch, messages)

    plain = restore(exchange.messages)
    assert report(exchange).recall == "not_the_users"
    assert report(exchange).inserts == 0
    assert user("Look for the ferry ticket number everywhere, please.") in plain
    assert plain[:2] == messages[:2]
    assert plain[-2:] == messages[-2:]


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("Yes, go on please.", "nothing_asked"),
        ("Which list had item19x3 and item19x4 in it?", "in_window"),
    ],
)
def test_nothing_is_recalled_where_nothing_is_needed(tmp_path: Path, question: str, why: str) -> None:
    """A message with no word to look for, or about what is in the window, gets no quotes."""
    with opened(tmp_path) as krunch:
        talk(krunch, long_talk()[:-1])
        exchange = krunch.prepare([*long_talk(), user(question)], model="gpt-4o", session="s")

    assert report(exchange).recall == why
    assert report(exchange).inserts == 0
