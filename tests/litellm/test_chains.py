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

    from krunch_plugins import Exchange


@dataclass
class Input:
    """As much of a request as a chain looks at."""

    messages: list[dict[str, Any]]


class CountingStore(ConversationStore):
    """A store that counts how often what is kept of a response is read."""

    reads = 0

    def get_state(self, session: str, name: str, **kwargs: Any) -> bytes | None:
        self.reads += name.startswith("krunch_litellm.response")
        return super().get_state(session, name, **kwargs)


async def respond(
    krunch: Krunch, text: str, response_id: str, previous: str | None, chains: Chains | None = None
) -> Exchange:
    """One request to /v1/responses and its reply."""
    chain = Chain(chains or Chains(), krunch, {"previous_response_id": previous}, Identity("s", "t"))
    facts = {"model": "gpt-4o", "session": "s", "tenant": "t", "tools": None}
    exchange = await chain.aprepare(cast("WireRequest", Input([{"role": "user", "content": text}])), facts)
    reply = {"role": "assistant", "content": f"Reply to {text}"}
    await exchange.afinish(reply)
    await chain.note({"id": response_id}, reply, exchange)
    return exchange


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


def test_what_a_request_reads_does_not_grow_with_its_chain(tmp_path: Path) -> None:
    """A process reads what is kept of each response once, and of the last one with each request."""
    with CountingStore(tmp_path) as store, Krunch(store=store) as krunch:

        def played(chains: Chains, numbers: range) -> list[int]:
            reads = []
            for number in numbers:
                store.reads = 0
                previous = f"r{number - 1}" if number else None
                exchange = asyncio.run(respond(krunch, f"question {number}", f"r{number}", previous, chains))
                assert len(exchange.messages) == 2 * number + 1, "it was prepared behind all that came before"
                reads.append(store.reads)
            return reads

        one_process = played(Chains(), range(12))
        another = played(Chains(), range(12, 16))

    assert one_process == [0] + [1] * 11
    assert another == [12, 1, 1, 1]


def test_a_chain_that_was_forgotten_elsewhere_is_not_known_any_more(tmp_path: Path) -> None:
    """What another program forgets in the store is not used from this process's memory either."""
    with ConversationStore(tmp_path) as store, Krunch(store=store) as krunch:
        chains = Chains()
        for number in range(3):
            previous = f"r{number - 1}" if number else None
            asyncio.run(respond(krunch, f"question {number}", f"r{number}", previous, chains))
        store.forget("s", tenant="t")

        exchange = asyncio.run(respond(krunch, "question 3", "r3", "r2", chains))

    assert [message["content"] for message in exchange.messages] == ["question 3"]
