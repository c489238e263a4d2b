"""The conversations of proxy_load.py, and the model that answers in them: a local server, OpenAI's protocol.

To answer takes it as little work as possible. It writes equally many characters, in equally many pieces, whether a
request came compressed or not, so that the proxies differ in nothing but Krunch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL, PONDERING = "gpt-4o", "gpt-4o-2024-08-06"
"""Two names of one model. By the second it takes `PAUSE` before it answers, as one that is far away does."""
PAUSE = 0.1
"""Seconds."""
TURNS = 10
"""Requests of a session."""
_LINES = 42
"""Lines of log in the first message: so that requests have 2,000 tokens on average."""
_REPLY = 480
"""Characters of a reply on the wire."""
PIECE = 24
"""Characters of a chunk: some five tokens, as Anthropic and Google stream. OpenAI streams token by token."""
_SYMBOL = re.compile(r"¤[0-9]+")
_QUESTION = re.compile(r"Question ([0-9]+-[0-9]+)\.")
_FILLER = "All workers have been told and will report again within the hour, unless somebody stops them. " * 6


@dataclass(slots=True)
class Turn:
    """One request of a session, and the reply that its client must get: `plain`, or `expanded` through Krunch."""

    messages: list[dict[str, Any]]
    plain: str
    expanded: str


def conversations(count: int, seed: int) -> Iterator[list[Turn]]:
    """Sessions of `TURNS` requests that begin at about 1,000 tokens and grow to about 3,000."""
    rng = random.Random(seed)
    words = [
        f"{a}{b}" for a in ("ware", "bill", "pay", "stock", "ship") for b in ("house", "ing", "ment", "room", "ping")
    ]
    with Krunch(Settings()) as krunch:
        for number in range(count):
            paths = [f"/srv/{'/'.join(rng.sample(words, 4))}/{rng.randrange(1000)}.py" for _ in range(6)]
            lines = [
                f"{rng.randrange(24):02}:{rng.randrange(60):02} {rng.choice(words)} could not reach {rng.choice(paths)}"
                for _ in range(_LINES)
            ]
            messages = [{"role": "system", "content": "You are a careful operator.\n" + "\n".join(lines)}]
            turns = []
            for turn in range(TURNS):
                asked = f"Question {number}-{turn}. What about {rng.choice(paths)} and {rng.choice(words)}?"
                messages = [*messages, {"role": "user", "content": asked}]
                exchange = krunch.prepare(messages, model=MODEL, session=str(number))
                said = _reply("\n".join(message["content"] for message in exchange.messages))
                expanded = exchange.finish({"role": "assistant", "content": said})["content"]
                plain = _reply("\n".join(message["content"] for message in messages))
                turns.append(Turn(messages, plain, expanded))
                messages = [*messages, {"role": "assistant", "content": expanded}]
            yield turns


async def serve(port: int, piece: int) -> None:
    """Answer, whole and streamed in pieces of so many characters, on a port of 127.0.0.1."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"content-length: (\d+)", head)
                if length is None:  # LiteLLM asks which models there are
                    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                    continue
                body = json.loads(await reader.readexactly(int(length[1])))
                if body["model"] == PONDERING:
                    await asyncio.sleep(PAUSE)
                said = _reply("\n".join(message["content"] for message in body["messages"]))
                number += 1
                writer.write(_events(said, number, piece) if body.get("stream") else _whole(said, number))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


def _reply(text: str) -> str:
    """What the model says to a request: every symbol in it, and some more; never twice the same."""
    asked = str(_QUESTION.findall(text)[-1])
    symbols = ", ".join(dict.fromkeys(_SYMBOL.findall(text)))
    return f"To {asked}: {symbols}. {_FILLER}"[:_REPLY]


def _whole(said: str, number: int) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 2000, "completion_tokens": 100, "total_tokens": 2100}
    data = json.dumps({**_envelope(number, "chat.completion"), "choices": [choice], "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


def _events(said: str, number: int, piece: int) -> bytes:
    envelope = _envelope(number, "chat.completion.chunk")
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": said[start : start + piece]}, None) for start in range(0, len(said), piece)]
    deltas.append(({}, "stop"))
    events = [
        json.dumps({**envelope, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        for delta, reason in deltas
    ]
    data = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


def _envelope(number: int, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": kind, "created": 1_700_000_000, "model": MODEL}
