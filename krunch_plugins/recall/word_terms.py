"""Terms: what of a text is searched by its words. The same for what is stored and for what is asked."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

VERSION = 1
"""Of what `terms` gives; another one makes every stored index stale."""
LONGEST = 64
"""Characters of a term; what is longer (encoded data, mostly) is cut."""

_STOP_WORDS = """
    a about above after again against ain all also am an and any are aren as at be because been before being
    below between both but by can cannot could couldn d did didn do does doesn doing don down during each few
    for from further had hadn has hasn have haven having he her here hers herself him himself his how i if in
    into is isn it its itself just ll m me more most my myself no nor not now of off on once only or other our
    ours ourselves out over own re s same shan she should shouldn so some such t than that the their theirs
    them themselves then there these they this those through to too under until up ve very was wasn we were
    weren what when where which while who whom why will with won would wouldn you your yours yourself
    yourselves
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""English function words. They stand in nearly every turn: they tell nothing apart, and cost a third of the index."""

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han; and Hangul, whose particles stick.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff"
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")


def terms(text: str, *, asked: bool = False) -> list[str]:
    """The terms of a text, in order: words in small letters without accents; stop words are left out.

    Text in a script without spaces becomes its pairs of neighbouring characters, and the last character of each run by
    itself, so that one character is found as the beginning of a term.

    Args:
        text: what is stored, or asked for.
        asked: it is asked for. Then a last character by itself is looked for only if it is the whole run: it would
            find all that has this character anywhere, and in Korean it is often a particle.
    """
    if text.isascii():
        return [word[:LONGEST] for word in _ASCII_WORD.findall(text.lower()) if word not in STOP_WORDS]
    found: list[str] = []
    words, unspaced, accents = _patterns()
    folded = unicodedata.normalize("NFKC", accents.sub("", unicodedata.normalize("NFKD", text.casefold())))
    for word in words.findall(folded):
        for piece in unspaced.split(word):
            if not piece:
                continue
            if unspaced.fullmatch(piece):
                alone = asked and len(piece) > 1
                found += [piece[at : at + 2] for at in range(len(piece) - alone)]
            elif piece not in STOP_WORDS:
                found.append(piece[:LONGEST])
    return found


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    r"""What is a word, what is a run of an unspaced script, what is an accent.

    `\w` leaves out combining marks, which are vowels in the scripts of India; accents over Latin, Greek and Cyrillic
    letters are dropped instead.
    """
    marks = "".join(chr(code) for code in range(0x0370, 0x10000) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    return (
        re.compile(rf"[^\W_](?:[^\W_]|[{re.escape(marks)}])*"),
        re.compile(f"([{_UNSPACED}]+)"),
        re.compile("[\u0300-\u036f]+"),
    )


def is_unspaced(term: str) -> bool:
    """Whether a term is a character of a script without spaces, so that it may be the beginning of others."""
    return len(term) == 1 and _patterns()[1].fullmatch(term) is not None
