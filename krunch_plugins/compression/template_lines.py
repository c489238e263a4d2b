"""A line, and what may be told apart in it."""

from __future__ import annotations

import re
import string
from itertools import accumulate
from typing import TYPE_CHECKING

from krunch_plugins.compression.phrases import FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

# Words as they stand within the atoms of the profile "balanced", with the character in front: ` ms` and `(ms` stand in
# lines of different forms. ASCII is enough to start from.
_WORDS = re.compile(r"[^0-9A-Za-z_]?[0-9A-Za-z_]+(?:(?=[-.@',:/+])(?:[-.@']+|(?<=[0-9])[,:/+](?=[0-9]))[0-9A-Za-z_]+)*")
_ALNUM = frozenset(string.ascii_letters + string.digits + "_")
_DATE_TIME = re.compile(r"(?<=[0-9]{4})[:T](?=[0-9]{2}:[0-9]{2})|(?<=-[0-9]{2})T(?=[0-9]{2}:[0-9]{2})")

_LOOKS = 4
"""Places where a word is looked for in a line: longer words may begin with it."""


class Line:
    """A line, or the lines of a record, without the last newline; words and fields are cut when they are asked for.

    Attributes:
        text: the line.
    """

    __slots__ = ("_bare", "_borders", "_fields", "_found", "_words", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._words: list[str] | None = None
        self._bare: list[str] | None = None
        self._fields: list[str] | None = None
        self._borders: dict[int, int] | None = None
        self._found: dict[str, int] = {}

    @property
    def words(self) -> list[str]:
        """Words in it with the character in front, each once, in the order in which they occur."""
        if self._words is None:
            self._words = words(self.text)
        return self._words

    @property
    def bare_words(self) -> list[str]:
        """The same without the character in front."""
        if self._bare is None:
            self._bare = [word if word[0] in _ALNUM else word[1:] for word in self.words]
        return self._bare

    @property
    def fields(self) -> list[str]:
        """The smallest parts that a form may tell apart; joined they are the line."""
        if self._fields is None:
            self._fields = fields(self.text)
        return self._fields

    @property
    def borders(self) -> dict[int, int]:
        """Where fields begin, and the line ends: the index of the field there."""
        if self._borders is None:
            ends = accumulate(map(len, self.fields), initial=0)
            self._borders = {end: index for index, end in enumerate(ends)}
        return self._borders

    def find(self, word: str) -> int:
        """The index of the field that a word is, without the character in front; -1: it is none."""
        found = self._found.get(word)
        if found is None:
            found = self._found[word] = self._find(word)
        return found

    def _find(self, word: str) -> int:
        name = bare(word)
        at = -1
        for _ in range(_LOOKS):
            at = self.text.find(word, at + 1)
            index = self.borders.get(at + len(word) - len(name), -1)
            if at < 0 or (0 <= index < len(self.fields) and self.fields[index] == name):
                return index if at >= 0 else -1
        return -1


def words(text: str) -> list[str]:
    """Words of a text with the character in front, each once, in the order in which they occur."""
    return list(dict.fromkeys(_WORDS.findall(text)))


def bare(word: str) -> str:
    """A word without the character in front."""
    return word if word[0] in _ALNUM else word[1:]


def fields(text: str) -> list[str]:
    """The smallest parts that a form may tell apart: the atoms of "balanced", without the space in front of words."""
    parts: list[str] = FIELDS.findall(text)
    if _DATE_TIME.search(text) is None:
        return parts
    out: list[str] = []
    for part in parts:
        border = _DATE_TIME.search(part) if ":" in part else None
        if border is None:
            out.append(part)
        else:
            out += [part[: border.start()], border[0], part[border.end() :]]
    return out


def match(constants: Sequence[str], line: Line) -> list[str] | None:
    """The values of a line in the slots between `constants`, or None if it has not that form. Values are not empty."""
    text = line.text
    if not (text.startswith(constants[0]) and text.endswith(constants[-1])):
        return None
    start = len(constants[0])
    last = len(text) - len(constants[-1])
    values: list[str] = []
    places: list[int] = []
    for constant in constants[1:-1]:
        stop = text.find(constant, start + 1, last)
        if stop < 0:
            return None
        values.append(text[start:stop])
        places += (start, stop)
        start = stop + len(constant)
    if last <= start:
        return None
    values.append(text[start:last])
    places += (start, last)
    if "\n" in text and any("\n" in value for value in values):
        return None
    borders = line.borders
    for place in places:
        if place not in borders and " " not in text[place - 1 : place + 1]:  # spaces may be told apart from all else
            return None
    return values
