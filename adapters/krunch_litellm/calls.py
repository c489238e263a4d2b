"""Calls served from outside: compress, let LiteLLM do its work, expand what comes back. Sync, async, streams."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import litellm

from krunch_litellm.replies import ExpandedStream, afinish, finish, is_stream, is_whole
from krunch_litellm.requests import ChatRequest, SentMessages, named
from krunch_plugins import Krunch, RequestRefused, default_krunch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

log = logging.getLogger("krunch")

serving: ContextVar[SentMessages | None] = ContextVar("krunch_litellm_serving", default=None)
"""What a call sends that is being served from outside, for what LiteLLM calls inside it: callbacks, nested calls."""

_OUTSIDE = object()
"""Who expands the reply: the code around the call, not a callback."""


def completion(*args: Any, krunch: Krunch | None = None, **kwargs: Any) -> Any:  # noqa: ANN401 - LiteLLM's own
    """`litellm.completion`, served by Krunch. Patches nothing.

    Args:
        *args: as `litellm.completion` takes them.
        krunch: who serves the call; default one per process, with settings from `KRUNCH_*` variables.
        **kwargs: as `litellm.completion` takes them.

    Returns:
        What `litellm.completion` returns, with the reply expanded.

    Raises:
        RequestRefused: a plugin stopped the call. Everything else as LiteLLM raises it.
    """
    return serve(litellm.completion, krunch or default_krunch(), args, kwargs)


async def acompletion(*args: Any, krunch: Krunch | None = None, **kwargs: Any) -> Any:  # noqa: ANN401 - LiteLLM's own
    """`litellm.acompletion`, served by Krunch; see `completion`."""
    return await aserve(litellm.acompletion, krunch or default_krunch(), args, kwargs)


def serve(function: Callable[..., Any], krunch: Krunch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 - LiteLLM's own
    """Call `function`, some `litellm.completion`, with the request compressed; expand what it returns."""
    sent: SentMessages | None = None
    with fail_open("preparing a request"):
        request = ChatRequest.read(named(function, args, kwargs), inside=serving.get())
        if request is not None:
            exchange = krunch.prepare(request.messages, **request.facts)
            made = request.to_send(exchange, _OUTSIDE)
            args, kwargs = request.replaced(args, kwargs, made, krunch, "wire")
            sent = made  # only what is really sent tells what the reply means
    with _serving(sent):
        result = function(*args, **kwargs)
    if sent is not None:
        sent.call.expanded = True
        with fail_open("expanding a reply"):
            if is_whole(result):
                return finish(sent.call.exchange, result)
            if is_stream(result):
                return ExpandedStream(result, sent.call.exchange)
    return result


async def aserve(
    function: Callable[..., Awaitable[Any]], krunch: Krunch, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - LiteLLM's own
    """`serve` for some `litellm.acompletion`."""
    sent: SentMessages | None = None
    with fail_open("preparing a request"):
        request = ChatRequest.read(named(function, args, kwargs), inside=serving.get())
        if request is not None:
            exchange = await krunch.aprepare(request.messages, **request.facts)
            made = request.to_send(exchange, _OUTSIDE)
            args, kwargs = request.replaced(args, kwargs, made, krunch, "wire")
            sent = made  # only what is really sent tells what the reply means
    with _serving(sent):
        result = await function(*args, **kwargs)
    if sent is not None:
        sent.call.expanded = True
        with fail_open("expanding a reply"):
            if is_whole(result):
                return await afinish(sent.call.exchange, result)
            if is_stream(result):
                return ExpandedStream(result, sent.call.exchange)
    return result


@contextmanager
def fail_open(doing: str) -> Iterator[None]:
    """What goes wrong in Krunch is logged, without its text, which may quote a message; a refusal is let through."""
    try:
        yield
    except RequestRefused:
        raise
    except Exception as error:  # noqa: BLE001 - Krunch never turns a working call into a failing one
        log.warning("%s failed with %s; LiteLLM's own goes on as it is", doing, type(error).__name__)


@contextmanager
def _serving(sent: SentMessages | None) -> Iterator[None]:
    token = serving.set(sent or serving.get())
    try:
        yield
    finally:
        serving.reset(token)
