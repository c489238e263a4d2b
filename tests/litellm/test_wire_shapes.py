"""Shapes on the wire that a reversible rewriting has to get right, as LiteLLM's `llm_shield_proxy` tests list them.

LiteLLM's guardrail of that name puts placeholders into requests and the originals back into replies: the closest
relative there is. Its tests (`test_llm_shield_proxy.py`) are a list of shapes; where each is tested here:

- requests: string content, parts, images, tool-call arguments, old-style calls, `name`: `proxy/test_chat.py`,
  `test_only_text_changes`; system prompts as string and blocks, tool results as string and blocks, `tool_use` input:
  `proxy/test_messages.py`, the same; string and list `input`, call items and their outputs, reasoning, `instructions`:
  `proxy/test_responses.py`, `test_history_as_items`; `prompt`, bare strings, embeddings: `test_other_calls.py`, where
  all pass through;
- whole replies: `proxy/test_matrix.py`, and `test_replies.py` for every kind of field;
- sessions that clients choose: `ops/test_tenants.py`;
- streams, below: chunks as they arrive, marks that are cut anywhere, each choice by itself, calls complete in the chunk
  that finishes them, streams without an end, bytes and strings, what is no event, signed blocks, texts told twice.

What is redaction's own has no counterpart: schemas and names are never rewritten, and what fails lets the request go.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from krunch_litellm.wire.chat import ChatWire
from krunch_litellm.wire.messages import MessagesWire
from krunch_litellm.wire.responses import ResponsesWire
from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from krunch_plugins import Exchange

STORY = "; ".join(f"the launch of project Bluebird {n} was moved to the harbour of Trieste" for n in range(12))
MESSAGES: list[Any] = [{"role": "user", "content": STORY}]


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """A request that defines symbols."""
    with Krunch(Settings(min_tokens=0)) as krunch:
        yield krunch.prepare(MESSAGES, model="gpt-4o")


@pytest.fixture
def symbol(exchange: Exchange) -> str:
    """One of them."""
    return next(iter(exchange.symbols))


def _through(stream: Any, items: list[Any]) -> list[Any]:
    out = [out for item in items for out in stream.feed(item)]
    rest: list[Any] = asyncio.run(stream.end(partial=False))
    return out + rest


def _chat(exchange: Exchange, *chunks: list[StreamingChoices]) -> list[Any]:
    given = [ModelResponseStream(id="c", choices=choices) for choices in chunks]
    return _through(ChatWire({}, MESSAGES).stream(exchange), given)


def _says(index: int, text: str | None, reason: str | None = None, **more: Any) -> StreamingChoices:
    return StreamingChoices(index=index, delta=Delta(content=text, **more), finish_reason=reason)


def _texts(chunks: list[Any]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts


def _call(arguments: str) -> list[dict[str, Any]]:
    return [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "send", "arguments": arguments}}]


def _arguments(chunks: list[Any]) -> str:
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    return "".join(call["function"]["arguments"] or "" for call in calls)


def test_chunks_are_handed_on_as_they_arrive(exchange: Exchange) -> None:
    """Nothing waits that need not wait."""
    stream = ChatWire({}, MESSAGES).stream(exchange)
    chunks = [ModelResponseStream(choices=[_says(0, text)]) for text in ("one ", "two ", "three")]

    assert [stream.feed(chunk) for chunk in chunks] == [[chunk] for chunk in chunks]


def test_each_choice_is_expanded_by_itself(exchange: Exchange, symbol: str) -> None:
    """Choices that come in one chunk, each cut in the middle of a mark, and end at different times."""
    half, rest = symbol[:1], symbol[1:]
    out = _chat(
        exchange,
        [_says(0, f"a {half}"), _says(1, f"b {half}")],
        [_says(0, f"{rest}."), _says(1, f"{rest}!", "stop")],
        [_says(0, f" {half}")],
        [_says(0, None)],
    )

    meaning = exchange.symbols[symbol]
    assert _texts(out) == {0: f"a {meaning}. {half}", 1: f"b {meaning}!"}


def test_a_choice_that_is_missing_at_the_end_loses_nothing(exchange: Exchange, symbol: str) -> None:
    """What is held back of a choice goes out though neither the last chunk nor any other ends it."""
    out = _chat(exchange, [_says(0, f"a {symbol}"), _says(1, f"b {symbol}")], [_says(0, None)])

    meaning = exchange.symbols[symbol]
    assert _texts(out) == {0: f"a {meaning}", 1: f"b {meaning}"}


@pytest.mark.parametrize("reason", ["tool_calls", None])
def test_arguments_are_complete_in_the_chunk_that_finishes(exchange: Exchange, symbol: str, reason: str | None) -> None:
    """Clients parse arguments when they see the finish reason; without one the rest comes when the stream ends."""
    pieces = ['{"to": "' + symbol[:1], symbol[1:] + '"}']
    out = _chat(
        exchange,
        [_says(0, None, tool_calls=_call(pieces[0]))],
        [_says(0, None, reason, tool_calls=_call(pieces[1]))],
    )
    finishing = [at for at, chunk in enumerate(out) if chunk.choices[0].finish_reason]

    assert json.loads(_arguments(out)) == {"to": exchange.symbols[symbol]}
    assert finishing == ([len(out) - 1] if reason else [])
    cut = _chat(exchange, [_says(0, None, tool_calls=_call(pieces[0]))])
    assert _arguments(cut) == pieces[0]


def _sse(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def _block(kind: str, *deltas: dict[str, Any], **opening: Any) -> list[bytes]:
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": kind, **opening}}
    between = [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
    events: list[dict[str, Any]] = [start, *between, {"type": "content_block_stop", "index": 0}]
    return [_sse(event) for event in events]


def _messages(exchange: Exchange, items: list[Any]) -> list[Any]:
    return _through(MessagesWire({"messages": MESSAGES}).stream(exchange), items)


def _events(out: list[Any]) -> list[dict[str, Any]]:
    raw = b"".join(item.encode() if isinstance(item, str) else item for item in out).decode()
    return [json.loads(line[5:]) for line in raw.split("\n") if line.startswith("data:")]


def _said(out: list[Any], field: str = "text") -> str:
    return "".join(event["delta"][field] for event in _events(out) if event["type"] == "content_block_delta")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 1000])
def test_bytes_and_strings_stay_what_they_are(exchange: Exchange, symbol: str, size: int) -> None:
    """Events in pieces of any size, as bytes or as strings; what is held back stands before the end of its block."""
    deltas = [{"type": "text_delta", "text": text} for text in ("Mail " + symbol[:1], symbol[1:] + " now, ¤")]
    raw = b"".join(_block("text", *deltas, text=""))
    expected = f"Mail {exchange.symbols[symbol]} now, ¤"
    text = raw.decode()
    for items in ([raw[at : at + size] for at in range(0, len(raw), size)],
                  [text[at : at + size] for at in range(0, len(text), size)]):  # fmt: skip
        out = _messages(exchange, list(items))

        assert _said(out) == expected
        assert {type(item) for item in out} == {type(items[0])}
        assert _events(out)[-1]["type"] == "content_block_stop"


def test_tool_input_is_expanded_as_json(exchange: Exchange, symbol: str) -> None:
    """The pieces of a call's input."""
    pieces = ['{"to": "' + symbol[:1], symbol[1:] + '"}']
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    out = _messages(exchange, _block("tool_use", *deltas, id="t", name="send", input={}))

    assert json.loads(_said(out, "partial_json")) == {"to": exchange.symbols[symbol]}


