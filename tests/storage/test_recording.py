"""The storage plugin records what passes, once, however clients resend it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krunch_plugins import ConversationStore, Exchange, Krunch, Reply, Report, Settings
from krunch_plugins.storage.plugin import StoragePlugin
from krunch_plugins.storage.recorder import digest, unrecorded

Open = Callable[..., ConversationStore]
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault


class Client:
    """Sends requests through the hook as a host does."""

    def __init__(self, store: ConversationStore, session: str | None = "s", tenant: str | None = None) -> None:
        self.plugin, self.store, self.session, self.tenant = StoragePlugin(store), store, session, tenant

    def call(self, messages: list[dict[str, Any]], answer: str | dict[str, Any], **reply: Any) -> Exchange:
        """One exchange."""
        sent = [{**message, "content": f"compressed {message.get('content')}"} for message in messages]
        exchange = Exchange(sent, "gpt-4o", self.session, self.tenant, None, messages, Report())
        message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        self.plugin.post_response(exchange, Reply(message, **reply))
        return exchange

    def texts(self) -> list[Any]:
        """Contents of what was recorded."""
        return [turn.message["content"] for turn in self.store.turns("s", tenant=self.tenant)]


def user(text: str) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, Any]:
    """The assistant's."""
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "be kind"}


def test_each_message_is_recorded_once(open_store: Open) -> None:
    """A client that resends everything with each request leaves each original message and each reply once, in order."""
    client = Client(open_store())
    history: list[dict[str, Any]] = [SYSTEM]
    for number in range(5):
        history.append(user(f"u{number}"))
        client.call(history, f"a{number}")
        history.append(bot(f"a{number}"))

    assert client.texts() == ["be kind", *(f"{who}{number}" for number in range(5) for who in "ua")]
    assert [turn.metadata for turn in client.store.turns("s", 1, 3)] == [{}, {"model": "gpt-4o"}]


def test_a_client_that_drops_old_messages(open_store: Open) -> None:
    """A sliding window, with or without the system message, records only what is new, also of equal messages."""
    client = Client(open_store())
    history: list[dict[str, Any]] = []
    for number in range(6):
        history.append(user("yes"))
        client.call([SYSTEM, *history[-3:]], f"a{number}")
        history.append(bot(f"a{number}"))

    assert client.texts() == ["be kind", *(text for number in range(6) for text in ("yes", f"a{number}"))]


def test_a_client_that_edits_old_messages(open_store: Open) -> None:
    """An edited message is recorded beside what it was; the unchanged ones around it are not recorded again."""
    client = Client(open_store())
    client.call([user("u1")], "a1")
    client.call([user("u1"), bot("a1"), user("u2")], "a2")
    client.call([user("u1 edited"), bot("a1"), user("u2"), bot("a2"), user("u3")], "a3")
    client.call([user("u1 edited"), bot("a1"), user("other u2")], "other a2")

    assert client.texts() == ["u1", "a1", "u2", "a2", "u1 edited", "u3", "a3", "other u2", "other a2"]


def test_a_client_that_moves_messages(open_store: Open) -> None:
    """A pinned message that moves within the request is not recorded again."""
    client = Client(open_store())
    client.call([SYSTEM, user("u1")], "a1")
    client.call([user("u1"), SYSTEM, bot("a1"), user("u2")], "a2")

    assert client.texts() == ["be kind", "u1", "a1", "u2", "a2"]


def test_a_client_whose_calls_overlap(open_store: Open) -> None:
    """Replies that a client sends in another order than they came in, after edited questions, are there once each."""
    client = Client(open_store())
    for name in ("one", "two", "three"):
        client.call([SYSTEM, user(f"please: {name}")], f"answer {name}")
    history = [SYSTEM]
    for name in ("three", "one", "two"):
        history += [user(name), bot(f"answer {name}")]
        client.call([*history, user(f"after {name}")], f"answer after {name}")
    said = client.texts()

    assert [text for text in said if text.startswith("answer")] == [
        f"answer {what}{name}"
        for what, names in (("", ("one", "two", "three")), ("after ", ("three", "one", "two")))
        for name in names
    ]
    assert sorted(said) == sorted(set(said))


