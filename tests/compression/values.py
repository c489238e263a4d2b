"""Where a symbol may not begin or end: words, numbers, dates and identifiers, found without the compressor's help."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

_PLAIN = (
    r"\w+(?:[-.@'\u2019]\w+)*",  # words and names: don't, x-request-id, foo.bar_baz, mia@example.com, 1.2.3, a UUID
    r"(?<![\w.)\]])\.\d+",  # .5
    r"(?<![\w)\].%-])[-+\u2212]\.?\d(?:[\w.]*\w)?",  # -3 +7
    r"\b\d(?:[\d_.]*[\d.])?[eE][-+]?\d+\b",  # 1e+16
    r"\b\d{1,3}(?:[,.'\u2019\u00a0\u2009\u202f]\d{3})+(?:[.,]\d+)?\b",  # 1,234,567.89
    r"\b\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b",  # 01/31/2024
    r"\b\d{1,2}/[A-Z][a-z]{2}/\d{4}(?::\d\d){3}\b",  # 31/Jan/2024:10:00:01
    r"\b\d+(?::\d\d)+(?:[.,]\d+)?\b",  # 10:05:33,120
    r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[-+]\d\d:?\d\d)?",  # 2024-01-31T23:59:59.123+02:00
    r"\b[0-9]+/[0-9]+\b",  # 1/2
    r"(?<![\w:])(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}(?![\w:])",  # aa:bb:cc:dd:ee:01
    r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){2,7}:?[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){0,6}(?![\w:])",  # 2001:db8::1:2
    r"(?<![\w:])[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4})*::[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4})*(?![\w:])",  # fe80::1
    r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b",  # 192.168.0.17:8080
    r"(?<![\w.+-])(?=[\w.+-]{1,64}@)\w+(?:[.+-]\w+)*@\w[\w-]*(?:\.[\w-]+)+\b",  # mia.li+work@example.com
    # 1.2.3-rc.1+build.5; a build is ASCII, no part of it is empty, as in +.5, and build.5( or build-5( is a call.
    r"\b\d+\.\d+\.\d+-[\w.]{1,64}\+(?![\w.-]*+[(\[])[0-9A-Za-z_][0-9A-Za-z_.]*+\b",
)
_VALUES = [re.compile(pattern) for pattern in _PLAIN]

_RUN = re.compile("(¤+)([0-9]*)")


def cut_values(text: str, borders: Collection[int]) -> list[str]:
    """The values in `text` that one of the `borders` (positions between characters) goes through."""
    return [text[start:stop] for start, stop in values(text) if any(start < border < stop for border in borders)]


def values(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each word, number, date and identifier in a text; they may overlap."""
    for pattern in _VALUES:
        for found in pattern.finditer(text):
            yield found.span()
    yield from _words(text)


def expand(sent: str, symbols: Mapping[str, str], seen: set[str]) -> tuple[str, list[int]]:
    """A text with the symbols in it undone, where entries hold no entries, so not in `dense`.

    Args:
        sent: the text as sent.
        symbols: what the whole request defines.
        seen: which of them the texts before have defined; those that this one defines are added.

    Returns:
        The text, and where in it a symbol's text begins or ends.
    """
    out: list[str] = []
    length = last = 0
    borders: list[int] = []
    position = 0
    while run := _RUN.search(sent, position):
        position = run.end()
        name = "¤" + run[2]
        if len(run[1]) > 1 or name not in symbols:
            continue
        shown = symbols[name]
        definition = f"{name}={shown}¤"
        if name not in seen and sent.startswith(definition, run.start()):
            seen.add(name)
            position = run.start() + len(definition)
        elif name not in seen:
            continue
        before = length + run.start() - last
        borders += (before, before + len(shown))
        out += (sent[last : run.start()], shown)
        length, last = before + len(shown), position
    out.append(sent[last:])
    return "".join(out), borders


def _words(text: str) -> Iterable[tuple[int, int]]:
    """Runs of letters, digits, the marks on them, and what joins them invisibly."""
    start = None
    for place, character in enumerate(text):
        kind = unicodedata.category(character)
        if (
            kind[0] in "LN"
            or kind == "Pc"
            or (start is not None and (kind[0] == "M" or character in "\u200c\u200d\u00ad"))
        ):
            start = place if start is None else start
        elif start is not None:
            yield start, place
            start = None
    if start is not None:
        yield start, len(text)
