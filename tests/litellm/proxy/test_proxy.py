"""What all protocols share in the proxy: opting out, headers, settings, caches, faults, and what passes through."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import ConversationStore
from krunch_plugins.upstream import Answer
from tests.litellm.proxy.conftest import Proxy, config, flat, restored, said, story, texts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from tests.litellm.proxy.conftest import Model, Upstream

PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
PROTOCOLS = pytest.mark.parametrize("protocol", PATHS)


def request(protocol: str, question: str, model: str = "gpt", **more: Any) -> dict[str, Any]:
    """A request in one of the protocols."""
    if protocol == "responses":
        return {"model": model, "input": question, **more}
    body = {"model": model, "messages": [{"role": "user", "content": question}], **more}
    return {"max_tokens": 200, **body} if protocol == "messages" else body


def text(protocol: str, answer: httpx.Response) -> str:
    """The text of a whole reply."""
    body = answer.raise_for_status().json()
    if protocol == "chat":
        return str(body["choices"][0]["message"]["content"])
    blocks = body["content"] if protocol == "messages" else body["output"][0]["content"]
    return str(blocks[0]["text"])


def streamed(protocol: str, answer: httpx.Response) -> tuple[str, list[dict[str, Any]]]:
    """The text that the deltas of a stream make up, and all its events."""
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    if protocol == "chat":
        deltas = [choice["delta"].get("content") for event in events for choice in event.get("choices", ())]
    elif protocol == "messages":
        deltas = [event["delta"].get("text") for event in events if event["type"] == "content_block_delta"]
    else:
        deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    return "".join(delta or "" for delta in deltas), events


@PROTOCOLS
@pytest.mark.parametrize("way", ["header", "metadata"])
def test_a_request_opts_out(proxy: Proxy, upstream: Upstream, model: Model, protocol: str, way: str) -> None:
    """With `x-krunch: off`, or `krunch: false` in its metadata, a request goes out as it came, and says so."""
    headers = {"x_krunch": "off"} if way == "header" else {}
    more = {} if way == "header" else {"metadata": {"krunch": False}}
    with proxy.http(**headers) as client:
        answer = client.post(PATHS[protocol], json=request(protocol, question := story(), "claude", **more))

    assert texts(flat(upstream.requests[0])) == [question]
    assert "krunch" not in json.dumps(upstream.requests[0])
    assert answer.headers["x-krunch-reason"] == "opted_out"
    assert "x-krunch-tokens-before" not in answer.headers


@PROTOCOLS
@pytest.mark.parametrize("stream", [False, True])
def test_headers_say_what_was_done(proxy: Proxy, model: Model, protocol: str, *, stream: bool) -> None:
    """Tokens before and after, the session, and the reason, on every reply."""
    with proxy.http(x_session_id="user:42 ü".encode()) as client:
        large = client.post(PATHS[protocol], json=request(protocol, story(), stream=stream)).headers
        small = client.post(PATHS[protocol], json=request(protocol, "Hello", stream=stream)).headers

    assert int(large["x-krunch-tokens-after"]) < 0.6 * int(large["x-krunch-tokens-before"])
    assert (large["x-krunch-reason"], small["x-krunch-reason"]) == ("compressed", "no_gain")
    assert small["x-krunch-tokens-after"] == small["x-krunch-tokens-before"] == "1"
    assert large["x-krunch-session"] == small["x-krunch-session"] == "user:42 %C3%BC"


@pytest.mark.parametrize(
    ("key", "name", "reason"),
    [("sk-one", "plain", "off"), ("sk-observed", "gpt", "observe"), ("sk-off-team", "gpt", "off")],
    ids=["model", "key", "team"],
)
def test_models_keys_and_teams_have_settings_of_their_own(
    proxy: Proxy, upstream: Upstream, model: Model, key: str, name: str, reason: str
) -> None:
    """What the config says of a model, a key or a team goes over what it says of all."""
    with proxy.http(key) as client:
        answer = client.post(PATHS["chat"], json=request("chat", question := story(), name))

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


@pytest.mark.parametrize("stream", [False, True])
def test_the_response_cache_is_the_sessions_own(
    proxy: Proxy, upstream: Upstream, model: Model, *, stream: bool
) -> None:
    """LiteLLM's cache answers the same request in the same session, exactly, and no other session's or key's."""
    body = request("chat", story(), cache={"use-cache": True}, stream=stream)

    def ask(key: str, session: str) -> str:
        with proxy.http(key, x_session_id=session) as client:
            answer = client.post(PATHS["chat"], json=body)
        time.sleep(0.2)  # LiteLLM writes its cache in the background
        return streamed("chat", answer)[0] if stream else text("chat", answer)

    first = ask("sk-one", "cache-1")
    assert ask("sk-one", "cache-1") == first == model.plain(first)
    assert len(upstream.requests) == 1
    assert ask("sk-one", "cache-2") != first
    assert ask("sk-two", "cache-1") != first
    assert len(upstream.requests) == 3
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
            heard.append(streamed(protocol, client.post(PATHS[protocol], json=body)))

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
            answers.append(client.post(PATHS[protocol], json=request(protocol, story())))

    ours, plain = answers
    assert ours.status_code == plain.status_code == 429
    assert "slow down" in ours.text
    assert len(ours.json()) == len(plain.json())


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
                answers.append(client.post(PATHS["chat"], json=body).status_code)
        assert answers[0] == answers[1]


