"""Finds the forms that the lines of a text have in common.

A form is a list of constants, what stands in front of, between and behind its slots. It is grown from words: the word
that most tokens of most lines share, then the word that most of these lines share with it, and so on; what is common
to all lines left is taken at each step. Sets of lines are bits of an integer, so a step costs microseconds. Each set on
the way is laid out as a form, and the one that saves most is taken, its lines are put aside, and so on with the rest.

What a form saves is counted against the dictionary (stage 4), which would find the same constants: it sends each for
two tokens, a form for the separator behind it. A value that repeats the one above it costs nothing in a row, and two
tokens as an entry, if it occurs often enough to be one.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression.template_lines import bare, fields, match

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from krunch_plugins.compression.template_lines import Line

MIN_ROWS = 3
MIN_GAIN = 16
"""Tokens that a form must save, as estimated here. Small ones are not worth what they cost a reader."""

MAX_SLOTS = 12
MAX_FORMS = 24
"""Of a window. Each costs a pass over its lines."""

MAX_WORDS = 96
"""Words that forms are grown from, in a window: those that most characters of it are in."""

SYMBOL_TOKENS = 2
LINE_TOKENS = 4
MARK_TOKENS, HEADER_TOKENS = 3, 5
_FREQUENT = 5
"""Occurrences from which on a value is an entry of the dictionary."""

_SAMPLE = 48
"""Lines of a set that it is laid out on."""

_SPLITS = 32
"""Splits of slots tried for a form."""

_FIRST = (": ", "] ", ") ", '" ')
"""Where a slot is split in two at the first occurrence: these end a field whatever follows."""

_EACH = (*_FIRST, ' "', " ", ",", "=", ":", "/", "->", "\t", ";", "|", "(", "-")
"""Where a slot is split if each of its values has as many."""

_MAX_EACH = 6

_NUMBER = re.compile(r"[0-9][0-9.,:]*")
_BLANKS = str.maketrans("\t\r\n", "   ")


class _Layout(NamedTuple):
    """A form, and the values of the lines of a sample."""

    constants: list[str]
    rows: list[list[str]]


class _Size(NamedTuple):
    """Of a set of lines: how many, and how many runs of neighbours they are."""

    rows: int
    runs: int

    @property
    def marks(self) -> int:
        """Tokens of marks and headers."""
        return min(self.runs * HEADER_TOKENS, self.rows * MARK_TOKENS)


class _Word(NamedTuple):
    """A word with the character in front, the lines that have it as bits, and its tokens."""

    text: str
    lines: int
    tokens: int


class _Candidate(NamedTuple):
    gain: float
    constants: list[str]
    lines: list[int]


def mine(lines: Sequence[Line], count: Callable[[str], int]) -> list[list[str]]:
    """The forms that pay for their definition, as lists of constants, the most useful first."""
    if len(lines) < MIN_ROWS:
        return []
    return _Miner(lines, count).run()


def mine_record(lines: Sequence[Line], count: Callable[[str], int]) -> list[str] | None:
    """The form of lines that differ in some fields only, if it pays for its definition."""
    columns = Counter(len(line.fields) for line in lines)
    alike = [line for line in lines if len(line.fields) == max(columns, key=lambda width: (columns[width], width))]
    constants = [""]
    for column in zip(*(line.fields for line in alike), strict=True):
        if all(field == column[0] for field in column) and not _NUMBER.fullmatch(column[0]):
            constants[-1] += column[0]
        elif constants[-1] or len(constants) == 1:
            constants.append("")
    fitting = [values for line in alike if (values := match(constants, line)) is not None]
    if len(fitting) < MIN_ROWS or not 1 < len(constants) <= MAX_SLOTS + 1 or not _is_definable(constants):
        return None
    layout = _Layout(constants, fitting)
    gain = _Miner(alike, count).gain(layout, _Size(len(fitting), len(fitting)))
    return constants if gain >= MIN_GAIN else None


class _Miner:
    """Grows the forms of one window of lines."""

    def __init__(self, lines: Sequence[Line], count: Callable[[str], int]) -> None:
        self.lines = lines
        self._count = count
        self._tokens: dict[str, int] = {}
        self._laid_out: dict[int, _Candidate | None] = {}

    def _words(self) -> list[_Word]:
        """The words that forms are grown from."""
        where: dict[str, list[int]] = {}
        for index, line in enumerate(self.lines):
            for word in line.words:
                where.setdefault(word, []).append(index)
        shared = [(word, places) for word, places in where.items() if len(places) >= MIN_ROWS and len(word) > 2]  # noqa: PLR2004 - single letters say nothing
        shared.sort(key=lambda item: -len(item[1]) * len(item[0]))
        return [_Word(word, _bits(places, len(self.lines)), self.tokens(word)) for word, places in shared[:MAX_WORDS]]

    def run(self) -> list[list[str]]:
        """The forms, the most useful first; each is found among the lines that those before it have left."""
        words = self._words()
        forms: list[list[str]] = []
        left = (1 << len(self.lines)) - 1
        useless: set[str] = set()
        while len(forms) < MAX_FORMS and len(useless) < MIN_ROWS and left.bit_count() >= MIN_ROWS:
            first, best = self._grow(words, left, useless)
            if first is None:
                break
            if best is None:
                useless.add(first)
                continue
            forms.append(best.constants)
            for index in best.lines:
                left &= ~(1 << index)
        return forms

    def _grow(self, words: list[_Word], left: int, useless: set[str]) -> tuple[str | None, _Candidate | None]:
        """The word that a form was grown from, and the best form on the way."""
        best: _Candidate | None = None
        chosen: list[str] = []
        rows, weight, most = left, 0, 0
        while True:
            # Lines only leave the set, so a word that too few of them share is not looked at again.
            shared = [(each, lines) for each in words if (lines := (rows & each.lines).bit_count()) >= MIN_ROWS]
            word, score = None, 0
            for each, lines in shared:
                if lines * (weight + each.tokens) > score and (chosen or each.text not in useless):
                    word, score = each, lines * (weight + each.tokens)
            if word is None or (best is not None and score * 2 < most):
                return (chosen[0] if chosen else None), best
            rows &= word.lines
            in_all = [each for each, _ in shared if rows & each.lines == rows]  # the word itself is one
            words = [each for each, _ in shared if rows & each.lines != rows]
            chosen += [word.text, *(each.text for each in in_all if each is not word)]
            weight += sum(each.tokens for each in in_all)
            # The most that words could save, each a constant of its own; most forms of source code and prose end here.
            size = _Size(rows.bit_count(), (rows & ~(rows << 1)).bit_count())
            if size.rows * (min(len(chosen), weight) + 1) - size.marks < MIN_GAIN + weight:
                continue
            if rows not in self._laid_out:  # other words lead to the same lines, which have the same words in common
                self._laid_out[rows] = self._lay_out(rows, chosen, size)
            found = self._laid_out[rows]
            if found is not None and (best is None or found.gain > best.gain):
                best, most = found, score

    def tokens(self, text: str) -> int:
        """Tokens of a text, counted once."""
        known = self._tokens.get(text)
        if known is None:
            known = self._tokens[text] = self._count(text)
        return known

    def _lay_out(self, rows: int, chosen: list[str], size: _Size) -> _Candidate | None:
        """The lines of a set as a form, with the words chosen as constants; None if it does not pay."""
        places = _places(rows)
        sample = [self.lines[index] for index in places[:_SAMPLE]]
        constants = _constants(sample, sorted(chosen, key=lambda word: -self.tokens(word)))
        if not 1 < len(constants) <= MAX_SLOTS + 1:
            return None
        rows_of = [(line, match(constants, line)) for line in sample]
        fitting = [(line, values) for line, values in rows_of if values is not None]
        if len(fitting) < MIN_ROWS:
            return None
        layout = _Layout(constants, [values for _, values in fitting])
        sample = [line for line, _ in fitting]
        gain = self.gain(layout, size)
        gain, layout = self._merged(gain, layout, sample, size)
        gain, layout = self._split(gain, layout, sample, size)
        tokens = sum(map(self.tokens, layout.constants))
        if gain < MIN_GAIN or tokens <= 2 * (len(layout.constants) - 1):  # hardly more text than slots cannot be read
            return None
        found = [index for index in places if match(layout.constants, self.lines[index]) is not None]
        gain *= len(found) / len(places)
        if gain < MIN_GAIN or len(found) < MIN_ROWS or not _is_definable(layout.constants):
            return None
        return _Candidate(gain, layout.constants, found)

    def _merged(self, gain: float, layout: _Layout, sample: list[Line], size: _Size) -> tuple[float, _Layout]:
        """The same with slots made one where the constant between them saves nothing."""
        slot = 1
        while slot < len(layout.constants) - 1:
            merged = layout.constants[:slot] + layout.constants[slot + 1 :]
            if self.tokens(layout.constants[slot]) <= SYMBOL_TOKENS:
                other = _refit(merged, sample)
                if other is not None and (less := self.gain(other, size)) > gain:
                    gain, layout = less, other
                    continue
            slot += 1
        return gain, layout

    def _split(self, gain: float, layout: _Layout, sample: list[Line], size: _Size) -> tuple[float, _Layout]:
        """The same with slots taken apart where that saves something."""
        slot = tried = 0
        while slot < len(layout.constants) - 1 and tried < _SPLITS:
            for constants in _splits(layout, slot):
                tried += 1
                other = _refit(constants, sample)
                if other is not None and (more := self.gain(other, size)) > gain:
                    gain, layout = more, other
                    break
            else:
                slot += 1
        return gain, layout

    def gain(self, layout: _Layout, size: _Size) -> float:
        """Tokens that a form saves over the dictionary, estimated from a sample."""
        lengths = [self.tokens(constant) for constant in layout.constants if constant]
        slots = len(layout.constants) - 1
        as_entries = sum(min(length, SYMBOL_TOKENS) for length in lengths)
        legends = sum(length + LINE_TOKENS for length in lengths if length > SYMBOL_TOKENS)
        repeats = _repeated(layout.rows) / len(layout.rows)
        definition = sum(lengths) + slots + LINE_TOKENS
        return size.rows * (as_entries - slots + 1 + repeats) - size.marks + legends - definition


def _bits(places: list[int], size: int) -> int:
    bits = bytearray(size // 8 + 1)
    for place in places:
        bits[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(bits, "little")


def _places(bits: int) -> list[int]:
    return [place for place, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]


def _constants(sample: list[Line], chosen: list[str]) -> list[str]:
    """What lines have in common: the words chosen, as far as they stand in one order, and what is equal around them."""
    order: list[str] = []
    spans: list[list[int]] = [[] for _ in sample]
    for word in chosen:
        places = [line.find(word) for line in sample]
        at = bisect(spans[0], places[0])
        if min(places) >= 0 and all(bisect(span, place) == at for place, span in zip(places, spans, strict=True)):
            order.insert(at, bare(word))
            for place, span in zip(places, spans, strict=True):
                span.insert(at, place)
    constants: list[str] = []
    current: list[str] = []
    for index in range(len(order) + 1):
        gaps = [
            line.fields[span[index - 1] + 1 if index else 0 : span[index] if index < len(order) else None]
            for line, span in zip(sample, spans, strict=True)
        ]
        prefix, suffix = _common(gaps)
        if prefix is None:
            current += gaps[0]
        else:
            constants.append("".join(current + gaps[0][:prefix]))
            current = gaps[0][len(gaps[0]) - suffix :]
        current += order[index : index + 1]
    constants.append("".join(current))
    return constants


def _common(gaps: Sequence[Sequence[str]]) -> tuple[int | None, int]:
    """How many fields are equal at the beginning and at the end, leaving one at least; (None, 0): all are equal."""
    first = gaps[0]
    if all(gap == first for gap in gaps):
        return None, 0
    room = max(0, min(map(len, gaps)) - 1)
    prefix = 0
    while prefix < room and all(gap[prefix] == first[prefix] for gap in gaps):
        prefix += 1
    suffix = 0
    while suffix < room - prefix and all(gap[-1 - suffix] == first[-1 - suffix] for gap in gaps):
        suffix += 1
    return prefix, suffix


def _splits(layout: _Layout, slot: int) -> list[list[str]]:
    """Ways to take a slot apart, as constants."""
    values = [row[slot] for row in layout.rows]
    out: list[list[str]] = []
    for delimiter in _EACH:
        if delimiter not in values[0] or not all(delimiter in value for value in values):
            continue
        numbers = {value.count(delimiter) for value in values}
        if len(numbers) == 1 and max(numbers) <= _MAX_EACH:
            parts = [value.split(delimiter) for value in values]
        elif delimiter in _FIRST:
            parts = [value.split(delimiter, 1) for value in values]
        else:
            continue
        constants = layout.constants[:slot]
        current = layout.constants[slot]
        for index, column in enumerate(zip(*parts, strict=True)):
            current += delimiter if index else ""
            if len({cell[:1] for cell in column}) > 1 and len({cell[-1:] for cell in column}) > 1:
                constants.append(current)  # nothing in common at either end
                current = ""
                continue
            cells = [fields(cell) for cell in column]
            prefix, suffix = _common(cells)
            if prefix is None:
                current += column[0]
            else:
                constants.append(current + "".join(cells[0][:prefix]))
                current = "".join(cells[0][len(cells[0]) - suffix :])
        constants.append(current + layout.constants[slot + 1])
        constants += layout.constants[slot + 2 :]
        if len(constants) <= MAX_SLOTS + 1 and constants != layout.constants:
            out.append(constants)
    return out


def _refit(constants: list[str], sample: list[Line]) -> _Layout | None:
    """The sample in another layout, if all lines of it fit."""
    rows: list[list[str]] = []
    for line in sample:
        values = match(constants, line)
        if values is None:
            return None
        rows.append(values)
    return _Layout(constants, rows)


def _repeated(rows: list[list[str]]) -> float:
    """Tokens that rows save because values repeat those above, and the dictionary would not."""
    often: dict[int, Counter[str]] = {}
    saved = 0.0
    for before, values in pairwise(rows):
        tokens, columns, common = 0, 0, True
        for index, (value, above) in enumerate(zip(values, before, strict=True)):
            if value == above:
                tokens += _estimate(value)
                columns += 1
                if common and index not in often:
                    often[index] = Counter([row[index] for row in rows])
                common = common and often[index][value] >= _FREQUENT
            elif columns:
                saved += (min(SYMBOL_TOKENS, tokens) if common else tokens) + columns / 2  # `||` is one token
                tokens, columns, common = 0, 0, True
        if columns:
            saved += (min(SYMBOL_TOKENS, tokens) if common else tokens) + columns / 2
    return saved


def _estimate(value: str) -> int:
    """About how many tokens a value has: dates and numbers have more than words."""
    return len(value) * 3 // 5 if len(value) > 4 and "0" <= value[0] <= "9" else (len(value) + 3) // 4  # noqa: PLR2004


def _is_definable(constants: list[str]) -> bool:
    """Whether the form can be written as text with `{}` for slots, and be read from it."""
    text = "{}".join(constants)
    return text.split("{}") == constants and "\\n" not in text and text.translate(_BLANKS).isprintable()
