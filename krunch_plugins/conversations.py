"""Reading conversations from files: one conversation a line, as JSON with OpenAI chat messages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from krunch_plugins.turns import Message


@dataclass(frozen=True, slots=True)
class Conversation:
    """One recorded conversation.

    Attributes:
        id: its "id" in the file, else the file's name and the line.
        messages: all its messages, in order, OpenAI format.
        tools: the tool definitions its requests carry, or None.
        title: what it is, in a few words; "" if the file does not say.
        file: the file it was read from.
        line: its line there, from 1.
    """

    id: str
    messages: list[Message]
    tools: Sequence[dict[str, Any]] | None = None
    title: str = ""
    file: str = ""
    line: int = 0

    def requests(self) -> list[int]:
        """How many messages each request of the client held: one request for every assistant turn but a leading one.

        A conversation without assistant turns is one request, the whole of it.
        """
        stops = [index for index, message in enumerate(self.messages) if message["role"] == "assistant" and index]
        return stops or [len(self.messages)]


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no conversation.

    Attributes:
        file: the file.
        line: its line, from 1.
        why: what is wrong with it.
    """

    file: str
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}"


def read_conversations(path: Path) -> Iterator[tuple[Conversation | Malformed, int]]:
    """Each line of a JSON Lines file, in order, with its length in bytes; blank lines are left out.

    A line is a list of messages, or an object with "messages" and, if it likes, "id", "title" and "tools"; other keys
    are ignored. One line is held in memory at a time.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _parse(line, str(path), number), len(line)


def demo_conversations() -> list[Conversation]:
    """The conversations that come with Krunch; NOTICE says whose they are."""
    with resources.as_file(resources.files("krunch_plugins") / "data" / "demo.jsonl") as path:
        return [found for found, _ in read_conversations(path) if isinstance(found, Conversation)]


def _parse(line: bytes, file: str, number: int) -> Conversation | Malformed:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Malformed(file, number, f"not JSON: {error}")
    fields = value if isinstance(value, dict) else {"messages": value}
    messages, tools = fields.get("messages"), fields.get("tools")
    if not isinstance(messages, list) or not messages:
        return Malformed(file, number, 'neither a list of messages nor an object with "messages"')
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return Malformed(file, number, f'message {index} is no object with a "role"')
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        return Malformed(file, number, '"tools" is no list of objects')
    name = fields.get("id")
    return Conversation(
        id=str(name) if isinstance(name, str | int) else f"{file}:{number}",
        messages=messages,
        tools=tools,
        title=str(fields.get("title") or ""),
        file=file,
        line=number,
    )
