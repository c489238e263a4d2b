"""What the marks of one request mean to a reply that copies them."""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression import legend
from krunch_plugins.compression.decoder import Reader
from krunch_plugins.compression.dictionary import Dictionary, SymbolTable, View
from krunch_plugins.compression.line_numbers import LINES_TO
from krunch_plugins.compression.phrases import Phrase
from krunch_plugins.compression.segments import LETTERS, MARK, Mark
from krunch_plugins.compression.templates import SLOT, Template

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Mapping, Sequence

    from krunch_plugins.compression.dictionary import Definition, State
    from krunch_plugins.compression.segments import Segment
    from krunch_plugins.turns import Message

Values = tuple[str, ...]
"""What fills the slots of a template in one row."""

LINE = 40
"""Characters of a line by which it is known again."""

_DIGITS = 9
"""Of the longest number that is ever defined."""

_REFERENCE = re.compile(rf"{MARK}\[[^\n{MARK}]*\]")
_ESCAPED = re.compile(rf"(?<!{MARK}){MARK}{{2,}}(?:[0-9]+[={{\[]|[{LETTERS}]=|[{{\[])")
# Also behind the mark that ends a definition, where the two look like an escaped literal.
_CURLY = re.compile(rf"{MARK}\{{(?:[a-z0-9]+|{LINES_TO}[1-9][0-9]*)\}}")
_QUOTED = re.compile(rf"(?<!\A)(?<!\.\n)({'|'.join(map(re.escape, legend.INSTRUCTIONS.values()))})")
_HEADER = re.compile(r"\*([1-9][0-9]{0,8})\n")


class Lines:
    """The last lines of a growing text, so much of them as is needed to know them again.

    Attributes:
        line: the beginning of the last line.
        line_above: the beginning of the last line above it that is not blank; "" if there is none.
        begun: there is any text at all.
    """

    __slots__ = ("begun", "line", "line_above")

    def __init__(self) -> None:
        self.line = self.line_above = ""
        self.begun = False

    def add(self, text: str) -> None:
        """The text has grown by this."""
        newline = text.rfind("\n")
        self.begun = self.begun or text != ""
        if newline < 0:
            self.line = (self.line + text)[:LINE]
            return
        whole = text[:newline].rstrip()
        start = whole.rfind("\n") + 1
        above = (whole[start:] if start else self.line + whole)[:LINE].rstrip()
        self.line_above = above or self.line_above
        self.line = text[newline + 1 :][:LINE]


class Meanings:
    """What the marks of one request stand for. Immutable; thread-safe.

    Names are looked up where the encoder has left them. What takes a look at the whole request, references to lines and
    rows that leave out values, is read from it when a reply holds such a mark for the first time.

    Args:
        dictionary: the definitions.
        known: how many of them the request has.
        told: the kinds that the request has explained.
        messages: the request as sent.
    """

    __slots__ = ("_dictionary", "_known", "_messages", "_numbers", "_request", "told")

    def __init__(
        self,
        dictionary: Dictionary,
        known: int,
        told: frozenset[str] = frozenset(),
        messages: Sequence[Message] = (),
    ) -> None:
        self._dictionary, self._known, self._messages, self.told = dictionary, known, messages, told
        self._numbers: list[int] | None = None
        self._request: _Request | None = None

    @classmethod
    def of_state(cls, state: State, messages: Sequence[Message]) -> Meanings:
        """Those of a request, from the state after its last message."""
        return cls(state.dictionary, state.known, state.told, messages)

    @classmethod
    def of_symbols(cls, symbols: Mapping[str, str]) -> Meanings:
        """Those of a request that defines phrases and nothing else: symbol → text."""
        phrases = [Phrase(name, text, ()) for name, text in symbols.items()]
        return cls(Dictionary(phrases), len(phrases))

    @property
    def symbols(self) -> SymbolTable:
        """The phrases among them: symbol → text."""
        return SymbolTable(self._dictionary, self._known)

    def get(self, name: str) -> Definition | None:
        """The definition of a name such as `¤12`, or None."""
        position = self._dictionary.position.get(name)
        return None if position is None or position >= self._known else self._dictionary.definitions[position]

    def begins(self, digits: str) -> bool:
        """Whether the number of a definition begins with these digits and goes on after them."""
        if not digits or digits[0] == "0" or len(digits) >= _DIGITS:
            return False
        if self._numbers is None:
            names = (one.name for one in self._dictionary.definitions[: self._known])
            self._numbers = sorted(int(name[1:]) for name in names if name[0] == MARK)
        first = last = int(digits)
        while self._numbers and first <= self._numbers[-1]:
            first, last = 10 * first, 10 * last + 9
            place = bisect_left(self._numbers, first)
            if place < len(self._numbers) and self._numbers[place] <= last:
                return True
        return False

    def reference(self, text: str, above: str) -> str | None:
        """The lines that a reference stands for, as the request means it.

        Args:
            text: the reference.
            above: the beginning of the line above it, expanded. What a reference means changes when newer lines begin
                as the older ones did; then it means what it means below such a line, if that is one thing.

        Returns:
            The lines, or None: the request has no such reference, or it means several things.
        """
        found = self._read.references.get(_plain(text), [])
        meanings = {meaning for meaning, _ in found}
        if len(meanings) > 1:
            meanings = {meaning for meaning, before in found if before == above and above}
        return meanings.pop() if len(meanings) == 1 else None

    def is_reference(self, text: str) -> bool:
        """Whether the request has this reference."""
        return _plain(text) in self._read.references

    def begins_reference(self, text: str) -> bool:
        """Whether a reference of the request begins with this text and goes on after it."""
        keys, begun = self._read.keys, _plain(text)
        place = bisect_left(keys, begun)
        return place < len(keys) and keys[place].startswith(begun)

    def rows(self, number: int) -> Mapping[str, Sequence[Values]]:
        """The rows of a template in the request: how each is written, and the values that it may mean."""
        return self._read.rows.get(number, {})

    def writes(self, piece: str) -> bool:
        """Whether the request has this escaped literal, or this mark with curly brackets."""
        return piece in self._read.pieces

    @property
    def numbered_lines(self) -> Container[str]:
        """The lines of texts in which numbers of lines were left out, as they were."""
        return self._read.numbered_lines

    def begins_literal(self, piece: str) -> bool:
        """Whether an escaped literal of the request begins so and goes on."""
        return any(literal.startswith(piece) for literal in self._read.pieces)

    def quotes(self, sentence: str) -> bool:
        """Whether an instruction stands anywhere but in front of a text of the request: it is about such requests."""
        return sentence in self._read.quoted

    @property
    def _read(self) -> _Request:
        if self._request is None:
            self._request = _Request.read(self._messages)
        return self._request


