r"""Stage 3: lines of one form. A form becomes a template with slots, defined once, and each line its values, whole.

A template is plain text with `{}` for each slot; the legend defines it as `¤3|{} - - [{}] "GET {}" {}`, the character
behind the number being the one that separates the values. A line of that form is then sent as

    ¤3|83.149.9.216|17/May/2015:10:05:03 +0000|/x.png|200

and several of them in a row as a header with their number, and the bare values:

    ¤3*2
    83.149.9.216|17/May/2015:10:05:03 +0000|/x.png|200
    |17/May/2015:10:05:43 +0000|/y.png|

An empty value repeats the value of the row of that template above it; real values are never empty. What a value is,
is what the profile "balanced" says: a template is never cut off inside a word, number, date, name or path segment,
but for the border between a date and the time of day behind it, which are two values. A record, lines that always
follow each other, is one template with `\n` between its lines, and one row.

How templates are found is in `template_mining` and `template_records`. Templates known from earlier texts are applied
first, for nothing. Rows within rows (a value that is a row of another template) were tried: 0.1 to 0.5 points on logs,
for rows that are much harder to read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression.segments import Listing, Mark, Segment, merge, numbered
from krunch_plugins.compression.template_lines import Line, bare, match, words
from krunch_plugins.compression.template_mining import mine, mine_record
from krunch_plugins.compression.template_records import records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLOT = "{}"
BREAK = "\\n"
"""Stands for a newline in a template's text."""

SEPARATORS = "|;~^!"
"""What may separate values. The first that no value holds is taken, unless another is cheaper by some tokens."""

MIN_LINES = 3
"""Lines of a text, before it is looked at; and rows of a new template."""

MIN_RUN = 3
"""Rows of one template without a line between them, before they share one mark."""

MIN_CHARACTERS, MAX_CHARACTERS = 12, 2000
"""Length of lines that are looked at. Short ones have nothing to save, long ones are no rows that can be read."""

WINDOW = 400
"""Lines that are mined at once. Each window sees only what no known template fits, so the whole is linear."""

_TRIED = 8
"""Templates tried for a line and a word of it, the longest first."""

_SAMPLE = 40
"""Rows that separators are compared on."""

_HEADER = re.compile(r"\*([1-9][0-9]{0,8})\n")


class Template(NamedTuple):
    """A definition: its number, the character that separates values, and its text, `{}` for each slot, no newline."""

    number: int
    separator: str
    text: str

    @property
    def name(self) -> str:
        """Its symbol."""
        return numbered(self.number)

    @property
    def kind(self) -> str:
        """Which kind of definition this is."""
        return "template"

    @property
    def line(self) -> str:
        """The line that defines it."""
        return f"{self.name}{self.separator}{self.text}\n"

    @property
    def constants(self) -> list[str]:
        """The text in front of, between and behind the slots."""
        return self.text.replace(BREAK, "\n").split(SLOT)


class _Form(NamedTuple):
    """A template ready for matching."""

    template: Template
    constants: list[str]
    start: str
    characters: int
    span: int


class _Row(NamedTuple):
    """A line, or a record of `span` lines, as a template and its values."""

    template: Template
    values: list[str]
    span: int = 1


class TemplateBook:
    """The templates known so far, found by number and by a word that their lines must hold. Grows only."""

    __slots__ = ("_by_number", "_by_word")

    def __init__(self) -> None:
        self._by_number: dict[int, Template] = {}
        self._by_word: dict[str, list[_Form]] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def add(self, template: Template) -> None:
        """Add a definition; its number must be new."""
        constants = template.constants
        self._by_number[template.number] = template
        # Whatever the values are, words that touch a slot may go on in it (`2015:` and `10:05:03` are one word).
        digits, letters = (
            set(map(bare, words(SLOT.join(constants).split("\n")[0].replace(SLOT, value)))) for value in ("0", "x")
        )
        anchor = max(sorted(digits & letters), key=len, default=None)
        if anchor is not None:
            same = self._by_word.setdefault(anchor, [])
            start = constants[0].split("\n")[0]
            span = 1 + template.text.count(BREAK)
            same.append(_Form(template, constants, start, sum(map(len, constants)), span))
            same.sort(key=lambda form: -form.characters)

    def get(self, number: int) -> Template | None:
        """The template with that number, if there is one."""
        return self._by_number.get(number)

    def row(self, lines: list[str], place: int, stop: int, line: Line) -> _Row | None:
        """The line at a place, or the record that begins there, as a row of the known template that says most of it."""
        by_word = self._by_word
        best: _Row | None = None
        most = 0
        for word in [word for word in line.bare_words if word in by_word] if by_word else ():
            for form in by_word[word][:_TRIED]:
                if form.characters <= most:
                    break
                if place + form.span > stop or not line.text.startswith(form.start):
                    continue
                block = line if form.span == 1 else Line("\n".join(lines[place : place + form.span]))
                values = match(form.constants, block)
                if values is not None and not _holds(values, form.template.separator):
                    best, most = _Row(form.template, values, form.span), form.characters
                    break
        return best


