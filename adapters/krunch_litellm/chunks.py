"""LiteLLM's chat chunks, expanded; what both the SDK's streams and the proxy's are made of."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from litellm.types.utils import Delta, StreamingChoices
from pydantic import BaseModel

from krunch_litellm.wire.offsets import StreamedOffsets

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
        self._offsets = StreamedOffsets(exchange)
        self._failed, self._broken = failed, False
        self._last: Any = None

    def feed(self, chunk: Any) -> list[Any]:  # noqa: ANN401 - a ModelResponseStream
        """Take one chunk; give back what is to be handed on."""
        if self._broken:
            self._note_usage(chunk)
            return [chunk]
        held: list[dict[str, Any]] = []
        try:
            held = self._expander.held()
            out = self._expanded(chunk)
        except Exception as error:  # noqa: BLE001 - ours, never the caller's: what the model wrote goes through
            self._broken = True
            self._failed(error)
            self._note_usage(chunk)
            out = [*self._like_last(held), chunk]
        self._last = chunk
        return out

    def flush(self, *, partial: bool) -> list[Any]:
        """The stream is at its end: what was held back; the hooks run."""
        rest = self._expander.flush(partial=partial or self._broken)
        return [] if self._broken else self._like_last(rest)

    async def aflush(self, *, partial: bool) -> list[Any]:
        """`flush`, off the event loop where the hooks may take long."""
        rest = await self._expander.aflush(partial=partial or self._broken)
        return [] if self._broken else self._like_last(rest)

    def _expanded(self, chunk: Any) -> list[Any]:  # noqa: ANN401 - a ModelResponseStream
        given = chunk.model_dump()
        self.usage = given.get("usage") or self.usage
        ready = [self._offsets.put_right(given, out) for out in self._expander.feed(given)]
        return [chunk if out == given else _chunk_like(chunk, out) for out in ready]

    def _like_last(self, rest: Iterable[dict[str, Any]]) -> list[Any]:
        return [] if self._last is None else [_chunk_like(self._last, out) for out in rest]

    def _note_usage(self, chunk: Any) -> None:  # noqa: ANN401 - a ModelResponseStream
        usage = getattr(chunk, "usage", None)
        if isinstance(usage, BaseModel):
            self.usage = usage.model_dump()


def _chunk_like(template: Any, chunk: Mapping[str, Any]) -> Any:  # noqa: ANN401 - LiteLLM's chunk
    """A chunk like `template` (its id, its hidden parameters) that says what `chunk` says."""
    result = template.model_copy()
    result.choices = [
        StreamingChoices(**{**choice, "delta": Delta(**choice.get("delta") or {})}) for choice in chunk["choices"]
    ]
    with contextlib.suppress(AttributeError):
        result._hidden_params = dict(template._hidden_params)  # noqa: SLF001 - LiteLLM's documented name
    if chunk.get("usage") is None:
        with contextlib.suppress(AttributeError):
            del result.usage
    return result
