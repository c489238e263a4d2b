"""LiteLLM's chat chunks, expanded; what both the SDK's streams and the proxy's are made of."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices
from pydantic import BaseModel

from krunch_litellm.wire.offsets import StreamedOffsets
from krunch_litellm.wire.thoughts_stream import StreamedThoughts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from krunch_plugins import Exchange


class ExpandedChunks:
    """Expands the chunks of one stream. Chunks that change are copies; the others are LiteLLM's own objects.

    If expanding fails, what was held back goes out, then the chunk as it came, and so do all later ones.

    Args:
        exchange: the request.
        failed: told what was raised, once.

    Attributes:
        usage: what the provider counted, the newest: some tell it more than once.
    """

    def __init__(self, exchange: Exchange, failed: Callable[[Exception], None]) -> None:
        self.usage: Mapping[str, Any] | None = None
        self._expander = exchange.stream()
        self._passes = self._expander.passes
        self._offsets, self._thoughts = StreamedOffsets(exchange), StreamedThoughts(exchange)
        self._failed, self._broken = failed, False
        self._last: Any = None

    def feed(self, chunk: Any) -> list[Any]:  # noqa: ANN401 - a ModelResponseStream
        """Take one chunk; give back what is to be handed on."""
        if self._broken:
            self._note_usage(chunk)
            return [chunk]
        held: Callable[[], list[dict[str, Any]]] | None = None
        try:
            simple = _Simple.of(chunk)
            if simple is not None:
                choice, content, _ = simple
                self._offsets.note(choice, content)
                if self._passes(choice, content):
                    self._last = chunk
                    return [chunk]
            held = self._held()
            out = self._expanded(chunk) if simple is None else self._simply_expanded(chunk, simple)
        except Exception as error:  # noqa: BLE001 - ours, never the caller's: what the model wrote goes through
            self._broken = True
            self._failed(error)
            self._note_usage(chunk)
            with contextlib.suppress(Exception):  # where looking at the chunk failed, nothing has happened yet
                held = held or self._held()
            out = [*self._like_last(held() if held else ()), chunk]
        self._last = chunk
        return out

    def flush(self, *, partial: bool) -> list[Any]:
        """The stream is at its end: what was held back; the hooks run."""
        rest = self._expander.flush(partial=partial or self._broken)
        return [] if self._broken else self._like_last([*rest, *self._thoughts.flush()])

    async def aflush(self, *, partial: bool) -> list[Any]:
        """`flush`, off the event loop where the hooks may take long."""
        rest = await self._expander.aflush(partial=partial or self._broken)
        return [] if self._broken else self._like_last([*rest, *self._thoughts.flush()])

    def _held(self) -> Callable[[], list[dict[str, Any]]]:
        """Says what is held back now, whatever happens to it after this call."""
        texts, thoughts = self._expander.held(), self._thoughts.held()
        return lambda: [*texts, *thoughts()]

    def _expanded(self, chunk: Any) -> list[Any]:  # noqa: ANN401 - a ModelResponseStream
        given = chunk.model_dump()
        self.usage = given.get("usage") or self.usage
        ready = [self._thoughts.put_right(self._offsets.put_right(given, out)) for out in self._expander.feed(given)]
        return [chunk if out == given else _chunk_like(chunk, out) for out in ready]

    def _simply_expanded(self, chunk: Any, simple: _Simple) -> list[Any]:  # noqa: ANN401 - a ModelResponseStream
        delta = {"content": simple.content} if simple.role is None else {"content": simple.content, "role": simple.role}
        ready = self._expander.feed({"choices": [{"index": simple.choice, "delta": delta}]})
        last = ready.pop()["choices"][0]["delta"]["content"]  # before it only what was held back when a window failed
        same = last == simple.content
        return [*(_chunk_like(chunk, out) for out in ready), chunk if same else _chunk_saying(chunk, last)]

    def _like_last(self, rest: Iterable[dict[str, Any]]) -> list[Any]:
        return [] if self._last is None else [_chunk_like(self._last, out) for out in rest]

    def _note_usage(self, chunk: Any) -> None:  # noqa: ANN401 - a ModelResponseStream
        usage = getattr(chunk, "usage", None)
        if isinstance(usage, BaseModel):
            self.usage = usage.model_dump()


class _Simple(NamedTuple):
    """What a chunk says that holds text of one choice and nothing else, as nearly all chunks do.

    To read these from where pydantic keeps them, and copy what changes, costs a tenth of turning them into dicts and
    back.
    """

    choice: int
    content: str
    role: str | None

    @classmethod
    def of(cls, chunk: Any) -> Self | None:  # noqa: ANN401 - a ModelResponseStream
        """What a chunk says; None if it is another kind of chunk."""
        if type(chunk) is not ModelResponseStream:
            return None
        choices = chunk.choices
        if len(choices) != 1 or type(choices[0]) is not StreamingChoices or _told(chunk, "usage") is not None:
            return None
        choice = choices[0].__pydantic_extra__ or {}
        delta, index = choice.get("delta"), choice.get("index")
        if choice.get("finish_reason") is not None or type(delta) is not Delta or type(index) is not int:
            return None
        texts = delta.__pydantic_extra__ or {}
        content, role = texts.get("content"), texts.get("role")
        if type(content) is not str:
            return None
        said = 1 if role is None else 2
        for fields in (texts, delta.__dict__):
            values = [*fields.values()]
            said -= len(values) - values.count(None)
        return None if said else tuple.__new__(cls, (index, content, role))


def _told(chunk: ModelResponseStream, name: str) -> Any:  # noqa: ANN401 - whatever it is
    """What a chunk has under a name that is none of its fields; to ask the chunk itself for what it has not is slow."""
    return chunk.__dict__.get(name) or (chunk.__pydantic_extra__ or {}).get(name)


def _chunk_saying(template: Any, content: str) -> Any:  # noqa: ANN401 - LiteLLM's chunk
    """A chunk like `template`, a simple one, with other content."""
    result = _copied(template)
    choice = result.choices[0].model_copy()
    delta = choice.__pydantic_extra__["delta"].model_copy()
    delta.__pydantic_extra__["content"] = content
    choice.__pydantic_extra__["delta"] = delta
    result.__dict__["choices"] = [choice]
    return result


def _chunk_like(template: Any, chunk: Mapping[str, Any]) -> Any:  # noqa: ANN401 - LiteLLM's chunk
    """A chunk like `template` (its id, its hidden parameters) that says what `chunk` says."""
    result = _copied(template)
    result.choices = [
        StreamingChoices(**{**choice, "delta": Delta(**choice.get("delta") or {})}) for choice in chunk["choices"]
    ]
    if chunk.get("usage") is None:
        with contextlib.suppress(AttributeError):
            del result.usage
    return result


def _copied(template: Any) -> Any:  # noqa: ANN401 - LiteLLM's chunk
    result = template.model_copy()
    with contextlib.suppress(AttributeError):
        result._hidden_params = dict(template._hidden_params)  # noqa: SLF001 - LiteLLM's documented name
    return result
