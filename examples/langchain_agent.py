"""A LangChain agent with Krunch: the last of its middleware, a checkpointer, and large tool results kept whole.

    python examples/langchain_agent.py

Runs without a key: a small server on this machine stands in for the model.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

from krunch_langchain import KrunchMiddleware, KrunchToolResults
from langchain.agents import create_agent
from langchain.agents.middleware import ClearToolUsesEdit, ContextEditingMiddleware
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

from krunch_plugins import ConversationStore, Krunch, restore
from krunch_plugins.upstream import Answer, ToolCall, Upstream

os.environ.setdefault("OPENAI_API_KEY", "none")


@tool
def reservations(warehouse: str) -> str:
    """All reservations of a warehouse, as JSON."""
    rows = [
        {"reservation_id": f"R{number:04}", "warehouse": warehouse, "status": "confirmed", "items": number % 5}
        for number in range(60)
    ]
    return json.dumps(rows)


def answer(body: dict[str, Any]) -> Answer:
    """What the stand-in says: it looks first, then it answers."""
    if body["messages"][-1]["role"] == "tool":
        return Answer("60 reservations, all confirmed.")
    return Answer(None, [ToolCall("reservations", '{"warehouse": "north"}', id=f"call_{len(body['messages'])}")])


def main() -> None:
    """Talk to the agent a few times, and show what was sent and what was kept."""
    with (
        Upstream(answer) as server,
        tempfile.TemporaryDirectory() as directory,
        ConversationStore(directory) as store,
        Krunch(store=store) as krunch,
    ):
        agent: Any = create_agent(
            ChatOpenAI(model="gpt-4o", base_url=server.url),
            [reservations],
            system_prompt="You look after warehouses.",
            middleware=[
                ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=8000, keep=1)]),
                KrunchMiddleware(krunch, tool_results=KrunchToolResults()),  # last, so that it is innermost
            ],
            checkpointer=InMemorySaver(),
        )
        for day in ("today", "tomorrow", "on Friday", "on Monday"):
            state = agent.invoke(
                {"messages": [("user", f"What is reserved in the north {day}?")]},
                {"configurable": {"thread_id": "north"}},
            )
            sent = server.requests[-1]["messages"]
            plain = sum(len(message["content"] or "") for message in restore(sent))
            print(f"{day:>10}: {plain} characters, sent as {sum(len(message['content'] or '') for message in sent)}")

        print("the state is plain:", state["messages"][-1].content)
        results = [turn for turn in store.turns("north") if turn.message["role"] == "tool"]
        whole = [turn for turn in results if turn.message["content"] == reservations.invoke({"warehouse": "north"})]
        print(f"the store has {len(whole)} whole results, whatever was cleared from the requests")


if __name__ == "__main__":
    main()
