from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import prose, rich

from krunch_plugins import Krunch, Settings
from krunch_plugins.compression.cost import (
    Price,
    cache_lifetime,
    cache_minimum,
    price_of,
    requests_until_paid,
    rewrite_pays,
)

if TYPE_CHECKING:
    from krunch_plugins import Exchange
    from krunch_plugins.turns import Message

OWN = {"house-model": {"input": 4.0, "output": 8.0, "cache_read": 0.4, "cache_write": 5.0}}
ANTHROPIC = Price(1.0, 5.0, 0.1, 1.25, "settings")


def long_conversation() -> list[Message]:
    """Two requests; the first is long enough to be cached, also as it is sent."""
    return [
        {"role": "user", "content": prose(1, 1_500) + "\n" + rich(1)},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": rich(1) + "\n" + rich(2)},
    ]


def prepare(messages: list[Message], model: str = "house-model", **options: Any) -> Exchange:
    """One request through a Krunch that knows a price."""
    with Krunch(Settings(prices=OWN, cache_minimums={"house-model": 1_024}, **options)) as krunch:
        return krunch.prepare(messages, model=model, session="s")


def test_the_cost_is_that_of_a_cached_prefix_and_what_is_new() -> None:
    """What the request before held is read from the cache, the rest is written to it; plain and as sent."""
    report = prepare(long_conversation()).report
    first = report.messages[0]

    assert report.cost is not None
    assert report.cost.cached_plain == first.tokens_before > first.tokens_after == report.cost.cached_sent
    assert report.cost.plain == pytest.approx(
        0.4e-6 * first.tokens_before + 5e-6 * (report.tokens_before - first.tokens_before)
    )
    assert report.cost.sent == pytest.approx(
        0.4e-6 * first.tokens_after + 5e-6 * (report.tokens_after - first.tokens_after)
    )
    assert report.cost.saved == report.cost.plain - report.cost.sent > 0
    assert report.cost.source == "settings"


def test_tool_definitions_are_paid_for_too() -> None:
    """They stand in front of every request, so they are part of the cached prefix."""
    tools = [{"type": "function", "function": {"name": "look", "description": prose(3, 100)}}]
    with Krunch(Settings(prices=OWN, cache_minimums={"*": 0})) as krunch:
        report = krunch.prepare(long_conversation(), model="house-model", tools=tools).report

    assert report.cost is not None
    assert report.tools_tokens > 100
    assert report.cost.cached_sent == report.messages[0].tokens_after + report.tools_tokens


def test_a_prefix_below_the_minimum_costs_its_full_price() -> None:
    """Short conversations are not cached."""
    with Krunch(Settings(prices=OWN, cache_minimums={"house-*": 100_000})) as krunch:
        report = krunch.prepare(long_conversation(), model="house-model").report

    assert report.cost is not None
    assert report.cost.cached_plain == report.cost.cached_sent == 0
    assert report.cost.sent == pytest.approx(5e-6 * report.tokens_after)


def test_an_unknown_model_has_no_cost() -> None:
    """No price is better than a wrong one."""
    assert prepare(long_conversation(), model="nobody-knows-me").report.cost is None


def test_prices_come_from_the_settings_then_litellm() -> None:
    """A provider in front of the name does not matter, and an own price comes first."""
    own = price_of("openai/house-model", Settings(prices=OWN))
    assert own is not None
    assert own[:4] == pytest.approx((4e-6, 8e-6, 0.4e-6, 5e-6))
    assert own.source == "settings"
    listed = price_of("gpt-4o", Settings())
    assert listed is not None
    assert listed.source == "litellm"
    assert listed == price_of("openai/gpt-4o", Settings())
    assert 0 < listed.read < listed.input < listed.output
    only_input = Settings(prices={"plain": {"input": 2.0, "output": 4.0}})
    assert price_of("plain", only_input) == Price(2e-6, 4e-6, 2e-6, 2e-6, "settings")


