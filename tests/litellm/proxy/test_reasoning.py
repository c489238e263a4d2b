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


def streamed(deltas: list[dict[str, Any]]) -> Answer:
    """A stream of OpenAI's with these deltas; the last one ends it."""
    last = len(deltas) - 1
    chunks = [
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": "gpt-4o",
            "choices": [{"index": 0, "delta": delta, "finish_reason": "stop" if at == last else None}],
        }
        for at, delta in enumerate(deltas)
    ]
    return Answer(raw="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n")


def entries(told: list[Any], field: str, *, copies: bool = False) -> list[dict[str, Any]]:
    """What the deltas of a stream say in a field, or LiteLLM's copies of it."""
    deltas = [choice["delta"] for chunk in told for choice in chunk["choices"]]
    holders = [(delta.get("provider_specific_fields") or {}) if copies else delta for delta in deltas]
    return [entry for holder in holders for entry in holder.get(field) or ()]


def cut(text: str) -> Iterator[str]:
    """A text in pieces of three characters, so that symbols are cut."""
    return (text[at : at + 3] for at in range(0, len(text), 3))


@pytest.mark.parametrize("signature", ["", "EqQB=="])
@pytest.mark.parametrize("copies", [False, True])
def test_streamed_thinking_is_told_in_plain_words_unless_it_is_signed(
    proxy: Proxy, model: Model, signature: str, *, copies: bool
) -> None:
    """The blocks beside `reasoning_content`, whose signature comes last, and LiteLLM's copies of them."""
    model.answer = thinking(signature)
    told = sent_back(proxy, "chat", "claude", stream=True)

    blocks = entries(told, "thinking_blocks", copies=copies)
    plain = model.plain(said(model.symbols))
    assert "".join(block["thinking"] for block in blocks) == (said(model.symbols) if signature else plain)
    assert [block["signature"] for block in blocks if block.get("signature")] == [signature] * bool(signature)
    assert "".join(choice["delta"].get("reasoning_content") or "" for one in told for choice in one["choices"]) == plain


@pytest.mark.parametrize("signature", ["", "EqQB=="])
def test_streamed_reasoning_of_other_providers_is_expanded(proxy: Proxy, model: Model, signature: str) -> None:
    """As OpenRouter writes it: texts in pieces, a signature without a text, and what is encrypted, which stays."""
    sealed = {"type": "reasoning.encrypted", "data": "gAAA¤1==", "index": 1}

    def answer(_: dict[str, Any], symbols: dict[str, str]) -> Answer:
        beside = [{"type": "reasoning.text", "text": piece, "index": 0} for piece in cut(said(symbols))]
        deltas: list[dict[str, Any]] = [{"reasoning": one["text"], "reasoning_details": [one]} for one in beside]
        last = [{"type": "reasoning.text", "signature": signature, "index": 0}] if signature else []
        return streamed(
            [{"role": "assistant"}, *deltas, {"content": "Done.", "reasoning_details": [*last, sealed]}, {}]
        )

    model.answer = answer
    told = entries(sent_back(proxy, "chat", "gpt", stream=True), "reasoning_details")

    text = "".join(entry.get("text", "") for entry in told)
    assert text == (said(model.symbols) if signature else model.plain(said(model.symbols)))
    assert told[-1] == sealed
    assert [entry["signature"] for entry in told if entry.get("signature")] == [signature] * bool(signature)


def test_streamed_reasoning_in_the_copies_of_another_proxy_is_expanded(proxy: Proxy, model: Model) -> None:
    """A provider that is LiteLLM itself tells reasoning as a string among its own fields, too."""

    def answer(_: dict[str, Any], symbols: dict[str, str]) -> Answer:
        pieces = [{"content": ".", "provider_specific_fields": {"reasoning": piece}} for piece in cut(said(symbols))]
        return streamed([{"role": "assistant"}, *pieces, {"content": "Done."}, {}])

    model.answer = answer
    told = sent_back(proxy, "chat", "gpt", stream=True)

    deltas = [choice["delta"] for chunk in told for choice in chunk["choices"]]
    text = "".join((delta.get("provider_specific_fields") or {}).get("reasoning", "") for delta in deltas)
    assert text == model.plain(said(model.symbols))
    assert "".join(delta.get("content") or "" for delta in deltas).strip(".") == "Done"


def test_streamed_blocks_one_after_the_other_stay_apart(proxy: Proxy, model: Model) -> None:
    """What was held back of a block that nobody signed comes before the next block begins."""

    def answer(_: dict[str, Any], symbols: dict[str, str]) -> Answer:
        text = said(symbols)
        blocks = [
            {"type": "thinking", "thinking": text, "index": 0},
            {"type": "thinking", "thinking": text, "signature": "EqQB==", "index": 1},
            {"type": "redacted_thinking", "data": "gAAA¤1==", "index": 2},
            {"type": "thinking", "thinking": text, "index": 3},
        ]
        deltas = [{"reasoning_content": ".", "thinking_blocks": [block]} for block in blocks]
        return streamed([{"role": "assistant"}, *deltas, {"content": "Done."}, {}])

    model.answer = answer
    told = entries(sent_back(proxy, "chat", "gpt", stream=True), "thinking_blocks")

    plain, signed = model.plain(said(model.symbols)), said(model.symbols)
    found = {index: "".join(one.get("thinking", "") for one in told if one["index"] == index) for index in range(4)}
    assert found == {0: plain, 1: signed, 2: "", 3: plain}
    assert [one["index"] for one in told] == sorted(one["index"] for one in told)


@pytest.mark.parametrize("encrypted", [None, "gAAA=="])
def test_streamed_reasoning_items_are_expanded_unless_they_are_encrypted(
    proxy: Proxy, model: Model, encrypted: str | None
) -> None:
    """LiteLLM tells them at the end of a stream that it asks for in the Responses protocol."""
    model.answer = lambda _, symbols: Answer(
        "Done.",
        before=[
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": said(symbols)}],
                "encrypted_content": encrypted,
            }
        ],
        pieces=[3],
    )
    (item,) = entries(sent_back(proxy, "chat", "bridge", stream=True), "reasoning_items")

    (summary,) = item["summary"]
    assert summary["text"] == (said(model.symbols) if encrypted else model.plain(said(model.symbols)))
    assert item.get("encrypted_content") == encrypted


def test_a_stream_that_breaks_off_loses_no_reasoning(proxy: Proxy, model: Model) -> None:
    """What was held back of a block goes out before the error."""

    def answer(_: dict[str, Any], symbols: dict[str, str]) -> Answer:
        block = {"type": "thinking", "thinking": said(symbols), "index": 0}
        whole = streamed([{"role": "assistant"}, {"reasoning_content": "x", "thinking_blocks": [block]}, {}]).raw
        assert whole is not None
        chunks = whole.split(b"\n\n")[:2]
        return Answer(raw=b"\n\n".join([*chunks, b'data: {"error": {"message": "overloaded", "code": 500}}', b""]))

    model.answer = answer
    with proxy.http() as client:
        answered = client.post(ENDPOINTS["chat"], json=request("chat", story(), "gpt", stream=True))
    told = [json.loads(line[6:]) for line in answered.text.split("\n") if line.startswith("data: {")]

    assert "error" in told[-1]
    blocks = entries(told[:-1], "thinking_blocks")
    assert "".join(block["thinking"] for block in blocks) == model.plain(said(model.symbols))
