"""Whatever breaks, the client sees what it would have seen without Krunch."""

from __future__ import annotations

import itertools
import json
import re
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from krunch_plugins.upstream import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from krunch_plugins.upstream import Upstream
    from tests.litellm.ops.conftest import Proxy

KEY = "sk-user-faults"
GUARDRAILS = ["krunch-expand", "krunch-compress"]
STORY = "; ".join(f"Cy{n} says the lighthouse of the northern harbour was closed by the storm" for n in range(12))
TEXT = "The lighthouse is closed until the storm is over, as far as anybody knows by now."
_numbers = itertools.count()


def late(_: dict[str, Any]) -> Answer:
    """An answer that comes too late."""
    time.sleep(1.5)
    return Answer(TEXT)


class Protocol:
    """What the tests need to know of a protocol.

    Attributes:
        path: where it is spoken.
        good: two events of a stream, and its end, as the provider writes them.
    """

    def __init__(self, path: str, good: list[dict[str, Any]]) -> None:
        self.path, self.good = path, good

    def body(self, question: str, **options: Any) -> dict[str, Any]:
        """A request."""
        asked = [{"role": "user", "content": STORY}, {"role": "user", "content": question}]
        if self.path.endswith("responses"):
            return {"model": "gpt-4o", "input": asked, **options}
        if self.path.endswith("messages"):
            asked = asked[1:]
            return {"model": "claude", "system": STORY, "messages": asked, "max_tokens": 99, **options}
        return {"model": "gpt-4o", "messages": asked, **options}

    def stream(self, *texts: str, ended: bool = True) -> bytes:
        """A stream of what is given and of good events."""
        shown = [json.dumps(event) for event in self.good]
        lines = [*shown[:2], *texts, *(shown[2:] if ended else ())]
        named = [json.loads(line).get("type", "") if line in shown else "" for line in lines]
        return "".join(
            (f"event: {name}\n" if name else "") + f"data: {line}\n\n" for name, line in zip(named, lines, strict=True)
        ).encode()


