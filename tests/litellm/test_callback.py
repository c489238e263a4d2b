"""`litellm.callbacks = [KrunchCallback()]`, nothing patched."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import litellm
import openai
import pytest
from krunch_litellm import KrunchCallback
from litellm.caching.caching import Cache
from litellm.integrations.custom_logger import CustomLogger
from litellm.router import Router

from krunch_plugins import Krunch, RequestRefused, hookimpl, restore
from krunch_plugins.upstream import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins import Exchange, Reply
    from krunch_plugins.upstream import Upstream
    from tests.litellm.conftest import Model, Talk

    Messages = list[dict[str, Any]]


class Secrets:
    """A plugin: one name leaves as a token and comes back as itself."""

    name = "secrets"

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        """Take the name out."""
        for message in exchange.messages:
            message["content"] = message["content"].replace(str(exchange.session), "<NAME_1>")
        exchange.substitute("<NAME_1>", str(exchange.session))


class Refuser:
    """A plugin that lets no request, or no reply, through."""

    def __init__(self, *, replies: bool = False) -> None:
        self.replies = replies

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        if not self.replies:
            raise RequestRefused("the redactor is down")

    @hookimpl
    def post_response(self, reply: Reply) -> None:
        if self.replies:
            raise RequestRefused("the reply holds a secret")


class Bystander(CustomLogger):
    """Somebody else's callback: changes a parameter, and notes what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: dict[str, str] = {}

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any]:
        return {**kwargs, "temperature": 0.25}

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        self.replies[kwargs["litellm_call_id"]] = response_obj.choices[0].message.content


async def until(happened: Callable[[], object]) -> None:
    """Wait for what LiteLLM does in the background."""
    for _ in range(500):
        if happened():
            return
        await asyncio.sleep(0.01)
    pytest.fail("what LiteLLM does in the background has not happened")


def stored(cache: Cache) -> int:
    """How many replies LiteLLM's in-memory cache holds."""
    in_memory: Any = cache.cache
    return len(in_memory.cache_dict)


@pytest.fixture
def arguments(upstream: Upstream, messages: Messages) -> dict[str, Any]:
    """What every call here passes."""
    return {"model": "openai/gpt-4o", "api_base": upstream.url, "api_key": "none", "messages": messages}


def test_only_acompletion_without_stream_is_served_and_the_rest_warns_once(
    talk: Talk, krunch: Krunch, upstream: Upstream, model: Model, messages: Messages, caplog: pytest.LogCaptureFixture
) -> None:
    """What a callback cannot serve passes through as it came, and the first time a warning says what to do."""
    served = talk.asynchronous and not talk.streamed
    litellm.callbacks.append(KrunchCallback(krunch))
    with caplog.at_level(logging.WARNING, "krunch"):
        replies = [talk(upstream), talk(upstream)]

    sent = [body["messages"] for body in upstream.requests]
    warnings = [record for record in caplog.records if record.name == "krunch"]
    assert [talk.text(reply) for reply in replies] == model.plain
    assert [restore(messages) for messages in sent] == [messages, messages]
    assert all((len(json.dumps(wire)) < 0.7 * len(json.dumps(messages))) == served for wire in sent)
    assert len(warnings) == (0 if served else 1)
    assert served or "krunch_litellm.install()" in warnings[0].getMessage()