def extract(
    segments: list[Segment], book: TemplateBook, numbers: Iterator[int] | None, count: Callable[[str], int]
) -> tuple[list[Segment], list[Template]]:
    """Write lines of one form as rows of templates.

    Args:
        segments: a text; literals are rewritten, marks stay where they are.
        book: templates defined in earlier texts. Not changed.
        numbers: fresh ones, for new templates; None: only known ones are used.
        count: real tokens of a string.

    Returns:
        The segments with rows in the place of lines, and the templates that are new, in the order of their numbers:
        the caller defines them, and adds them to the book, if it takes the segments.
    """
    out: list[Segment] = []
    added: list[Template] = []
    fresh = TemplateBook()
    segments = merge(segments)
    for index, segment in enumerate(segments):
        if isinstance(segment, Mark | Listing) or (not len(book) and segment.count("\n") < MIN_LINES - 1):
            out.append(segment)
            continue
        lines = segment.split("\n")
        # A line that a mark of another stage is part of is not a line.
        start = 1 if index else 0
        stop = len(lines) - (1 if index + 1 < len(segments) else 0)
        text = _Text(lines, (book, fresh), numbers, count)
        text.look(start, stop)
        written = _write(lines, text.rows)
        legend = "".join(template.line for template in text.added)
        # Counted apart: what is counted here as it is will be counted again, as it is, and is remembered.
        if not text.rows or count(legend) + count("".join(written)) >= count(segment):
            out.append(segment)
            continue
        for template in text.added:
            fresh.add(template)
        added += text.added
        out += written
    return merge(out), added


def fill(segments: list[Segment], find: Callable[[int], Template | None]) -> list[Segment]:
    """Write rows as the lines that they stand for: the inverse of `extract`.

    Args:
        segments: a text as it was sent; marks with numbers that are no template's stay where they are.
        find: the template with a number, defined in this text or an earlier one.

    Returns:
        The segments that `extract` was given, merged. What `extract` has not written is left as it is.
    """
    out: list[Segment] = []
    above: dict[int, list[str]] = {}
    waiting: Template | None = None
    for segment in merge(segments):
        if isinstance(segment, Mark):
            waiting = find(int(segment[1:])) if _is_number(segment[1:]) else None
            out.append(segment)
            continue
        text = None if waiting is None else _read(segment, waiting, above)
        if text is not None:
            out.pop()
        out.append(segment if text is None else text)
        waiting = None
    return merge(out)


