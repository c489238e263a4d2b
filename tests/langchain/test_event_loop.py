"""Async callers are never kept waiting by the disk: whatever is asked of the store is asked in a worker thread."""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import (
    KrunchByteStore,
    KrunchChatMessageHistory,
    KrunchMemory,
    KrunchMiddleware,
    KrunchRetriever,
    KrunchSaver,
    KrunchStore,
    KrunchToolResults,
)
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from played_model import STORY

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    from tests.langchain.conftest import Serving

METHODS = ("append", "append_if", "evict", "forget", "get_state", "info", "put_state", "sessions", "trim", "turns",
           "update_state")  # fmt: skip


@tool
def look(query: str) -> str:
    """Look something up."""
    return STORY


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bool]]:
    """By method of the store, for each call whether it was made in an event loop."""
    told: dict[str, list[bool]] = {}

    def watched(name: str, method: Any) -> Any:
        @wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                told.setdefault(name, []).append(False)
            else:
                told.setdefault(name, []).append(True)
            return method(*args, **options)

        return call

    for name in METHODS:
        monkeypatch.setattr(ConversationStore, name, watched(name, getattr(ConversationStore, name)))
    return told


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
async def test_chains(serving: Serving, waited: dict[str, list[bool]]) -> None:
    """A wrapped model with a history, memory and retriever."""
    config: Any = {"configurable": {"session_id": "s"}}
    talk: Any = RunnableWithMessageHistory(
        serving.wrapped(), lambda name: KrunchChatMessageHistory(name, store=serving.store)
    )
    await talk.ainvoke([HumanMessage(STORY)], config)
    [chunk async for chunk in talk.astream([HumanMessage(STORY)], config)]
    memory = KrunchMemory("s", krunch=serving.krunch)
    assert await memory.ainvoke("who?")
    await memory.asave("a", "b")
    await memory.aclear()
    await KrunchRetriever(krunch=serving.krunch).ainvoke("warehouse")

    assert {"append", "append_if", "forget", "turns"} <= set(waited)
    assert [name for name, calls in waited.items() if any(calls)] == []


async def test_agents_and_stores(serving: Serving, waited: dict[str, list[bool]]) -> None:
    """An agent with the middleware, our checkpoints and long-term memory; the stores by themselves."""
    thread: Any = {"configurable": {"thread_id": "t"}}
    saver, items, values = KrunchSaver(serving.store), KrunchStore(serving.store), KrunchByteStore(store=serving.store)
    middleware = KrunchMiddleware(serving.krunch, tool_results=KrunchToolResults(min_characters=10))
    agent: Any = create_agent(serving.bare(), [look], middleware=[middleware], checkpointer=saver, store=items)
    given: Any = {"messages": [("user", STORY)]}
    await agent.ainvoke(given, thread)
    [part async for part in agent.astream(given, thread, stream_mode="messages")]
    [event async for event in agent.astream_events(given, thread, version="v2")]
    await items.aput(("a",), "k", {"text": "tea"})
    await items.asearch(("a",), query="tea")
    await items.alist_namespaces()
    await values.amset([("k", b"1")])
    assert [key async for key in values.ayield_keys()] == ["k"]
    assert [one async for one in saver.alist(thread)]
    await saver.adelete_thread("t")

    assert {"append", "append_if", "forget", "info", "turns"} <= set(waited)
    assert [name for name, calls in waited.items() if any(calls)] == []
