"""The parts of a long text that a query is about, in few tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from krunch_plugins.recall.messages import count
from krunch_plugins.recall.quoting import LEFT_OUT
from krunch_plugins.recall.weights import words

if TYPE_CHECKING:
    from krunch_plugins.recall.weights import Weights
    from krunch_plugins.tokens import Tokenizer

_PASSAGE = re.compile(r"[^\n]*?(?:[.!?]+(?=\s)|[\u3002\uff01\uff1f]+|\n|\Z)\s*", re.DOTALL)
"""Up to the end of a sentence or line. Chinese and Japanese put no space behind their full stops."""
_LONGEST = 400
"""Characters of one passage; longer ones, such as minified code, are cut."""
_LOOKED_AT = 50_000
"""Characters of a text that are looked into."""


def excerpt(text: str, weights: Weights, limit: int, tokenizer: Tokenizer) -> str:
    """The text itself if it fits, else its best passages in their order, with `[…]` where something was left out.

    Args:
        text: what to cut.
        weights: what is asked.
        limit: tokens.
        tokenizer: what counts them.

    Returns:
        "" if not even a part of one passage fits.
    """
    if count(text, tokenizer) <= limit:
        return text
    passages = _passages(text[:_LOOKED_AT])
    scores = [weights.of(words(passage)) for passage in passages]
    sizes = [count(passage, tokenizer) for passage in passages]
    gap = count(f" {LEFT_OUT} ", tokenizer)
    chosen: set[int] = set()
    left = limit - 2 * gap
    order = sorted(range(len(passages)), key=lambda at: (-scores[at], at))
    for at in _with_neighbours(order, scores):
        cost = sizes[at] + (0 if {at - 1, at + 1} & chosen else gap)
        if at not in chosen and cost <= left:
            chosen.add(at)
            left -= cost
    if not chosen:
        return _start(passages[order[0]], limit - 2 * gap, tokenizer)
    return _join(passages, sorted(chosen))


def _with_neighbours(order: list[int], scores: list[float]) -> list[int]:
    """What to take first: passages that hold words of the query, then what is beside the best, then the beginning."""
    hits = [at for at in order if scores[at] > 0]
    beside = [near for at in hits for near in (at + 1, at - 1) if 0 <= near < len(scores)]
    return [*hits, *beside, *range(len(scores))]


def _join(passages: list[str], chosen: list[int]) -> str:
    """The chosen passages, with a sign where there are others in between."""
    runs: list[str] = []
    for at, before in zip(chosen, [-2, *chosen], strict=False):
        if at == before + 1:
            runs[-1] += passages[at]
        else:
            runs.append(passages[at])
    start = [LEFT_OUT] if chosen[0] else []
    end = [LEFT_OUT] if chosen[-1] != len(passages) - 1 else []
    return " ".join([*start, f" {LEFT_OUT} ".join(run.strip() for run in runs), *end])


def _passages(text: str) -> list[str]:
    """Sentences and lines, each with the space behind it."""
    found = [passage for passage in _PASSAGE.findall(text) if passage]
    out: list[str] = []
    for passage in found:
        out += [passage[at : at + _LONGEST] for at in range(0, len(passage), _LONGEST)]
    return out


def _start(passage: str, limit: int, tokenizer: Tokenizer) -> str:
    """As much of a passage as fits."""
    low, high = 0, len(passage)
    while low < high:
        middle = (low + high + 1) // 2
        if count(passage[:middle], tokenizer) <= limit:
            low = middle
        else:
            high = middle - 1
    return f"{passage[:low].rstrip()} {LEFT_OUT}" if low else ""
