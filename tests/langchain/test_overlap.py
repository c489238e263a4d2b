"""Wrapper, history and middleware on one session: real chains and agents over HTTP, each turn recorded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import KrunchChatMessageHistory, KrunchMemory, KrunchMiddleware, KrunchSaver
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, message_to_dict
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory
from played_model import STORY

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from tests.langchain.conftest import Serving

pytestmark = pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")

CONFIG: Any = {"configurable": {"session_id": "s"}}
PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Be brief."), MessagesPlaceholder("past"), ("human", f"Please answer: {{question}}\n{STORY}")]
)


def texts(messages: list[BaseMessage]) -> list[str]:
    """What messages say."""
    return [str(message.text) for message in messages]


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
@pytest.mark.parametrize("shape", ["model", "prompt", "text out"])
async def test_a_wrapped_model_in_runnable_with_message_history(serving: Serving, way: str, shape: str) -> None:
    """The wrapper records what was sent and the history what was said: no answer twice, no question lost."""
    model = serving.wrapped()
    keys: Any = {} if shape == "model" else {"input_messages_key": "question", "history_messages_key": "past"}
    inner: Any = {"model": model, "prompt": PROMPT | model, "text out": PROMPT | model | StrOutputParser()}[shape]
    chain: Any = RunnableWithMessageHistory(
        inner, lambda session: KrunchChatMessageHistory(session, store=serving.store), **keys
    )
    questions = [f"{word}\n{STORY}" if shape == "model" else word for word in ("one", "two", "two")]
    for question in questions:
        asked: Any = [HumanMessage(question)] if shape == "model" else {"question": question}
        if way == "invoke":
            chain.invoke(asked, CONFIG)
        elif way == "ainvoke":
            await chain.ainvoke(asked, CONFIG)
        elif way == "stream":
            list(chain.stream(asked, CONFIG))
        else:
            [chunk async for chunk in chain.astream(asked, CONFIG)]
    messages = KrunchChatMessageHistory("s", store=serving.store).messages
    turns = serving.store.turns("s")
    answers = [turn.message["content"] for turn in turns if turn.message["role"] == "assistant"]

    assert [message.type for message in messages] == ["human", "ai"] * 3
    assert texts(messages[::2]) == questions
    assert texts(messages[1::2]) == serving.played.plain == answers
    assert [turn.message["role"] for turn in turns].count("system") == (shape != "model")
    if shape == "model":
        assert len(turns) == 6
    if way == "invoke":
        assert messages[1].response_metadata["finish_reason"] == "stop"
        assert messages[1].usage_metadata is not None  # type: ignore[attr-defined]


def test_memory_around_a_wrapped_model(serving: Serving) -> None:
    """A chain with KrunchMemory and a wrapped model has every answer once, and its prompt is not remembered."""
    memory = KrunchMemory("s", mode="full", store=serving.store)
    for question in ("one", "two"):
        past = memory.load(question)
        reply = (PROMPT | serving.wrapped()).invoke({"past": past, "question": question}, CONFIG)
        memory.save(question, reply)

    assert texts(memory.load()) == ["one", serving.played.plain[0], "two", serving.played.plain[1]]


def test_an_agent_and_a_history(serving: Serving) -> None:
    """What an agent with the middleware said and did is in a history of its session: tool calls and results, once."""

    def weather(city: str) -> str:
        """The weather in a city."""
        return f"Sunny in {city}. {STORY}"

    agent: Any = create_agent(
        serving.bare(),
        [weather],
        system_prompt=f"You help. {STORY}",
        middleware=[KrunchMiddleware(krunch=serving.krunch)],
        checkpointer=KrunchSaver(serving.store),
    )
    config: Any = {"configurable": {"thread_id": "s"}}
    for number in range(3):
        state = agent.invoke({"messages": [HumanMessage(f"Weather, number {number}?")]}, config)
    history = KrunchChatMessageHistory("s", store=serving.store)
    found = [message for message in history.messages if message.type != "system"]
    said = [message for message in state["messages"] if message.type != "system"]

    assert [message.type for message in found] == ["human", "ai", "tool", "ai"] * 3
    assert texts(found) == texts(said)
    assert [message_to_dict(message)["data"].get("tool_calls") for message in found] == [
        message_to_dict(message)["data"].get("tool_calls") for message in said
    ]
    history.add_user_message("Thanks.")
    assert len(history.messages) == 13
