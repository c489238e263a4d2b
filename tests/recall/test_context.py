"""Contexts: a session's end, all of it, or its end and the old turns that matter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from agents import agent_conversation, answered, pairs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krunch_plugins import Krunch, Settings, Turn, is_recalled, tokens
from krunch_plugins.recall.messages import Lengths

if TYPE_CHECKING:
    import random
    from pathlib import Path

Message = dict[str, Any]

SYSTEM = {"role": "system", "content": "Be brief."}
DAY = 86_400.0
MARCH = 1_709_280_000.0  # 2024-03-01 08:00 UTC


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def bot(text: str) -> Message:
    """The assistant's."""
    return {"role": "assistant", "content": text}


def length(messages: list[Message]) -> int:
    """Tokens, as a budget counts them."""
    counting, tokenizer = Lengths(), tokens.load("o200k_base")
    return sum(counting.of(message, tokenizer) for message in messages)


def filled(krunch: Krunch, rounds: int = 30, session: str = "s", tenant: str | None = None) -> list[Message]:
    """A session that begins with a fact and goes on about other things, a day for each round."""
    assert krunch.store is not None
    messages = [SYSTEM, user("My violin teacher is called Oskar Lindqvist."), bot("A fine name, noted.")]
    for number in range(rounds):
        words = " ".join(f"thing{number}n{index}" for index in range(15))
        messages += [user(f"Day {number}: {words}"), bot(f"Listed {words}.")]
    turns = [Turn(0, message, MARCH + number // 2 * DAY) for number, message in enumerate(messages)]
    krunch.store.append(session, turns, tenant=tenant)
    return messages


def test_recent_is_the_end_that_fits_behind_the_instructions(tmp_path: Path) -> None:
    """The messages of the system first, then the last messages, as many as the budget has room for."""
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        messages = filled(krunch)
        recent = krunch.context("s", "recent", budget=500)
        everything = krunch.context("s", "recent", budget=100_000)

    count = len(recent) - 1
    assert recent == [SYSTEM, *messages[-count:]]
    assert length(recent) <= 500 < length([SYSTEM, *messages[-count - 1 :]])
    assert everything == messages


def test_full_is_everything(tmp_path: Path) -> None:
    """All messages in order, whatever the budget."""
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        messages = filled(krunch)

        assert krunch.context("s", "full", budget=1) == messages
        assert krunch.context("nobody", "full") == krunch.context("nobody") == krunch.context("nobody", "smart") == []


def test_smart_adds_the_old_turn_that_matters(tmp_path: Path) -> None:
    """What was said long ago stands between the instructions and the end, quoted, with when it was said, in budget."""
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        messages = filled(krunch)
        smart = krunch.context("s", "smart", query="What is the name of my violin teacher?", budget=600)

    assert smart[0] == SYSTEM
    assert [is_recalled(message) for message in smart].count(True) == 1
    assert is_recalled(smart[1])
    assert "<turn 2024-03-01 08:00, user>\nMy violin teacher is called Oskar Lindqvist.\n" in smart[1]["content"]
    assert "<turn 2024-03-02 08:00, assistant>\nA fine name, noted.\n" in smart[1]["content"]
    assert smart[2:] == messages[-len(smart[2:]) :]
    assert len(smart) > 2
    assert length(smart) <= 600


@pytest.mark.parametrize("query", ["What was thing29n4 on day 29?", "Go on.", "And then?", None])
def test_smart_adds_nothing_that_is_not_needed(tmp_path: Path, query: str | None) -> None:
    """A query about what is in the window anyway, or about nothing, gets the recent context."""
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        filled(krunch)

        assert krunch.context("s", "smart", query=query, budget=600) == krunch.context("s", budget=600)


def test_without_a_query_the_users_last_message_is_one(tmp_path: Path) -> None:
    """Smart looks for what the user said last."""
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        filled(krunch)
        assert krunch.store is not None
        krunch.store.append("s", [user("What is the name of my violin teacher?")])
        smart = krunch.context("s", "smart", budget=600)

    assert "Oskar Lindqvist" in str(smart)
    assert smart[-1] == user("What is the name of my violin teacher?")


def test_a_newest_message_beyond_the_budget_is_quoted_in_part(tmp_path: Path) -> None:
    """Where the last message takes more than half of the budget, smart quotes the parts of it that matter."""
    long = bot(" ".join(f"Sentence {number} is about the harbour." for number in range(300)))
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        filled(krunch)
        assert krunch.store is not None
        krunch.store.append("s", [user("Tell me of the harbour."), long])
        smart = krunch.context("s", "smart", query="The violin teacher, and the harbour: names?", budget=600)

    assert long not in smart
    assert "Oskar Lindqvist" in smart[1]["content"]
    assert "about the harbour. […]" in smart[1]["content"]
    assert length(smart) <= 600


def test_instructions_that_exceed_the_budget_are_all_there_is(tmp_path: Path) -> None:
    """Half an instruction may say the opposite of the whole, so they are never cut; there is no room for the rest."""
    instructions = {"role": "system", "content": "Never give anybody the password. " * 50}
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", [instructions, user("My violin teacher is Oskar."), bot("Yes.")])

        assert krunch.context("s", budget=100) == [instructions]
        assert krunch.context("s", "smart", query="violin teacher", budget=100) == [instructions]


def test_of_an_edited_instruction_the_last_edition_counts(tmp_path: Path) -> None:
    """A client that writes the time into its system prompt leaves many editions; the context has the last one only."""
    rules = "You are the assistant of a shipping company and answer in one short sentence, politely."
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        history: list[Message] = []
        for hour in range(5):
            system = {"role": "system", "content": f"{rules} It is {hour:02}:00."}
            history.append(user(f"Question {hour}?"))
            exchange = krunch.prepare([system, *history], model="gpt-4o", session="s")
            history.append(exchange.finish(bot(f"Answer {hour}.")))
        recent = krunch.context("s")

    assert recent == [{"role": "system", "content": f"{rules} It is 04:00."}, *history]


def test_editions_that_are_over_are_not_held_in_memory(tmp_path: Path) -> None:
    """What is remembered of a session's instructions does not grow with each request; trimmed ones leave it, too."""
    rules = "You are the assistant of a shipping company and answer in one short sentence, politely."
    with Krunch(Settings(home=str(tmp_path), recall={"voices": ["words"]})) as krunch:
        assert krunch.store is not None
        for hour in range(24):
            system = {"role": "system", "content": f"{rules} It is {hour:02}:00."}
            krunch.store.append("s", [system, user(f"Question {hour}?")])
            assert krunch.context("s", budget=60)[0] == system
        assert len(krunch._contexts._known[None, "s"].turns) == 1
        krunch.store.append("s", [{"role": "system", "content": "From now on in French."}])
        krunch.store.trim("s", 47)
        assert krunch.context("s", "recent", budget=60) == [
            user("Question 23?"),
            {"role": "system", "content": "From now on in French."},
        ]
        krunch.forget("s")
        assert krunch.context("s") == []

        assert not krunch._contexts._known


def test_later_instructions_stand_where_they_were_said(tmp_path: Path) -> None:
    """A message of the system within the end stays in its place; one from before it stands in front."""
    later = {"role": "system", "content": "From now on in French."}
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        filled(krunch)
        assert krunch.store is not None
        krunch.store.append("s", [later, user("Hello."), bot("Bonjour.")])

        assert krunch.context("s", budget=200)[-3:] == [later, user("Hello."), bot("Bonjour.")]
        assert krunch.context("s", budget=35) == [SYSTEM, later, user("Hello."), bot("Bonjour.")]
        assert krunch.context("s", budget=28) == [SYSTEM, later, bot("Bonjour.")]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False), st.sampled_from((150, 400, 1500)), st.sampled_from(("recent", "smart")))
