"""Plays a model that answers in the symbols it was told, calls tools, fills schemas, and checks what it gets."""

from __future__ import annotations

import json
import re
from typing import Any

from krunch_plugins import Krunch, Settings, hookimpl, restore
from krunch_plugins.tokens import load
from krunch_plugins.upstream import Answer, ToolCall

NAMES = ("Ada", "Bo", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal")
STORY = "; ".join(
    f"{name} says the connection to the warehouse database was refused by "
    "/srv/warehouse/inventory/service/reservations/handler.py"
    for name in NAMES
)
"""A text that compresses well."""

SETTINGS = Settings(min_tokens=0)


READER = Krunch(SETTINGS)
"""Somebody else, who knows no session."""


class Padding:
    """A plugin that puts the story behind what the user says last, so that there is something to compress."""

    @hookimpl
    def pre_request(self, exchange: Any) -> None:
        for message in reversed(exchange.messages):
            if message["role"] == "user" and isinstance(message["content"], str):
                message["content"] += f"\n{STORY}"
                return


class PlayedModel:
    """What an `Upstream` answers with.

    - To tools it answers with a call of one of them, unless the last message is a result; to a response format with a
      JSON document; else with a text. Strings among arguments and in documents hold a symbol of the request.
    - The text before it is `said`, the last text that it wrote with its symbols expanded.

    Args:
        compressed: every request must hold fewer tokens than what it restores to; an answer to another is an error.

    Attributes:
        saved: for each request, tokens of what it restores to and tokens of what was sent.
        plain: what each text that it wrote means, in order.
    """

    def __init__(self, *, compressed: bool = False) -> None:
        self.compressed = compressed
        self.saved: list[tuple[int, int]] = []
        self.plain: list[str] = []

    def __call__(self, body: dict[str, Any]) -> Answer:
        """Answer a request."""
        before, after = tokens(restore(body["messages"])), tokens(body["messages"])
        self.saved.append((before, after))
        if self.compressed and after >= before:
            raise AssertionError(f"a request came with {after} tokens, plain it has {before}")
        symbols = definitions(body)
        word = next(iter(symbols), "nothing")
        if body.get("tools") and body.get("tool_choice") != "none" and body["messages"][-1]["role"] != "tool":
            return Answer(None, [self._call(body, word)])
        schema = _schema(body.get("response_format"))
        if schema is not None:
            return Answer(json.dumps(fill(schema, word, body)))
        text = f"({len(self.plain)}) I saw {' and '.join(symbols) or word}, that is all."
        self.plain.append(expand(text, symbols))
        return Answer(text)

    def _call(self, body: dict[str, Any], word: str) -> ToolCall:
        functions = [tool["function"] for tool in body["tools"] if tool.get("type") == "function"]
        choice = body.get("tool_choice")
        wanted = choice["function"]["name"] if isinstance(choice, dict) else functions[0]["name"]
        function = next(one for one in functions if one["name"] == wanted)
        arguments = json.dumps(fill(function.get("parameters") or {}, word, body))
        return ToolCall(wanted, arguments, id=f"call_{len(self.saved)}")


def definitions(body: dict[str, Any]) -> dict[str, str]:
    """What a request defines, symbols and the texts they stand for; nothing if it is not compressed.

    The request says it all: what it restores to, compressed by somebody else, is the request.
    """
    exchange = READER.prepare(restore(body["messages"]), model="gpt-4o", tools=body.get("tools"))
    return dict(exchange.symbols) if exchange.messages == body["messages"] else {}


def expand(text: str, symbols: dict[str, str]) -> str:
    """A text with its symbols expanded."""
    for symbol in sorted(symbols, key=len, reverse=True):
        text = symbols[symbol].join(re.split(f"{symbol}(?![0-9])", text))
    return text


def tokens(messages: list[dict[str, Any]]) -> int:
    """Tokens of the messages' texts."""
    count = load("o200k_base").count
    texts: list[str] = []
    for message in messages:
        content = message.get("content") or ""
        texts += (
            [content]
            if isinstance(content, str)
            else [part.get("text", "") if isinstance(part, dict) else part for part in content]
        )
    return sum(map(count, texts))


def fill(schema: dict[str, Any], word: str, body: dict[str, Any]) -> Any:
    """A value that fits a JSON schema; its strings hold `word`, and a name in quotes from the last message, if any."""
    kind = schema.get("type")
    for alternatives in (schema.get("anyOf"), schema.get("allOf")):
        if alternatives:
            return fill(alternatives[0], word, body)
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        return {name: fill(part, word, body) for name, part in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [fill(schema.get("items") or {}, word, body)]
    if kind in ("integer", "number"):
        return 3
    if kind == "boolean":
        return True
    last = restore(body["messages"])[-1]["content"]
    quoted = re.search("'([^']+)'", last if isinstance(last, str) else "")
    return f"{quoted[1] if quoted else 'It'} {word}"


def _schema(wanted: Any) -> dict[str, Any] | None:
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_schema":
        schema: dict[str, Any] = wanted["json_schema"]["schema"]
        return schema
    if wanted.get("type") == "json_object":
        return {"type": "object", "properties": {"setup": {"type": "string"}, "punchline": {"type": "string"}}}
    return None
