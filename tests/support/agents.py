"""Conversations of agents as clients send them: single and parallel tool calls, results in several shapes, odd habits.

Everything is drawn from one `random.Random`, as in `conversations`, so that a failing one shrinks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

Message = dict[str, Any]

TOPICS = (
    "invoice", "harbour", "violin", "orchard", "telescope", "granite", "ferry", "lantern", "saffron", "walnut",
    "compass", "glacier", "marble", "pelican", "thistle", "cobalt",
)  # fmt: skip
FILLER = ("the", "and", "of", "with", "report", "number", "value", "list", "then", "next", "file", "line", "again")


def prose(rng: random.Random, words: int) -> str:
    """A text of so many words, with a few that a search can find. One draw decides all of it."""
    number = rng.randrange(1000)
    said = [TOPICS[at * number % 16] if (at + number) % 6 == 0 else FILLER[at * number % 13] for at in range(words)]
    return " ".join([*said, f"ref-{number}."])


def agent_conversation(rng: random.Random, rounds: int = 12) -> list[Message]:
    """A conversation with so many questions of the user, each answered after some rounds of tool calls."""
    messages: list[Message] = []
    if rng.randrange(8):
        messages.append({"role": rng.choice(("system", "developer")), "content": prose(rng, rng.choice((5, 40)))})
    for number in range(rounds):
        if rng.randrange(12) == 0:
            messages.append({"role": "system", "content": f"note {number}: " + prose(rng, 8)})
        question = prose(rng, rng.choice((4, 12, 12, 60, 300)))
        content: Any = question if rng.randrange(5) else [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        for step in range(rng.choice((0, 0, 1, 2, 6))):
            messages += _tool_round(rng, f"{number}_{step}" if rng.randrange(3) else "call")
        messages.append({"role": "assistant", "content": prose(rng, rng.choice((6, 30, 120)))})
    return messages


def _tool_round(rng: random.Random, name: str) -> list[Message]:
    """A message with one or more calls, and their results; ids may come again in later rounds."""
    ids = [f"{name}_{index}" for index in range(rng.choice((1, 1, 1, 2, 3)))]
    kind = rng.randrange(10)
    if kind == 0:
        uses = [{"type": "tool_use", "id": one, "name": "look", "input": {"q": prose(rng, 4)}} for one in ids]
        found = [{"type": "tool_result", "tool_use_id": one, "content": prose(rng, 20)} for one in ids]
        return [{"role": "assistant", "content": uses}, {"role": "user", "content": found}]
    if kind == 1:
        call = {"name": "look", "arguments": '{"q": 1}'}
        return [
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "look", "content": prose(rng, 20)},
        ]
    calls = [{"id": one, "type": "function", "function": {"name": "look", "arguments": "{}"}} for one in ids]
    answers: list[Message] = [
        {"role": "tool", "tool_call_id": one, "content": prose(rng, rng.choice((3, 20, 200)))} for one in ids
    ]
    rng.shuffle(answers)
    if kind == 2:  # a client that was interrupted and went on
        answers.insert(rng.randrange(len(answers) + 1), {"role": "user", "content": prose(rng, 5)})
    if kind == 3:
        answers = answers[: rng.randrange(len(answers) + 1)]
    return [{"role": "assistant", "content": rng.choice((None, "", prose(rng, 6))), "tool_calls": calls}, *answers]


def requests(messages: list[Message]) -> list[list[Message]]:
    """What the client sent, one request for each message of the assistant."""
    stops = [at for at, message in enumerate(messages) if at and message["role"] == "assistant"]
    return [messages[:stop] for stop in stops]


def made(message: Message) -> list[str]:
    """Ids of the calls that a message makes."""
    if message.get("function_call"):
        return ["function"]
    content = message.get("content")
    uses = [part["id"] for part in content if part.get("type") == "tool_use"] if isinstance(content, list) else []
    return [*uses, *(call["id"] for call in message.get("tool_calls") or ())]


def answered(message: Message) -> list[str]:
    """Ids of the calls that a message answers."""
    if message["role"] == "function":
        return ["function"]
    if message["role"] == "tool":
        return [message["tool_call_id"]]
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return [part["tool_use_id"] for part in parts if part.get("type") == "tool_result"]


def pairs(messages: list[Message]) -> list[tuple[int, int]]:
    """Each result with the call that it answers, by position: the last call of this id before it."""
    calls: dict[str, int] = {}
    found = []
    for at, message in enumerate(messages):
        found += [(calls[one], at) for one in answered(message) if one in calls]
        calls.update(dict.fromkeys(made(message), at))
    return found
