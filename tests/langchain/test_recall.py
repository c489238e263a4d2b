"""Recall under LangChain: what left the request comes back before the last message of the user, never into state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import KrunchMiddleware, from_turn, krunchify
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from played_model import STORY

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.langchain.conftest import Serving

THREAD: Any = {"configurable": {"thread_id": "t"}}
SECRET = "The spare key of the lighthouse lies under the third blue stone beside the harbour bell."


@pytest.fixture
def recalling(serving: Serving) -> Iterator[Krunch]:
    """A Krunch whose requests may have 900 tokens."""
    serving.played.compressed = False
    with Krunch(Settings(min_tokens=0, context_window=900), store=serving.store) as krunch:
        yield krunch


def test_an_agent_recalls(recalling: Krunch, serving: Serving) -> None:
    """Old turns leave the request of an agent and come back when they are asked for; the state keeps all, as it was."""
    agent: Any = create_agent(
        serving.bare(), [], middleware=[KrunchMiddleware(recalling)], checkpointer=InMemorySaver()
    )
    questions = [SECRET, *(f"{number}: {STORY}" for number in range(12)), "Where is the spare key of the lighthouse?"]
    for question in questions:
        state = agent.invoke({"messages": [("user", question)]}, THREAD)
        recalling.flush(10)
    sent = serving.sent()
    asked = [message for message in state["messages"] if isinstance(message, HumanMessage)]

    assert len(sent) < 12
    assert sent[-1]["content"] == questions[-1]
    assert any("third blue stone" in message["content"] for message in sent[:-1])
    assert [message.content for message in asked] == questions
    assert len(state["messages"]) == 2 * len(questions)
    assert [from_turn(turn) for turn in serving.store.turns("t")] == state["messages"]


def test_a_chain_recalls(recalling: Krunch, serving: Serving) -> None:
    """The wrapper alone does the same; what is recalled for one session is not cached for another."""
    cache = InMemoryCache()
    messages: list[Any] = []
    for session in ("a", "b"):
        model = krunchify(serving.bare(cache=cache), recalling, session=session)
        messages = [HumanMessage(SECRET)]
        for number in range(12):
            messages += [AIMessage(f"Yes, {number}."), HumanMessage(f"{number}: {STORY}")]
            if number > 9:
                list(model.stream(messages))
                recalling.flush(10)
        messages += [AIMessage("Yes."), HumanMessage("Where is the spare key of the lighthouse?")]
        model.invoke(messages)

    assert len(messages) == 27
    assert any("third blue stone" in message["content"] for message in serving.sent()[:-1])
    assert len(serving.upstream.requests) == 6
