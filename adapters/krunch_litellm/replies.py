"""LiteLLM's replies: whole ones and streams, expanded for the caller without changing what LiteLLM holds itself."""

from __future__ import annotations

import logging
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from litellm.types.utils import Message, ModelResponse

from krunch_litellm.chunks import ExpandedChunks
from krunch_litellm.wire.offsets import with_offsets_right
from krunch_litellm.wire.thoughts import with_thoughts_expanded
from krunch_plugins import abandoned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from krunch_plugins import Exchange

log = logging.getLogger("krunch")

_OWN = frozenset({"_inner", "_exchange", "_chunks", "_ready", "_error", "_over"})
_END = object()


def is_whole(result: object) -> TypeGuard[ModelResponse]:
    """Whether a call returned a whole reply."""
    return isinstance(result, ModelResponse)


def is_stream(result: object) -> bool:
    """Whether a call returned a stream, plain or asynchronous."""
    return hasattr(result, "__next__") or hasattr(result, "__anext__")


def finish(exchange: Exchange, response: ModelResponse) -> ModelResponse:
    """The reply for the caller: a copy where anything changed, else `response` itself.

    Raises:
        RequestRefused: a plugin keeps the reply from the caller.
    """
    _note_usage(exchange, response)
    given = _messages(response)
    texts = exchange.texts()
    messages = [exchange.finish(with_thoughts_expanded(message, texts), choice=index) for index, message in given]
    return _with_messages(response, given, _annotated(messages, given, exchange))


async def afinish(exchange: Exchange, response: ModelResponse) -> ModelResponse:
    """`finish`, off the event loop where it may take long."""
    _note_usage(exchange, response)
    return await aexpanded(exchange, response)


async def aexpanded(exchange: Exchange, response: ModelResponse, *, first: int = 0) -> ModelResponse:
    """The reply for the caller, and nothing told to the statistics; raises as `finish` does.

    Args:
        exchange: the request.
        response: the reply.
        first: the number that the hooks are given for its first choice.
    """
    given = _messages(response)
    texts = exchange.texts()
    messages = [
        await exchange.afinish(with_thoughts_expanded(message, texts), choice=first + index) for index, message in given
    ]
    return _with_messages(response, given, _annotated(messages, given, exchange))


def refused(response: ModelResponse, reason: str) -> ModelResponse:
    """The reply without its text, for where an error cannot reach the caller."""
    messages = [{"role": "assistant", "content": None, "refusal": reason} for _ in response.choices]
    withheld = _with_messages(response, _messages(response), messages)
    for choice in withheld.choices:
        choice.finish_reason = "content_filter"
    return withheld


def _note_usage(exchange: Exchange, response: ModelResponse) -> None:
    """Tell the statistics what the provider counted for a whole reply; one from LiteLLM's cache costs nothing."""
    usage = getattr(response, "usage", None)
    if usage is not None and not response._hidden_params.get("cache_hit"):  # noqa: SLF001 - LiteLLM's documented name
        exchange.note_usage(usage.model_dump())


def _messages(response: ModelResponse) -> list[tuple[int, dict[str, Any]]]:
    return [(choice.index, choice.message.model_dump()) for choice in response.choices]


def _annotated(
    messages: list[dict[str, Any]], given: list[tuple[int, dict[str, Any]]], exchange: Exchange
) -> list[dict[str, Any]]:
    """Expanded messages with the offsets of their annotations right."""
    return [
        with_offsets_right(message, str(before.get("content") or ""), exchange)
        for message, (_, before) in zip(messages, given, strict=True)
    ]


def _with_messages(
    response: ModelResponse, given: list[tuple[int, dict[str, Any]]], messages: list[dict[str, Any]]
) -> ModelResponse:
    before = [message for _, message in given]
    if messages == before:
        return response
    # Shallow copies: LiteLLM's logging and cache hold the original, in other threads, and shall see no change.
    result = response.model_copy()
    result.choices = [choice.model_copy() for choice in response.choices]
    for choice, old, new in zip(result.choices, before, messages, strict=True):
        if new != old:
            choice.message = _message(choice.message, old, new)
    return result


def _message(message: Message, old: Mapping[str, Any], new: Mapping[str, Any]) -> Message:
    """A copy of `message` that says `new` where that differs from `old`."""
    result = message.model_copy()
    if new.keys() == old.keys() and all(isinstance(new[key], str) for key in new if new[key] != old[key]):
        for key in new:  # texts need no type of LiteLLM's, whose making takes longer than all else here
            if new[key] != old[key]:
                setattr(result, key, new[key])
        return result
    typed = Message(**cast("Any", new))  # makes LiteLLM's own types of tool calls and the like
    for key in (*new, *(old.keys() - new.keys())):
        if new.get(key) != old.get(key):
            setattr(result, key, getattr(typed, key, new.get(key)))
    return result


