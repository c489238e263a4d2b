"""What a request costs with a provider that caches prefixes: prices, cache minimums and lifetimes by model.

Prices never change what is sent, so they may come from whatever is at hand: the settings, the list inside an installed
litellm (read as a file; litellm itself is not imported), or the snapshot that comes with Krunch. Cache minimums do
change what is sent (`Settings.cache_floor`), so they come from this file and the settings only: two workers with
different versions of litellm must send the same bytes.
"""

from __future__ import annotations

import importlib.util
import json
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from krunch_plugins.report import Cost

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from krunch_plugins.report import MessageReport
    from krunch_plugins.settings import Rebase, Settings
    from krunch_plugins.turns import Message

CACHE_TABLES_DATE = "2026-11-21"
"""When the two tables below were last compared with what the providers say."""

CACHE_MINIMUMS: Mapping[str, int] = {
    "*claude-fable*": 512,
    "*claude-mythos*": 512,
    "*claude-opus-5*": 512,
    "*claude-*-5-5*": 512,
    "*claude-opus-4-5*": 4_096,
    "*claude-opus-4-6*": 4_096,
    "*claude-opus-4-7*": 2_048,
    "*claude-haiku-4-5*": 4_096,
    "*claude*haiku*": 2_048,
    "*claude*": 1_024,
    "*gemini-2-5-flash*": 1_024,
    "*gemini-3-flash*": 1_024,
    "*gemini*": 4_096,
    "*deepseek*": 0,
    "*gpt-*": 1_024,
    "o[0-9]*": 1_024,
    "*": 0,
}
"""Tokens that a prefix must have to be cached at all. The first pattern that fits a model's name counts, in lower case
and with hyphens for dots. 0: no minimum, or nothing is cached.

Sources: what platform.claude.com, developers.openai.com, ai.google.dev and api-docs.deepseek.com say of prompt caching.
"""

CACHE_LIFETIMES: Mapping[str, float] = {
    "*claude*": 300.0,
    "*gemini*": 3_600.0,
    "*deepseek*": 259_200.0,
    "*gpt-5*": 86_400.0,
    "*gpt-*": 3_600.0,
    "o[0-9]*": 3_600.0,
    "*": 86_400.0,
}
"""Seconds after the last request until nothing of a prefix is cached any more; looked up like `CACHE_MINIMUMS`.

Where providers name a range ("5 to 10 minutes, up to one hour", "hours to days") its end stands here: to take a warm
cache for a cold one costs a rewrite, the other mistake costs nothing.
"""

LONG_LIFETIME = 3_600.0
"""Seconds. Lifetime where a message's `cache_control` asks for `"ttl": "1h"`."""


class Price(NamedTuple):
    """Prices in US dollars for one token.

    Attributes:
        input: an input token that the cache has no part in.
        output: an output token.
        read: an input token that was read from the cache.
        write: an input token that was written to the cache.
        source: where the prices come from: "settings", "litellm", or "snapshot" and its date.
    """

    input: float
    output: float
    read: float
    write: float
    source: str


def price_of(model: str, settings: Settings) -> Price | None:
    """The prices of a model, looked for in `Settings.prices`, an installed litellm, and Krunch's snapshot.

    A name is looked for as it is, then without the provider in front ("openai/gpt-4o"). None: not known anywhere.
    """
    for name in _names(model):
        own = settings.prices.get(name)
        if own is not None:
            read = own.input if own.cache_read is None else own.cache_read
            write = own.input if own.cache_write is None else own.cache_write
            return Price(own.input / 1e6, own.output / 1e6, read / 1e6, write / 1e6, "settings")
    return _listed(model)


def cache_minimum(model: str, settings: Settings) -> int:
    """Tokens that a prefix must have for this model's provider to cache it; `Settings.cache_minimums` come first."""
    return int(_look_up(model, settings.cache_minimums, CACHE_MINIMUMS))


def cache_lifetime(model: str, settings: Settings, messages: Iterable[Message] = ()) -> float:
    """Seconds until this model's provider has certainly forgotten a prefix; `Settings.cache_lifetimes` come first."""
    lifetime = _look_up(model, settings.cache_lifetimes, CACHE_LIFETIMES)
    return max(lifetime, LONG_LIFETIME) if any(map(_asks_for_long, messages)) else lifetime


def input_cost(tokens: int, cached: int, price: Price, minimum: int) -> float:
    """US dollars for the input of a request: `cached` tokens of its beginning stood in the request before it.

    Cost of a request = read · H + write · (T - H), H the longest prefix that is cached; nothing is if it has less than
    `minimum` tokens, and where a model's cache has no price of its own, `read` and `write` are that of the input.
    """
    hit = cached if cached >= minimum else 0
    return price.read * hit + price.write * (tokens - hit)


