"""Wrapper, history and middleware on one session: each turn is recorded once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import KrunchChatMessageHistory, KrunchMiddleware
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from played_model import STORY

if TYPE_CHECKING:
    from tests.langchain.conftest import Serving

pytestmark = pytest.mark.filterwarnings("ignore:.*RunnableWithMessageHistory.*is deprecated")
SESSION: Any = {"configurable": {"session_id": "s"}}
PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Be careful."), MessagesPlaceholder("history"), ("user", "{question}")]
)


def talk_of(serving: Serving) -> Any:
    """A chain over the wrapper with the history of the session."""

    def history(session_id: str) -> KrunchChatMessageHistory:
        return KrunchChatMessageHistory(session_id, store=serving.store)

    chain = PROMPT | serving.wrapped()
    return RunnableWithMessageHistory(chain, history, input_messages_key="question", history_messages_key="history")


def said(serving: Serving) -> list[tuple[str, Any]]:
    """What is recorded."""
    return [(turn.message["role"], turn.message["content"]) for turn in serving.store.turns("s")]


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
def test_wrapper_and_history(way: str, serving: Serving) -> None:
    """A chain with a history over a wrapped model: every turn once, in order, and the model sees each once."""
    talk = talk_of(serving)

    async def asynchronously(question: dict[str, str]) -> None:
        if way == "ainvoke":
            await talk.ainvoke(question, SESSION)
        else:
            async for _ in talk.astream(question, SESSION):
                pass

    async def run() -> None:
        for number in range(4):
            question = {"question": f"{number}: {STORY}"}
            if way == "invoke":
                talk.invoke(question, SESSION)
            elif way == "stream":
                list(talk.stream(question, SESSION))
            else:
                await asynchronously(question)

    asyncio.run(run())
    expected: list[tuple[str, Any]] = [("system", "Be careful.")]
    for number in range(4):
        expected += [("user", f"{number}: {STORY}"), ("assistant", serving.played.plain[number])]

    assert said(serving) == expected
    assert [(message["role"], message["content"]) for message in serving.sent()] == expected[:-1]


def test_all_three(serving: Serving) -> None:
    """A chain with a history, then an agent that is given the history and records in the same session."""
    talk_of(serving).invoke({"question": f"0: {STORY}"}, SESSION)
    history = KrunchChatMessageHistory("s", store=serving.store)
    agent = create_agent(
        serving.wrapped(),
        [],
        system_prompt="Be careful.",
        middleware=[KrunchMiddleware(serving.krunch)],
        checkpointer=InMemorySaver(),
    )
    given: Any = {"messages": [*history.messages, ("user", f"1: {STORY}")]}
    config: Any = {"configurable": {"session_id": "s", "thread_id": "t"}}
    state = agent.invoke(given, config)
    history.add_messages([state["messages"][-2], state["messages"][-1]])

    assert said(serving) == [
        ("system", "Be careful."),
        ("user", f"0: {STORY}"),
        ("assistant", serving.played.plain[0]),
        ("user", f"1: {STORY}"),
        ("assistant", serving.played.plain[1]),
    ]
    assert [message.text for message in history.messages][-2:] == [f"1: {STORY}", serving.played.plain[1]]


@tool
def look(query: str) -> str:
    """Look something up."""
    return f"Found for {query}: {STORY}"


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_all_three_at_once(way: str, serving: Serving) -> None:
    """An agent with the middleware and a wrapped model, inside a chain with a history: each turn once, in order."""
    agent = create_agent(
        serving.wrapped(), [look], system_prompt="Be careful.", middleware=[KrunchMiddleware(serving.krunch)]
    )

    def ask(messages: Any) -> Any:
        return agent.invoke({"messages": messages})["messages"][-1]

    async def aask(messages: Any) -> Any:
        return (await agent.ainvoke({"messages": messages}))["messages"][-1]

    chain: Any = RunnableLambda(ask, afunc=aask)
    talk: Any = RunnableWithMessageHistory(chain, lambda name: KrunchChatMessageHistory(name, store=serving.store))
    for number in range(4):
        asked = [HumanMessage(f"{number % 2}: {STORY}")]
        if way == "invoke":
            talk.invoke(asked, SESSION)
        elif way == "ainvoke":
            await talk.ainvoke(asked, SESSION)
        elif way == "stream":
            list(talk.stream(asked, SESSION))
        else:
            [chunk async for chunk in talk.astream(asked, SESSION)]
    roles = [turn.message["role"] for turn in serving.store.turns("s")]
    messages = KrunchChatMessageHistory("s", store=serving.store).messages

    assert roles == ["system", *["user", "assistant", "tool", "assistant"] * 4]
    assert [message.type for message in messages] == ["human", "ai"] * 4
    assert [message.text for message in messages[::2]] == [f"{number % 2}: {STORY}" for number in range(4)]
    assert [message.text for message in messages[1::2]] == serving.played.plain
