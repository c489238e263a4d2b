"""What LangGraph's checkpoints of one chat take on disk and in time: Krunch's saver beside LangGraph's own for SQLite.

.venv/bin/python bench/langchain_checkpoints.py --turns 40 --bytes 40000
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krunch_langchain import KrunchSaver
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langgraph.checkpoint.base import BaseCheckpointSaver

WORDS = (
    "order parcel refund invoice delivery address warehouse customer ticket account password monday train hotel",
    "price tax receipt the a of to and in is was for with on that this not from we you it are will can please thanks",
)
NUMBERS = 0.1
"""Share of words that are numbers."""


def text(chance: random.Random, size: int) -> str:
    """Words, about `size` characters of them, with a number now and then."""
    words: list[str] = []
    known = " ".join(WORDS).split()
    while sum(map(len, words)) + len(words) < size:
        words.append(chance.choice(known) if chance.random() > NUMBERS else str(chance.randrange(10**6)))
    return " ".join(words)


def chat(saver: BaseCheckpointSaver[Any], turns: int, size: int) -> list[Any]:
    """A conversation in a graph of one node; a question takes a fifth of each turn, the answer the rest."""
    chance = random.Random(1)
    each = size // turns

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(text(chance, each * 4 // 5), id=f"run-{len(state['messages'])}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", answer)
    graph.add_edge(START, "model")
    graph.add_edge("model", END)
    app = graph.compile(checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "chat"}}
    for _ in range(turns):
        app.invoke({"messages": [HumanMessage(text(chance, each // 5))]}, config)
    messages: list[Any] = app.get_state(config).values["messages"]
    assert len(messages) == 2 * turns
    return messages


def files(directory: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def measure(turns: int, size: int) -> Iterator[tuple[str, int, int, float]]:
    """Name, bytes while it is open, bytes when it is closed, and seconds of CPU time a turn, of each saver."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        started = time.process_time()
        with SqliteSaver.from_conn_string(str(place / "checkpoints.db")) as saver:
            chat(saver, turns, size)
            seconds, opened = time.process_time() - started, files(place)
        yield "LangGraph's SqliteSaver", opened, files(place), seconds / turns
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        started = time.process_time()
        with ConversationStore(place) as store:
            chat(KrunchSaver(store), turns, size)
            seconds, opened = time.process_time() - started, files(place)
        yield "KrunchSaver", opened, files(place), seconds / turns


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--bytes", type=int, default=40_000, help="characters of the whole chat")
    chosen = parser.parse_args()
    print(f"{chosen.turns} turns, {chosen.bytes} characters")
    print(f"{'':26}{'KB open':>10}{'KB closed':>12}{'ms of CPU a turn':>19}")
    for name, opened, closed, seconds in measure(chosen.turns, chosen.bytes):
        print(f"{name:26}{opened / 1000:10.0f}{closed / 1000:12.0f}{seconds * 1000:19.1f}")


if __name__ == "__main__":
    main()
