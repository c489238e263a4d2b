"""Questions about conversations, and the turns that hold their answers: read from files, or derived from what happened.

A file `NAME_qa.jsonl` belongs to the conversations in `NAME.jsonl`, both as the corpus has them. `locomo*.json` is
LoCoMo as its authors publish it (Maharana et al. 2024; `locomo10.json` has ten conversations of two people over months,
and 1,986 questions). Each of its conversations is one session here, a turn "Speaker: text", with the caption of
the picture that came with it, stored at the time of its sitting. The derived set needs
no questions: in an agent's conversation, a tool call needs values (ids, paths) that were said long before. The question
is what was said right before the call, without these values; the evidence are the turns that first held them. That is
what an agent would have to recall if its window were short. It is another task than answering a person's question, and
no substitute for a labelled conversational set.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from krunch_plugins.recall.texts import text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DISTANCE = 8
"""Messages that lie between a derived question and its evidence, at least."""
PER_CONVERSATION = 12
LOCOMO_CATEGORIES = {1: "several turns", 2: "time", 3: "open domain", 4: "one turn", 5: "adversarial"}
"""What the numbers of LoCoMo's categories mean. The last ask of one speaker what the other one said."""
_PAUSE = 20.0
"""Seconds from one turn of a sitting to the next; LoCoMo tells only when a sitting began."""
_DIALOGUE_ID = re.compile(r"D:?(\d+):(\d+)")
_VALUE = re.compile(r"[\w./@:-]{5,80}")


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        session: the conversation it is about.
        text: the question.
        evidence: numbers of the turns that are to be found.
        category: what kind of question it is.
        before: only turns before this number exist when it is asked; None: all.
    """

    session: str
    text: str
    evidence: frozenset[int]
    category: str
    before: int | None = None


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Conversations by their id, and questions about them.

    Attributes:
        name: what it is called.
        conversations: the messages of each.
        questions: the questions.
        times: when each message was said, seconds since the epoch, by conversation; where there is none, its number.
    """

    name: str
    conversations: dict[str, list[dict[str, Any]]]
    questions: list[Question]
    times: dict[str, list[float]] = field(default_factory=dict)

    def half(self, which: int) -> QuestionSet:
        """Every other conversation, from the first (0) or the second (1) on, so that one half can be tuned on."""
        kept = sorted(self.conversations)[which::2]
        conversations = {name: self.conversations[name] for name in kept}
        questions = [question for question in self.questions if question.session in conversations]
        return QuestionSet(f"{self.name}, half {which}", conversations, questions, self.times)


def read(folder: Path) -> list[QuestionSet]:
    """All sets of a folder: labelled ones first, then the one that is derived."""
    labelled = [labelled_set(path, folder) for path in sorted(folder.glob("*_qa.jsonl"))]
    labelled += [locomo_set(path) for path in sorted(folder.glob("locomo*.json"))]
    derived = [folder / "coding_agent.jsonl"]
    return labelled + [derived_set(path) for path in derived if path.exists()]


def read_beside(questions: Path, folder: Path) -> list[QuestionSet]:
    """Sets whose questions lie in another folder than their conversations, as far as these are there."""
    paths = sorted(questions.glob("*_qa.jsonl"))
    return [labelled_set(path, folder) for path in paths if (folder / _conversations(path)).exists()]


def _conversations(path: Path) -> str:
    return path.name.replace("_qa.jsonl", ".jsonl")


def labelled_set(path: Path, folder: Path) -> QuestionSet:
    """A set with questions in a file. Those without evidence are left out, and conversations without questions."""
    asked = {row["conversation_id"] for row in _rows(path)}
    rows = [row for row in _rows(folder / _conversations(path)) if row["id"] in asked]
    conversations = {row["id"]: row["messages"] for row in rows}
    questions = [
        Question(row["conversation_id"], row["question"], frozenset(row["evidence_indices"]), row["category"])
        for row in _rows(path)
        if row["evidence_indices"]
    ]
    return QuestionSet(path.stem, conversations, questions)


