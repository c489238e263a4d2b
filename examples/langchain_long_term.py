"""A LangGraph graph with long-term memory and checkpoints, both in Krunch's store.

    python examples/langchain_long_term.py

Two threads of one user share what was learned; each has its own messages, and both are there after a restart.
"""

from __future__ import annotations

import tempfile
from typing import Any
from uuid import uuid4

from krunch_langchain import KrunchSaver, KrunchStore
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime  # noqa: TC002 - LangGraph reads the annotations

from krunch_plugins import ConversationStore

MEMORIES = ("users", "ann", "memories")


def answer(state: MessagesState, runtime: Runtime[None]) -> dict[str, Any]:
    """Remember what follows "remember:"; else answer with what is remembered about the question."""
    assert runtime.store is not None
    said = state["messages"][-1].text
    _, told, fact = said.partition("remember: ")
    if told:
        runtime.store.put(MEMORIES, str(uuid4()), {"text": fact})
        return {"messages": [AIMessage("I will remember that.")]}
    found = runtime.store.search(MEMORIES, query=said, limit=1)
    return {"messages": [AIMessage(found[0].value["text"] if found else "I do not know.")]}


def build(store: ConversationStore) -> Any:  # noqa: ANN401 - LangGraph's compiled graph, with all its type parameters
    """The graph over a store."""
    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph.compile(checkpointer=KrunchSaver(store), store=KrunchStore(store, index={"fields": ["text"]}))


def main() -> None:
    """Tell in one thread, ask in another, in another process's place."""
    with tempfile.TemporaryDirectory() as directory:
        with ConversationStore(directory) as store:
            graph = build(store)
            for fact in ("my sister plays the bassoon", "my cat eats nothing but trout", "the meeting is on Tuesday"):
                graph.invoke({"messages": [HumanMessage(f"remember: {fact}")]}, {"configurable": {"thread_id": "one"}})
        with ConversationStore(directory) as store:
            graph = build(store)
            asked = {"messages": [HumanMessage("what does my cat eat?")]}
            state = graph.invoke(asked, {"configurable": {"thread_id": "two"}})
            print("answer:", state["messages"][-1].text)
            history = list(graph.get_state_history({"configurable": {"thread_id": "one"}}))
            print("states of thread one:", len(history))
            print("messages of thread one:", len(history[0].values["messages"]))


if __name__ == "__main__":
    main()