def test_signed_thinking_and_strange_frames_pass_byte_for_byte(exchange: Exchange, symbol: str) -> None:
    """What was signed with its symbols in it, other providers' events, and what is no JSON."""
    deltas = [{"type": "thinking_delta", "thinking": symbol}, {"type": "signature_delta", "signature": "s"}]
    strange = [f'data: {{"candidates": [{{"text": "{symbol}"}}]}}\n\n'.encode(), b"data: not json\n\n", b": ping\n\n"]
    out = b"".join(_messages(exchange, [*_block("thinking", *deltas, thinking="", signature=""), *strange]))
    events = [event for event in _events([out.removesuffix(b"".join(strange))]) if "delta" in event]

    assert "".join(event["delta"].get("thinking", "") for event in events) == symbol
    assert events[-1]["delta"] == deltas[1]
    assert out.endswith(b"".join(strange))


def test_what_is_no_stream_of_events_is_not_held_back(exchange: Exchange) -> None:
    """Without a blank line to wait for, all of it would wait."""
    stream = MessagesWire({"messages": MESSAGES}).stream(exchange)
    pieces = [b'[{"candidates": []}', b', {"candidates": []}', b"]"]

    assert [stream.feed(piece) for piece in pieces] == [[piece] for piece in pieces]


def _event(kind: str, number: int, **more: Any) -> dict[str, Any]:
    place = {"item_id": "m", "output_index": 0, "content_index": 0, "sequence_number": number}
    return {"type": f"response.{kind}", **place, **more}


@pytest.mark.parametrize("ended", [True, False])
def test_deltas_and_the_event_that_repeats_them_agree(exchange: Exchange, symbol: str, *, ended: bool) -> None:
    """What is held back comes before the event that repeats the text, and at the end if there is none."""
    events = [
        _event("output_text.delta", 1, delta="Mail " + symbol[:1]),
        _event("output_text.delta", 2, delta=symbol[1:] + " x¤"),
    ]
    done = _event("output_text.done", 3, text=f"Mail {symbol} x¤")
    out = _through(ResponsesWire({"input": MESSAGES}).stream(exchange), [*events, *([done] if ended else [])])

    expected = f"Mail {exchange.symbols[symbol]} x¤"
    assert "".join(event["delta"] for event in out if "delta" in event) == expected
    assert not ended or (out[-1]["type"], out[-1]["text"]) == (done["type"], expected)
    assert [event["sequence_number"] for event in out] == sorted({event["sequence_number"] for event in out})


def test_function_call_arguments_of_responses(exchange: Exchange, symbol: str) -> None:
    """The pieces of a call's arguments."""
    pieces = ['{"to": "' + symbol[:1], symbol[1:] + '"}']
    events = [_event("function_call_arguments.delta", at, delta=piece) for at, piece in enumerate(pieces)]
    out = _through(ResponsesWire({"input": MESSAGES}).stream(exchange), events)

    assert json.loads("".join(event["delta"] for event in out)) == {"to": exchange.symbols[symbol]}