class _Text:
    """The lines of a literal, and what becomes of them.

    Attributes:
        rows: the lines and records that become rows, by the place of their first line.
        added: the templates that are new.
    """

    def __init__(
        self,
        lines: list[str],
        books: tuple[TemplateBook, ...],
        numbers: Iterator[int] | None,
        count: Callable[[str], int],
    ) -> None:
        self._lines, self._numbers, self._count = lines, numbers, count
        self._recent = TemplateBook()
        self._books = (self._recent, *books)
        self.rows: dict[int, _Row] = {}
        self.added: list[Template] = []

    def look(self, start: int, stop: int) -> None:
        """Make rows of the lines from `start` to `stop`: of known templates first, of new ones what is left."""
        window: dict[int, Line] = {}
        place = start
        while place < stop:
            line = Line(self._lines[place])
            row = self._known(place, stop, line)
            if row is not None:
                self.rows[place] = row
            elif len(line.text) <= MAX_CHARACTERS:
                window[place] = line
            place += 1 if row is None else row.span
            if len(window) == WINDOW:
                self._mine(window)
                window = {}
        self._mine(window)

    def _known(self, place: int, stop: int, line: Line) -> _Row | None:
        """The line, or the record that begins with it, as a row of a known template."""
        if MIN_CHARACTERS <= len(line.text) <= MAX_CHARACTERS:
            for book in self._books:
                row = book.row(self._lines, place, stop, line)
                if row is not None:
                    return row
        return None

    def _mine(self, window: dict[int, Line]) -> None:
        """Find new templates in lines that no known one fits, by their place."""
        if len(window) < MIN_LINES or self._numbers is None:
            return
        left = dict(window)
        for found in records(self._lines, list(window)):
            constants = mine_record(found.lines, self._count)
            if constants is None:
                continue
            for place in self._define(constants, dict(zip(found.starts, found.lines, strict=True)), found.span):
                for inner in range(place, place + found.span):
                    del left[inner]
        left = {place: line for place, line in left.items() if len(line.text) >= MIN_CHARACTERS}
        for constants in mine(list(left.values()), self._count):
            for place in self._define(constants, left, 1):
                del left[place]

    def _define(self, constants: list[str], lines: dict[int, Line], span: int) -> list[int]:
        """Define a template, if enough of the lines fit it, and make rows of these; their places."""
        matched = {place: match(constants, line) for place, line in lines.items()}
        rows = {place: values for place, values in matched.items() if values is not None}
        separator = _separator(list(rows.values()), self._count)
        if len(rows) < MIN_LINES or separator is None:
            return []
        assert self._numbers is not None, "nothing is mined where nothing may be defined"
        template = Template(next(self._numbers), separator, SLOT.join(constants).replace("\n", BREAK))
        self._recent.add(template)
        self.added.append(template)
        self.rows.update((place, _Row(template, values, span)) for place, values in rows.items())
        return list(rows)


def _holds(values: list[str], separator: str) -> bool:
    return any(separator in value for value in values)


def _separator(rows: list[list[str]], count: Callable[[str], int]) -> str | None:
    """The character that separates these values best; None if they hold each."""
    best = None
    fewest = 0
    held = set("".join(value for row in rows for value in row))
    for separator in SEPARATORS:
        if separator in held:
            continue
        tokens = count("\n".join(separator.join(row) for row in rows[:_SAMPLE]))
        if best is None or tokens * 100 < fewest * 99:  # the first is easiest to read
            best, fewest = separator, tokens
    return best


def _write(lines: list[str], rows: dict[int, _Row]) -> list[Segment]:
    """The text with rows in the place of lines."""
    out: list[Segment] = []
    above: dict[int, list[str]] = {}
    place = 0
    while place < len(lines):
        if place:
            out.append("\n")
        row = rows.get(place)
        if row is None:
            out.append(lines[place])
            place += 1
            continue
        template = row.template
        run = [row.values]
        while (following := rows.get(place + len(run) * row.span)) is not None and following.template is template:
            run.append(following.values)
        written: list[str] = []
        for values in run:
            before = above.get(template.number)
            above[template.number] = values
            written.append(template.separator.join(_shorten(values, before)))
        mark = Mark(numbered(template.number))
        if len(run) >= MIN_RUN:
            out += [mark, f"*{len(run)}\n", "\n".join(written)]
        else:
            for index, text in enumerate(written):
                out += ["\n" if index else "", mark, template.separator + text]
        place += len(run) * row.span
    return out


def _shorten(values: list[str], before: list[str] | None) -> list[str]:
    if before is None:
        return values
    return ["" if value == other else value for value, other in zip(values, before, strict=True)]


def _read(literal: str, template: Template, above: dict[int, list[str]]) -> str | None:
    """What the rows at the beginning of a literal stand for, and the rest of it; None if there are none."""
    header = _HEADER.match(literal)
    if header is not None:
        number = int(header[1])
        rows = literal[header.end() :].split("\n", number)
        rest = rows[number:]
        rows = rows[:number]
        if len(rows) != number:
            return None
    elif literal.startswith(template.separator):
        row, *rest = literal[len(template.separator) :].split("\n", 1)
        rows = [row]
    else:
        return None
    constants = template.constants
    before = above.get(template.number)
    lines: list[str] = []
    for row in rows:
        values = row.split(template.separator)
        if len(values) != len(constants) - 1:
            return None
        if "" in values:
            if before is None:
                return None
            values = [value or other for value, other in zip(values, before, strict=True)]
        before = values
        lines.append(constants[0] + "".join(map(str.__add__, values, constants[1:])))
    if before is not None:
        above[template.number] = before
    return "\n".join(lines + rest)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10  # noqa: PLR2004 - no more were ever allocated
