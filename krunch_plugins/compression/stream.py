"""Expansion of replies: whole messages, and streams chunk by chunk."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from krunch_plugins.compression.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from krunch_plugins.compression.meanings import Meanings
    from krunch_plugins.compression.windows import Window
    from krunch_plugins.turns import Message

TEXT_FIELDS = ("content", "refusal", "reasoning_content", "reasoning")
"""The fields of a message or delta that hold the model's text."""

_CHUNK_KEYS = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
"""What says which stream a chunk belongs to."""


def expand_message(
    message: Message, meanings: Meanings | None, substitutions: Mapping[str, str], *, json_content: bool = False
) -> tuple[Message, int]:
    """Expand a whole assistant message.

    Args:
        message: the message as the model wrote it, OpenAI format. Not changed. Keys that hold no text of the model's,
            such as signed `thinking_blocks`, and unknown keys pass untouched.
        meanings: what the marks of the request stand for; None: it has none.
        substitutions: token → the text it stands for.
        json_content: `content` is JSON text, so what is put into it is escaped.

    Returns:
        A new message, and how many symbols and other marks were expanded in it.
    """
    windows = Windows(meanings, substitutions)
    expanded = 0

    def expand(text: str, *, json_text: bool) -> str:
        nonlocal expanded
        window = windows.open(json_text=json_text)
        result = window.feed(text) + window.end()
        expanded += window.expanded
        return result

    def expand_text(text: str) -> str:
        return expand(text, json_text=False)

    def expand_json(text: str) -> str:
        return expand(text, json_text=True)

    result = dict(message)
    for field in TEXT_FIELDS:
        if field in message:
            as_json = json_content and field == "content"
            result[field] = _map_text(message[field], expand_json if as_json else expand_text)
    if isinstance(message.get("tool_calls"), list):
        result["tool_calls"] = [
            _map_call(call, arguments=expand_json, custom_input=expand_text) for call in message["tool_calls"]
        ]
    if "function_call" in message:
        result["function_call"] = _map_key(message["function_call"], "arguments", expand_json)
    return result, expanded