async def test_positional_messages_pass_through_with_a_warning(
    krunch: Krunch, arguments: dict[str, Any], model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """LiteLLM does not show positional arguments to callbacks, so such a call is not served, and that is said."""
    litellm.callbacks.append(KrunchCallback(krunch))
    messages = arguments.pop("messages")

    reply = await litellm.acompletion(arguments.pop("model"), messages, **arguments)

    assert reply.choices[0].message.content == model.plain[0] == model.replies[0]
    assert "positional" in caplog.text


async def test_two_callbacks_and_somebody_elses_compress_once(
    krunch: Krunch, arguments: dict[str, Any], upstream: Upstream, model: Model, messages: Messages
) -> None:
    """Several callbacks in one list work together: one compression, one expansion, the others' changes kept."""
    bystander = Bystander()
    litellm.callbacks.extend([KrunchCallback(krunch), bystander, KrunchCallback(krunch)])

    reply = await litellm.acompletion(**arguments, litellm_call_id="here")
    await until(lambda: "here" in bystander.replies)

    (body,) = upstream.requests
    assert body["temperature"] == 0.25
    assert restore(body["messages"]) == messages
    assert reply.choices[0].message.content == model.plain[0] != model.replies[0]
    assert bystander.replies["here"] == model.plain[0]


@pytest.mark.parametrize("others", [False, True])
async def test_retries_by_litellm_itself_stay_exact(
    krunch: Krunch, messages: Messages, model: Model, serve: Callable[[Any], Upstream], *, others: bool
) -> None:
    """With num_retries LiteLLM goes past the hooks: the retry is sent plain, and the reply is what the model said."""
    upstream: Upstream = serve(lambda body: model(body) if len(upstream.requests) > 1 else Answer("busy", status=400))
    litellm.callbacks.extend([KrunchCallback(krunch), *([Bystander()] if others else [])])

    try:
        reply = await litellm.acompletion(
            "openai/gpt-4o", messages=messages, api_base=upstream.url, api_key="none", num_retries=2
        )
    except openai.BadRequestError:  # which LiteLLM's is
        assert len(upstream.requests) == 1
        pytest.skip("LiteLLM does not repeat a call that was refused with 400 here")

    first, second = upstream.requests  # OpenAI's client does not repeat a 400 by itself, LiteLLM does
    assert first["messages"] != messages == restore(first["messages"])
    assert second["messages"] == messages
    assert reply.choices[0].message.content == model.plain[0]


async def test_router_retries_are_compressed(
    krunch: Krunch, messages: Messages, model: Model, serve: Callable[[Any], Upstream]
) -> None:
    """Each attempt of a Router's is prepared from the original and its reply expanded."""
    upstream: Upstream = serve(lambda body: model(body) if len(upstream.requests) > 1 else Answer("busy", status=500))
    litellm.callbacks.append(KrunchCallback(krunch))
    deployment = {"model": "openai/gpt-4o", "api_base": upstream.url, "api_key": "none", "max_retries": 0}
    router: Any = Router([{"model_name": "ours", "litellm_params": deployment}], num_retries=2, retry_after=0)

    reply = await router.acompletion("ours", messages)

    first, second = upstream.requests
    assert first["messages"] == second["messages"]
    assert first["messages"] != messages == restore(first["messages"])
    assert reply.choices[0].message.content == model.plain[0] != model.replies[0]


async def test_fallbacks_are_compressed_once(
    krunch: Krunch, messages: Messages, model: Model, serve: Callable[[Any], Upstream]
) -> None:
    """A fallback model gets the compressed request, too, and its reply is expanded once."""
    upstream: Upstream = serve(
        lambda body: model(body) if body["model"] == "gpt-4o-mini" else Answer("busy", status=400)
    )
    litellm.callbacks.append(KrunchCallback(krunch))

    reply = await litellm.acompletion(
        "openai/gpt-4o",
        messages=messages,
        api_base=upstream.url,
        api_key="none",
        fallbacks=["openai/gpt-4o-mini"],
    )

    assert [body["model"] for body in upstream.requests] == ["gpt-4o", "gpt-4o-mini"]
    assert [restore(body["messages"]) for body in upstream.requests] == [messages, messages]
    assert upstream.requests[1]["messages"] != messages
    assert reply.choices[0].message.content == model.plain[0] != model.replies[0]


@pytest.mark.parametrize("retries", [0, 2])
async def test_refused_request_is_never_sent(
    krunch: Krunch, arguments: dict[str, Any], upstream: Upstream, retries: int
) -> None:
    """A plugin's refusal reaches the caller, and LiteLLM's retries do not send the request past it."""
    krunch.register(Refuser())
    litellm.callbacks.append(KrunchCallback(krunch))

    with pytest.raises(RequestRefused, match="redactor is down"):
        await litellm.acompletion(**arguments, num_retries=retries)

    assert upstream.requests == []


async def test_refused_reply_is_withheld(krunch: Krunch, arguments: dict[str, Any]) -> None:
    """LiteLLM swallows what a callback raises about a reply, so the caller gets the reply without its text."""
    krunch.register(Refuser(replies=True))
    litellm.callbacks.append(KrunchCallback(krunch))

    reply = await litellm.acompletion(**arguments)

    (choice,) = reply.choices
    assert (choice.message.content, choice.finish_reason) == (None, "content_filter")
    assert choice.message.refusal == "the reply holds a secret"


@pytest.mark.parametrize("said", [{}, {"cache_key": "mine"}], ids=["", "cache_key"])
async def test_two_sessions_never_share_a_cached_reply(
    krunch: Krunch, arguments: dict[str, Any], serve: Callable[[Any], Upstream], said: dict[str, Any]
) -> None:
    """With litellm.cache, what is the same on the wire is one entry for one session, and two for two."""
    arguments.update(said)
    krunch.register(Secrets())
    litellm.callbacks.append(KrunchCallback(krunch))
    litellm.cache = cache = Cache()
    upstream: Upstream = serve(lambda body: Answer(f"Hello <NAME_1>, you are caller {len(upstream.requests)}."))
    arguments["api_base"] = upstream.url

    texts = []
    for session in ("Alice", "Bob", "Alice"):
        arguments["messages"] = [{"role": "user", "content": f"My name is {session}. Who am I?"}]
        reply = await litellm.acompletion(**arguments, metadata={"session_id": session})
        texts.append(reply.choices[0].message.content)
        await until(lambda: stored(cache) == min(len(texts), 2))

    first, second = upstream.requests
    assert first["messages"] == second["messages"]
    assert texts == ["Hello Alice, you are caller 1.", "Hello Bob, you are caller 2.", "Hello Alice, you are caller 1."]


async def test_untouched_requests_are_cached_as_without_krunch(
    krunch: Krunch, upstream: Upstream, arguments: dict[str, Any]
) -> None:
    """A request that goes out as it came shares its cache entry with calls that Krunch has not seen."""
    litellm.cache = cache = Cache()
    arguments["messages"] = [{"role": "user", "content": "Hello"}]
    before = await litellm.acompletion(**arguments)
    await until(lambda: stored(cache))
    litellm.callbacks.append(KrunchCallback(krunch))

    after = await litellm.acompletion(**arguments, metadata={"session_id": "s1"})

    assert after.choices[0].message.content == before.choices[0].message.content
    assert len(upstream.requests) == 1
