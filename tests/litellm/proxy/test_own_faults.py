"""Somebody's own proxy: a Krunch with a plugin and with faults of its own, beside the SDK's callback."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from krunch_plugins.upstream import Answer
from tests.litellm.proxy.conftest import (
    ENDPOINTS,
    PROTOCOLS,
    Proxy,
    config,
    request,
    restored,
    said,
    story,
    streamed,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.litellm.proxy.conftest import Model, Upstream

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
        exchange = await super().aprepare(messages, **facts)
        if exchange.session == "break report":
            exchange.report = None  # what headers and figures are made of
        return exchange

    async def afinish(self, exchange, message, choice, metadata=None):
        self._fail("finish", exchange)
        return await super().afinish(exchange, message, choice, metadata)

    def stream(self, exchange):
        self._fail("stream", exchange)
        inner = super().stream(exchange)
        return Failing(inner, exchange.session[6:]) if exchange.session in {"break feed", "break end"} else inner

    def texts(self, exchange):
        self._fail("stream", exchange)
        inner = super().texts(exchange)
        return Failing(inner, exchange.session[6:]) if exchange.session in {"break feed", "break end"} else inner


class Failing:
    def __init__(self, inner, what):
        self.inner, self.what = inner, what

    def open(self, **how):
        return Failing(self.inner.open(**how), self.what) if self.what == "feed" else self.inner.open(**how)

    def feed(self, text):
        if self.what == "feed":
            raise ValueError("a fault")
        return self.inner.feed(text)

    async def aflush(self, **how):
        if self.what == "end":
            raise ValueError("a fault")
        return await self.inner.aflush(**how)

    async def aend(self, *args, **how):
        if self.what == "end":
            raise ValueError("a fault")
        return await self.inner.aend(*args, **how)

    def __getattr__(self, name):
        return getattr(self.inner, name)


def note(*what):
    with Path(__file__).with_name("seen").open("a") as file:
        print(*what, file=file)


class Plugin:
    name = "mine"

    @hookimpl
    def pre_request(self, exchange):
        for message in exchange.messages:
            if "COLLECT" in str(message["content"]):
                gc.collect()  # who is cancelled while it sends is let go of by the collector
                note("in flight", len(krunch.in_flight))
            if "REFUSE THIS" in str(message["content"]):
                raise RequestRefused("not allowed")
            if "Ada Lovelace" in str(message["content"]) and isinstance(message["content"], str):
                message["content"] = message["content"].replace("Ada Lovelace", "<NAME_1>")
                exchange.substitute("<NAME_1>", "Ada Lovelace")

    @hookimpl
    def post_response(self, exchange, reply):
        note(exchange.session, reply.partial, reply.streamed)
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
            ENDPOINTS[protocol], json=request(protocol, question := f"Ada Lovelace: {story()}", backend, stream=stream)
        )

    heard = streamed(protocol, answer)[0] if stream else text(protocol, answer)
    assert restored(upstream.requests[0]) == [question.replace("Ada Lovelace", "<NAME_1>")]
    assert heard == model.plain(f"To Ada Lovelace: {said(model.symbols)}")


PLACES: dict[str, tuple[set[tuple[str, str]], set[tuple[str, str]]]] = {
    "prepare": ({("prepare", "ValueError")}, {("prepare", "ValueError")}),
    "finish": ({("expand", "ValueError")}, set()),
    "stream": (set(), {("stream", "ValueError")}),
    "feed": (set(), {("stream", "ValueError")}),
    "end": (set(), {("end", "ValueError")}),
    "report": (
        {("headers", "AttributeError"), ("expand", "AttributeError")},
        {("headers", "AttributeError"), ("end", "AttributeError")},
    ),
}
"""Where a fault is counted, in a whole reply and in a streamed one."""


def errors(proxy: Proxy) -> dict[tuple[str, str], int]:
    """What the statistics say has gone wrong, and how often."""
    with proxy.http() as client:
        told = client.get("/v1/compression/stats").raise_for_status().json()["krunch"]["errors"]
    return {(one["place"], one["error"]): one["count"] for one in told}


@PROTOCOLS
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["prepare", "finish", "stream", "feed", "end", "report"])
def test_faults_of_ours_are_not_the_clients(
    mine: Proxy, upstream: Upstream, model: Model, protocol: str, fault: str, *, stream: bool
) -> None:
    """Whatever of Krunch breaks, the client gets a reply, and nothing of it is lost; it is counted, and told."""
    model.answer = lambda body, symbols: Answer("Hello, ¤900 and all.")
    before = errors(mine)
    with mine.http(x_session_id=f"break {fault}") as client:
        answer = client.post(ENDPOINTS[protocol], json=request(protocol, question := story(), "claude", stream=stream))

    heard = streamed(protocol, answer)[0] if stream else text(protocol, answer)
    assert heard == "Hello, ¤900 and all."
    assert restored(upstream.requests[0]) == [question]
    if fault == "prepare":
        assert answer.headers["x-krunch-reason"] == "error"
        assert "stage 'prepare' failed with ValueError" in mine.log
    places = PLACES[fault][stream]
    mine.eventually(lambda: all(errors(mine).get(place, 0) > before.get(place, 0) for place in places))


@PROTOCOLS
def test_a_plugin_refuses_requests_and_replies(mine: Proxy, upstream: Upstream, model: Model, protocol: str) -> None:
    """A refused request is not sent, a refused reply not handed on: the client gets a 400 with the plugin's reason."""
    model.answer = lambda body, symbols: Answer("FORBIDDEN")
    with mine.http() as client:
        asked = client.post(ENDPOINTS[protocol], json=request(protocol, "REFUSE THIS"))
        assert upstream.requests == []
        told = client.post(ENDPOINTS[protocol], json=request(protocol, "Tell me."))

    assert (asked.status_code, told.status_code) == (400, 400)
    assert "not allowed" in asked.text
    assert "a secret" in told.text
    assert "FORBIDDEN" not in told.text


