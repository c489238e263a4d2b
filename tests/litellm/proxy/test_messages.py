"""Anthropic's messages through the proxy: what only they have."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krunch_litellm.wire.messages import MessagesWire
from krunch_litellm.wire.sse import encode

from krunch_plugins import Krunch, Settings
from krunch_plugins.upstream import Answer, ToolCall
from tests.litellm.proxy.conftest import flat, restored, said, story, texts

if TYPE_CHECKING:
    from tests.litellm.proxy.conftest import Model, Proxy, Upstream

EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
SIGNED = {"type": "thinking", "thinking": "Is ¤1 the one?", "signature": "EqQB¤1=="}
REDACTED = {"type": "redacted_thinking", "data": "Emw¤1=="}


def blank(value: Any) -> Any:
    """A request with its texts taken out: what compression must not change."""
    if isinstance(value, dict):
        if value.get("type") in {"thinking", "redacted_thinking", "document"}:
            return value
        return {key: "" if key == "text" else blank(item) for key, item in value.items()}
    return [blank(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("system", ["string", "blocks"])
def test_only_text_changes(proxy: Proxy, upstream: Upstream, model: Model, system: str) -> None:
    """Prompts and results as strings or blocks, images, cache marks, calls and signed thinking stay where they are."""
    first, second = story(), story()
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": first}, "title": "d"}
    request: Any = {
        "system": first if system == "string" else [{"type": "text", "text": first, **EPHEMERAL}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": first}, IMAGE, document]},
            {
                "role": "assistant",
                "content": [
                    SIGNED,
                    REDACTED,
                    {"type": "text", "text": second},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": second}},
                    {"type": "tool_use", "id": "t2", "name": "look", "input": {}, **EPHEMERAL},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": second}, IMAGE]},
                    {"type": "tool_result", "tool_use_id": "t2", "content": second, "is_error": True},
                    {"type": "text", "text": f"And now? {first}", **EPHEMERAL},
                ],
            },
        ],
    }
    with proxy.anthropic() as client:
        client.messages.create(model="claude", max_tokens=100, tools=[{"name": "look", "input_schema": {}}], **request)

    (body,) = upstream.requests
    assert restored(body) == texts(flat(request))
    results = [message["content"] for message in (request["messages"][2], body["messages"][2])]
    for blocks in results:
        blocks[1]["content"] = ""
    assert blank(body["messages"]) == blank(request["messages"])
    assert blank(body["system"]) == blank(request["system"]) or system == "string"
    assert sum(map(len, texts(flat(body)))) < 0.5 * sum(map(len, texts(flat(request))))


@pytest.mark.parametrize("stream", [False, True])
def test_signed_blocks_pass_as_they_came_and_everything_else_is_expanded(
    proxy: Proxy, model: Model, *, stream: bool
) -> None:
    """Signed and redacted thinking pass byte for byte; unsigned thinking, text and arguments are expanded."""
    citation = {
        "type": "char_location",
        "cited_text": "grass",
        "document_index": 0,
        "document_title": "d",
        "start_char_index": 3,
        "end_char_index": 8,
    }

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        signed = {"type": "thinking", "thinking": said(symbols), "signature": "EqQB¤1=="}
        unsigned = {"type": "thinking", "thinking": said(symbols), "signature": ""}
        call = ToolCall("look", json.dumps({"at": said(symbols)}), "t1")
        return Answer(said(symbols), [call], before=[signed, REDACTED, unsigned], annotations=[citation], pieces=[1, 2])

    model.answer = answer
    request: Any = {"model": "claude", "max_tokens": 2000, "messages": [{"role": "user", "content": story()}]}
    with proxy.anthropic() as client:
        if stream:
            with client.messages.stream(**request) as events:
                reply = events.get_final_message()
        else:
            reply = client.messages.create(**request)

    raw = said(model.symbols)
    meant = model.plain(raw)
    signed, redacted, unsigned, text, call = (block.model_dump(exclude_none=True) for block in reply.content)
    assert signed == {"type": "thinking", "thinking": raw, "signature": "EqQB¤1=="}
    assert redacted == REDACTED
    assert unsigned["thinking"] == meant
    assert (text["text"], text["citations"][0]["cited_text"]) == (meant, "grass")
    assert (call["id"], call["input"]) == ("t1", {"at": meant})
    assert reply.stop_reason == "tool_use"


def test_what_is_no_message_is_left_to_litellm(proxy: Proxy, upstream: Upstream, model: Model) -> None:
    """A message whose blocks are not all blocks is treated, or refused, as without Krunch."""
    text = story()
    messages = [{"role": "user", "content": [text, {"type": "text", "text": text}]}]
    request = {"model": "claude", "max_tokens": 99, "messages": messages}
    told = []
    for headers in ({}, {"x_krunch": "off"}):
        with proxy.http(**headers) as client:
            answer = client.post("/v1/messages", json=request)
        told.append((answer.status_code, [body["messages"] for body in upstream.requests]))
        upstream.received.clear()

    assert told[0] == told[1]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_the_providers_own_tools_are_expanded(proxy: Proxy, model: Model, *, stream: bool) -> None:
    """What a client is shown of a search or of a connected server's tool is plain, whole and streamed alike."""

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        search = {
            "type": "server_tool_use",
            "id": "srvtoolu_1",
            "name": "web_search",
            "input": {"query": said(symbols)},
        }
        found = {
            "type": "web_search_tool_result",
            "tool_use_id": "srvtoolu_1",
            "content": [{"encrypted_content": "¤1"}],
        }
        return Answer("Done.", before=[search, found], pieces=[2])

    model.answer = answer
    request = {"model": "claude", "max_tokens": 99, "messages": [{"role": "user", "content": story()}]}
    with proxy.http() as client:
        text = client.post("/v1/messages", json={**request, "stream": stream}).text
    meant = {"query": model.plain(said(model.symbols))}
    if stream:
        events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta" and event["index"] == 0]
        assert json.loads("".join(delta["partial_json"] for delta in deltas)) == meant
        (found,) = [event["content_block"] for event in events if event["type"] == "content_block_start"][1:2]
    else:
        search, found, _ = json.loads(text)["content"]
        assert search["input"] == meant
    assert found["content"] == [{"encrypted_content": "¤1"}]