def _chunk(text: str | None, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": [choice]}


def _event(kind: str, **rest: Any) -> dict[str, Any]:
    return {"type": kind, **rest}


def _text_event(kind: str, number: int, text: str) -> dict[str, Any]:
    place = {"item_id": "m", "output_index": 0, "content_index": 0, "sequence_number": number}
    return _event(f"response.output_text.{kind}", **place, **{"delta" if kind == "delta" else "text": text})


PROTOCOLS = {
    "chat": Protocol("/v1/chat/completions", [_chunk("The light"), _chunk("house."), _chunk(None, "stop")]),
    "messages": Protocol(
        "/v1/messages",
        [
            _event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            _event("content_block_delta", index=0, delta={"type": "text_delta", "text": "The lighthouse."}),
            _event("content_block_stop", index=0),
        ],
    ),
    "responses": Protocol(
        "/v1/responses",
        [
            _text_event("delta", 0, "The light"),
            _text_event("delta", 1, "house."),
            _text_event("done", 2, "The lighthouse."),
        ],
    ),
}
Fault = tuple["Callable[[Protocol], Answer | Callable[[dict[str, Any]], Answer]]", dict[str, Any]]


def same(answer: Answer | Callable[[dict[str, Any]], Answer]) -> Any:
    """An answer that is the same in all protocols."""
    return lambda _: answer


FAULTS: dict[str, Fault] = {
    "bad request": (same(Answer("no such thing", status=400)), {}),
    "not allowed": (same(Answer("who are you?", status=401)), {}),
    "too many": (same(Answer("slow down", status=429)), {}),
    "server error": (same(Answer("on fire", status=500)), {}),
    "too late": (same(late), {"timeout": 0.7}),
    "half of a JSON document": (same(Answer(raw=b'{"id": "x", "choices": [{"index": 0, "mess')), {}),
    "another document": (same(Answer(raw=b'{"hello": "world"}')), {}),
    "no document": (same(Answer(raw=b"<html>bad gateway</html>")), {}),
    "nothing": (same(Answer(raw=b"")), {}),
    "cut stream": (same(Answer(TEXT, break_after=6)), {"stream": True}),
    "cut at once": (same(Answer(TEXT, break_after=0)), {"stream": True}),
    "error in the stream": (same(Answer(TEXT, error_after=6)), {"stream": True}),
    "broken event": (lambda protocol: Answer(raw=protocol.stream('{"id": "c", "choi')), {"stream": True}),
    "unknown event": (lambda protocol: Answer(raw=protocol.stream('{"hello": "world"}')), {"stream": True}),
    "no end": (lambda protocol: Answer(raw=protocol.stream(ended=False)), {"stream": True}),
    "no events": (same(Answer(raw=b"hello\n\nworld\n\n")), {"stream": True}),
    "empty stream": (same(Answer(raw=b"")), {"stream": True}),
    "late stream": (same(late), {"stream": True, "timeout": 0.7}),
}

_OWN = re.compile(
    r'"(id|item_id|created|created_at|completed_at|input_tokens|prompt_tokens|total_tokens)": ?[^,}]+'
    r"|time taken=[0-9.]+|(msg|resp|chatcmpl)[-_][A-Za-z0-9_=-]+"
)
"""What differs between any two calls, and what the provider counts of a request."""


def _said(line: str) -> str | None:
    """The text that a line of a stream brings; None if it brings something else."""
    try:
        data = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
    except ValueError:
        return None
    if data.get("choices"):
        content = data["choices"][0]["delta"].get("content")
        return content if isinstance(content, str) and not data["choices"][0].get("finish_reason") else None
    delta = data.get("delta")
    if data.get("type") == "response.output_text.delta":
        return str(delta)
    return delta.get("text") if isinstance(delta, dict) else None


def outcome(client: httpx.Client, path: str, body: dict[str, Any], **headers: str) -> tuple[Any, ...]:
    """What a client sees: the status, the text, what is no text (without ids and times), and how it ended."""
    lines: list[str] = []
    ended = "well"
    status = 0
    try:
        with client.stream("POST", path, json=body, headers=headers) as response:
            status = response.status_code
            lines = list(response.iter_lines())
    except httpx.TransportError as error:
        ended = type(error).__name__
    text, rest = "", []
    for line in lines:
        said = _said(line)
        if said is not None:
            text += said
        elif line and not line.startswith("event:"):
            rest.append(_OWN.sub("", line))
    return status, text, rest, ended


def _received(model_server: Upstream, before: int) -> dict[str, Any]:
    """What the model has received behind so many requests; on a busy machine that may be after its client gave up."""
    deadline = time.monotonic() + 60
    while len(model_server.requests) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return model_server.requests[-1]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_faults_of_the_provider_look_as_without_krunch(
    name: str, fault: str, proxy: Proxy, answers: dict[str, Any], model_server: Upstream
) -> None:
    """Errors, timeouts, cut streams and malformed replies: status, text, error and ending are the same with Krunch."""
    make, options = FAULTS[fault]
    protocol = PROTOCOLS[name]
    uncached: dict[str, Any] = {"num_retries": 0}
    if name == "chat":
        uncached["cache"] = {"no-cache": True, "no-store": True}
    with proxy.client(KEY, x_session_id="faults") as client:
        # How much of a cut connection arrives is chance, with and without Krunch: all or nothing, half of the time.
        for attempt in range(40 if fault == "cut stream" else 4):
            question = f"What is it? ({name}, {fault}, {attempt})"
            answers[question] = make(protocol)
            body = protocol.body(question, **uncached, **options)
            before = len(model_server.requests)
            plain = outcome(client, protocol.path, body, **{"x-krunch": "off"})
            sent_plain = _received(model_server, before)
            before = len(model_server.requests)
            served = outcome(client, protocol.path, body)
            sent = _received(model_server, before)
            if served == plain:
                break

    assert STORY in json.dumps(sent_plain)
    assert len(json.dumps(sent)) < 0.85 * len(json.dumps(sent_plain))
    assert served == plain


def test_a_call_that_fails_is_counted(proxy: Proxy, answers: dict[str, Any]) -> None:
    """A request that the provider refuses counts as one broken reply."""
    answers["Does it fail?"] = Answer("no such thing", status=400)
    asked = [{"role": "user", "content": STORY}, {"role": "user", "content": "Does it fail?"}]

    assert proxy.chat("sk-user-failing", session="failing", messages=asked).status_code == 400

    proxy.eventually(lambda: proxy.stats("sk-user-failing")["krunch"]["totals"]["broken_replies"], 1)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_huge_requests_go_through(
    name: str, proxy: Proxy, model_server: Upstream, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five megabytes in one request: it is sent smaller, and the reply is right."""
    question = f"And? ({name})"
    answers[question] = Answer(TEXT)
    line = "row {} of the table holds the readings of the northern lighthouse: {}, {} and {}\n"
    table = "".join(line.format(n, n * 7 % 1013, n * 11 % 997, n * 13 % 991) for n in range(62_000))
    assert len(table) > 5_000_000
    monkeypatch.setitem(globals(), "STORY", table)
    with proxy.client(KEY) as client:
        answer = client.post(PROTOCOLS[name].path, json=PROTOCOLS[name].body(question), timeout=120)

    assert answer.status_code == 200
    assert TEXT in answer.text
    assert len(json.dumps(model_server.requests[-1])) < len(table)


@pytest.fixture
def no_store(guarded: Proxy) -> Iterator[None]:
    """The store's directory is gone, and a file lies in its place; it is back afterwards."""
    home = guarded.log.with_name("home")
    aside = home.with_name("aside")
    home.rename(aside)
    home.write_text("in the way", encoding="utf-8")
    yield
    home.unlink()
    aside.rename(home)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_store_that_cannot_be_written_harms_no_request(
    guarded: Proxy, no_store: None, answers: dict[str, Any], model_server: Upstream, name: str, *, streamed: bool
) -> None:
    """Requests are compressed and replies exact while the history cannot be written, and that is counted."""
    protocol = PROTOCOLS[name]
    answers["Is it closed?"] = Answer(TEXT)
    guardrails = ["krunch-expand", "watcher", "krunch-compress"] if name == "chat" else GUARDRAILS
    body = protocol.body("Is it closed?", stream=streamed, guardrails=guardrails)
    for number in range(3):
        with guarded.client(x_session_id=f"lost {name} {number}") as client:
            answer = client.post(protocol.path, json=body)
        assert answer.status_code == 200, answer.text
        said = "".join(filter(None, map(_said, answer.text.splitlines())))
        assert said == TEXT if streamed else TEXT in answer.text
        assert STORY not in json.dumps(model_server.requests[-1])


def test_the_store_works_again_afterwards(guarded: Proxy, answers: dict[str, Any]) -> None:
    """Once the directory is back, what was counted is told, and new exchanges are recorded."""
    answers["And now?"] = Answer(TEXT)
    asked = [{"role": "user", "content": f"{next(_numbers)} {STORY}"}, {"role": "user", "content": "And now?"}]
    guarded.text("sk-user-again", session="again", messages=asked, guardrails=GUARDRAILS)

    with guarded.client("sk-user-again") as client:
        shown = client.get("/v1/compression/sessions/again").json()
    assert (shown["recorded"], shown["turns"]) == (True, 3)
    errors = {one["error"]: one["count"] for one in guarded.stats()["krunch"]["errors"]}
    assert errors.get("store_failed", 0) >= 1