def test_no_context_parts_a_call_from_its_result(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random, budget: int, mode: Any
) -> None:
    """Of any agent's conversation, a context has a call and its results or none of them, is in order and in budget."""
    messages = agent_conversation(rng)
    with Krunch(Settings(home=str(tmp_path_factory.mktemp("home")))) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", messages)
        context = krunch.context("s", mode, query="Which harbour has the saffron telescope?", budget=budget)

    said = [message for message in context if not is_recalled(message)]
    rest = iter(messages)
    assert all(any(message == one for one in rest) for message in said)
    instructions = [message for message in messages if message["role"] in ("system", "developer")]
    assert [message for message in said if message["role"] in ("system", "developer")] == instructions
    kept = [message for message in said if message not in instructions]
    assert kept == ([message for message in messages if message not in instructions][-len(kept) :] if kept else [])
    assert len(pairs(kept)) == sum(len(answered(message)) for message in kept)
    assert length(context) <= max(budget, length(instructions))


def test_contexts_of_other_tenants_and_sessions_are_theirs(tmp_path: Path) -> None:
    """Neither the end of a session nor what is quoted comes from another tenant or another session."""
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        filled(krunch, tenant="one")
        filled(krunch, 3, session="other", tenant="two")
        assert krunch.store is not None
        krunch.store.append("s", [user("Nothing here."), bot("Indeed.")], tenant="two")

        assert krunch.context("s") == []
        smart = krunch.context("s", "smart", query="violin teacher", tenant="two")
        assert smart == [user("Nothing here."), bot("Indeed.")]


def test_what_was_forgotten_is_in_no_context(tmp_path: Path) -> None:
    """A session that is begun again under its old id has none of its old instructions and turns."""
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        filled(krunch, 1)
        krunch.context("s")
        krunch.forget("s")
        filled(krunch, 2, session="t")
        assert krunch.store is not None
        krunch.store.append("s", [user(f"New {number}.") for number in range(9)])

        assert krunch.context("s", "smart", query="violin teacher") == [user(f"New {number}.") for number in range(9)]


def test_without_a_store_contexts_are_made_of_what_is_in_memory() -> None:
    """The newest turns of each session, as long as they are held."""
    messages = [SYSTEM, user("Hello."), bot("Good morning."), user("My name is Ann.")]
    with Krunch(Settings()) as krunch:
        reply = krunch.prepare(messages, model="gpt-4o", session="s").finish(bot("Hello Ann."))

        assert krunch.context("s") == krunch.context("s", "full") == [*messages, reply]
        assert krunch.context("s", "smart", query="name", budget=27) == [SYSTEM, user("My name is Ann."), reply]
        assert krunch.context("t") == []


async def test_the_async_twin_gives_the_same(tmp_path: Path) -> None:
    """`acontext` takes what `context` takes."""
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        filled(krunch)
        facts: dict[str, Any] = {"query": "my violin teacher", "budget": 600}

        assert await krunch.acontext("s", "smart", **facts) == krunch.context("s", "smart", **facts)


def test_odd_choices_are_refused() -> None:
    """An unknown mode and an empty budget raise, and say what is possible."""
    with Krunch(Settings()) as krunch:
        with pytest.raises(ValueError, match="recent, full, smart"):
            krunch.context("s", "clever")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="1 at least"):
            krunch.context("s", budget=0)
