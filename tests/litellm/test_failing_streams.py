"""Expansion that fails in the middle of a stream: no protocol loses text or moves it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from krunch_litellm.replies import ExpandedStream
from krunch_litellm.wire.chat import ChatWire
from krunch_litellm.wire.messages import MessagesWire
from krunch_litellm.wire.responses import ResponsesWire
from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices

from krunch_plugins.compression.windows import Window
from tests.failing_streams import FAILING, STORY, expected, faulty, pieces_of

MESSAGES: list[Any] = [{"role": "user", "content": STORY}]


def _chunk(text: str) -> ModelResponseStream:
    return ModelResponseStream(choices=[StreamingChoices(index=0, delta=Delta(content=text))])


def _faulty_passes(window: Window, text: str) -> bool:
    raise ValueError("a fault")


def _said(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def _all(stream: Any, items: list[Any]) -> list[Any]:
    out = [out for item in items for out in stream.feed(item)]
    rest: list[Any] = asyncio.run(stream.end(partial=False))
    return out + rest


@pytest.mark.parametrize("piece", FAILING)
@pytest.mark.parametrize("kind", ["expander", "window"])
def test_chat(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the SDK and in the proxy, what was held back stands before the chunk that cannot be expanded."""
    for proxied in (False, True):
        with faulty(kind, piece, monkeypatch) as krunch:
            exchange = krunch.asked()
            chunks = [_chunk(text) for text in pieces_of(exchange)]
            if proxied:
                out = _all(ChatWire({}, MESSAGES).stream(exchange), chunks)
            else:
                out = list(ExpandedStream(iter(chunks), exchange))
            assert _said(out) == expected(exchange, piece)
            partial = kind == "expander"  # the hooks see what was read by then, if anything was
            assert [reply.partial for reply in krunch.shown] == ([] if partial and piece == 1 else [partial])
        monkeypatch.undo()


@pytest.mark.parametrize("piece", FAILING)
@pytest.mark.parametrize("kind", ["expander", "window"])
def test_thinking_in_chat(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks beside the text, which are held back from their first symbol on, go out as they came."""
    with faulty(kind, piece, monkeypatch) as krunch:
        exchange = krunch.asked()
        blocks: list[Any] = [{"type": "thinking", "thinking": text, "index": 0} for text in pieces_of(exchange)]
        chunks = [
            ModelResponseStream(choices=[StreamingChoices(index=0, delta=Delta(thinking_blocks=[block]))])
            for block in blocks
        ]
        out = _all(ChatWire({}, MESSAGES).stream(exchange), chunks)

        told = [block for chunk in out for block in chunk.choices[0].delta.thinking_blocks]
        assert "".join(block["thinking"] for block in told) == "".join(pieces_of(exchange))


def test_a_chunk_that_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other texts of the reply have held back goes out before it."""
    with faulty("expander", 0, monkeypatch) as krunch:
        exchange = krunch.asked()
        symbol = next(iter(exchange.symbols))
        stream = ChatWire({}, MESSAGES).stream(exchange)
        thought = {"type": "thinking", "thinking": f"So {symbol}", "index": 0}
        begun: Any = {"content": "Well", "reasoning_content": f"So {symbol[0]}", "thinking_blocks": [thought]}
        out = stream.feed(ModelResponseStream(choices=[StreamingChoices(index=0, delta=Delta(**begun))]))
        monkeypatch.setattr(Window, "passes", _faulty_passes)
        out += _all(stream, [_chunk(", it"), _chunk(" is.")])

    told = [chunk.choices[0].delta for chunk in out]
    blocks = [block for delta in told for block in getattr(delta, "thinking_blocks", None) or ()]
    assert _said(out) == "Well, it is."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in told) == f"So {symbol[0]}"
    assert "".join(block["thinking"] for block in blocks) == f"So {symbol}"


@pytest.mark.parametrize("piece", FAILING)
@pytest.mark.parametrize("kind", ["expander", "window"])
def test_messages(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anthropic's events likewise; the hooks see what the client got."""
    with faulty(kind, piece, monkeypatch) as krunch:
        exchange = krunch.asked()
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        deltas = [{"type": "text_delta", "text": text} for text in pieces_of(exchange)]
        events = [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
        stream = MessagesWire({"messages": MESSAGES}).stream(exchange)
        out = _all(stream, [block, *events, {"type": "content_block_stop", "index": 0}, {"type": "message_stop"}])
        told = "".join(event["delta"]["text"] for event in out if "delta" in event)
        assert told == expected(exchange, piece)
        assert [reply.message["content"] for reply in krunch.shown] == [told]
        assert out[-1] == {"type": "message_stop"}


@pytest.mark.parametrize("piece", FAILING)
@pytest.mark.parametrize("kind", ["expander", "window"])
def test_responses(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's responses likewise; their numbers stay in order."""
    with faulty(kind, piece, monkeypatch) as krunch:
        exchange = krunch.asked()
        place = {"type": "response.output_text.delta", "output_index": 0, "content_index": 0}
        events = [{**place, "sequence_number": n, "delta": text} for n, text in enumerate(pieces_of(exchange))]
        out = _all(ResponsesWire({"input": STORY}).stream(exchange), events)
        told = "".join(event["delta"] for event in out)
        assert told == expected(exchange, piece)
        assert [reply.message["content"] for reply in krunch.shown] == [told]
        assert [event["sequence_number"] for event in out] == list(range(len(out)))


def test_thinking_that_waits() -> None:
    """Thinking is held back from its first symbol on; if expanding fails it goes out as it came, signature or not."""
    with faulty("expander", 3, pytest.MonkeyPatch()) as krunch:
        exchange = krunch.asked()
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
        deltas = [{"type": "thinking_delta", "thinking": text} for text in pieces_of(exchange)]
        events: list[Any] = [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
        signed = {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}}
        out = _all(MessagesWire({"messages": MESSAGES}).stream(exchange), [block, *events, signed])
        assert "".join(event["delta"].get("thinking", "") for event in out[1:]) == "".join(pieces_of(exchange))
        assert out[-1] == signed