class _Request(NamedTuple):
    """What only a look at the whole request tells.

    Attributes:
        references: each reference, its spaces made even: wherever it stands, what it means and what is above it.
        keys: the references in alphabetical order.
        rows: by template, each row and the values that it stands for.
        pieces: the escaped literals that begin with a mark and have something behind it, and those with curly brackets.
        numbered_lines: the lines of texts in which numbers of lines were left out, as they were.
        quoted: the instructions that stand where they explain nothing.
    """

    references: Mapping[str, Collection[tuple[str, str]]]
    keys: Sequence[str]
    rows: Mapping[int, Mapping[str, Sequence[Values]]]
    pieces: Collection[str]
    numbered_lines: Container[str]
    quoted: Container[str]

    @classmethod
    def read(cls, messages: Iterable[Message]) -> _Request:
        """Read a request from its beginning, as `restore` does."""
        references: dict[str, set[tuple[str, str]]] = {}
        rows: dict[int, dict[str, list[Values]]] = {}
        pieces: set[str] = set()
        numbered_lines: set[str] = set()
        quoted: set[str] = set()
        reader = Reader()
        for text in (text for message in messages for text in legend.texts(message)):
            escaped = _ESCAPED.findall(text)
            pieces.update(escaped)
            pieces.update(one[1:] for one in escaped if one.startswith(3 * MARK))  # the first may end a definition
            pieces.update(_CURLY.findall(text))
            quoted.update(_QUOTED.findall(text))
            if len(reader.dictionary.templates) or SLOT in text:
                view = View(reader.dictionary, len(reader.dictionary.definitions))
                _note_rows(legend.split(text, view), view, rows)
            try:
                segments = reader.read(text)
            except KeyError:  # somebody has changed the messages since; what they say from here on is anybody's guess
                break
            lines = Lines()
            for segment, meaning in segments:
                if isinstance(segment, Mark) and _REFERENCE.fullmatch(segment):
                    references.setdefault(_plain(segment), set()).add((meaning, lines.line_above))
                lines.add(meaning)
            if MARK + "{" + LINES_TO in text:
                numbered_lines.update("".join(meaning for _, meaning in segments).split("\n"))
        return cls(references, sorted(references), rows, pieces, numbered_lines, quoted)


def _plain(reference: str) -> str:
    """A reference as a model may write it: with other spaces, or three dots for one sign."""
    return " ".join(reference.split()).replace("…", "...")


def _note_rows(segments: Iterable[Segment], view: View, rows: dict[int, dict[str, list[Values]]]) -> None:
    """Take down the rows in a text, and what they stand for; reads as `templates.fill` does."""
    above: dict[int, Values] = {}
    template: Template | None = None
    for segment in segments:
        if isinstance(segment, Mark):
            definition = view.get(segment)
            template = definition if isinstance(definition, Template) else None
            continue
        if template is not None:
            _note_rows_of(template, segment, above, rows.setdefault(template.number, {}))
        template = None


def _note_rows_of(template: Template, literal: str, above: dict[int, Values], known: dict[str, list[Values]]) -> None:
    """The same for what stands behind one mark of a template."""
    slots = len(template.constants) - 1
    for row in _rows_in(literal, template):
        values = complete(tuple(row.split(template.separator)), above.get(template.number))
        if values is None or len(values) != slots:
            break
        above[template.number] = values
        meanings = known.setdefault(row, [])
        if values not in meanings:
            meanings.append(values)


def _rows_in(literal: str, template: Template) -> Sequence[str]:
    """The rows at the beginning of what stands behind a template's mark."""
    header = _HEADER.match(literal)
    if header is not None:
        return list(islice(literal[header.end() :].split("\n"), int(header[1])))
    if literal.startswith(template.separator):
        return [literal[1:].split("\n", 1)[0]]
    return []


def complete(values: Values, above: Values | None) -> Values | None:
    """The values of a row, with those that it leaves out as in the row above; None if there is none above."""
    if "" not in values:
        return values
    if above is None or len(above) != len(values):
        return None
    return tuple(value or other for value, other in zip(values, above, strict=True))