def test_without_litellm_the_snapshot_is_used_and_says_its_date() -> None:
    """The package alone knows the common models, and litellm is not imported to find out."""
    program = """
import json, sys
from importlib.machinery import PathFinder
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == "litellm":
            return None
        return PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [one for one in sys.meta_path if one is not PathFinder] + [Without()]
from krunch_plugins import Settings
from krunch_plugins.compression.cost import price_of
found = {name: price_of(name, Settings()) for name in ("gpt-4o", "anthropic/claude-sonnet-4-5", "no-such-model")}
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)

    assert found["gpt-4o"][-1].startswith("snapshot 20")
    assert found["gpt-4o"][0] == 2.5e-6
    assert found["anthropic/claude-sonnet-4-5"][3] == 3.75e-6
    assert found["no-such-model"] is None
    check = (
        "import sys, krunch_plugins.compression.cost as c, krunch_plugins as k; c.price_of('gpt-4o', k.Settings()); "
    )
    done = subprocess.run(
        [sys.executable, "-c", check + "print('litellm' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("model", "minimum"),
    [
        ("gpt-4o", 1_024),
        ("azure/eu/gpt-4.1", 1_024),
        ("o3-mini", 1_024),
        ("claude-sonnet-4-5", 1_024),
        ("anthropic/claude-haiku-4.5", 4_096),
        ("bedrock/us.anthropic.claude-haiku-4-5-20251001-v1:0", 4_096),
        ("claude-3-5-haiku-20241022", 2_048),
        ("gemini/gemini-2.5-flash", 1_024),
        ("deepseek/deepseek-chat", 0),
        ("my-own-server", 0),
    ],
)
def test_the_minimum_is_the_models(model: str, minimum: int) -> None:
    """Each family has its own minimum, however its name is written; a setting comes first."""
    assert cache_minimum(model, Settings()) == minimum
    assert cache_minimum(model, Settings(cache_minimums={"nothing-like-it": 1, "*": 7})) == 7


def test_the_lifetime_is_the_providers_or_what_the_messages_ask_for() -> None:
    """Five minutes are an hour where `cache_control` says so; a setting comes first."""
    asked = [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"ttl": "1h"}}]}]

    assert cache_lifetime("claude-sonnet-4-5", Settings()) == 300
    assert cache_lifetime("claude-sonnet-4-5", Settings(), asked) == 3_600
    assert cache_lifetime("claude-sonnet-4-5", Settings(cache_lifetimes={"claude*": 60})) == 60
    assert cache_lifetime("deepseek/deepseek-chat", Settings()) > 86_400


def test_a_rewrite_pays_after_so_many_requests() -> None:
    """The published example: at half the size, 11 requests have to follow; after the cache is lost, none."""
    assert requests_until_paid(0.5, ANTHROPIC) == pytest.approx(10.5)
    assert rewrite_pays(0.5, 11, ANTHROPIC)
    assert not rewrite_pays(0.5, 10, ANTHROPIC)
    assert rewrite_pays(0.99, 0, ANTHROPIC, cold=True)
    assert not rewrite_pays(1.0, 10_000, ANTHROPIC)


@given(st.floats(0.01, 0.99), st.floats(0.01, 1.0), st.floats(1.0, 2.0), st.integers(0, 500))
def test_the_formula_is_the_sum_of_the_requests(ratio: float, read: float, write: float, following: int) -> None:
    """A rewrite pays exactly if its requests, added up one by one, cost less than going on as before."""
    size = 10_000
    going_on = read * size + sum(read * size for _ in range(following))
    rewritten = write * ratio * size + sum(read * ratio * size for _ in range(following))
    if abs(going_on - rewritten) > 1e-6 * size:
        price = Price(1.0, 1.0, read, write, "settings")
        assert rewrite_pays(ratio, following, price) == (rewritten < going_on)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 2_000, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 1_500}},
        {"input_tokens": 500, "output_tokens": 50, "cache_read_input_tokens": 1_500, "cache_creation_input_tokens": 0},
        {"prompt_tokens": 2_000, "completion_tokens": 50, "prompt_cache_hit_tokens": 1_500},
        {"input_tokens": 2_000, "output_tokens": 50, "input_tokens_details": {"cached_tokens": 1_500}},
    ],
    ids=["openai", "anthropic", "deepseek", "responses"],
)
def test_what_the_provider_counted_stands_beside_the_estimate(usage: dict[str, Any]) -> None:
    """Cached tokens of each provider's usage are taken into the session's statistics, priced."""
    with Krunch(Settings(prices=OWN, cache_minimums={"*": 0})) as krunch:
        exchange = krunch.prepare(long_conversation(), model="house-model", session="s", tenant="t")
        exchange.note_usage(usage)
        stats = krunch.stats(session="s", tenant="t")
        assert krunch.stats(session="s") is None

    assert stats is not None
    billed = stats.billed
    assert (billed.requests, billed.input_tokens, billed.cached_tokens, billed.output_tokens) == (1, 2_000, 1_500, 50)
    assert billed.cost == pytest.approx(4e-6 * 500 + 0.4e-6 * 1_500 + 8e-6 * 50)
    assert exchange.report.cost is not None
    assert billed.estimated_cached_tokens == exchange.report.cost.cached_sent > 0


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": None}, {"prompt_tokens": "many", "prompt_tokens_details": 3}])
def test_odd_usage_is_passed_over(usage: dict[str, Any]) -> None:
    """A provider that tells nothing, or nonsense, fails nothing."""
    with Krunch(Settings()) as krunch:
        exchange = krunch.prepare(long_conversation(), model="gpt-4o", session="s")
        exchange.note_usage(usage)
        krunch.reset()
        exchange.note_usage(usage)
        again = krunch.prepare(long_conversation(), model="gpt-4o", session="s")
        again.note_usage(usage)
        stats = krunch.stats(session="s")

    assert stats is not None
    assert (stats.billed.requests, stats.billed.input_tokens) == (1, 0)
