"""Reasoning and refusals where LiteLLM repeats them in other providers' forms."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins.upstream import Answer
from tests.litellm.proxy.conftest import ENDPOINTS, request, said, story

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.litellm.proxy.conftest import Model, Proxy


def sent_back(proxy: Proxy, protocol: str, model: str, *, stream: bool = False) -> Any:
    """A reply: its JSON, or that of its events."""
    with proxy.http() as client:
        body = request(protocol, story(), model, stream=stream)
        answer = client.post(ENDPOINTS[protocol], json=body).raise_for_status()
    if not stream:
        return answer.json()
    return [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_in(item)


def thinking(signature: str) -> Callable[[dict[str, Any], dict[str, str]], Answer]:
    """A model that thinks in symbols."""
    return lambda _, symbols: Answer(
        "Done.", before=[{"type": "thinking", "thinking": said(symbols), "signature": signature}], pieces=[3]
    )


@pytest.mark.parametrize("protocol", ["chat", "responses"])
def test_thinking_that_nobody_signed_is_told_in_plain_words_everywhere(
    proxy: Proxy, model: Model, protocol: str
) -> None:
    """Also in the blocks beside the text, and in LiteLLM's copies of them."""
    model.answer = thinking("")
    found = [text for text in texts_in(sent_back(proxy, protocol, "claude")) if "I saw" in text]

    assert found
    assert set(found) == {model.plain(said(model.symbols))}


def test_signed_thinking_passes_byte_for_byte(proxy: Proxy, model: Model) -> None:
    """The blocks that a client hands back are those that the provider has signed."""
    model.answer = thinking("EqQB==")
    message = sent_back(proxy, "chat", "claude")["choices"][0]["message"]

    (block,) = message["thinking_blocks"]
    assert (block["thinking"], block["signature"]) == (said(model.symbols), "EqQB==")
    assert message["reasoning_content"] == model.plain(said(model.symbols))


@pytest.mark.parametrize("details", [False, True])
def test_reasoning_of_other_providers_is_expanded(proxy: Proxy, model: Model, *, details: bool) -> None:
    """As OpenRouter and others write it, beside LiteLLM's own `reasoning_content`; what is encrypted stays."""

    def answer(_: dict[str, Any], symbols: dict[str, str]) -> Answer:
        told = [{"type": "reasoning.text", "text": said(symbols)}, {"type": "reasoning.encrypted", "data": "gAAA¤1=="}]
        return Answer("Done.", extra={"reasoning": said(symbols), **({"reasoning_details": told} if details else {})})

    model.answer = answer
    reply = sent_back(proxy, "chat", "gpt")

    assert {text for text in texts_in(reply) if "I saw" in text} == {model.plain(said(model.symbols))}
    assert ("gAAA¤1==" in texts_in(reply)) == details


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_refusal_says_of_itself_is_expanded(proxy: Proxy, model: Model, *, stream: bool) -> None:
    """In Anthropic's protocol an explanation stands beside the text of the refusal."""
    model.answer = lambda _, symbols: Answer(None, refusal=said(symbols), pieces=[3])
    reply = sent_back(proxy, "messages", "gpt", stream=stream)

    holders = [event.get("delta", {}) for event in reply] if stream else [reply]
    (details,) = [holder["stop_details"] for holder in holders if holder.get("stop_details")]
    assert details["explanation"] == model.plain(said(model.symbols))


@pytest.mark.parametrize("signature", ["", "EqQB=="])
def test_the_end_of_a_bridged_stream_says_what_its_events_said(proxy: Proxy, model: Model, signature: str) -> None:
    """Deltas and the whole reply agree also where LiteLLM says at the end only that thinking is signed."""
    model.answer = thinking(signature)
    told = sent_back(proxy, "responses", "claude", stream=True)

    plain = model.plain(said(model.symbols))
    deltas = "".join(
        event["delta"] for event in told if event["type"].startswith("response.reasoning") and "delta" in event
    )
    (reasoning,) = [item for item in told[-1]["response"]["output"] if item["type"] == "reasoning"]
    assert told[-1]["type"] == "response.completed"
    assert deltas == plain
    assert bool(reasoning.pop("encrypted_content", None)) == bool(signature)
    assert {text for text in texts_in(reasoning) if "I saw" in text} == {plain}
