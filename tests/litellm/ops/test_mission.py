"""The whole of it through LiteLLM: compressed, recorded, trimmed, and recalled in what the model receives."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import krunch_litellm
import litellm
import pytest
from krunch_litellm.identity import tenant_of
from litellm.proxy._types import UserAPIKeyAuth

from krunch_plugins import ConversationStore, Krunch, Settings, is_recalled, restore
from krunch_plugins.settings import RecallSettings
from krunch_plugins.upstream import Answer, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.litellm.ops.conftest import Proxy

    Send = Callable[[list[dict[str, Any]]], str]

WINDOW = 2_000
ALL = ["krunch-expand", "watcher", "krunch-compress"]
FACT = "My violin teacher is called Oskar Lindqvist."
DAYS = 24
QUESTION = "What is the name of my violin teacher?"
MANY = 10_100
"""Turns above which vectors are searched through hnswlib."""


@pytest.fixture(scope="module")
def model() -> Iterator[Upstream]:
    """A model that talks much, and never the same."""
    numbers = itertools.count()
    with Upstream(lambda _: Answer(chatter(next(numbers)))) as upstream:
        yield upstream


def chatter(number: int) -> str:
    """What is said in between: it repeats itself, and has no word in common with what is said before and after."""
    rng = random.Random(number)
    words = ["".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(4)) for _ in range(9)]
    return "; ".join(f"{chr(ord('a') + n)}{words[0]} {' '.join(words[1:])}" for n in range(6))


def converse(send: Send, fact: str = FACT) -> list[dict[str, Any]]:
    """A long conversation that begins with a fact and ends with a question about it; what the caller has of it."""
    messages = [{"role": "system", "content": "You are a careful operator."}, {"role": "user", "content": "Hello."}]
    messages.append({"role": "assistant", "content": send(messages)})
    messages.append({"role": "user", "content": fact})
    for _ in range(DAYS):
        messages.append({"role": "assistant", "content": send(messages)})
        messages.append({"role": "user", "content": "Go on."})
    messages.append({"role": "assistant", "content": send(messages)})
    messages.append({"role": "user", "content": QUESTION})
    messages.append({"role": "assistant", "content": send(messages)})
    return messages


def check(sent: list[dict[str, Any]], given: list[dict[str, Any]]) -> None:
    """The last request was trimmed, compressed, and has the fact in it again, as recalled."""
    plain = restore(sent)

    assert len(sent) < len(given) - 10
    assert sent != plain
    assert plain[-1] == {"role": "user", "content": QUESTION}
    recalled = [message["content"] for message in plain if is_recalled(message)]
    assert any(FACT in text for text in recalled)
    assert not any(message.get("content") == FACT for message in plain)


def recorded(store: ConversationStore, session: str, tenant: str | None = None) -> list[dict[str, Any]]:
    """What the store has of a session, in OpenAI's two keys."""
    turns = store.turns(session, tenant=tenant)
    return [{"role": turn.message["role"], "content": turn.message["content"]} for turn in turns]


def settings(home: Path, *voices: str) -> Settings:
    """A window, and who finds what has left it."""
    recall = RecallSettings(voices=frozenset(voices))  # type: ignore[arg-type]  # pydantic checks the names
    return Settings(home=home, context_window=WINDOW, context_recall=0.5, recall=recall)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Krunch]:
    """A store with many turns, found by their vectors alone."""
    pytest.importorskip("hnswlib")
    with Krunch(settings(tmp_path_factory.mktemp("filled"), "vectors")) as krunch:
        assert krunch.store is not None
        notes = [f"note {number} about thing {number % 97} in box {number % 31}" for number in range(MANY)]
        krunch.store.append("notes", [{"role": "user", "content": note} for note in notes])
        assert krunch.flush(120)
        assert "hnswlib" in sys.modules
        yield krunch


@pytest.fixture(scope="module")
def by_words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Krunch]:
    """A store whose turns are found by their words alone."""
    with Krunch(settings(tmp_path_factory.mktemp("words"), "words")) as krunch:
        yield krunch


