"""Streamed replies: each text of a message has a lane of its own, in which it is expanded piece by piece."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.chat_models import _gen_info_and_msg_metadata
from langchain_core.messages import AIMessageChunk, message_chunk_to_message
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.outputs.chat_generation import merge_chat_generation_chunks

from krunch_langchain.chunks import SPOKEN, delta_of, is_finished, pieces_of, text_of, with_rests, with_texts
from krunch_langchain.messages import openai_form, parsed_again, turn_metadata
from krunch_langchain.replies import note_usage
from krunch_langchain.tool_calls import mirrored
from krunch_plugins.errors import NotStorable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence

    from langchain_core.messages import BaseMessage

    from krunch_langchain.chunks import Lane
    from krunch_plugins import Exchange

log = logging.getLogger("krunch")


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
        self._last: Lane | None = None
        self._mirrors: dict[Any, dict[str, Any]] = {}
        self._heard: list[str] = []
        self._said: list[str] = []
        self._out: list[ChatGenerationChunk] = []
        self._ended = self._broken = False

    def expanded(self, chunks: Iterator[ChatGenerationChunk]) -> Iterator[ChatGenerationChunk]:
        """The chunks for the caller."""
        for chunk in chunks:
            yield from self.feed(chunk)
        last = self.end()
        if last is not None:
            yield last

    async def aexpanded(self, chunks: AsyncIterator[ChatGenerationChunk]) -> AsyncGenerator[ChatGenerationChunk]:
        """The chunks for the caller. Closing it closes `chunks`, and the connection with it."""
        try:
            async for chunk in chunks:
                for out in self.feed(chunk):
                    yield out
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
        last = self.end()
        if last is not None:
            yield last

    def feed(self, chunk: ChatGenerationChunk) -> list[ChatGenerationChunk]:
        """Take one chunk; give back what to hand on: one chunk, or before it what was held back, if expanding fails.

        `chunk` is not changed.
        """
        out = [chunk]
        if not self._broken and isinstance(chunk.message, AIMessageChunk):
            held: list[dict[str, Any]] = []
            with self._failing_open("expanding a stream"):
                held = self._expander.held()
                out = [self._expanded(chunk, chunk.message)]
            if self._broken and held:
                with self._failing_open("ending the expansion of a stream"):
                    out = [self._rest_chunk(held), chunk]
        self._out += out
        return out

    def _rest_chunk(self, held: Iterable[Any]) -> ChatGenerationChunk:
        texts = dict.fromkeys(self._lanes, "")
        self._read(held, texts)
        return ChatGenerationChunk(message=with_rests(AIMessageChunk(content=""), {}, texts, self._mirrors))

    def end(self) -> ChatGenerationChunk | None:
        """The stream is at its end: a chunk with what was held back, or None."""
        self._ended = True
        if self._broken or not self._open:
            return None
        chunk = None
        with self._failing_open("ending a stream"):
            held = self._expander.held()
            chunk = self._rest_chunk(held) if held else None
            self._rests(tuple(self._open))
        if chunk is not None:
            self._out.append(chunk)
        return chunk

    def finish(self) -> None:
        """Run the hooks on what was streamed; partial, if the stream did not come to its end."""
        with self._failing_open("ending a stream"):
            self._expander.flush(**self._facts())

    async def afinish(self) -> None:
        """`finish` for async callers."""
        with self._failing_open("ending a stream"):
            await self._expander.aflush(**self._facts())

    def _facts(self) -> dict[str, Any]:
        """What the hooks see, and what the store keeps with it: the message as the caller has it."""
        facts: dict[str, Any] = {"partial": not self._ended}
        with self._failing_open("putting a stream together"):
            if facts["partial"]:
                self.end()
            facts.update(self._whole())
        return facts

    @contextmanager
    def _failing_open(self, doing: str) -> Iterator[None]:
        """What goes wrong in Krunch is logged; what the model wrote goes through."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - ours, never the caller's
            self._broken = True
            log.warning("%s failed with %s", doing, type(error).__name__)

    def _whole(self) -> dict[str, Any]:
        """The message as the caller has it."""
        generation = merge_chat_generation_chunks(self._out)
        if generation is None:
            return {}
        told = _gen_info_and_msg_metadata(generation)
        message = message_chunk_to_message(generation.message)
        message = message.model_copy(update={"response_metadata": told, "id": message.id or self._run_id})
        note_usage(self._exchange, message)
        return {"message": openai_form(message), "metadata": self._metadata(message)}

    def _metadata(self, message: BaseMessage) -> dict[str, Any] | None:
        if self._exchange.session is None:
            return None
        try:
            return turn_metadata(message)
        except NotStorable as error:
            log.warning("a reply is recorded without what only LangChain knows of it: %s is %s", error.path, error.kind)
            return None

    def _expanded(self, chunk: ChatGenerationChunk, message: AIMessageChunk) -> ChatGenerationChunk:
        pieces = pieces_of(message)
        finished = is_finished(chunk, message)
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
        changed = with_rests(with_texts(message, texts), rests, after, self._mirrors)
        return ChatGenerationChunk(message=changed, generation_info=chunk.generation_info)

    def _left_behind(self, pieces: Sequence[tuple[Lane, str]]) -> dict[Lane, str]:
        """What was held back of a text when another begins. Tool calls may take turns; they end at the end."""
        rests: dict[Lane, str] = {}
        for lane, _ in pieces:
            if self._last is not None and self._last != lane and self._last[0] != "call":
                rests.update(self._rests([self._last]))
            self._last = lane
        return rests

    def _pass(self, pieces: Sequence[tuple[Lane, str]]) -> dict[Lane, str]:
        """Each piece through its lane: what of it, and of what was held back before it, is decided."""
        choices = [{"index": self._number(lane), "delta": delta_of(lane, text)} for lane, text in pieces]
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
        self._said += [text for lane, text in texts.items() if lane[0] in SPOKEN and text]
        return texts

    def _read(self, chunks: Iterable[Any], texts: dict[Lane, str]) -> None:
        by_number = {self._number(lane): lane for lane in texts}
        for chunk in chunks:
            for choice in chunk["choices"]:
                lane = by_number[choice["index"]]
                texts[lane] += text_of(lane, choice.get("delta") or {})

    def _number(self, lane: Lane) -> int:
        return self._lanes.setdefault(lane, len(self._lanes))

    def _note(self, pieces: Sequence[tuple[Lane, str]], texts: dict[Lane, str]) -> None:
        self._heard += [text for lane, text in pieces if lane[0] in SPOKEN and text]
        self._said += [text for lane, text in texts.items() if lane[0] in SPOKEN and text]
