"""ChatOpenAI over OpenAI's Responses API: replies of items and blocks, reasoning among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import KrunchMiddleware, from_turn
from langchain.agents import create_agent
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from played_model import STORY

from krunch_plugins.upstream import Answer, ToolCall

if TYPE_CHECKING:
    from tests.langchain.conftest import Serving

MEANING = " says the connection to the warehouse database was refused by "
MEANING += "/srv/warehouse/inventory/service/reservations/handler.py"
REASONING = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "thinking ¤1"}],
    "encrypted_content": "c2VjcmV0",
}


@tool
def search(query: str) -> str:
    """Search the archive."""
    return f"Found, for {query}: {STORY}"


def answer(body: dict[str, Any]) -> Answer:
    """Plays the model: it looks first, and thinks about it; then it answers."""
    if "¤1=" not in str(body["input"]):
        raise AssertionError("the request is not compressed")
    if body.get("tools") and body["input"][-1].get("type") != "function_call_output":
        call = ToolCall("search", '{"query": "a ¤1 \\"q\\""}', id=f"call_{len(body['input'])}")
        return Answer("I look ¤1", [call], before=[REASONING])
    return Answer("I saw ¤1, ok.")


def added(chunks: Any) -> Any:
    """The chunks put together."""
    total: Any = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    return total


@pytest.mark.parametrize("version", [None, "v1", "responses/v1"])
def test_the_responses_api(version: str | None, serving: Serving) -> None:
    """Text, tool calls and reasoning of the Responses API, whole and streamed, in each of LangChain's forms."""
    serving.upstream.answer = answer
    facts: dict[str, Any] = {"use_responses_api": True, "output_version": version}
    model = serving.wrapped(**facts)
    tools = model.bind_tools([search])
    reply = model.invoke(STORY, {"configurable": {"session_id": "s"}})
    looked = [tools.invoke(STORY), added(tools.stream(STORY))]

    assert reply.text == added(model.stream(STORY)).text == f"I saw {MEANING}, ok."
    assert from_turn(serving.store.turns("s")[-1]) == reply
    for message in looked:
        assert message.tool_calls[0]["args"] == {"query": f'a {MEANING} "q"'}
        assert message.text == f"I look {MEANING}"
        assert "thinking ¤1" in str(message.content)  # it goes back with its encrypted form, so it is left alone

    agent: Any = create_agent(
        serving.bare(**facts), [search], middleware=[KrunchMiddleware(serving.krunch)], checkpointer=InMemorySaver()
    )
    thread: Any = {"configurable": {"thread_id": "t"}}
    agent.invoke({"messages": [("user", STORY)]}, thread)
    list(agent.stream({"messages": [("user", STORY)]}, thread, stream_mode="messages"))
    agent.invoke({"messages": [("user", STORY)]}, thread)
    assert [turn.message["role"] for turn in serving.store.turns("t")] == ["user", "assistant", "tool", "assistant"] * 3
