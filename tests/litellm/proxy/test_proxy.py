"""What all protocols share in the proxy: opting out, headers, settings, caches, faults, and what passes through."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import ConversationStore
from krunch_plugins.upstream import Answer
from tests.litellm.proxy.conftest import (
    ENDPOINTS,
    PROTOCOLS,
    Proxy,
    config,
    flat,
    request,
    story,
    streamed,
    text,
    texts,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.litellm.proxy.conftest import Model, Upstream


@PROTOCOLS
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["header", "metadata"])
def test_a_request_opts_out(
    proxy: Proxy, upstream: Upstream, model: Model, protocol: str, way: str, *, stream: bool
) -> None:
    """With `x-krunch: off`, or `krunch: false` in its metadata, a request goes out as it came, and says so."""
    headers = {"x_krunch": "off"} if way == "header" else {}
    more = {} if way == "header" else {"metadata": {"krunch": False}}
    with proxy.http(**headers) as client:
        body = request(protocol, question := story(), "claude", stream=stream, **more)
        answer = client.post(ENDPOINTS[protocol], json=body)

    assert texts(flat(upstream.requests[0])) == [question]
    assert "krunch" not in json.dumps(upstream.requests[0])
    assert answer.headers["x-krunch-reason"] == "opted_out"
    assert "x-krunch-tokens-before" not in answer.headers


@PROTOCOLS
@pytest.mark.parametrize("stream", [False, True])
def test_headers_say_what_was_done(proxy: Proxy, model: Model, protocol: str, *, stream: bool) -> None:
    """Tokens before and after, the session, and the reason, on every reply."""
    with proxy.http(x_session_id="user:42 ü".encode()) as client:
        large = client.post(ENDPOINTS[protocol], json=request(protocol, story(), stream=stream)).headers
        small = client.post(ENDPOINTS[protocol], json=request(protocol, "Hello", stream=stream)).headers

    assert int(large["x-krunch-tokens-after"]) < 0.6 * int(large["x-krunch-tokens-before"])
    assert (large["x-krunch-reason"], small["x-krunch-reason"]) == ("compressed", "no_gain")
    assert small["x-krunch-tokens-after"] == small["x-krunch-tokens-before"] == "1"
    assert large["x-krunch-session"] == small["x-krunch-session"] == "user:42 %C3%BC"


@PROTOCOLS
@pytest.mark.parametrize(
    ("key", "name", "reason"),
    [("sk-one", "plain", "off"), ("sk-observed", "gpt", "observe"), ("sk-off-team", "gpt", "off")],
    ids=["model", "key", "team"],
)
def test_models_keys_and_teams_have_settings_of_their_own(
    proxy: Proxy, upstream: Upstream, model: Model, protocol: str, key: str, name: str, reason: str
) -> None:
    """What the config says of a model, a key or a team goes over what it says of all."""
    with proxy.http(key) as client:
        answer = client.post(ENDPOINTS[protocol], json=request(protocol, question := story(), name))

    assert answer.headers["x-krunch-reason"] == reason
    assert texts(flat(upstream.requests[0])) == [question]


def test_wrong_settings_keep_the_proxy_from_starting(server: Upstream, tmp_path: Path) -> None:
    """The proxy refuses to start, and names the setting, where it stands, and what is allowed."""
    wrong = {"models": {"gpt": {"profile": "tiny"}}}
    proxy = Proxy(config(server, krunch=wrong), tmp_path, {})
    try:
        with pytest.raises(
            RuntimeError, match=r"'profile' from litellm_settings\.krunch\.models\.gpt is 'tiny'; allowed"
        ):
            proxy.wait()
    finally:
        proxy.stop()


def test_other_endpoints_pass_through(proxy: Proxy, upstream: Upstream, model: Model) -> None:
    """Completions, embeddings and token counts are sent as they came and answered as they are."""
    question = story()
    model.answer = lambda body, symbols: Answer("¤1 it is")
    with proxy.openai() as client:
        completion = client.completions.create(model="text", prompt=question)
        vectors = client.embeddings.create(model="vectors", input=[question])
    with proxy.anthropic() as client:
        counted = client.messages.count_tokens(model="claude", messages=[{"role": "user", "content": question}])

    sent = [next(body[key] for key in ("prompt", "input", "messages") if key in body) for body in upstream.requests]
    assert sent[:2] == [question, [question]]
    assert completion.choices[0].text == "¤1 it is"
    assert len(vectors.data[0].embedding) == 8
    assert counted.input_tokens > 200


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/moderations", "input"), ("/v1/images/generations", "prompt"), ("/v1/audio/speech", "input")],
)
def test_what_krunch_does_not_know_passes_through(
    proxy: Proxy, upstream: Upstream, model: Model, path: str, field: str
) -> None:
    """Calls of other types reach the provider as they came, and what it says reaches the client."""
    question = story()
    told = []
    for headers in ({}, {"x_krunch": "off"}):
        with proxy.http(**headers) as client:
            answer = client.post(path, json={"model": "gpt", field: question, "voice": "alloy"})
        told.append((answer.status_code, "x-krunch-tokens-before" in answer.headers))
        assert upstream.received[-1].path == path
        assert upstream.requests[-1][field] == question

    assert told == [(404, False)] * 2  # the model server does not know them either


@PROTOCOLS
@pytest.mark.parametrize("stream", [False, True])
def test_the_response_cache_is_the_sessions_own(
    caching_proxy: Proxy, upstream: Upstream, model: Model, protocol: str, *, stream: bool
) -> None:
    """LiteLLM's cache answers the same request in the same session, exactly, and no other session's or key's."""
    backend = "claude" if protocol == "messages" else "gpt"
    body = request(protocol, story(), backend, cache={"use-cache": True}, stream=stream)

    def ask(key: str, session: str) -> str:
        with caching_proxy.http(key, x_session_id=session) as client:
            answer = client.post(ENDPOINTS[protocol], json=body)
        return streamed(protocol, answer)[0] if stream else text(protocol, answer)

    told, asked = [ask("sk-one", "cache-1")], 0
    while asked < len(upstream.requests) < 50:  # LiteLLM writes its cache in the background
        time.sleep(0.1)
        asked = len(upstream.requests)
        told.append(ask("sk-one", "cache-1"))
    first = told.pop()
    assert first in told
    assert first == model.plain(first)
    assert ask("sk-one", "cache-2") not in told
    assert ask("sk-two", "cache-1") not in told
    assert len(upstream.requests) == asked + 2
    assert "¤1" not in first


