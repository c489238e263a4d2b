"""Responses that go on from earlier ones: what is kept of them, and for how long."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from krunch_litellm.chains import Chain, Chains
from krunch_litellm.identity import Identity

from krunch_plugins import ConversationStore, Krunch

if TYPE_CHECKING:
    from pathlib import Path

    from krunch_litellm.wire import WireRequest


@dataclass
class Input:
    """As much of a request as a chain looks at."""

    messages: list[dict[str, Any]]


async def respond(krunch: Krunch, text: str, response_id: str, previous: str | None) -> None:
    """One request to /v1/responses and its reply."""
    chain = Chain(Chains(), krunch, {"previous_response_id": previous}, Identity("s", "t"))
    facts = {"model": "gpt-4o", "session": "s", "tenant": "t", "tools": None}
    exchange = await chain.aprepare(cast("WireRequest", Input([{"role": "user", "content": text}])), facts)
    reply = {"role": "assistant", "content": f"Reply to {text}"}
    await exchange.afinish(reply)
    await chain.note({"id": response_id}, reply, exchange)


def test_retention_removes_what_is_kept_of_responses(tmp_path: Path) -> None:
    """The whole text of a request and its reply lies with a response, and goes from the disk with the turns."""
    with ConversationStore(tmp_path, retention_turns=4, codec="none") as store, Krunch(store=store) as krunch:
        previous = None
        for number in range(6):
            asyncio.run(respond(krunch, f"question-{number}!", f"r{number}", previous))
            previous = f"r{number}"
        report = store.expire()
        kept = [store.get_state("s", f"krunch_litellm.response r{number}", tenant="t") for number in range(6)]
        krunch.flush()

    assert (report.turns, report.states) == (8, 4)
    assert [data is not None for data in kept] == [False] * 4 + [True] * 2
    disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"question-3!" not in disk
    assert b"question-5!" in disk
