"""What a message is to the context: whose it is, which tool calls it makes and answers, how many tokens it takes."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from krunch_plugins.errors import TokenizerUnavailable
from krunch_plugins.recall.locks import Lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from krunch_plugins.tokens import Tokenizer
    from krunch_plugins.turns import Message

INSTRUCTING = frozenset({"system", "developer"})
"""Roles whose messages never leave a request, and are never recalled."""

MESSAGE_TOKENS = 4
"""Tokens that a message takes beside its text: its role and what separates it from the next (OpenAI's count)."""

OTHER_TOKENS = 1_000
"""Tokens that a content part counts which is no text: an image, a file, a recording. What it really takes depends on
the provider and its size; the cut must not."""

_DIGEST = 12
"""Bytes of an identity: enough for billions of messages."""
_REMEMBERED = 50_000
"""Messages whose tokens are remembered, about 200 bytes each."""


def is_instruction(message: Message) -> bool:
    """Whether it tells the model how to behave."""
    return message.get("role") in INSTRUCTING


def is_users(message: Message) -> bool:
    """Whether the user said it: in Anthropic's shape, results of tools come in messages of the user, too."""
    return message.get("role") == "user" and not any(True for _ in results(message))


def is_result(message: Message) -> bool:
    """Whether it holds the result of a tool call."""
    return message.get("role") in ("tool", "function") or any(True for _ in results(message))


def calls(message: Message) -> list[str]:
    """Ids of the tool calls that it makes; "" for one that has none."""
    if message.get("role") != "assistant":
        return []
    found = [_id(call, "id") for call in _list(message.get("tool_calls"))]
    found += [_id(part, "id") for part in _parts(message) if part.get("type") == "tool_use"]
    return [*found, ""] if message.get("function_call") else found


def results(message: Message) -> Iterator[str]:
    """Ids of the tool calls that it answers; "" where it does not say."""
    if message.get("role") in ("tool", "function"):
        yield _id(message, "tool_call_id")
    for part in _parts(message):
        if part.get("type") == "tool_result":
            yield _id(part, "tool_use_id")


def _id(value: Any, key: str) -> str:  # noqa: ANN401 - whatever a message holds
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


def _list(value: Any) -> Sequence[Any]:  # noqa: ANN401 - as above
    return value if isinstance(value, (list, tuple)) else ()


def _parts(message: Message) -> Iterator[dict[str, Any]]:
    for part in _list(message.get("content")):
        if isinstance(part, dict):
            yield part


def pieces(message: Message) -> tuple[list[str], int]:
    """All texts of a message that a model reads, and how many parts of other kinds it has."""
    texts: list[str] = []
    others = 0
    content = message.get("content")
    if isinstance(content, str):
        texts.append(content)
    for part in _list(content):
        text = _part_text(part)
        if text is not None:
            texts.append(text)
        elif isinstance(part, dict) and part.get("type") in ("tool_use", "tool_result"):
            inner, more = pieces({"content": part.get("content")})
            texts += [*inner, _json(part.get("input"))] if part.get("input") else inner
            others += more
        else:
            others += 1
    for call in _list(message.get("tool_calls")):
        texts += _function(call.get("function") if isinstance(call, dict) else None)
    texts += _function(message.get("function_call"))
    if message.get("thinking_blocks"):  # the same text as reasoning_content, with signatures
        texts.append(_json(message["thinking_blocks"]))
    elif isinstance(message.get("reasoning_content"), str):
        texts.append(message["reasoning_content"])
    return texts, others


def _part_text(part: Any) -> str | None:  # noqa: ANN401 - as above
    """The text of a content part, thoughts and refusals included; None for one that is no text."""
    if isinstance(part, dict):
        part = next((part[key] for key in ("text", "thinking", "refusal") if key in part), None)
    return part if isinstance(part, str) else None


def _function(function: Any) -> list[str]:  # noqa: ANN401 - whatever a message holds
    if not isinstance(function, dict):
        return []
    return [text for key in ("name", "arguments") if isinstance(text := function.get(key), str)]


def _json(value: Any) -> str:  # noqa: ANN401 - as above
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def identity(message: Message) -> bytes:
    """What makes two messages the same: role, text, other content, calls and the call that is answered.

    Text as a string is the same as text in parts; space around it does not count, nor do marks that steer a provider's
    cache and fields that come with a reply and are not sent back: clients and providers rewrite all of these.
    """
    content = message.get("content")
    others: list[Any] = []
    if not isinstance(content, str):
        texts = []
        for part in _list(content):
            text = _part_text(part)
            if text is None:
                others.append(_without_marks(part))
            else:
                texts.append(text)
        content = "".join(texts)
    made = [
        [_id(call, "id"), *_function(call.get("function") if isinstance(call, dict) else None)]
        for call in _list(message.get("tool_calls"))
    ]
    made.append(_function(message.get("function_call")))
    more = [others, made, message.get("tool_call_id") or ""]
    data = "\0".join((str(message.get("role", "")), content.strip(), _json(more) if more != _NOTHING else ""))
    return hashlib.blake2b(data.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


_NOTHING: list[Any] = [[], [[]], ""]


def _without_marks(value: Any) -> Any:  # noqa: ANN401 - as above
    if isinstance(value, dict):
        return {key: _without_marks(one) for key, one in value.items() if key != "cache_control" and one is not None}
    return [_without_marks(one) for one in value] if isinstance(value, (list, tuple)) else value


def chain(messages: Iterable[Message], identities: Iterable[bytes]) -> list[bytes]:
    """For each message, a digest of it and of all before it.

    Instructions do not count: many clients write the time into them, anew with each request.
    """
    out: list[bytes] = []
    before = b""
    for message, own in zip(messages, identities, strict=True):
        if not is_instruction(message):
            before = hashlib.blake2b(before + own, digest_size=_DIGEST).digest()
        out.append(before)
    return out


class Lengths:
    """Counts the tokens of messages and remembers them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    def of(self, message: Message, tokenizer: Tokenizer) -> int:
        """Tokens of one message, what frames it included."""
        texts, others = pieces(message)
        text = "\n".join(texts)
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()
        key = tokenizer.name, digest
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
        if found is None:
            found = count(text, tokenizer)
            with self._lock:
                self._known[key] = found
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        return found + MESSAGE_TOKENS + OTHER_TOKENS * others


def count(text: str, tokenizer: Tokenizer) -> int:
    """Tokens of a text. One that the tokenizer gives up on, as it does on a megabyte of spaces, is estimated."""
    try:
        return tokenizer.count(text)
    except TokenizerUnavailable:
        return len(text) // 4 + 1