@PROTOCOLS
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("backend", ["gpt", "claude"])
def test_nothing_is_kept_of_a_request_that_was_answered(
    mine: Proxy, model: Model, protocol: str, backend: str, *, stream: bool
) -> None:
    """When a reply has gone out, the proxy lets go of the request and all its text."""
    with mine.http(x_session_id=f"kept {protocol}") as client:
        body = request(protocol, story(), backend, stream=stream)
        client.post(ENDPOINTS[protocol], json=body).raise_for_status()

    mine.eventually(lambda: _collected(mine) == 0)


@PROTOCOLS
def test_a_client_that_goes_away_leaves_a_partial_reply(
    mine: Proxy, server: Upstream, model: Model, protocol: str
) -> None:
    """When a client closes its connection in a stream, plugins see what there was of the reply, and nothing stays."""
    session = f"gone {protocol}"
    long = "".join(f"word{number} " for number in range(3_000))
    model.answer = lambda body, symbols: Answer(long if body.get("stream") else "Done.", pieces=[20])
    with (
        mine.http(x_session_id=session) as client,
        client.stream("POST", ENDPOINTS[protocol], json=request(protocol, "Go on.", "claude", stream=True)) as answer,
    ):
        heard = ""
        for text in answer.iter_text():  # of what comes before the first words there is no partial reply
            heard += text
            if "word0" in heard:
                break
    # On a slow machine the whole reply may have come before the proxy notices.
    mine.eventually(lambda: {f"{session} True True", f"{session} False True"} & seen(mine))
    mine.eventually(lambda: _collected(mine) == 0)
    with mine.http() as client:
        assert client.get("/health/liveliness").status_code == 200


@PROTOCOLS
def test_a_client_that_does_not_wait_for_its_reply_leaves_nothing(
    mine: Proxy, server: Upstream, model: Model, protocol: str
) -> None:
    """When a client gives up before a whole reply is there, nothing of its request is kept."""

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        if story_told in str(restored(body)):
            time.sleep(1)
        return Answer("Done.")

    story_told = story()
    model.answer = answer
    with mine.http(x_session_id=f"hasty {protocol}") as client, pytest.raises(httpx.ReadTimeout):
        client.post(ENDPOINTS[protocol], json=request(protocol, story_told, "claude"), timeout=0.5)

    mine.eventually(lambda: _collected(mine) == 0)


def seen(proxy: Proxy) -> set[str]:
    """What the plugin has noted."""
    with contextlib.suppress(FileNotFoundError):
        return set((proxy.folder / "seen").read_text(encoding="utf-8").splitlines())
    return set()


def _collected(proxy: Proxy) -> int:
    """How many requests are still known after the garbage was collected."""
    with proxy.http() as client:
        client.post(ENDPOINTS["chat"], json=request("chat", "COLLECT"))
    lines = (proxy.folder / "seen").read_text(encoding="utf-8").splitlines()
    return int([line for line in lines if line.startswith("in flight ")][-1].split()[-1])