@pytest.mark.parametrize("finder", ["by_words", "filled"])
@pytest.mark.parametrize("way", ["install", "callback"])
def test_the_mission_through_the_sdk(way: str, finder: str, model: Upstream, request: pytest.FixtureRequest) -> None:
    """With `install()` and with the callback: a fact that left the window comes back when it is asked for."""
    krunch: Krunch = request.getfixturevalue(finder)
    options = {"model": "openai/gpt-4o", "api_base": model.url, "api_key": "none", "metadata": {"session_id": way}}
    if way == "install":
        krunch_litellm.install(krunch)

        def send(messages: list[dict[str, Any]]) -> str:
            return str(litellm.completion(messages=messages, **options).choices[0].message.content)
    else:
        litellm.callbacks = [krunch_litellm.KrunchCallback(krunch)]

        def send(messages: list[dict[str, Any]]) -> str:
            reply = asyncio.run(litellm.acompletion(messages=messages, **options))
            return str(reply.choices[0].message.content)

    given = converse(send)

    check(model.requests[-1]["messages"], given)
    assert krunch.store is not None
    assert recorded(krunch.store, way) == given


@pytest.mark.parametrize("streamed", [False, True])
def test_the_mission_through_the_proxy(
    guarded: Proxy, model_server: Upstream, answers: dict[str, Any], *, streamed: bool
) -> None:
    """With `KRUNCH_HOME` set the proxy records, trims and recalls, and what one key has said never reaches another."""
    numbers = itertools.count()
    for text in ("Hello.", "Good morning.", "Go on.", FACT, QUESTION):
        answers[text] = lambda _: Answer(chatter(next(numbers)))
    mine, other = f"sk-user-mission-{streamed}", f"sk-user-other-{streamed}"

    def send(messages: list[dict[str, Any]], key: str = mine) -> str:
        return guarded.text(key, session="mission", messages=messages, stream=streamed, guardrails=ALL)

    given = converse(send)

    check(model_server.requests[-1]["messages"], given)
    with ConversationStore(guarded.log.with_name("home")) as store:
        assert recorded(store, "mission", tenant_of(UserAPIKeyAuth(api_key=mine))) == given

    start = len(model_server.requests)
    converse(lambda messages: send(messages, other), fact="Good morning.")

    assert len(model_server.requests[-1]["messages"]) < len(given) - 10
    assert "Oskar" not in str(model_server.requests[start:])


def test_the_mission_by_vectors_and_over_a_restart(
    tmp_path: Path, start_proxy: Callable[..., Proxy], model_server: Upstream, answers: dict[str, Any]
) -> None:
    """What a key has said comes back through hnswlib, from the history of a proxy that was stopped; so do figures."""
    pytest.importorskip("hnswlib")
    numbers = itertools.count()
    for text in ("Hello.", "Go on.", FACT, QUESTION):
        answers[text] = lambda _: Answer(chatter(next(numbers)))
    home, key = tmp_path / "home", "sk-user-restarted"
    with Krunch(settings(home, "vectors")) as krunch:
        assert krunch.store is not None
        notes = [f"note {number} about thing {number % 97} in box {number % 31}" for number in range(MANY)]
        told = [{"role": "user", "content": note} for note in notes]
        krunch.store.append("notes", told, tenant=tenant_of(UserAPIKeyAuth(api_key=key)))
        assert krunch.flush(120)
    variables = {
        "KRUNCH_HOME": str(home),
        "KRUNCH_CONTEXT_WINDOW": str(WINDOW),
        "KRUNCH_CONTEXT_RECALL": "0.5",
        "KRUNCH_RECALL_VOICES": "vectors",
        "KRUNCH_RECALL_EMBED_SECONDS": "60",
    }
    running = [start_proxy(tmp_path, variables)]

    def send(messages: list[dict[str, Any]]) -> str:
        if len(messages) == DAYS:  # half of them have gone by, and the first ones have left the window
            running.pop().stop()
            running.append(start_proxy(tmp_path, variables))
        reply = running[0].text(key, session="mission", messages=messages)
        if len(messages) == DAYS:  # the vectors are loaded in the background, from the first search on
            maps = Path(f"/proc/{running[0].process.pid}/maps")
            running[0].eventually(lambda: "hnswlib" in maps.read_text(encoding="utf-8"), True, seconds=60)
        return reply

    start = len(model_server.requests)
    try:
        given = converse(send)
        requests = running[0].stats(key)["krunch"]["totals"]["requests"]
    finally:
        running[0].stop()

    check(model_server.requests[-1]["messages"], given)
    assert requests == len(model_server.requests) - start