def test_clients_that_rewrite_the_form(open_store: Open) -> None:
    """Text as parts, added empty fields, stripped space and cache marks do not make a message another one."""
    client = Client(open_store())
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    client.call([user("hello")], {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None})
    parts = {"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]}
    answer = {"role": "assistant", "content": "", "tool_calls": [call | {"index": 0}], "annotations": []}
    result = {"role": "tool", "tool_call_id": "c1", "content": "42\n"}
    client.call([parts, answer, result], "the answer is 42")
    client.call([parts, answer, result | {"content": "42"}, bot("the answer is 42 "), user("thanks")], "bye")

    assert [turn.message["role"] for turn in client.store.turns("s")] == [
        "user", "assistant", "tool", "assistant", "user", "assistant"]  # fmt: skip


def test_several_adapters_see_one_exchange(open_store: Open) -> None:
    """Two plugins on two openers of the store that see the same exchanges record each turn once."""
    one, two = Client(open_store()), Client(open_store())
    history: list[dict[str, Any]] = []
    for number in range(4):
        history.append(user(f"u{number}"))
        for client in (one, two, one):
            client.call(history, f"a{number}")
        history.append(bot(f"a{number}"))

    assert one.texts() == [text for number in range(4) for text in (f"u{number}", f"a{number}")]


def test_a_repeated_request(open_store: Open) -> None:
    """Asking again for another answer records the new answer only; the same answer is not recorded again."""
    client = Client(open_store())
    for answer in ("a1", "a2", "a1", "a2"):
        client.call([user("u1")], answer)

    assert client.texts() == ["u1", "a1", "a2"]


def test_a_restarted_process_goes_on(open_store: Open) -> None:
    """After a restart the plugin knows from the store what was recorded."""
    history = [user("u1")]
    Client(open_store()).call(history, "a1")
    client = Client(open_store())
    client.call([*history, bot("a1"), user("u2")], "a2")

    assert client.texts() == ["u1", "a1", "u2", "a2"]


def test_a_forgotten_session_begins_anew(open_store: Open) -> None:
    """What the client sends after its session was forgotten is recorded as if it were new."""
    client = Client(open_store())
    client.call([user("u1")], "a1")
    client.store.forget("s")
    client.call([user("u1"), bot("a1"), user("u2")], "a2")

    assert client.texts() == ["u1", "a1", "u2", "a2"]


def test_choices_and_partial_replies(open_store: Open) -> None:
    """Choice 0 is the conversation's turn; a broken-off reply is recorded and marked; an empty one is not."""
    client = Client(open_store())
    client.call([user("u1")], "a1")
    client.call([user("u1")], "another", choice=1)
    client.call([user("u1"), bot("a1"), user("u2")], "", streamed=True, partial=True)
    client.call([user("u1"), bot("a1"), user("u2")], "half an ans", streamed=True, partial=True)
    turns = client.store.turns("s")

    assert client.texts() == ["u1", "a1", "u2", "half an ans"]
    assert turns[-1].metadata == {"model": "gpt-4o", "partial": True}


def test_without_a_session_nothing_is_recorded(open_store: Open) -> None:
    """Exchanges without an explicit session leave nothing; tenants are kept apart."""
    store = open_store()
    Client(store, session=None).call([user("u")], "a")
    Client(store, tenant="t").call([user("u")], "a")

    assert store.sessions() == []
    assert store.sessions("t") == ["s"]


def test_recording_fails_open(open_store: Open) -> None:
    """If the store fails, the exchange goes on, the report says store_failed and the store counts it."""
    store = open_store(tenant_quota_bytes=1)
    client = Client(store)
    exchange = client.call([user("u")], "a")
    unstorable = client.call([{"role": "user", "content": object()}], "a")

    for failed in (exchange, unstorable):
        assert [(problem.plugin, problem.error) for problem in failed.report.problems] == [("storage", "store_failed")]
    assert store.stats().record_failures == 2


def test_as_a_plugin_of_krunch(open_store: Open) -> None:
    """Registered, it records the plain text of compressed, streamed and async exchanges."""
    store = open_store()
    text = "The quick brown fox jumps over the lazy dog near the river bank. " * 8
    with Krunch(Settings()) as krunch:
        krunch.register(StoragePlugin(store), "another store")  # beside Krunch's own storage
        first = [user(text)]
        krunch.prepare(first, model="gpt-4o", session="s").finish(bot("one"))
        second = [*first, bot("one"), user(text + "again")]
        exchange = krunch.prepare(second, model="gpt-4o", session="s")
        asyncio.run(exchange.afinish(bot("two")))

    assert exchange.messages[2]["content"] != second[2]["content"]
    assert [turn.message["content"] for turn in store.turns("s")] == [text, "one", text + "again", "two"]


@patient
@given(
    history=st.lists(st.sampled_from("abc"), max_size=12),
    start=st.integers(0, 12),
    added=st.lists(st.sampled_from("xyz"), max_size=3, unique=True),
)
def test_windows_of_any_history(history: list[str], start: int, added: list[str]) -> None:
    """Of a window of what was recorded followed by texts that were not, exactly those are new."""
    recorded = [digest(user(text)) for text in history]
    window = history[start:] + added
    new, _ = unrecorded(recorded, [digest(user(text)) for text in window])

    assert [window[index] for index in new] == added


@patient
@given(
    history=st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    place=st.integers(0, 11),
    text=st.sampled_from("xyz"),
)
def test_an_edit_anywhere_is_the_one_new_message(history: list[str], place: int, text: str) -> None:
    """The messages on both sides of it were sent before, whatever they are."""
    edited = list(history)
    edited[place % len(history)] = text
    new, _ = unrecorded(*([digest(user(one)) for one in texts] for texts in (history, edited)))

    assert new == [place % len(history)]


@pytest.mark.parametrize(
    "message", [{}, {"role": "user"}, {"content": [1, None]}, {"tool_calls": ["x"], "content": {"a": 1}}]
)
def test_digests_of_odd_messages(message: dict[str, Any]) -> None:
    """A message of any form has a digest, the same each time."""
    assert digest(message) == digest(dict(message))
