"""Agents with everything at once: other middleware, people, Krunch's saver and store, called in every way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import KrunchMiddleware, KrunchSaver, KrunchStore, KrunchToolResults, krunchify
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    SummarizationMiddleware,
)
from langchain.tools import ToolRuntime  # noqa: TC002 - LangChain reads the tool's annotations
from langchain_core.tools import tool
from langgraph.types import Command
from played_model import STORY

if TYPE_CHECKING:
    from tests.langchain.conftest import Serving

THREAD: Any = {"configurable": {"thread_id": "t"}}
TURNS = 8


@tool
def note(query: str, runtime: ToolRuntime) -> str:
    """Note something, and ask a colleague about it."""
    assert runtime.store is not None
    runtime.store.put(("notes",), f"n{len(runtime.store.search(('notes',), limit=99))}", {"text": query})
    return f"Noted, as the {len(runtime.state['messages'])}th: {STORY}"


def agent_of(serving: Serving) -> Any:
    """An agent whose tool waits for a person, whose state is summed up, and whose old tool results are cleared."""
    summing = krunchify(serving.bare(), serving.krunch, session="summaries")
    return create_agent(
        serving.bare(),
        [note],
        system_prompt="Be careful.",
        middleware=[
            SummarizationMiddleware(summing, trigger=("messages", 14), keep=("messages", 4)),
            ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=600, keep=1)]),
            HumanInTheLoopMiddleware(interrupt_on={"note": True}),
            KrunchMiddleware(serving.krunch, tool_results=KrunchToolResults(min_characters=300)),
        ],
        checkpointer=KrunchSaver(serving.store),
        store=KrunchStore(serving.store),
    )


async def _astream(agent: Any, given: Any, mode: Any) -> list[Any]:
    return [part async for part in agent.astream(given, THREAD, stream_mode=mode)]


async def _events(agent: Any, given: Any) -> list[Any]:
    return [event async for event in agent.astream_events(given, THREAD, version="v2")]


WAYS: dict[str, Any] = {
    "invoke": lambda agent, given, _: agent.invoke(given, THREAD),
    "ainvoke": lambda agent, given, run: run(agent.ainvoke(given, THREAD)),
    "stream": lambda agent, given, _: list(agent.stream(given, THREAD, stream_mode=["messages", "updates", "values"])),
    "astream": lambda agent, given, run: run(_astream(agent, given, ["messages", "updates", "values"])),
    "events": lambda agent, given, run: run(_events(agent, given)),
}


@pytest.mark.parametrize("way", WAYS)
def test_all_of_it_together(way: str, serving: Serving) -> None:
    """Over eight turns, each with an approval: all that is seen is plain, each turn is stored once, whole, in order."""
    approval: Any = Command(resume={"decisions": [{"type": "approve"}]})
    with asyncio.Runner() as runner:
        for number in range(TURNS):
            agent = agent_of(serving)  # as another process has it
            for given in ({"messages": [("user", f"{number}: {STORY}")]}, approval):
                assert "¤" not in str(WAYS[way](agent, given, runner.run))
    state = agent.get_state(THREAD).values["messages"]
    recorded = serving.store.turns("t")
    said = [turn.message["content"] for turn in recorded if turn.message["role"] == "user"]
    results = [turn.message["content"] for turn in recorded if turn.message["role"] == "tool"]

    assert len(state) < 4 * TURNS
    assert "¤" not in str(state) + str(recorded)
    assert [text for text in said if text.endswith(STORY)] == [f"{number}: {STORY}" for number in range(TURNS)]
    assert sum("summary of the conversation" in text for text in said) >= 1
    assert [text.endswith(STORY) for text in results if not text.startswith("[cleared")] == [True] * TURNS
    assert any("[cleared]" in str(request["messages"]) for request in serving.upstream.requests)
    answers = [turn for turn in recorded if turn.message["role"] == "assistant"]
    assert len([turn for turn in answers if turn.message.get("tool_calls")]) == TURNS
    assert len([turn for turn in answers if not turn.message.get("tool_calls")]) == TURNS
    assert len(KrunchStore(serving.store).search(("notes",), limit=99)) == TURNS