def test_a_stream_is_well_formed(proxy: Proxy, model: Model) -> None:
    """Each block begins, speaks and ends, one after the other, and what was held back comes before the block's end."""
    model.answer = lambda body, symbols: Answer(
        list(symbols)[-1], [ToolCall("look", json.dumps({"at": list(symbols)[-1]}))], pieces=[1]
    )
    request = {"model": "claude", "max_tokens": 100, "stream": True, "messages": [{"role": "user", "content": story()}]}
    with proxy.http() as client:
        told = [event.split("\n") for event in client.post("/v1/messages", json=request).text.split("\n\n") if event]

    events = [json.loads(line[1].removeprefix("data: ")) for line in told]
    assert [line[0] for line in told] == [f"event: {event['type']}" for event in events]
    open_blocks: list[int] = []
    said_by: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_start":
            assert not open_blocks
            open_blocks.append(event["index"])
        elif event["type"] == "content_block_delta":
            assert open_blocks == [event["index"]]
            delta = event["delta"]
            said_by[event["index"]] = said_by.get(event["index"], "") + (
                delta.get("text") or delta.get("partial_json") or ""
            )
        elif event["type"] == "content_block_stop":
            assert open_blocks.pop() == event["index"]
    meant = list(model.symbols.values())[-1]
    assert said_by[0] == meant
    assert json.loads(said_by[1]) == {"at": meant}


TEXT = story()


def expanding() -> tuple[Any, dict[str, str], Krunch]:
    """A stream that expands a reply to a request which defines symbols."""
    krunch = Krunch(Settings(min_tokens=0))
    request = MessagesWire.read({"messages": [{"role": "user", "content": TEXT}]})
    assert request is not None
    exchange = krunch.prepare(request.messages, model="gpt-4o")
    return request.stream(exchange), dict(exchange.symbols), krunch


def wire(symbols: dict[str, str], newline: bytes) -> bytes:
    """A reply as bytes, with a comment, a ping and an event of a kind that nobody knows in between."""
    parts = [said(symbols)[at : at + 5] for at in range(0, len(said(symbols)), 5)]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": part}} for part in parts),
        {"type": "news", "text": "¤1"},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return (b": hello\n\n" + b"".join(map(encode, events))).replace(b"\n", newline)


def heard(out: bytes) -> str:
    """The text that a client makes of the bytes."""
    lines = out.decode().replace("\r\n", "\n").split("\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    return "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_bytes_may_be_cut_anywhere(data: st.DataObject) -> None:
    """However the bytes of a stream are cut, inside a character, an event, a line end: the client hears the same."""
    stream, symbols, krunch = expanding()
    given_bytes = wire(symbols, data.draw(st.sampled_from([b"\n", b"\r\n"])))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(given_bytes)), max_size=30)))
    out = b""
    for start, stop in zip([0, *cuts], [*cuts, len(given_bytes)], strict=True):
        out += b"".join(stream.feed(given_bytes[start:stop]))
    out += b"".join(asyncio.run(stream.end(partial=False)))
    krunch.close()

    meant = said(symbols)
    for symbol in sorted(symbols, key=len, reverse=True):
        meant = meant.replace(symbol, symbols[symbol])
    assert heard(out) == meant
    assert b": hello" in out
    assert "¤1".encode() in out  # in the event that nobody knows
    assert stream.usage == {"input_tokens": 3, "output_tokens": 5}


async def test_a_stream_cut_off_in_an_event_hands_on_all_it_got() -> None:
    """What came of an event that never ended is handed on after what was held back of the text."""
    stream, symbols, krunch = expanding()
    begun = encode({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    symbol = next(iter(symbols))
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": symbol}}
    out = stream.feed(begun + encode(delta) + b"event: content_bl")
    out += await stream.end(partial=True)
    krunch.close()

    whole = b"".join(out)
    assert heard(whole) == symbols[symbol]
    assert whole.endswith(b"event: content_bl")


async def test_no_event_that_cannot_be_read_is_lost_or_moved() -> None:
    """Data that is nested deeper than can be read, or no Unicode, is handed on where it stood."""
    stream, _, krunch = expanding()
    start = encode({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    deep = b"data: " + b"[" * 100_000 + b"]" * 100_000 + b"\n\n"
    bad = b'data: {"type": "ping", "x": "\xff"}\n\n'
    delta = encode({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi."}})
    whole = start + deep + bad + delta
    out = b"".join(piece for at in range(0, len(whole), 4096) for piece in stream.feed(whole[at : at + 4096]))
    out += b"".join(await stream.end(partial=False))
    krunch.close()

    assert out == whole
