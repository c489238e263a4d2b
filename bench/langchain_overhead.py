"""Measures what LangChain's wrapper costs beside the model inside it, in one run.

    python bench/langchain_overhead.py                 # 40 turns, 12 rounds
    python bench/langchain_overhead.py --turns 10

The model answers at once, in process, so that nothing but the code around it takes time. CPU time of this process; the
same conversation for the model alone, for the wrapper, and for Krunch without LangChain; the rounds take turns. What
the wrapper costs is its time less that of the model and less that of Krunch itself. (A file `langchain.py` would stand
in the way of the package.)
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

from krunch_langchain import krunchify, openai_form
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPLY = "The connection was refused by the warehouse database. " * 3


class Instant(BaseChatModel):
    """A model that answers at once."""

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:  # noqa: ANN401, ARG002 - LangChain's signature
        return ChatResult(generations=[ChatGeneration(message=AIMessage(REPLY))])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:  # noqa: ANN401, ARG002 - as above
        for word in REPLY.split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))


def question(number: int) -> HumanMessage:
    """What the user says in a turn: about a thousand tokens, much of it said before."""
    lines = [
        f"2026-01-{number % 28 + 1:02} 12:{line:02}:00 worker-{line % 4} cannot reach /srv/warehouse/{line}/{number}.db"
        for line in range(25)
    ]
    return HumanMessage("\n".join(lines))


def conversation(ask: Callable[[list[BaseMessage]], BaseMessage], turns: int) -> list[float]:
    """Milliseconds of CPU time for each turn."""
    messages: list[BaseMessage] = []
    taken = []
    for number in range(turns):
        messages.append(question(number))
        start = time.process_time()
        reply = ask(messages)
        taken.append(1e3 * (time.process_time() - start))
        messages.append(reply)
    return taken


def without_langchain(krunch: Krunch, taken: list[float]) -> Callable[[list[BaseMessage]], BaseMessage]:
    """Krunch alone, on messages that are in OpenAI's form already; its times go into `taken`."""

    def ask(messages: list[BaseMessage]) -> BaseMessage:
        forms = [openai_form(message) for message in messages]
        start = time.process_time()
        krunch.prepare(forms, model="instant").finish({"role": "assistant", "content": REPLY})
        taken.append(1e3 * (time.process_time() - start))
        return AIMessage(REPLY)

    return ask


def first_token(model: BaseChatModel, messages: list[BaseMessage]) -> float:
    """Milliseconds of CPU time until the first chunk of a stream."""
    start = time.process_time()
    stream = model.stream(messages)
    next(iter(stream))
    taken = 1e3 * (time.process_time() - start)
    for _ in stream:
        pass
    return taken


def measure(turns: int, rounds: int) -> None:
    """Run the rounds and print the table."""
    bound = Instant()
    columns: dict[str, list[list[float]]] = {"model": [], "wrapper": [], "krunch": []}
    first: dict[str, list[float]] = {"model": [], "wrapper": []}
    for _ in range(rounds):
        columns["model"].append(conversation(bound.invoke, turns))
        with Krunch(Settings()) as krunch:
            columns["wrapper"].append(conversation(krunchify(bound, krunch).invoke, turns))
        with Krunch(Settings()) as krunch:
            alone: list[float] = []
            conversation(without_langchain(krunch, alone), turns)
            columns["krunch"].append(alone)
        with Krunch(Settings()) as krunch:
            served = krunchify(bound, krunch)
            history: list[BaseMessage] = [question(number) for number in range(turns)]
            served.invoke(history)  # the history is known, as in a conversation
            first["model"].append(first_token(bound, history))
            first["wrapper"].append(first_token(served, history))
    print("CPU milliseconds a call, medians over rounds and turns")
    medians = {name: statistics.median(map(statistics.median, rows)) for name, rows in columns.items()}
    for name, median in medians.items():
        print(f"  {name:<24}{median:8.3f}")
    print(f"  {'wrapper alone':<24}{medians['wrapper'] - medians['model'] - medians['krunch']:8.3f}   of 1 allowed")
    late = statistics.median(first["wrapper"]) - statistics.median(first["model"])
    print(f"first streamed token later by{late:7.3f}   of 2 allowed ({turns} messages before it)")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40, help="turns of the conversation")
    parser.add_argument("--rounds", type=int, default=12, help="how often it is repeated")
    given = parser.parse_args()
    measure(given.turns, given.rounds)


if __name__ == "__main__":
    main()
