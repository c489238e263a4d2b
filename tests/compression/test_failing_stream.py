"""Expansion that fails in the middle of a stream loses nothing and moves nothing."""

from __future__ import annotations

import pytest

from tests.failing_streams import FAILING, FaultyWindows, expected, pieces_of


@pytest.mark.parametrize("piece", FAILING)
def test_what_is_held_back_goes_out_before_the_chunk_that_fails(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each choice and tool call is whole and in order, and the hooks see what the caller got."""
    with FaultyWindows(piece, monkeypatch) as krunch:
        exchange = krunch.asked()
        stream = exchange.stream()
        out = []
        for text in pieces_of(exchange):
            out += stream.feed({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]})
        out += stream.flush()

        told = "".join(chunk["choices"][0]["delta"]["content"] for chunk in out)
        assert told == expected(exchange, piece)
        assert [reply.message["content"] for reply in krunch.shown] == [told]
        assert exchange.report.problems


def test_a_chunk_that_fails_after_some_of_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of a chunk before it failed is told once, and other choices' texts come out as well."""
    with FaultyWindows(4, monkeypatch) as krunch:
        exchange = krunch.asked()
        symbol, meaning = next(iter(exchange.symbols.items()))
        stream = exchange.stream()
        told = ["", ""]
        for first, second in [(f"a {symbol[0]}", f"b {symbol}"), (symbol[1:], "!"), (" c", f" {symbol}")]:
            deltas = [{"content": first}, {"content": second}]
            for chunk in stream.feed({"choices": [{"index": n, "delta": delta} for n, delta in enumerate(deltas)]}):
                for choice in chunk["choices"]:
                    told[choice["index"]] += choice["delta"]["content"]
        assert stream.flush() == []
        assert told == [f"a {symbol} c", f"b {meaning}! {symbol}"]
        assert [reply.message["content"] for reply in krunch.shown] == told
