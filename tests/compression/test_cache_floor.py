from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from texts import prose, tokens

from krunch_plugins import Krunch, Settings, restore

if TYPE_CHECKING:
    from krunch_plugins import Exchange
    from krunch_plugins.settings import CacheFloor
    from krunch_plugins.turns import Message

MODEL = "gpt-4o"  # caches prefixes of 1,024 tokens or more


def conversation(*texts: str) -> list[Message]:
    """User messages with short replies between them."""
    messages: list[Message] = []
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "Noted."}]
    return messages[:-1]


def prepare(messages: list[Message], floor: CacheFloor, minimum: int = 1_024) -> Exchange:
    """One request through a Krunch of its own."""
    with Krunch(Settings(cache_floor=floor, cache_minimums={"*": minimum})) as krunch:
        return krunch.prepare(messages, model=MODEL, session="s")


def short(seed: int) -> str:
    """About 300 tokens of which a good third can be saved."""
    return f"{prose(seed, 100)} {' '.join([prose(seed + 500, 12)] * 5)}"


GROWING = conversation(*(short(seed) for seed in range(8)))
"""Crosses the minimum, plain and compressed, at different requests."""


def reasons(exchange: Exchange) -> list[str]:
    """Why the users' messages are as they are."""
    return [report.reason for report in exchange.report.messages if report.role == "user"]


def sent_sums(exchange: Exchange) -> list[int]:
    """Tokens of the request as sent, up to each of the users' messages."""
    sums, total = [], 0
    for report in exchange.report.messages:
        total += report.tokens_after
        if report.role == "user":
            sums.append(total)
    return sums


def test_nothing_is_left_plain() -> None:
    """Without a floor every message is compressed from the start."""
    assert reasons(prepare(GROWING, "nothing")) == ["compressed"] * 8


def test_everything_is_left_plain_until_the_conversation_can_be_cached() -> None:
    """With a floor for everything, the first message that is compressed is one by which the minimum is reached."""
    exchange = prepare(GROWING, "everything")
    first = reasons(exchange).index("compressed")

    assert reasons(exchange) == ["cache_floor"] * first + ["compressed"] * (8 - first)
    assert first >= 3
    assert sent_sums(exchange)[first] >= 1_024
    assert sum(tokens(message["content"]) for message in GROWING[: 2 * first]) < 1_024 + tokens(short(0))


def test_only_what_would_fall_below_is_left_plain() -> None:
    """While even the plain conversation is too short all is compressed; then only what would keep it from the cache."""
    exchange = prepare(GROWING, "below")
    held_back = [index for index, reason in enumerate(reasons(exchange)) if reason == "cache_floor"]
    plain_sums = [sum(tokens(message["content"]) for message in GROWING[: 2 * index + 1]) for index in range(8)]

    assert held_back
    assert reasons(exchange)[0] == "compressed"
    assert all(plain_sums[index] >= 1_024 for index in held_back)
    assert reasons(exchange)[-1] == "compressed"
    assert sent_sums(exchange)[held_back[-1] + 1] >= 1_024


def test_a_long_text_that_shrinks_a_lot_is_not_held_back_to_be_cached() -> None:
    """What is saved now may be worth more than the cache: 4,000 tokens sent as a few hundred."""
    text = " ".join([prose(1, 60)] * 60)

    assert reasons(prepare(conversation(text), "below")) == ["compressed"]
    assert reasons(prepare(conversation(text), "everything")) == ["cache_floor"]


@pytest.mark.parametrize("floor", ["nothing", "below", "everything"])
def test_every_policy_is_causal_and_lossless(floor: CacheFloor) -> None:
    """Sent turn by turn or at once, the bytes are the same, and they can be restored."""
    at_once = prepare(GROWING, floor)

    assert restore(at_once.messages) == GROWING
    with Krunch(Settings(cache_floor=floor, cache_minimums={"*": 1_024})) as krunch:
        for stop in range(1, len(GROWING) + 1, 2):
            assert krunch.prepare(GROWING[:stop], model=MODEL, session="s").messages == at_once.messages[:stop]


def test_the_floor_is_the_models() -> None:
    """Where the provider has no minimum, or another one, the same conversation is sent accordingly, in one process."""
    with Krunch(Settings(cache_floor="everything")) as krunch:
        openai = krunch.prepare(GROWING, model="gpt-4o", session="s")
        unknown = krunch.prepare(GROWING, model="my-own-server", session="s")
        haiku = krunch.prepare(GROWING, model="claude-haiku-4-5", session="s")

    assert reasons(unknown) == ["compressed"] * 8
    assert reasons(openai).count("cache_floor") < reasons(haiku).count("cache_floor") == 8
