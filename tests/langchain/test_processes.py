"""Processes that share a store, a chat history and a thread of checkpoints lose nothing of each other's."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import KrunchByteStore, KrunchChatMessageHistory, KrunchSaver, KrunchStore, krunchify
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.checkpoint.base import empty_checkpoint

from krunch_plugins import ConversationStore, Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")

NAMES = ("a", "b")
THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


def talk(store: ConversationStore, name: str) -> None:
    """Ask 20 questions in one session."""
    model: Any = RunnableLambda(lambda messages: AIMessage(f"answer to {messages[-1].text}"))
    chain: Any = RunnableWithMessageHistory(
        model,
        lambda session: KrunchChatMessageHistory(session, store=store),
    )
    for number in range(20):
        chain.invoke(f"{name} {number}", {"configurable": {"session_id": "s"}})


class Echo(BaseChatModel):
    """A model that repeats what it is asked."""

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"answer to {messages[-1].text}"))])


PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Be brief."), MessagesPlaceholder("past"), ("human", "Please: {question}")]
)


def talk_wrapped(store: ConversationStore, name: str) -> None:
    """Ask 12 questions of a wrapped model, which records the session as well."""
    with Krunch(Settings(), store=store) as krunch:
        chain: Any = RunnableWithMessageHistory(
            PROMPT | krunchify(Echo(), krunch),
            lambda session: KrunchChatMessageHistory(session, store=store),
            input_messages_key="question",
            history_messages_key="past",
        )
        for number in range(12):
            asked = {"question": f"{name} {number}"}
            config: Any = {"configurable": {"session_id": "wrapped"}}
            if number % 2:
                list(chain.stream(asked, config))
            else:
                chain.invoke(asked, config)


def put(store: ConversationStore, name: str) -> None:
    """Put 30 items twice, and one in a namespace of one's own each time."""
    items, values = KrunchStore(store), KrunchByteStore("shared", store=store)
    for number in range(60):
        items.put(("shared",), f"{name}-{number % 30}", {"n": number})
        items.put(("shared", name), "last", {"n": number})
        values.mset([(f"{name}-{number % 7}", b"%d" % number)])


def save(store: ConversationStore, name: str) -> None:
    """Save 15 checkpoints, one after another, in one thread, and give up something on the way."""
    saver, config = KrunchSaver(store), THREAD
    for number in range(15):
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"list": [f"{name} {n}" for n in range(number)]}
        checkpoint["channel_versions"] = {"list": number + 1}
        about: Any = {"source": "loop", "step": number, "run_id": name}
        config = saver.put(config, checkpoint, about, {"list": number + 1})
        saver.put_writes(config, [("list", [f"{name} {number}"])], f"{name}-task")
        if number % 5 == 0:
            gone = saver.put(THREAD, empty_checkpoint(), {"source": "fork", "run_id": f"{name}-gone"}, {})
            saver.put_writes(gone, [("list", [])], "gone")
            saver.delete_for_runs([f"{name}-gone"])


def work(directory: Path, name: str) -> None:
    """All of it, as one process."""
    with ConversationStore(directory) as store:
        talk(store, name)
        talk_wrapped(store, name)
        put(store, name)
        save(store, name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConversationStore]:
    """What two processes leave that work at the same time, while this one reads."""
    directory = tmp_path_factory.mktemp("shared")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(directory, name)) for name in NAMES]
    with ConversationStore(directory) as opened:
        reader = KrunchStore(opened)
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            reader.search(("shared",))
            workers[0].join(0.01)
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
        opened.reader = reader  # type: ignore[attr-defined]
        yield opened


def test_a_chat_history(store: ConversationStore) -> None:
    """Every question is there once, its answer right behind it, and each process's order is kept."""
    messages: list[BaseMessage] = KrunchChatMessageHistory("s", store=store).messages
    said = [message.text for message in messages]

    assert [message.type for message in messages] == ["human", "ai"] * 40
    assert said[1::2] == [f"answer to {text}" for text in said[::2]]
    for name in NAMES:
        assert [text for text in said[::2] if text.startswith(name)] == [f"{name} {number}" for number in range(20)]


def test_a_wrapped_model_and_a_chat_history(store: ConversationStore) -> None:
    """The same where each process's wrapper records the session, too; the store has every answer once."""
    said = [message.text for message in KrunchChatMessageHistory("wrapped", store=store).messages]
    answers = [turn.message["content"] for turn in store.turns("wrapped") if turn.message["role"] == "assistant"]

    assert sorted(said[::2]) == sorted(f"{name} {number}" for name in NAMES for number in range(12))
    assert said[1::2] == [f"answer to Please: {text}" for text in said[::2]]
    assert sorted(answers) == sorted(said[1::2])
    for name in NAMES:
        assert [text for text in said[::2] if text.startswith(name)] == [f"{name} {number}" for number in range(12)]


def test_items(store: ConversationStore) -> None:
    """Every item has its last value, for a reader that looked all the time as well, though logs were written anew."""
    for items in (KrunchStore(store), store.reader):  # type: ignore[attr-defined]
        found = {item.key: item.value["n"] for item in items.search(("shared",), limit=500) if item.key != "last"}
        assert found == {f"{name}-{number}": number + 30 for name in NAMES for number in range(30)}
        assert items.list_namespaces(prefix=("shared", "*")) == [("shared", "a"), ("shared", "b")]
    values = KrunchByteStore("shared", store=store)
    assert values.mget([f"{name}-6" for name in NAMES]) == [b"55", b"55"]
    assert len(list(values.yield_keys())) == 14


def test_checkpoints(store: ConversationStore) -> None:
    """Each process's line of checkpoints is whole, with its writes; what was given up is gone."""
    found = list(KrunchSaver(store).list(THREAD))

    assert len(found) == 30
    for one in found:
        name, step = one.metadata["run_id"], one.metadata["step"]
        assert one.checkpoint["channel_values"] == {"list": [f"{name} {n}" for n in range(step)]}
        assert one.pending_writes == [(f"{name}-task", "list", [f"{name} {step}"])]