class ExpandedStream:
    """A stream of LiteLLM's with its chunks expanded; everything else about it is handed through.

    Iterates as the one inside does, plainly or asynchronously. Attributes (`_hidden_params`, `chunks`, …) are read from
    and written to the stream inside, and `isinstance` takes it for that stream's class, which LiteLLM's Router asks.
    Chunks that change are copies; the others are LiteLLM's own objects. If the stream breaks off, what was held back
    is handed on before the error is raised.
    """

    def __init__(self, stream: Any, exchange: Exchange) -> None:  # noqa: ANN401 - any of LiteLLM's stream classes
        self._inner = stream
        self._exchange = exchange
        self._chunks = ExpandedChunks(exchange, _log_failure)
        self._ready: deque[Any] = deque()
        self._error: BaseException | None = None
        self._over = False  # nothing more comes from the stream inside
        abandoned.attend()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - LiteLLM's chunk
        while not self._ready and not self._over:
            try:
                self._take(next(self._inner))
            except StopIteration:
                self._end(self._flush(partial=False))
            except Exception as error:  # noqa: BLE001 - kept, and raised below when the rest has been handed on
                self._end(self._flush(partial=True), error)
            except BaseException:  # the program is being stopped: nobody waits for the rest
                self._break_off()
                raise
        return self._pop(StopIteration)

    async def __anext__(self) -> Any:  # noqa: ANN401 - LiteLLM's chunk
        while not self._ready and not self._over:
            try:
                self._take(await self._inner.__anext__())
            except StopAsyncIteration:
                self._end(await self._aflush(partial=False))
            except Exception as error:  # noqa: BLE001 - kept, and raised below when the rest has been handed on
                self._end(await self._aflush(partial=True), error)
            except BaseException:  # cancelled: nobody waits for the rest, and awaiting more is not allowed
                self._break_off()
                raise
        return self._pop(StopAsyncIteration)

    def close(self) -> None:
        """Break the stream off: plugins see the partial reply, the connection is let go."""
        self._break_off()
        inner = self._inner
        close = getattr(inner, "close", None) or getattr(getattr(inner, "completion_stream", None), "close", None)
        if close is not None:
            close()

    async def aclose(self) -> None:
        """`close` for asynchronous streams."""
        if not self._over:
            self._end(await self._aflush(partial=True))
        self._ready.clear()
        await self._inner.aclose()

    def __del__(self) -> None:
        """A caller that just stops iterating has broken the stream off, too.

        The collector may run this inside any lock of ours, so it ends elsewhere.
        """
        own = self.__dict__
        if own.get("_over") is False and not sys.is_finalizing():
            inner, chunks, exchange = own["_inner"], own["_chunks"], own["_exchange"]
            abandoned.hand_over(lambda: _end_abandoned(inner, chunks, exchange))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream inside has
        if name in _OWN:  # not set yet: __init__ failed
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._inner, name, value)

    @property  # type: ignore[misc]  # what isinstance() asks when the real type says no
    def __class__(self) -> type:
        return type(self._inner)

    def _take(self, chunk: Any) -> None:  # noqa: ANN401 - LiteLLM's chunk
        self._ready.extend(self._chunks.feed(chunk))

    def _flush(self, *, partial: bool) -> list[Any]:
        try:
            return self._chunks.flush(partial=partial)
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("ending a stream failed with %s", type(error).__name__)
            return []

    async def _aflush(self, *, partial: bool) -> list[Any]:
        try:
            return await self._chunks.aflush(partial=partial)
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("ending a stream failed with %s", type(error).__name__)
            return []

    def _end(self, rest: list[Any], error: BaseException | None = None) -> None:
        self._over, self._error = True, error
        _note_streamed(self._inner, self._chunks, self._exchange)
        self._ready.extend(rest)

    def _break_off(self) -> None:
        if not self._over:
            self._end(self._flush(partial=True))
        self._ready.clear()

    def _pop(self, stop: type[Exception]) -> Any:  # noqa: ANN401 - LiteLLM's chunk
        if self._ready:
            return self._ready.popleft()
        error, self._error = self._error, None
        raise error or stop


def _note_streamed(inner: Any, chunks: ExpandedChunks, exchange: Exchange) -> None:  # noqa: ANN401 - LiteLLM's stream
    """Tell the statistics what the provider counted for a stream; one from LiteLLM's cache costs nothing."""
    if chunks.usage is not None and not (getattr(inner, "_hidden_params", None) or {}).get("cache_hit"):
        exchange.note_usage(chunks.usage)


def _end_abandoned(inner: Any, chunks: ExpandedChunks, exchange: Exchange) -> None:  # noqa: ANN401 - LiteLLM's stream
    chunks.flush(partial=True)
    _note_streamed(inner, chunks, exchange)


def _log_failure(error: Exception) -> None:
    log.warning("expanding a stream failed with %s; the rest is handed on as it came", type(error).__name__)
