"""What the provider counted reaches the statistics, once for each reply."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import krunch_litellm
import litellm
import pytest
from krunch_litellm import KrunchCallback
from litellm.caching.caching import Cache

from krunch_plugins.upstream import Answer, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins import Krunch

INCLUDED = {"stream_options": {"include_usage": True}}
SESSION = {"metadata": {"session_id": "ann"}}


@pytest.fixture
def caching(serve: Callable[[Any], Upstream]) -> Upstream:
    """A model whose provider has cached 40 tokens of each request."""
    return serve(lambda _: Answer("Noted, and thank you.", cached_tokens=40))


def test_cached_tokens_are_in_the_sessions_statistics(talk: Any, krunch: Krunch, caching: Upstream) -> None:
    """Requests, input, cached and output tokens are what the provider said, in all eight ways to call."""
    krunch_litellm.install(krunch)
    extra = INCLUDED if talk.streamed else {}

    replies = [talk(caching, **SESSION, **extra) for _ in range(2)]

    told = [(reply[-1] if talk.streamed else reply).usage for reply in replies]
    stats = krunch.stats("ann")
    assert stats is not None
    assert stats.billed.requests == 2
    assert stats.billed.cached_tokens == 80
    assert stats.billed.input_tokens == sum(usage.prompt_tokens for usage in told) > 80
    assert stats.billed.output_tokens == sum(usage.completion_tokens for usage in told) > 0
    assert stats.billed.cost > 0


def test_several_choices_are_one_reply(talk: Any, krunch: Krunch, caching: Upstream) -> None:
    """A reply with several choices has one usage, and is counted once."""
    krunch_litellm.install(krunch)

    talk(caching, n=3, **SESSION, **(INCLUDED if talk.streamed else {}))

    stats = krunch.stats("ann")
    assert stats is not None
    assert (stats.billed.requests, stats.billed.cached_tokens) == (1, 40)


def test_the_callback_counts_too_and_both_count_once(krunch: Krunch, caching: Upstream, messages: Any) -> None:
    """With the callback alone, and with it and `install()` together, each reply counts once."""
    arguments = {"model": "openai/gpt-4o", "api_base": caching.url, "api_key": "none", "messages": messages, **SESSION}
    litellm.callbacks.append(KrunchCallback(krunch))

    asyncio.run(litellm.acompletion(**arguments))
    first = krunch.stats("ann")
    krunch_litellm.install(krunch)
    asyncio.run(litellm.acompletion(**arguments))
    second = krunch.stats("ann")

    assert first is not None
    assert second is not None
    assert (first.billed.requests, second.billed.requests) == (1, 2)
    assert (first.billed.cached_tokens, second.billed.cached_tokens) == (40, 80)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_reply_from_litellms_cache_costs_nothing(
    krunch: Krunch, caching: Upstream, messages: Any, *, streamed: bool
) -> None:
    """A reply that LiteLLM had kept was not billed again, so it is not counted again."""
    litellm.cache = Cache()
    krunch_litellm.install(krunch)
    extra = {"stream": True, **INCLUDED} if streamed else {}

    for _ in range(2):
        reply = litellm.completion(
            model="openai/gpt-4o", api_base=caching.url, api_key="none", messages=messages, **SESSION, **extra
        )
        for _ in reply if streamed else ():
            pass

    stats = krunch.stats("ann")
    assert len(caching.requests) == 1
    assert stats is not None
    assert stats.billed.requests == 1


def test_a_stream_that_tells_no_usage_counts_nothing(krunch: Krunch, caching: Upstream, messages: Any) -> None:
    """Without `include_usage` the provider says nothing, and nothing is made up; nor for a broken-off stream."""
    krunch_litellm.install(krunch)
    arguments = {"model": "openai/gpt-4o", "api_base": caching.url, "api_key": "none", "messages": messages, **SESSION}

    for _ in litellm.completion(**arguments, stream=True):
        pass
    broken = litellm.completion(**arguments, stream=True, **INCLUDED)
    next(broken)
    broken.close()

    stats = krunch.stats("ann")
    assert stats is not None
    assert stats.billed.requests == 0
