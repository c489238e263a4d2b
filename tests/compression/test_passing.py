"""Chunks that need no expansion: told by a glance, and nothing else changes by that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from krunch_plugins import Exchange, Krunch, Reply, Settings, hookimpl

LOG = "\n".join(
    f"2026-03-{day:02}T08:00:00Z worker-{day % 4} could not reach /srv/warehouse/stock/{day}.py: refused"
    for day in range(1, 29)
)
ROWS = json.dumps([{"reservation_id": number, "user_id": f"u{number}", "state": "waiting"} for number in range(12)])
CALM = "Apart from that the night was quiet, and so was most of the day. "
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": LOG},
    {"role": "user", "content": ROWS},
    {"role": "user", "content": f"Once more:\n{LOG}"},
]


class _Seen:
    def __init__(self) -> None:
        self.replies: list[Reply] = []

    @hookimpl
    def post_response(self, exchange: Exchange, reply: Reply) -> None:
        self.replies.append(reply)


def _chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


@pytest.mark.parametrize("size", [1, 2, 5, 24, 1000])
@pytest.mark.parametrize("substituted", [False, True])
def test_asking_first_gives_the_same_reply(size: int, substituted: bool) -> None:  # noqa: FBT001 - pytest's parameter
    """Whatever the model copies of a request, in pieces of any size, comes out as it does in one piece."""
    seen = _Seen()
    with Krunch(Settings(), plugins=[seen]) as krunch:
        exchange = krunch.prepare(MESSAGES, model="gpt-4o")
        if substituted:
            exchange.substitutions.update({"<NAME>": "Ada", "worker": "Bob", "¤W": "Eve"})
        said = "".join(message["content"] + f"\nThe <NAME> is <NAM worker. {CALM}" for message in exchange.messages)
        whole = exchange.finish({"role": "assistant", "content": said})["content"]
        stream, out, passed = exchange.stream(), [], 0
        for start in range(0, len(said), size):
            piece = said[start : start + size]
            if stream.passes(0, piece):
                passed += 1
                out.append(piece)
            else:
                out += [chunk["choices"][0]["delta"]["content"] for chunk in stream.feed(_chunk(piece))]
        out += [chunk["choices"][0]["delta"]["content"] for chunk in stream.flush()]

    assert "".join(out) == whole
    assert seen.replies[-1].message["content"] == whole
    assert passed or size == 1000
    assert exchange.symbols


def test_first_chunk_and_json_are_never_passed() -> None:
    """The first chunk of a choice, and text that has to be read as JSON, go the long way."""
    with Krunch(Settings()) as krunch:
        stream = krunch.prepare(MESSAGES, model="gpt-4o").stream()
        assert not stream.passes(0, "so")
        stream.feed(_chunk("so"))
        assert stream.passes(0, "so")
        assert not stream.passes(1, "so")
        of_json = krunch.prepare(MESSAGES, model="gpt-4o", json_reply=True).stream()
        of_json.feed(_chunk('{"so'))
        assert not of_json.passes(0, "so")
