"""How much each word of a query says, so that texts can be compared by how much of the query they have."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from krunch_plugins.recall.word_terms import terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_CHAT = """
    another anyway ask back continue done else ever every explain fine get give go going good got great hello help hey
    hi keep kindly know later less let like look make makes many may maybe mean might much must need never next nice ok
    okay one perfect please put really remember right said say see shall show still sure take tell than thank thanks
    thing things think though try us use want way well would yeah yep yes yet
"""
CHAT_WORDS = frozenset(_CHAT.split())
"""English words with which a conversation is kept going. A message of nothing else asks for nothing old; the search
counts them, because among other words they may tell turns apart."""

SAMPLE = 100
"""Texts that are a sample large enough."""
_SAMPLED = 600
"""Characters of each that are looked at."""

_COMPARED = 20_000
"""Characters of a text that are compared with a query."""

_SHORTEST = 3
"""Letters that an ending may leave."""


def words(text: str, *, asked: bool = False) -> list[str]:
    """The terms of a text that say what it is about, in order, without common English endings; `asked`: see `terms`."""
    return [_stem(term) for term in terms(text, asked=asked) if term not in CHAT_WORDS]


def _stem(word: str) -> str:
    """The word without an ending of plural, tense or the gerund; close enough to compare what people write."""
    if len(word) <= _SHORTEST or not (word.isascii() and word.isalpha()):
        return word
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= _SHORTEST:
            word = word.removesuffix(ending) + instead
            break
    return word.removesuffix("e") if len(word) > _SHORTEST else word


class Weights:
    """How much each word of a query says: little where most texts have it.

    Args:
        query: what is asked.
        texts: what it is asked of; a sample will do, but not of what was found, where all have the words of the query.
    """

    def __init__(self, query: str, texts: Iterable[str]) -> None:
        wanted = set(words(query, asked=True))
        counts = dict.fromkeys(wanted, 0)
        total = 0
        for text in texts:
            total += 1
            for word in wanted.intersection(words(text[:_SAMPLED])):
                counts[word] += 1
        self._weights: Mapping[str, float] = {
            word: math.log(1 + (total - count + 0.5) / (count + 0.5)) for word, count in sorted(counts.items())
        }
        self._whole = math.fsum(self._weights.values())

    def __bool__(self) -> bool:
        return bool(self._weights)

    def of(self, found: Iterable[str]) -> float:
        """What the words of the query that are among `found` say together."""
        return math.fsum(self._weights[word] for word in self._weights.keys() & set(found))

    def share(self, text: str) -> float:
        """What a text has of it, as a share of all that the query says; 0 to 1. Of a long text the beginning counts."""
        return self.of(words(text[:_COMPARED])) / self._whole if self._whole else 0.0
