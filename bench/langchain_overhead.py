"""Measures what LangChain's wrapper costs beside the model inside it, in one run.

    python bench/langchain_overhead.py                 # 40 turns, 12 rounds
    python bench/langchain_overhead.py --turns 10

The model answers at once, in process, so that nothing but the code around it takes time. CPU time of this process; the
same conversation for the model alone and for the wrapper; the rounds take turns. What the wrapper costs is the time of
a call less that of the model and less what Krunch itself (`prepare` and `finish`) took of this very call. (A file
`langchain.py` would stand in the way of the package.)
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from krunch_langchain import krunchify
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from krunch_plugins import Exchange, Krunch, Settings

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


@contextmanager
def timed() -> Iterator[list[float]]:
    """Adds up the milliseconds of CPU time that Krunch itself takes, in the one number of a list."""
    spent = [0.0]

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - any of two methods
            start = time.process_time()
            try:
                return method(*args, **options)
            finally:
                spent[0] += 1e3 * (time.process_time() - start)

        return call

    both = (
        patch.object(Krunch, "prepare", counted(Krunch.prepare)),
        patch.object(Exchange, "finish", counted(Exchange.finish)),
    )
    with both[0], both[1]:
        yield spent


def of_krunch(ask: Callable[[list[BaseMessage]], BaseMessage], turns: int) -> tuple[list[float], list[float]]:
    """Milliseconds of CPU time for each turn, and what Krunch itself took of them."""
    inside: list[float] = []

    def asked(messages: list[BaseMessage]) -> BaseMessage:
        before = spent[0]
        reply = ask(messages)
        inside.append(spent[0] - before)
        return reply

    with timed() as spent:
        return conversation(asked, turns), inside


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
    columns: dict[str, list[list[float]]] = {"model": [], "wrapper": [], "krunch": [], "alone": []}
    first: dict[str, list[float]] = {"model": [], "wrapper": []}
    for _ in range(rounds):
        columns["model"].append(conversation(bound.invoke, turns))
        with Krunch(Settings()) as krunch:
            whole, inside = of_krunch(krunchify(bound, krunch).invoke, turns)
        columns["wrapper"].append(whole)
        columns["krunch"].append(inside)
        columns["alone"].append([one - other for one, other in zip(whole, inside, strict=True)])
        with Krunch(Settings()) as krunch:
            served = krunchify(bound, krunch)
            history: list[BaseMessage] = [question(number) for number in range(turns)]
            served.invoke(history)  # the history is known, as in a conversation
            first["model"].append(first_token(bound, history))
            first["wrapper"].append(first_token(served, history))
    print("CPU milliseconds a call, medians over rounds and turns")
    medians = {name: statistics.median(map(statistics.median, rows)) for name, rows in columns.items()}
    for name in ("model", "wrapper", "krunch"):
        print(f"  {name:<24}{medians[name]:8.3f}")
    print(f"  {'wrapper alone':<24}{medians['alone'] - medians['model']:8.3f}   of 1 allowed")
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