def test_history_is_recorded_in_every_protocol(proxy: Proxy, upstream: Upstream, model: Model) -> None:
    """One session, three protocols, plain and streamed: each question and each reply is recorded once, expanded."""
    question = story()
    with proxy.http(x_session_id="mixed") as client:
        replies = []
        for protocol, path in PATHS.items():
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


MINE = """
import gc
from pathlib import Path

from krunch_litellm import KrunchCallback
from krunch_litellm.proxy import KrunchProxy
from krunch_plugins import Krunch, RequestRefused, Settings, hookimpl


class Faulty(Krunch):
    def _fail(self, what, exchange_or_session):
        session = getattr(exchange_or_session, "session", exchange_or_session)
        if session == f"break {what}":
            raise ValueError("a fault")

    async def aprepare(self, messages, **facts):
        self._fail("prepare", facts.get("session"))
        return await super().aprepare(messages, **facts)

    async def afinish(self, exchange, message, choice, metadata=None):
        self._fail("finish", exchange)
        return await super().afinish(exchange, message, choice, metadata)

    def stream(self, exchange):
        self._fail("stream", exchange)
        inner = super().stream(exchange)
        return Failing(inner) if exchange.session == "break feed" else inner

    def texts(self, exchange):
        self._fail("stream", exchange)
        inner = super().texts(exchange)
        return Failing(inner) if exchange.session == "break feed" else inner


class Failing:
    def __init__(self, inner):
        self.inner = inner

    def open(self, **how):
        return Failing(self.inner.open(**how))

    def feed(self, text):
        raise ValueError("a fault")

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Plugin:
    name = "mine"

    @hookimpl
    def pre_request(self, exchange):
        for message in exchange.messages:
            if "COLLECT" in str(message["content"]):
                gc.collect()  # who is cancelled while it sends is let go of by the collector
            if "REFUSE THIS" in str(message["content"]):
                raise RequestRefused("not allowed")
            if "Ada Lovelace" in str(message["content"]) and isinstance(message["content"], str):
                message["content"] = message["content"].replace("Ada Lovelace", "<NAME_1>")
                exchange.substitute("<NAME_1>", "Ada Lovelace")

    @hookimpl
    def post_response(self, exchange, reply):
        with Path(__file__).with_name("replies").open("a") as file:
            print(exchange.session, reply.partial, reply.streamed, file=file)
        if "FORBIDDEN" in str(reply.message.get("content")):
            raise RequestRefused("a secret")


theirs = Faulty(Settings(min_tokens=0), plugins=[Plugin()])
krunch = KrunchProxy(theirs)
callback = KrunchCallback(theirs)
"""


