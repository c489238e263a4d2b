"""What LiteLLM's hooks can serve beside chat completions: `aresponses` and `anthropic.messages.acreate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import litellm
import pytest
from krunch_litellm import KrunchCallback

from krunch_plugins import restore
from krunch_plugins.upstream import Answer
from tests.litellm.conftest import STORY

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins import Krunch
    from krunch_plugins.upstream import Upstream

BACKENDS = {"openai": "openai/gpt-4o", "anthropic": "anthropic/claude-sonnet-4-5"}


async def ask(protocol: str, backend: str, upstream: Upstream, **more: Any) -> str:
    """The text of a reply to the story."""
    root = upstream.url if backend == "openai" else upstream.root
    arguments: Any = {"model": BACKENDS[backend], "api_base": root, "api_key": "none", **more}
    if protocol == "responses":
        response: Any = await litellm.aresponses(input=STORY, **arguments)
        return str(response.output[0].content[0].text)
    messages = [{"role": "user", "content": STORY}]
    messages_api: Any = litellm
    reply: Any = await messages_api.anthropic.messages.acreate(messages=messages, max_tokens=100, **arguments)
    return str(reply["content"][0]["text"])


def text(body: dict[str, Any]) -> str:
    """The one text of a request, in whichever protocol."""
    items: Any = body.get("messages", body.get("input"))
    content = items if isinstance(items, str) else items[0]["content"]
    return str(content if isinstance(content, str) else content[0]["text"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protocol", ["responses", "messages"])
async def test_plain_calls_are_served_once(
    krunch: Krunch, serve: Callable[[Any], Upstream], protocol: str, backend: str
) -> None:
    """Bridged or not: the request is smaller and says the same, the reply is what the model meant."""
    litellm.callbacks.append(KrunchCallback(krunch))
    upstream = serve(lambda body: Answer("It was ¤1."))

    heard = await ask(protocol, backend, upstream)

    (body,) = upstream.requests
    sent = text(body)
    assert restore([{"role": "user", "content": sent}])[0]["content"] == STORY
    assert len(sent) < 0.6 * len(STORY)
    assert heard != "It was ¤1."
    assert heard.startswith("It was ")
    assert heard[7:-1] in STORY


@pytest.mark.parametrize("protocol", ["responses", "messages"])
async def test_streams_pass_through(krunch: Krunch, serve: Callable[[Any], Upstream], protocol: str) -> None:
    """No hook of LiteLLM's can expand these streams, so the request goes out as it came."""
    litellm.callbacks.append(KrunchCallback(krunch))
    upstream = serve(lambda body: Answer("It was ¤1."))
    arguments: Any = {"model": "openai/gpt-4o", "api_base": upstream.url, "api_key": "none", "stream": True}
    if protocol == "responses":
        stream: Any = await litellm.aresponses(input=STORY, **arguments)
    else:
        messages = [{"role": "user", "content": STORY}]
        messages_api: Any = litellm
        stream = await messages_api.anthropic.messages.acreate(messages=messages, max_tokens=100, **arguments)
    told = [str(event) async for event in stream]

    assert text(upstream.requests[0]) == STORY
    assert told
