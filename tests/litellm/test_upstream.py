"""The built-in model server, met with OpenAI's own client."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from krunch_plugins.upstream import Answer, ToolCall, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def ask(serve: Callable[[Any], Upstream]) -> Callable[..., Any]:
    """Asks a server with the given answer through OpenAI's client."""

    def ask(answer: Any, **arguments: Any) -> Any:
        with openai.OpenAI(base_url=serve(answer).url, api_key="none", max_retries=0) as client:
            reply = client.chat.completions.create(model="gpt-4o", **{"messages": HELLO, **arguments})
            return list(reply) if arguments.get("stream") else reply

    return ask


def test_echo_is_the_default_and_requests_are_kept() -> None:
    """Without a script the server answers with the last message, and keeps path, headers and body."""
    with Upstream() as upstream, openai.OpenAI(base_url=upstream.url, api_key="key") as client:
        parts: Any = [
            {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}]}
        ]
        reply = client.chat.completions.create(model="gpt-4o", messages=parts)

    (received,) = upstream.received
    assert reply.choices[0].message.content == "Hello you"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 2)
    assert (received.path, received.headers["authorization"]) == ("/v1/chat/completions", "Bearer key")
    assert upstream.requests == [{"model": "gpt-4o", "messages": parts}]


def test_stream_says_in_pieces_what_the_plain_reply_says(ask: Callable[..., Any]) -> None:
    """Text and tool arguments are cut as the answer asks for; usage comes last, when it is wanted."""
    answer = Answer("Hello there", [ToolCall("look", '{"at": "it"}')], pieces=[4, 1])
    plain = ask(lambda body: answer)
    chunks = ask(lambda body: answer, stream=True, stream_options={"include_usage": True})

    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    texts = [delta.content for delta in deltas if delta.content]
    calls = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert texts == ["Hell", "o", " the", "r", "e"]
    assert "".join(texts) == plain.choices[0].message.content
    assert calls[0].function.name == plain.choices[0].message.tool_calls[0].function.name == "look"
    assert "".join(call.function.arguments for call in calls) == '{"at": "it"}'
    assert chunks[-1].usage == plain.usage
    assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_each_choice_has_its_own_answer(ask: Callable[..., Any], *, stream: bool) -> None:
    """With n, a sequence of answers is one for each choice, and one answer is for all."""
    reply = ask(lambda body: [Answer("one"), Answer("two two")], n=2, stream=stream)
    same = ask(lambda body: Answer("same"), n=2)

    if stream:
        texts = ["", ""]
        for chunk in reply:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        texts = [choice.message.content for choice in reply.choices]
    assert texts == ["one", "two two"]
    assert [choice.message.content for choice in same.choices] == ["same", "same"]


def test_errors_on_demand(ask: Callable[..., Any]) -> None:
    """A status of 400 and above is an error; so is a script that raises, and a path that is not served."""
    with pytest.raises(openai.RateLimitError, match="slow down"):
        ask(lambda body: Answer("slow down", status=429))
    with pytest.raises(openai.InternalServerError, match="KeyError: 'nothing'"):
        ask(lambda body: body["nothing"])
    with Upstream() as upstream:
        missing = httpx.post(upstream.url + "/nowhere", json={})
    assert missing.status_code == 404
    assert "/v1/chat/completions" in missing.json()["error"]["message"]


def test_connection_is_cut_on_demand(ask: Callable[..., Any]) -> None:
    """With break_after, a stream dies after so many chunks."""
    with pytest.raises((httpx.RemoteProtocolError, openai.APIConnectionError)):  # newer clients wrap it
        ask(lambda body: Answer("Hello there"[:11], break_after=2), stream=True)


def test_close_ends_connections_that_clients_keep_open() -> None:
    """close() returns although a client holds its connection, ends all of the server's threads, and may come twice."""
    before = set(threading.enumerate())
    upstream = Upstream()
    with httpx.Client() as client:
        client.post(upstream.url + "/chat/completions", json={"messages": HELLO})
        begun = [thread for thread in set(threading.enumerate()) - before if _serves(thread)]
        upstream.close()
        upstream.close()

    assert len(begun) == 2
    assert not [thread for thread in begun if thread.is_alive()]


def _serves(thread: threading.Thread) -> bool:
    """Whether it is one of the server's: the one that listens, or one for a connection."""
    return thread.name == "krunch-upstream" or "process_request_thread" in thread.name


def test_logprobs_and_old_style_functions(ask: Callable[..., Any]) -> None:
    """Logprobs come when asked for; a request with functions is answered with a function_call."""
    reply = ask(lambda body: Answer("two words"), logprobs=True)
    legacy = ask(lambda body: Answer(None, [ToolCall("look", "{}")]), functions=[{"name": "look", "parameters": {}}])

    assert [entry.token for entry in reply.choices[0].logprobs.content] == ["two", "words"]
    assert json.loads(legacy.choices[0].message.function_call.arguments) == {}
    assert legacy.choices[0].finish_reason == "function_call"