@PROTOCOLS
@pytest.mark.parametrize("how", ["error_after", "break_after"])
def test_what_was_held_back_goes_out_before_an_error(proxy: Proxy, model: Model, protocol: str, how: str) -> None:
    """A stream that breaks off ends as without Krunch, after all that the model had said, in plain words."""
    before = {"chat": 3, "messages": 5, "responses": 6}[protocol]  # events, of which the last two are text

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        last = list(symbols)[-1] if symbols else "¤1"
        faults: dict[str, Any] = {how: before}
        return Answer(f"Well, {last} and more", pieces=[6, len(last)], **faults)

    model.answer = answer
    backend = "claude" if protocol == "messages" else "gpt"
    heard = []
    for headers in ({}, {"x_krunch": "off"}):
        body = request(protocol, story(), backend, stream=True)
        with proxy.http(**headers) as client:
            heard.append(streamed(protocol, client.post(ENDPOINTS[protocol], json=body)))

    (ours, our_events), (plain, plain_events) = heard
    assert "¤" not in ours
    if how == "error_after":  # where the connection is cut, what is still on its way may be lost
        assert [sorted(event) for event in our_events[-1:]] == [sorted(event) for event in plain_events[-1:]]
        assert plain == "Well, ¤1"
        assert ours.startswith("Well, ")
        assert len(ours) > len(plain)


@PROTOCOLS
def test_upstream_errors_reach_the_client_as_they_are(
    proxy: Proxy, upstream: Upstream, model: Model, protocol: str
) -> None:
    """An error of the provider's has the same status and the same words with Krunch and without."""
    model.answer = lambda body, symbols: Answer("slow down", status=429)
    answers = []
    for headers in ({}, {"x_krunch": "off"}):
        with proxy.http(**headers) as client:
            answers.append(client.post(ENDPOINTS[protocol], json=request(protocol, story())))

    ours, plain = answers
    assert ours.status_code == plain.status_code == 429
    assert "slow down" in ours.text
    assert len(ours.json()) == len(plain.json())
    if protocol != "messages":  # for its errors LiteLLM asks nobody which headers they should have
        assert ours.headers["x-krunch-reason"] == "compressed"
        assert int(ours.headers["x-krunch-tokens-after"]) < int(ours.headers["x-krunch-tokens-before"])


def test_requests_that_make_no_sense_fail_as_they_do_without_krunch(proxy: Proxy, model: Model) -> None:
    """Messages of shapes that nobody understands are left to LiteLLM."""
    for body in (
        {"model": "gpt", "messages": "Hello"},
        {"model": "gpt", "messages": [1, 2]},
        {"model": "gpt", "messages": []},
        {"model": "gpt"},
    ):
        answers = []
        for headers in ({}, {"x_krunch": "off"}):
            with proxy.http(**headers) as client:
                answers.append(client.post(ENDPOINTS["chat"], json=body).status_code)
        assert answers[0] == answers[1]


def test_history_is_recorded_in_every_protocol(proxy: Proxy, upstream: Upstream, model: Model) -> None:
    """One session, three protocols, plain and streamed: each question and each reply is recorded once, expanded."""
    question = story()
    with proxy.http(x_session_id="mixed") as client:
        replies = []
        for protocol, path in ENDPOINTS.items():
            for stream in (False, True):
                asked = f"{protocol}, {stream}: {question}"
                answer = client.post(path, json=request(protocol, asked, stream=stream))
                replies.append(streamed(protocol, answer)[0] if stream else text(protocol, answer))
    with ConversationStore(proxy.folder / "home") as store:
        (tenant,) = [tenant for tenant in store.tenants() if "mixed" in store.sessions(tenant)]
        turns = [turn.message for turn in store.turns("mixed", tenant=tenant)]

    told = [message["content"] for message in turns]
    said_back = [part if isinstance(part, str) else "".join(one["text"] for one in part) for part in told]
    assert [message["role"] for message in turns] == ["user", "assistant"] * 6
    assert said_back[1::2] == replies
    assert all(question in asked for asked in said_back[::2])
