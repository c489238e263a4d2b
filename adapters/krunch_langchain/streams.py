"""Streamed replies: each text of a message has a lane of its own, in which it is expanded piece by piece."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.chat_models import _gen_info_and_msg_metadata
from langchain_core.messages import AIMessageChunk, message_chunk_to_message
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.outputs.chat_generation import merge_chat_generation_chunks

from krunch_langchain.messages import TEXT_FIELDS, openai_form, parsed_again, turn_metadata
from krunch_langchain.parts import is_text
from krunch_langchain.replies import note_usage
from krunch_langchain.tool_calls import mirrored
from krunch_plugins.errors import NotStorable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from langchain_core.messages import BaseMessage

    from krunch_plugins import Exchange

log = logging.getLogger("krunch")

Lane = tuple[str, Any]
"""Which text a piece belongs to: its kind ("content", "block", "call", "function_call" or a text field), its index."""

_CONTENT: Lane = ("content", None)
_FINISHED = ("finish_reason", "stop_reason", "done_reason")


class StreamedReply:
    """A reply that comes in chunks. Each comes out at once, as one, with what of its texts is decided by then.

    Args:
        exchange: the request.
        run_id: LangChain's id of the run, which names a message that has no id.
    """

    def __init__(self, exchange: Exchange, run_id: str | None) -> None:
        self._exchange, self._run_id = exchange, run_id
        self._expander = exchange.stream()
        self._lanes: dict[Lane, int] = {}
        self._open: dict[Lane, None] = {}
        self._block: Lane | None = None
        self._mirrors: dict[Any, dict[str, Any]] = {}
        self._heard: list[str] = []
        self._said: list[str] = []
        self._out: list[ChatGenerationChunk] = []
        self._ended = self._broken = False

    def expanded(self, chunks: Iterator[ChatGenerationChunk]) -> Iterator[ChatGenerationChunk]:
        """The chunks for the caller."""
        for chunk in chunks:
            yield self.feed(chunk)
        last = self.end()
        if last is not None:
            yield last

    async def aexpanded(self, chunks: AsyncIterator[ChatGenerationChunk]) -> AsyncIterator[ChatGenerationChunk]:
        """The chunks for the caller."""
        async for chunk in chunks:
            yield self.feed(chunk)
        last = self.end()
        if last is not None:
            yield last

    def feed(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """Take one chunk; give back the chunk to hand on. `chunk` is not changed."""
        if not self._broken and isinstance(chunk.message, AIMessageChunk):
            try:
                chunk = self._expanded(chunk, chunk.message)
            except Exception as error:  # noqa: BLE001 - ours, never the caller's: what the model wrote goes through
                self._broken = True
                log.warning("expanding a stream failed with %s; the rest is handed on as it came", type(error).__name__)
        self._out.append(chunk)
        return chunk

    def end(self) -> ChatGenerationChunk | None:
        """The stream is at its end: a chunk with what was held back, or None."""
        self._ended = True
        if self._broken or not self._open:
            return None
        rests = self._rests(tuple(self._open))
        if not any(rests.values()):
            return None
        last = AIMessageChunk(content="")
        chunk = ChatGenerationChunk(message=self._with_rests(last, {}, rests))
        self._out.append(chunk)
        return chunk

    def finish(self) -> None:
        """Run the hooks on what was streamed; partial, if the stream did not come to its end."""
        try:
            self._expander.flush(**self._whole())
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("ending a stream failed with %s", type(error).__name__)

    async def afinish(self) -> None:
        """`finish` for async callers."""
        try:
            await self._expander.aflush(**self._whole())
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("ending a stream failed with %s", type(error).__name__)

    def _whole(self) -> dict[str, Any]:
        """What the hooks see, and what the store keeps with it: the message as the caller has it."""
        if not self._ended and not self._broken:
            self.end()
            self._ended = False
        generation = merge_chat_generation_chunks(self._out)
        if generation is None:
            return {"partial": True}
        told = _gen_info_and_msg_metadata(generation)
        message = message_chunk_to_message(generation.message)
        message = message.model_copy(update={"response_metadata": told, "id": message.id or self._run_id})
        note_usage(self._exchange, message)
        return {"partial": not self._ended, "message": openai_form(message), "metadata": self._metadata(message)}

    def _metadata(self, message: BaseMessage) -> dict[str, Any] | None:
        if self._exchange.session is None:
            return None
        try:
            return turn_metadata(message)
        except NotStorable as error:
            log.warning("a reply is recorded without what only LangChain knows of it: %s is %s", error.path, error.kind)
            return None

    def _expanded(self, chunk: ChatGenerationChunk, message: AIMessageChunk) -> ChatGenerationChunk:
        pieces = _pieces(message)
        finished = _is_finished(chunk, message)
        for call in message.tool_call_chunks:
            shape = mirrored(message.content, call)
            if shape:
                self._mirrors.setdefault(call.get("index"), shape)
        rests = self._left_behind(pieces)
        texts = self._pass(pieces)
        self._note(pieces, texts)
        once = [lane for lane, _ in pieces if lane[0] == "call" and isinstance(lane[1], tuple)]
        ending = list(self._open) if finished else once
        after = self._rests(ending)
        self._ended = self._ended or finished
        parsed = message.additional_kwargs.get("parsed")
        if parsed is not None and self._heard != self._said:
            texts["parsed", None] = parsed_again(parsed, "".join(self._said))
        elif all(texts[lane] == text for lane, text in pieces) and not any((*rests.values(), *after.values())):
            return chunk
        changed = self._with_rests(_with_texts(message, texts), rests, after)
        return ChatGenerationChunk(message=changed, generation_info=chunk.generation_info)

    def _left_behind(self, pieces: Sequence[tuple[Lane, str]]) -> dict[Lane, str]:
        """What was held back of a block of text when another block, or a tool call, begins."""
        rests: dict[Lane, str] = {}
        for lane, _ in pieces:
            if lane[0] in ("block", "call"):
                if self._block not in (None, lane):
                    assert self._block is not None
                    rests.update(self._rests([self._block]))
                self._block = lane if lane[0] == "block" else None
        return rests

    def _pass(self, pieces: Sequence[tuple[Lane, str]]) -> dict[Lane, str]:
        """Each piece through its lane: what of it, and of what was held back before it, is decided."""
        choices = [{"index": self._number(lane), "delta": _delta(lane, text)} for lane, text in pieces]
        texts = dict.fromkeys((lane for lane, _ in pieces), "")
        if choices:
            self._open.update(texts.fromkeys(texts))
            self._read(self._expander.feed({"choices": choices}), texts)
        return texts

    def _rests(self, lanes: Iterable[Lane]) -> dict[Lane, str]:
        """These texts are at their end: what was held back of each."""
        texts = dict.fromkeys((lane for lane in lanes if lane in self._open), "")
        if not texts:
            return {}
        for lane in texts:
            del self._open[lane]
        choices = [{"index": self._number(lane), "delta": {}, "finish_reason": "stop"} for lane in texts]
        self._read(self._expander.feed({"choices": choices}), texts)
        self._said += [text for lane, text in texts.items() if lane[0] in ("content", "block") and text]
        return texts

    def _read(self, chunks: Iterable[Any], texts: dict[Lane, str]) -> None:
        by_number = {self._number(lane): lane for lane in texts}
        for chunk in chunks:
            for choice in chunk["choices"]:
                lane = by_number[choice["index"]]
                texts[lane] += _text(lane, choice.get("delta") or {})

    def _number(self, lane: Lane) -> int:
        return self._lanes.setdefault(lane, len(self._lanes))

    def _note(self, pieces: Sequence[tuple[Lane, str]], texts: dict[Lane, str]) -> None:
        self._heard += [text for lane, text in pieces if lane[0] in ("content", "block") and text]
        self._said += [text for lane, text in texts.items() if lane[0] in ("content", "block") and text]

    def _with_rests(self, message: AIMessageChunk, before: dict[Lane, str], after: dict[Lane, str]) -> AIMessageChunk:
        """The chunk with what was held back: of blocks that have ended in front, of what ends now behind."""
        content: Any = message.content
        calls = list(message.tool_call_chunks)
        extra = dict(message.additional_kwargs)
        front = [_block(lane, text) for lane, text in before.items() if text and lane[0] == "block"]
        if front:
            content = [*front, *_as_blocks(content)]
        for (kind, index), text in after.items():
            if not text:
                continue
            if kind == "content" and isinstance(content, str):
                content += text
            elif kind in ("content", "block"):
                content = [*_as_blocks(content), _block((kind, index), text)]
            elif kind == "call":
                content, calls = self._with_call_rest(content, calls, index, text)
            elif kind == "function_call":
                function = extra.get(kind) or {}
                extra[kind] = {**function, "arguments": (function.get("arguments") or "") + text}
            else:
                extra[kind] = (extra.get(kind) or "") + text
        return _rebuilt(message, content=content, tool_call_chunks=calls, additional_kwargs=extra)

    def _with_call_rest(self, content: Any, calls: list[Any], index: Any, text: str) -> tuple[Any, list[Any]]:  # noqa: ANN401 - as LangChain has it
        if isinstance(index, tuple):  # a call that came whole: the last of this chunk
            calls[index[1]] = {**calls[index[1]], "args": (calls[index[1]]["args"] or "") + text}
            return content, calls
        calls = [*calls, tool_call_chunk(args=text, index=index)]
        mirror = self._mirrors.get(index)
        if mirror:
            (key,) = (key for key, value in mirror.items() if value is None)
            content = [*_as_blocks(content), {**mirror, key: text}]
        return content, calls


def _pieces(message: AIMessageChunk) -> list[tuple[Lane, str]]:
    """The texts in a chunk, and which text of the reply each continues."""
    pieces: list[tuple[Lane, str]] = []
    if isinstance(message.content, str):
        if message.content:
            pieces.append((_CONTENT, message.content))
    else:
        for block in message.content:
            if isinstance(block, str):
                pieces.append((("block", None), block))
            elif is_text(block):
                pieces.append((("block", block.get("index")), block["text"]))
    for place, call in enumerate(message.tool_call_chunks):
        if call["args"]:
            index = call.get("index")
            pieces.append((("call", ("whole", place) if index is None else index), call["args"]))
    extra = message.additional_kwargs
    pieces += [
        ((field, None), extra[field]) for field in TEXT_FIELDS if extra.get(field) and isinstance(extra[field], str)
    ]
    function = extra.get("function_call")
    if isinstance(function, dict) and function.get("arguments"):
        pieces.append((("function_call", None), function["arguments"]))
    return pieces


def _with_texts(message: AIMessageChunk, texts: dict[Lane, Any]) -> AIMessageChunk:
    """The chunk with its texts replaced; where one text has several pieces, the first gets all of it."""
    left = dict(texts)
    content: Any = message.content
    if isinstance(content, str):
        content = left.pop(_CONTENT, content)
    else:
        content = [_block_with(block, left) for block in content]
    calls: list[Any] = []
    for place, call in enumerate(message.tool_call_chunks):
        index = call.get("index")
        text = left.pop(("call", ("whole", place) if index is None else index), "" if call["args"] else call["args"])
        calls.append({**call, "args": text})
        if not isinstance(content, str) and text != call["args"]:
            content = [_mirror(block, call, text) for block in content]
    extra = dict(message.additional_kwargs)
    extra.update((kind, text) for (kind, _), text in left.items() if kind in TEXT_FIELDS or kind == "parsed")
    if ("function_call", None) in left:
        extra["function_call"] = {**extra["function_call"], "arguments": left["function_call", None]}
    return _rebuilt(message, content=content, tool_call_chunks=calls, additional_kwargs=extra)


def _block_with(block: Any, left: dict[Lane, Any]) -> Any:  # noqa: ANN401 - a string or a block
    if isinstance(block, str):
        return left.pop(("block", None), "")
    if is_text(block):
        return {**block, "text": left.pop(("block", block.get("index")), "")}
    return block


def _mirror(block: Any, call: Any, text: str | None) -> Any:  # noqa: ANN401 - a string or a block
    """A content block that repeats a piece of a tool call, with the piece as it is now."""
    shape = mirrored([block], call)
    return {**block, **{key: text for key, value in shape.items() if value is None}}


def _rebuilt(message: AIMessageChunk, **changes: Any) -> AIMessageChunk:  # noqa: ANN401 - fields of the chunk
    """The chunk with other fields. What LangChain parses of its pieces of tool calls is parsed again."""
    if changes["tool_call_chunks"] == message.tool_call_chunks:
        return message.model_copy(update=changes)
    derived = ("tool_calls", "invalid_tool_calls", "type")
    fields = {name: value for name, value in message.__dict__.items() if name not in derived}
    return type(message)(**{**fields, **changes})


def _delta(lane: Lane, text: str) -> dict[str, Any]:
    kind = lane[0]
    if kind == "call":
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
    if kind == "function_call":
        return {kind: {"arguments": text}}
    return {"content" if kind == "block" else kind: text}


def _text(lane: Lane, delta: dict[str, Any]) -> str:
    kind = lane[0]
    if kind == "call":
        return "".join(call["function"].get("arguments") or "" for call in delta.get("tool_calls") or ())
    if kind == "function_call":
        return (delta.get(kind) or {}).get("arguments") or ""
    return delta.get("content" if kind == "block" else kind) or ""


def _block(lane: Lane, text: str) -> Any:  # noqa: ANN401 - a block
    block: dict[str, Any] = {"type": "text", "text": text}
    return block if lane[1] is None else {**block, "index": lane[1]}


def _as_blocks(content: Any) -> list[Any]:  # noqa: ANN401 - as LangChain has it
    if isinstance(content, str):
        return [content] if content else []
    return list(content)


def _is_finished(chunk: ChatGenerationChunk, message: AIMessageChunk) -> bool:
    told = ({**(chunk.generation_info or {}), **message.response_metadata}.get(name) for name in _FINISHED)
    return message.chunk_position == "last" or any(value is not None for value in told)
