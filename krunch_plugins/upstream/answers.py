"""What the model behind the server replies, and what all protocols need to say it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from krunch_plugins.errors import TokenizerUnavailable
from krunch_plugins.tokens import encoding_for, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in a reply.

    Attributes:
        name: the tool's name.
        arguments: its arguments as the model writes them: JSON for "function", free text for "custom".
        id: the call's id.
        type: "function", or "custom" for a tool with free-form input.
    """

    name: str
    arguments: str
    id: str = "call_1"
    type: Literal["function", "custom"] = "function"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model replies, one choice of it.

    Attributes:
        text: the reply's text; None when there is none.
        tool_calls: tool calls. A request with `functions` instead of `tools` gets the first as `function_call`.
        extra: further keys of the chat message ("reasoning_content", …); in a stream, of its first delta.
        before: what stands before the text, in the protocol's own form: content blocks of Anthropic's (thinking, search
            results), output items of OpenAI's responses (reasoning). Their texts are streamed in pieces too.
        annotations: annotations or citations of the text, in the protocol's own form.
        refusal: the text of a refusal.
        pieces: characters per streamed delta, text and arguments alike, over and over.
        break_after: in a stream, how many chunks are sent before the connection is cut; None: it ends as it should.
        error_after: in a stream, how many chunks are sent before one that tells of an error, in the protocol's way.
        status: HTTP status; one of 400 and above answers with an error that holds `text`.
        cached_tokens: how many of the request's tokens the usage says were read from the cache.
        raw: a body that is sent as it is instead of all this, as a stream if one is asked for.
    """

    text: str | None = None
    tool_calls: Sequence[ToolCall] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    before: Sequence[Mapping[str, Any]] = ()
    annotations: Sequence[Mapping[str, Any]] = ()
    refusal: str | None = None
    pieces: Sequence[int] = (1, 3, 2, 5, 8, 4)
    break_after: int | None = None
    error_after: int | None = None
    status: int = 200
    cached_tokens: int = 0
    raw: bytes | None = None


def echo(body: dict[str, Any]) -> Answer:
    """The default answer: the text of the last message."""
    given = body.get("messages") or body.get("input") or ""
    if isinstance(given, str):
        return Answer(given)
    last = given[-1]
    return Answer(text_of(last.get("content") if isinstance(last, dict) else last))


def text_of(content: object) -> str:
    """The text of a message's content, whichever of its forms it has."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return "".join(part.get("text") or text_of(part.get("content")) for part in parts if isinstance(part, dict))


def split(text: str, sizes: Iterator[int]) -> Iterator[str]:
    """A text in pieces."""
    start = 0
    while start < len(text):
        size = next(sizes)
        yield text[start : start + size]
        start += size


def count_tokens(body: Mapping[str, Any], texts: Sequence[str], answers: Sequence[Answer]) -> tuple[int, int]:
    """Tokens of a request's texts and of its answers, by the model's tokenizer (by fours of characters without one)."""
    try:
        count = load(encoding_for(str(body.get("model", "")))[0]).count
    except TokenizerUnavailable:

        def count(text: str) -> int:
            return (len(text) + 3) // 4

    replies = [[answer.text or "", *(call.arguments for call in answer.tool_calls)] for answer in answers]
    return sum(map(count, texts)), sum(count(text) for reply in replies for text in reply)


def word_logprobs(text: str) -> list[dict[str, Any]]:
    """Made-up log probabilities, one entry for each word of a text."""
    words = text.split()
    return [{"token": word, "logprob": -0.25, "bytes": list(word.encode()), "top_logprobs": []} for word in words]