def locomo_set(path: Path) -> QuestionSet:
    """A set in LoCoMo's own layout: a list of samples, each with `conversation` and `qa`."""
    conversations: dict[str, list[dict[str, Any]]] = {}
    times: dict[str, list[float]] = {}
    questions = []
    for sample in json.loads(path.read_text(encoding="utf-8")):
        name = sample["sample_id"]
        numbers: dict[tuple[int, int], int] = {}
        messages: list[dict[str, Any]] = []
        said = times[name] = []
        for began, turns in _sittings(sample["conversation"]):
            for at, turn in enumerate(turns):
                numbers[_dialogue_ids(turn["dia_id"])[0]] = len(messages)
                messages.append(_locomo_message(turn, sample["conversation"]))
                said.append(began + at * _PAUSE)
        conversations[name] = messages
        for asked in sample["qa"]:
            given = asked.get("evidence") or []
            ids = _dialogue_ids(" ".join(given) if isinstance(given, list) else given)
            evidence = frozenset(numbers[one] for one in ids if one in numbers)
            if evidence:
                category = LOCOMO_CATEGORIES.get(asked["category"], str(asked["category"]))
                questions.append(Question(name, asked["question"], evidence, category))
    return QuestionSet(path.stem, conversations, questions, times)


def _sittings(conversation: dict[str, Any]) -> Iterator[tuple[float, list[dict[str, Any]]]]:
    """LoCoMo's sessions in order: when each began, and its turns."""
    numbers = sorted(int(key.removeprefix("session_")) for key in conversation if re.fullmatch(r"session_\d+", key))
    for number in numbers:
        began = datetime.strptime(conversation[f"session_{number}_date_time"], "%I:%M %p on %d %B, %Y")  # noqa: DTZ007
        yield began.replace(tzinfo=UTC).timestamp(), conversation[f"session_{number}"]


def _locomo_message(turn: dict[str, Any], conversation: dict[str, Any]) -> dict[str, Any]:
    role = "user" if turn["speaker"] == conversation["speaker_a"] else "assistant"
    caption = f" [picture: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
    return {"role": role, "content": f"{turn['speaker']}: {turn.get('text', '')}{caption}"}


def _dialogue_ids(text: str) -> list[tuple[int, int]]:
    """The ids in a text, as (sitting, turn); a few in LoCoMo are joined or misspelt."""
    return [(int(sitting), int(turn)) for sitting, turn in _DIALOGUE_ID.findall(text)]


def derived_set(path: Path) -> QuestionSet:
    """A set made from tool calls."""
    conversations = {row["id"]: row["messages"] for row in _rows(path)}
    questions = [question for name, messages in conversations.items() for question in _derived(name, messages)]
    return QuestionSet(f"{path.stem}, derived", conversations, questions)


def _derived(session: str, messages: list[dict[str, Any]]) -> Iterator[Question]:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    made = 0
    for number, message in enumerate(messages):
        wanted = [] if made >= PER_CONVERSATION else sorted(_needed(message))
        wanted = [value for value in wanted if value in first and number - last[value] > DISTANCE]
        asked = _asked(messages, number)
        for value in wanted:
            asked = asked.replace(value, " ")
        if wanted and len(asked.split()) >= 4:  # noqa: PLR2004 - less is no question
            yield Question(session, asked[:2000], frozenset(first[value] for value in wanted), "needed value", number)
            made += 1
        for value in set(_VALUE.findall(text_of(message))):
            first.setdefault(value, number)
            last[value] = number


def _needed(message: dict[str, Any]) -> set[str]:
    """Values in a message's tool calls that look like ids or paths: with a digit, a slash or a dot in them."""
    found = set()
    for call in message.get("tool_calls") or ():
        arguments = call.get("function", {}).get("arguments")
        for value in _VALUE.findall(arguments) if isinstance(arguments, str) else ():
            if re.search(r"[\d/_.]", value) and re.search(r"[A-Za-z]", value):
                found.add(value)
    return found


def _asked(messages: list[dict[str, Any]], number: int) -> str:
    """What was said right before a call: with the call itself, else by the one before it."""
    own = messages[number].get("content")
    if isinstance(own, str) and own.strip():
        return own
    return text_of(messages[number - 1]) if number else ""


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