@pytest.fixture(scope="module")
def mine(server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Somebody's proxy with a Krunch of their own, which has a plugin and faults, and with the SDK's callback."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    running = Proxy(config(server, callbacks=["mine.krunch", "mine.callback"]), folder, {})
    try:
        running.wait()
        yield running
    finally:
        running.stop()


@PROTOCOLS
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("backend", ["gpt", "claude"])
def test_nested_calls_are_compressed_once(
    mine: Proxy, upstream: Upstream, model: Model, protocol: str, backend: str, *, stream: bool
) -> None:
    """With the SDK's callback registered too, bridged or not: one compression, one expansion, names are back."""
    model.answer = lambda body, symbols: Answer(f"To <NAME_1>: {said(symbols)}")
    with mine.http() as client:
        answer = client.post(
            PATHS[protocol], json=request(protocol, question := f"Ada Lovelace: {story()}", backend, stream=stream)
        )

    heard = streamed(protocol, answer)[0] if stream else text(protocol, answer)
    assert restored(upstream.requests[0]) == [question.replace("Ada Lovelace", "<NAME_1>")]
    assert heard == model.plain(f"To Ada Lovelace: {said(model.symbols)}")


@PROTOCOLS
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["prepare", "finish", "stream", "feed"])
def test_faults_of_ours_are_not_the_clients(
    mine: Proxy, upstream: Upstream, model: Model, protocol: str, fault: str, *, stream: bool
) -> None:
    """Whatever of Krunch breaks, the client gets a reply, and nothing of it is lost."""
    model.answer = lambda body, symbols: Answer("Hello, ¤900 and all.")
    with mine.http(x_session_id=f"break {fault}") as client:
        answer = client.post(PATHS[protocol], json=request(protocol, question := story(), "claude", stream=stream))

    heard = streamed(protocol, answer)[0] if stream else text(protocol, answer)
    assert heard == "Hello, ¤900 and all."
    assert restored(upstream.requests[0]) == [question]
    if fault == "prepare":
        assert answer.headers["x-krunch-reason"] == "error"
        assert "stage 'prepare' failed with ValueError" in mine.log


@PROTOCOLS
def test_a_plugin_refuses_requests_and_replies(mine: Proxy, upstream: Upstream, model: Model, protocol: str) -> None:
    """A refused request is not sent, a refused reply not handed on: the client gets a 400 with the plugin's reason."""
    model.answer = lambda body, symbols: Answer("FORBIDDEN")
    with mine.http() as client:
        asked = client.post(PATHS[protocol], json=request(protocol, "REFUSE THIS"))
        assert upstream.requests == []
        told = client.post(PATHS[protocol], json=request(protocol, "Tell me."))

    assert (asked.status_code, told.status_code) == (400, 400)
    assert "not allowed" in asked.text
    assert "a secret" in told.text
    assert "FORBIDDEN" not in told.text


@PROTOCOLS
def test_a_client_that_goes_away_leaves_a_partial_reply(
    mine: Proxy, server: Upstream, model: Model, protocol: str
) -> None:
    """When a client closes its connection in the middle of a stream, plugins see what there was of the reply."""
    session = f"gone {protocol}"
    long = "".join(f"word{number} " for number in range(3_000))
    model.answer = lambda body, symbols: Answer(long if body.get("stream") else "Done.", pieces=[20])
    with (
        mine.http(x_session_id=session) as client,
        client.stream("POST", PATHS[protocol], json=request(protocol, "Go on.", "claude", stream=True)) as answer,
    ):
        next(answer.iter_text())
    replies = mine.folder / "replies"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (replies.exists() and session in replies.read_text(encoding="utf-8")):
        with mine.http() as client:
            client.post(PATHS["chat"], json=request("chat", "COLLECT"))
        time.sleep(0.2)
    # On a slow machine the whole reply may have come before the proxy notices.
    assert f"{session} True True" in (told := replies.read_text(encoding="utf-8")) or f"{session} False True" in told
    with mine.http() as client:
        assert client.get("/health/liveliness").status_code == 200
