"""The words of a text that say what it is about, and how much each of them says."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STOP_WORDS = frozenset(
    """
    a about above after again all also am an and any anyway are as ask at back be because been before being below
    between both but by can cannot continue could did do does doing done down during each else ever every few fine for
    from further get give go going good got great had has have having he hello help her here hers hey hi him his how i
    if in into is it its itself just keep kindly know later less let like look make makes many may maybe me mean might
    mine more most much must my need never next nice no nor not now of off ok okay on once one only or other our ours
    out over own perfect please put really remember right said same say see shall she should show so some something
    still such sure take tell than thank thanks that the their theirs them then there these they thing things think
    this those through to too try under until up us use very want was way we well were what whatever when where which
    while who whom whose why will with without would yes yet you your yours
    ve re ll don didn doesn isn aren wasn couldn wouldn shouldn won t s d m
    """.split()  # noqa: SIM905 - a list of words reads better as text
)
"""English words that say nothing by themselves. Those of other languages are told by how often they occur."""

_WORD = re.compile(r"[^\W_]+")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+")


def terms(text: str) -> list[str]:
    """The words of a text but for stop words, in order: case and common English endings dropped.

    Scripts without spaces give pairs of neighbouring characters.
    """
    found: list[str] = []
    for word in _WORD.findall(text.casefold()):
        if word.isascii():
            if word not in STOP_WORDS:
                found.append(_stem(word))
        elif runs := _CJK.findall(word):
            for run in runs:
                found += [run[at : at + 2] for at in range(max(len(run) - 1, 1))]
        else:
            found.append(word)
    return found


def _stem(word: str) -> str:
    """The word without an ending of plural, tense or the gerund; close enough to compare what people write."""
    if len(word) <= 3 or not word.isalpha():  # noqa: PLR2004 - shorter words have no ending to lose
        return word
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= 3:  # noqa: PLR2004 - as above
            word = word.removesuffix(ending) + instead
            break
    return word.removesuffix("e") if len(word) > 3 else word  # noqa: PLR2004 - as above


class Weights:
    """How much each term of a query says: little where most texts have it.

    Args:
        query: what is asked.
        texts: the terms of what there is to compare with; a sample will do.
    """

    def __init__(self, query: str, texts: Iterable[Iterable[str]]) -> None:
        wanted = set(terms(query))
        counts = dict.fromkeys(wanted, 0)
        total = 0
        for text in texts:
            total += 1
            for term in wanted.intersection(text):
                counts[term] += 1
        self._weights: Mapping[str, float] = {
            term: math.log(1 + (total - count + 0.5) / (count + 0.5)) for term, count in counts.items()
        }
        self._whole = sum(self._weights.values())

    def __bool__(self) -> bool:
        return bool(self._weights)

    def of(self, found: Iterable[str]) -> float:
        """What the terms of the query that are among `found` say together."""
        return sum(self._weights[term] for term in self._weights.keys() & set(found))

    def share(self, found: Iterable[str]) -> float:
        """The same as a share of all that the query says; 0 to 1."""
        return self.of(found) / self._whole if self._whole else 0.0
