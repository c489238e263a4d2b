"""Messages that may use what earlier ones define, and define nothing themselves (`no_definitions`)."""

from __future__ import annotations

import random
from typing import Any

import laws
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krunch_plugins import Krunch, Settings, restore

pytestmark = pytest.mark.usefixtures("tokenizers")

LINE = "The connection to /srv/warehouse/inventory/service/handler.py was refused by the database."
OTHER = "A quite different sentence about the invoices of the third quarter stands here, too."


@pytest.fixture(scope="module")
def tokenizers() -> None:
    """Tokenizers that are loaded."""
    laws.warm()


def story(line: str) -> str:
    """A text in which a sentence repeats, but no whole line."""
    return "\n".join(f"{number}: {line} ({number})" for number in range(6))


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False).map(lambda rng: laws.case(rng, longest=10)), st.integers(0, 2**32))
def test_they_define_nothing_and_restore(case: laws.Case, seed: int) -> None:
    """Whichever messages these are: no entries of theirs, an exact request, and an unchanged beginning."""
    rng = random.Random(seed)
    quiet = frozenset(index for index in range(len(case.messages)) if rng.random() < 0.4)
    arguments: dict[str, Any] = {"model": case.model, "tools": case.tools, "no_definitions": quiet}
    with laws.fresh(case.settings) as krunch:
        exchange = krunch.prepare(case.messages, **arguments)
    with laws.fresh(case.settings) as krunch:
        shorter = krunch.prepare(case.messages[:-1], **arguments) if len(case.messages) > 1 else None

    laws.check_exact(case.messages, exchange.messages)
    assert [exchange.report.messages[index].entries_added for index in sorted(quiet)] == [0] * len(quiet)
    assert shorter is None or exchange.messages[:-1] == shorter.messages


@pytest.mark.parametrize("profile", laws.PROFILES)
def test_they_use_what_is_defined(profile: str) -> None:
    """A phrase of an earlier message is a symbol in such a message; a phrase of its own is not defined."""
    messages = [{"role": "user", "content": story(LINE)}, {"role": "user", "content": story(LINE) + story(OTHER)}]
    with Krunch(Settings(profile=profile, min_tokens=0)) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4o", no_definitions=frozenset({1}))

    first, second = exchange.report.messages
    assert first.entries_added
    assert second.symbols_used
    assert second.entries_added == 0
    assert exchange.messages[1]["content"].count(OTHER) == 6
    assert restore(exchange.messages) == messages


def test_the_same_messages_with_and_without_are_told_apart() -> None:
    """What was sent for a message that may define is not taken for one that may not, nor the other way round."""
    messages = [{"role": "user", "content": "Read this. " + " ".join([LINE] * 6)}]
    with Krunch(Settings(min_tokens=0)) as krunch:
        free = krunch.prepare(messages, model="gpt-4o").messages
        quiet = krunch.prepare(messages, model="gpt-4o", no_definitions=frozenset({0})).messages
        again = krunch.prepare(messages, model="gpt-4o").messages

    assert free == again
    assert free != messages
    assert quiet == messages
