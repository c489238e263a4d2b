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
STORY = "; ".join(f"Cy{n} says the lighthouse of the northern harbour was closed by the storm" for n in range(12))
TEXT = "The lighthouse is closed until the storm is over, as far as anybody knows by now."
_numbers = itertools.count()


def late(_: dict[str, Any]) -> Answer:
    """An answer that comes too late."""
    time.sleep(1.5)
    return Answer(TEXT)


def events(*lines: str) -> bytes:
    """A stream of chunks, some of which may be broken."""
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def chunk(text: str, reason: str | None = None) -> str:
    """One good chunk."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return json.dumps(
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": [choice]}
    )


FAULTS: dict[str, tuple[Answer | Callable[[dict[str, Any]], Answer], dict[str, Any]]] = {
    "bad request": (Answer("no such thing", status=400), {}),
    "not allowed": (Answer("who are you?", status=401), {}),
    "too many": (Answer("slow down", status=429), {}),
    "server error": (Answer("on fire", status=500), {}),
    "too late": (late, {"timeout": 0.7}),
    "half of a JSON document": (Answer(raw=b'{"id": "x", "choices": [{"index": 0, "mess'), {}),
    "another document": (Answer(raw=b'{"hello": "world"}'), {}),
    "no document": (Answer(raw=b"<html>bad gateway</html>"), {}),
    "nothing": (Answer(raw=b""), {}),
    "cut stream": (Answer(TEXT, break_after=6), {"stream": True}),
    "cut at once": (Answer(TEXT, break_after=0), {"stream": True}),
    "error in the stream": (Answer(TEXT, error_after=6), {"stream": True}),
    "broken chunk": (
        Answer(raw=events(chunk("The light"), '{"id": "c", "choi', chunk("house.", "stop"))),
        {"stream": True},
    ),
    "no end": (Answer(raw=events(chunk("The light"), chunk("house."))), {"stream": True}),
    "no events": (Answer(raw=b"hello\n\nworld\n\n"), {"stream": True}),
    "empty stream": (Answer(raw=b""), {"stream": True}),
    "late stream": (late, {"stream": True, "timeout": 0.7}),
}


def outcome(client: httpx.Client, body: dict[str, Any], **headers: str) -> tuple[Any, ...]:
    """What a client sees: the status, the text, what is no text (without ids and times), and how it ended."""
    lines: list[str] = []
    ended = "well"
    status = 0
    try:
        with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            status = response.status_code
            lines = list(response.iter_lines())
    except httpx.TransportError as error:
        ended = type(error).__name__
    text, rest = "", []
    for line in lines:
        data = json.loads(line[6:]) if line.startswith("data: {") else None
        if data is not None and data.get("choices"):
            text += data["choices"][0]["delta"].get("content") or ""
            rest += [reason] if (reason := data["choices"][0].get("finish_reason")) else []
        elif line:
            rest.append(re.sub(r'"(id|created)": ?[^,}]+|time taken=[0-9.]+', "", line))
    return status, text, rest, ended


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_provider_look_as_without_krunch(
    fault: str, proxy: Proxy, answers: dict[str, Any], model_server: Upstream
) -> None:
    """Errors, timeouts, cut streams and malformed replies: status, text, error and ending are the same with Krunch."""
    answer, options = FAULTS[fault]
    question = f"What is it? ({fault})"
    answers[question] = answer
    messages = [{"role": "user", "content": STORY}, {"role": "user", "content": question}]
    body = {
        "model": "gpt-4o",
        "messages": messages,
        "num_retries": 0,
        "cache": {"no-cache": True, "no-store": True},
        **options,
    }
    with proxy.client(KEY, x_session_id="faults") as client:
        for _ in range(4):  # how much of a cut connection arrives is chance, with and without Krunch
            plain = outcome(client, body, **{"x-krunch": "off"})
            sent_plain = model_server.requests[-1]["messages"]
            served = outcome(client, body)
            sent = model_server.requests[-1]["messages"]
            if served == plain:
                break

    assert sent_plain == messages
    assert len(json.dumps(sent)) < 0.8 * len(json.dumps(messages))
    assert served == plain


def test_a_call_that_fails_is_counted(proxy: Proxy, answers: dict[str, Any]) -> None:
    """A request that the provider refuses counts as one broken reply."""
    answers["Does it fail?"] = Answer("no such thing", status=400)
    asked = [{"role": "user", "content": STORY}, {"role": "user", "content": "Does it fail?"}]

    assert proxy.chat("sk-user-failing", session="failing", messages=asked).status_code == 400

    proxy.eventually(lambda: proxy.stats("sk-user-failing")["krunch"]["totals"]["broken_replies"], 1)


def test_huge_requests_go_through(proxy: Proxy, model_server: Upstream, answers: dict[str, Any]) -> None:
    """Five megabytes in one request: the reply is right, and another client is served meanwhile."""
    answers["And?"] = Answer(TEXT)
    line = "row {} of the table holds the readings of the northern lighthouse: {}, {} and {}\n"
    table = "".join(line.format(n, n * 7 % 1013, n * 11 % 997, n * 13 % 991) for n in range(62_000))
    messages = [{"role": "user", "content": table}, {"role": "user", "content": "And?"}]
    assert len(table) > 5_000_000
    with proxy.client(KEY) as client:
        answer = client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": messages}, timeout=120)

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == TEXT
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
def test_a_store_that_cannot_be_written_harms_no_request(
    guarded: Proxy, no_store: None, answers: dict[str, Any], *, streamed: bool
) -> None:
    """Requests are compressed and replies exact while the history cannot be written, and that is counted."""
    answers["Is it closed?"] = Answer(TEXT)
    asked = [{"role": "user", "content": STORY}, {"role": "user", "content": "Is it closed?"}]
    guardrails = ["krunch-expand", "watcher", "krunch-compress"]

    said = [
        guarded.text(session=f"lost {number}", messages=asked, stream=streamed, guardrails=guardrails)
        for number in range(3)
    ]

    assert said == [TEXT] * 3


def test_the_store_works_again_afterwards(guarded: Proxy, answers: dict[str, Any]) -> None:
    """Once the directory is back, what was counted is told, and new exchanges are recorded."""
    answers["And now?"] = Answer(TEXT)
    asked = [{"role": "user", "content": f"{next(_numbers)} {STORY}"}, {"role": "user", "content": "And now?"}]
    guarded.text("sk-user-again", session="again", messages=asked, guardrails=["krunch-expand", "krunch-compress"])

    with guarded.client("sk-user-again") as client:
        shown = client.get("/v1/compression/sessions/again").json()
    assert (shown["recorded"], shown["turns"]) == (True, 3)
    errors = {one["error"]: one["count"] for one in guarded.stats()["krunch"]["errors"]}
    assert errors.get("store_failed", 0) >= 1