def request_cost(
    messages: Sequence[MessageReport], tools_tokens: int, price: Price, minimum: int, rebase: Rebase = "never"
) -> Cost:
    """What a request costs plain and as sent, as far as Krunch counts it, if the one before it is cached.

    The request before it is told by the messages: all before the last reply.

    Args:
        messages: what became of each message.
        tools_tokens: tokens of the tool definitions, which stand in front.
        price: the model's prices.
        minimum: tokens that a prefix must have to be cached.
        rebase: whether this request rewrites what was sent before ("always"), the cache being lost anyway ("cold").
    """
    last = next((index for index in range(len(messages) - 1, 0, -1) if messages[index].role == "assistant"), 0)
    plain = sum([one.tokens_before for one in messages[:last]])
    sent = sum([one.tokens_after for one in messages[:last]])
    cached_plain = cached_sent = 0
    if last and rebase != "cold":
        cached_plain = tools_tokens + plain
        cached_sent = 0 if rebase == "always" else tools_tokens + sent
    plain += sum([one.tokens_before for one in messages[last:]])
    sent += sum([one.tokens_after for one in messages[last:]])
    return Cost(
        plain=input_cost(plain + tools_tokens, cached_plain, price, minimum),
        sent=input_cost(sent + tools_tokens, cached_sent, price, minimum),
        cached_plain=cached_plain if cached_plain >= minimum else 0,
        cached_sent=cached_sent if cached_sent >= minimum else 0,
        source=price.source,
    )


def requests_until_paid(ratio: float, price: Price) -> float:
    """How many requests must follow until sending a cached history once more, smaller, has paid.

    The rewrite writes c · N tokens instead of reading N; each later request reads c · N instead of N. With read and
    write in units of the input price that is (w·c - r) / (r·(1 - c)) requests: 10.5 for c = 0.5, r = 0.1, w = 1.25.

    Args:
        ratio: c, the size of the rewritten history over that of the one which is cached; 0 to 1.
        price: the model's prices.

    Returns:
        Below 0 if the rewrite itself is cheaper already, infinity if it never pays.
    """
    saved = price.read * (1 - ratio)
    return (price.write * ratio - price.read) / saved if saved > 0 else float("inf")


def rewrite_pays(ratio: float, following: int, price: Price, *, cold: bool = False) -> bool:
    """Whether to send a history once more, smaller, when so many requests will follow.

    Args:
        ratio: size of the rewritten history over that of the one which was sent; 0 to 1.
        following: requests that will still come in this conversation.
        price: the model's prices.
        cold: the provider's cache has been lost anyway; then anything smaller pays.
    """
    return ratio < 1 if cold else following > requests_until_paid(ratio, price)


def _names(model: str) -> list[str]:
    parts = model.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _look_up(model: str, own: Mapping[str, float], table: Mapping[str, float]) -> float:
    for names in (own, table):
        pattern = _first_fit(model, tuple(names))
        if pattern is not None:
            return names[pattern]
    return 0.0


@lru_cache(maxsize=1024)
def _first_fit(model: str, patterns: tuple[str, ...]) -> str | None:
    """The first pattern that fits one of a model's names."""
    names = [_plain(name) for name in _names(model)]
    fits = (pattern for pattern in patterns if any(fnmatchcase(name, _plain(pattern)) for name in names))
    return next(fits, None)


def _plain(name: str) -> str:
    return name.lower().replace(".", "-")


@lru_cache(maxsize=1024)
def _listed(model: str) -> Price | None:
    snapshot, date = _snapshot()
    for prices, source in ((_litellm_prices(), "litellm"), (snapshot, f"snapshot {date}")):
        for name in _names(model):
            if (entry := prices.get(name)) and (price := _price(entry, source)):
                return price
    return None


def _price(entry: Mapping[str, Any], source: str) -> Price | None:
    """A price from an entry in litellm's format. A cache price of 0 or none means that caching has no price there."""
    plain = entry.get("input_cost_per_token")
    if not isinstance(plain, int | float):
        return None
    output = entry.get("output_cost_per_token") or 0.0
    read = entry.get("cache_read_input_token_cost") or plain
    write = entry.get("cache_creation_input_token_cost") or plain
    return Price(float(plain), float(output), float(read), float(write), source)


@lru_cache(maxsize=1)
def _litellm_prices() -> Mapping[str, Mapping[str, Any]]:
    """The price list inside an installed litellm, or nothing."""
    spec = importlib.util.find_spec("litellm")
    for place in (spec.submodule_search_locations if spec else None) or ():
        try:
            text = (Path(place) / "model_prices_and_context_window_backup.json").read_text(encoding="utf-8")
            prices = json.loads(text)
        except (OSError, ValueError):
            continue
        if isinstance(prices, dict):
            # The list has 4,000 models with 30 facts each; four of them are kept.
            return {
                name: {key: entry[key] for key in PRICE_KEYS if key in entry}
                for name, entry in prices.items()
                if isinstance(entry, dict)
            }
    return {}


PRICE_KEYS = (
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
)
"""What a price list says about a model, in litellm's names, US dollars for one token."""


@lru_cache(maxsize=1)
def _snapshot() -> tuple[Mapping[str, Mapping[str, Any]], str]:
    text = (resources.files("krunch_plugins") / "data" / "prices.json").read_text(encoding="utf-8")
    data = json.loads(text)
    return data["models"], data["date"]


def _asks_for_long(message: Message) -> bool:
    """Whether a message asks the provider to keep it for an hour."""
    content = message.get("content")
    parts = [message, *(content if isinstance(content, list) else ())]
    controls = (part.get("cache_control") for part in parts if isinstance(part, dict))
    return any(isinstance(control, dict) and control.get("ttl") == "1h" for control in controls)