class ChunkExpander:
    """Expands one streamed reply, OpenAI chat chunks. Not thread-safe.

    Each chunk comes out as one chunk, at once, with what of its text is decided by then: its other keys, usage and
    logprobs among them, stay with it. What is held back, never more than a mark or token could be long, comes with
    a later chunk of the same choice; at the latest with the one that has its `finish_reason`, or from `flush`.

    Args:
        meanings: what the marks of the request stand for; None: it has none.
        substitutions: token → the text it stands for.
        json_content: `content` is JSON text, so what is put into it is escaped.
    """

    __slots__ = ("_choices", "_expanded", "_json_content", "_windows")

    def __init__(
        self, meanings: Meanings | None, substitutions: Mapping[str, str], *, json_content: bool = False
    ) -> None:
        self._windows = Windows(meanings, substitutions)
        self._json_content = json_content
        self._choices: dict[int, _Choice] = {}
        self._expanded = 0  # by windows that were given up

    @property
    def expanded(self) -> int:
        """Symbols and other marks that were expanded so far, in all choices."""
        texts = (text for choice in self._choices.values() for text in choice.texts.values())
        return self._expanded + sum(text.window.expanded for text in texts)

    def feed(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Take one chunk; give back what is to be handed on. `chunk` is not changed."""
        result = dict(chunk)
        if isinstance(chunk.get("choices"), list):
            result["choices"] = [self._choice(part, place, chunk) for place, part in enumerate(chunk["choices"])]
        return [result]

    def passes(self, index: int, content: str) -> bool:
        """Whether a chunk that brings `content` for choice `index`, and nothing else, goes out as it is.

        If so, it has been fed. If not, nothing has happened: `feed` says what goes out. Never true of the first chunk.
        """
        choice = self._choices.get(index)
        text = None if choice is None else choice.texts.get(("content", 0))
        return text is not None and text.passes(content)

    def flush(self) -> list[dict[str, Any]]:
        """The stream is at its end: what was held back, one chunk for each choice that has something."""
        chunks = []
        for index, choice in sorted(self._choices.items()):
            delta: dict[str, Any] = {}
            choice.end(delta)
            if delta:
                chunks.append({**choice.chunk, "choices": [{"index": index, "delta": delta, "finish_reason": None}]})
        return chunks

    def held(self) -> list[dict[str, Any]]:
        """What `flush` would give back now. Nothing is changed, but `give_up` goes back to here."""
        chunks = []
        for index, choice in sorted(self._choices.items()):
            delta = choice.held()
            if delta:
                chunks.append({**choice.chunk, "choices": [{"index": index, "delta": delta, "finish_reason": None}]})
        return chunks

    def give_up(self) -> None:
        """Forget what came since `held`, whose chunks have gone out; from now on every text passes as it comes."""
        self._expanded = self.expanded
        self._windows = Windows(None, {})
        for choice in self._choices.values():
            choice.give_up(self._windows)

    def assembled(self) -> list[tuple[int, Message]]:
        """The reply so far, expanded: (choice, whole assistant message) in the order of the choices.

        Usable at any time, also after a stream that was broken off; what is held back counts as if the stream ended
        here. Holds role, `content` (None if there was none), the other text fields, and tool calls; keys that Krunch
        does not know cannot be put together from chunks and are left out.
        """
        return [(index, choice.message()) for index, choice in sorted(self._choices.items())]

    def _choice(self, part: Any, place: int, chunk: Mapping[str, Any]) -> Any:  # noqa: ANN401 - whatever JSON holds
        """One item of a chunk's `choices`."""
        if not isinstance(part, dict):
            return part
        index = _index(part, place)
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(self._windows, json_content=self._json_content)
        choice.chunk = {key: chunk[key] for key in _CHUNK_KEYS if key in chunk}
        delta = part.get("delta")
        result = choice.feed(delta) if isinstance(delta, dict) else {}
        if part.get("finish_reason") is not None:
            choice.end(result)
        return {**part, "delta": result} if result or isinstance(delta, dict) else part


class _Text:
    """One text of a streamed choice: the window it goes through, and what has gone out."""

    __slots__ = ("_mark", "_out", "window")

    def __init__(self, window: Window) -> None:
        self.window = window
        self._out: list[str] = []
        self._mark = 0, ""

    def feed(self, text: str) -> str:
        self._out.append(self.window.feed(text))
        return self._out[-1]

    def passes(self, text: str) -> bool:
        if not self.window.passes(text):
            return False
        self._out.append(text)
        return True

    def end(self) -> str:
        self._out.append(self.window.end())
        return self._out[-1]

    def held(self) -> str:
        """What is held back, without changing anything; and the place to which `give_up` goes back."""
        rest = self.window.held
        if rest:
            with suppress(Exception):  # the window is at fault itself: what it holds goes out as it is
                rest = self.window.rest()
        self._mark = len(self._out), rest
        return rest

    def give_up(self, window: Window) -> None:
        """What was held back at the mark has gone out, and what came since counts for nothing."""
        place, rest = self._mark
        self._out[place:] = [rest]
        self.window = window

    def whole(self) -> str:
        return "".join(self._out) + self.window.rest()


class _Choice:
    """One choice of a streamed reply.

    Attributes:
        texts: its texts, by kind (a text field, "function_call", "arguments" or "input") and index of the tool call,
            0 for what is in none.
        chunk: what its last chunk said about the stream.
    """

    __slots__ = ("_as_json", "_calls", "_function", "_role", "_windows", "chunk", "texts")

    def __init__(self, windows: Windows, *, json_content: bool) -> None:
        self._windows = windows
        self._as_json = {"arguments", "function_call", *(["content"] if json_content else [])}
        self._role = "assistant"
        self._calls: dict[int, dict[str, Any]] = {}
        self._function = ""
        self.texts: dict[tuple[str, int], _Text] = {}
        self.chunk: dict[str, Any] = {}

    def feed(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        """A new delta, with what of its text is decided."""
        result = dict(delta)
        self._role = delta.get("role") or self._role
        for field in TEXT_FIELDS:
            if isinstance(delta.get(field), (str, list)):
                result[field] = _map_text(delta[field], self._text(field).feed)
        if isinstance(delta.get("tool_calls"), list):
            result["tool_calls"] = [self._call(call, place) for place, call in enumerate(delta["tool_calls"])]
        function = delta.get("function_call")
        if isinstance(function, dict):
            self._function += _name(function)
            result["function_call"] = _map_key(function, "arguments", self._text("function_call").feed)
        return result

    def end(self, delta: dict[str, Any]) -> None:
        """Add what was held back to a delta of ours."""
        for (kind, index), text in self.texts.items():
            rest = text.end()
            if rest:
                _append(delta, kind, index, rest)

    def held(self) -> dict[str, Any]:
        """A delta with what is held back."""
        delta: dict[str, Any] = {}
        for (kind, index), text in self.texts.items():
            rest = text.held()
            if rest:
                _append(delta, kind, index, rest)
        return delta

    def give_up(self, windows: Windows) -> None:
        """From now on every text goes through one of these windows."""
        self._windows = windows
        for text in self.texts.values():
            text.give_up(windows.open())

    def message(self) -> Message:
        """What came so far, as a whole message."""
        message: Message = {"role": self._role, "content": None}
        for field in TEXT_FIELDS:
            if (field, 0) in self.texts:
                message[field] = self._text(field).whole()
        if self._calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [self._whole_call(index) for index in sorted(self._calls)]
        if ("function_call", 0) in self.texts:
            message["function_call"] = {"name": self._function, "arguments": self._text("function_call").whole()}
        return message

    def _text(self, kind: str, index: int = 0) -> _Text:
        text = self.texts.get((kind, index))
        if text is None:
            text = self.texts[kind, index] = _Text(self._windows.open(json_text=kind in self._as_json))
        return text

    def _call(self, call: Any, place: int) -> Any:  # noqa: ANN401 - whatever JSON holds
        """One item of a delta's `tool_calls`."""
        if not isinstance(call, dict):
            return call
        index = _index(call, place)
        seen = self._calls.setdefault(index, {})
        for key in ("id", "type"):
            seen[key] = call.get(key) or seen.get(key)
        for key in ("function", "custom"):
            part = call.get(key)
            if isinstance(part, dict):
                seen[key] = seen.get(key, "") + _name(part)
        # The text is made here only if there is any: a call without arguments has none.
        return _map_call(
            call,
            arguments=lambda text: self._text("arguments", index).feed(text),
            custom_input=lambda text: self._text("input", index).feed(text),
        )

    def _whole_call(self, index: int) -> dict[str, Any]:
        seen = self._calls[index]
        call: dict[str, Any] = {"id": seen.get("id"), "type": seen.get("type") or "function"}
        if "custom" in seen:
            call["custom"] = {"name": seen["custom"], "input": self._text("input", index).whole()}
        else:
            call["function"] = {"name": seen.get("function", ""), "arguments": self._text("arguments", index).whole()}
        return call


def _append(delta: dict[str, Any], kind: str, index: int, rest: str) -> None:
    """Put the rest of a text behind what the delta holds of it already."""
    if kind == "function_call":
        delta[kind] = _with_more(delta.get(kind), "arguments", rest)
    elif kind in TEXT_FIELDS:
        if isinstance(delta.get(kind), list):
            delta[kind] = [*delta[kind], {"type": "text", "text": rest}]
        else:
            delta[kind] = (delta.get(kind) or "") + rest
    else:
        holder = "function" if kind == "arguments" else "custom"
        calls = list(delta.get("tool_calls") or ())
        for place, call in enumerate(calls):
            if isinstance(call, dict) and _index(call, place) == index:
                calls[place] = {**call, holder: _with_more(call.get(holder), kind, rest)}
                break
        else:
            calls.append({"index": index, holder: {kind: rest}})
        delta["tool_calls"] = calls


def _with_more(holder: Mapping[str, Any] | None, key: str, text: str) -> dict[str, Any]:
    return {**(holder or {}), key: ((holder or {}).get(key) or "") + text}


def _name(function: Mapping[str, Any]) -> str:
    name = function.get("name")
    return name if isinstance(name, str) else ""


def _index(part: Mapping[str, Any], place: int) -> int:
    """The index that a choice or tool call names; its place in the list where a provider leaves it out."""
    index = part.get("index")
    return index if isinstance(index, int) else place


def _map_text(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401 - whatever JSON holds
    """A text field with its text changed: a string, or the parts of a list that are text."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [
            _map_key(part, "text", change) if isinstance(part, dict) and part.get("type") == "text" else part
            for part in value
        ]
    return value


def _map_call(call: Any, *, arguments: Callable[[str], str], custom_input: Callable[[str], str]) -> Any:  # noqa: ANN401 - as above
    """A tool call with its text changed."""
    if not isinstance(call, dict):
        return call
    result = dict(call)
    if "function" in call:
        result["function"] = _map_key(call["function"], "arguments", arguments)
    if "custom" in call:
        result["custom"] = _map_key(call["custom"], "input", custom_input)
    return result


def _map_key(holder: Any, key: str, change: Callable[[str], str]) -> Any:  # noqa: ANN401 - as above
    """A dict with one of its texts changed; anything else as it is."""
    if isinstance(holder, dict) and isinstance(holder.get(key), str):
        return {**holder, key: change(holder[key])}
    return holder
