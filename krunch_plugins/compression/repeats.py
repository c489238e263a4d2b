"""Stage 2: runs of lines that stood before, replaced by a reference that quotes the first and the last of them.

    ¤[14 lines def area(self … return width *]
    ¤[eyJhbGciOiJIUzI1]
    ¤[14 lines, indent +4: def area(self … return width *]
    ¤[14 lines, numbers +3: 20:def … 33:return width]
    ¤[14 def area(self]

A reference stands on a line of its own and means: the latest run of so many lines (or the latest line), earlier in
the request or in the same text, whose first and last line begin so; indented by so many spaces more or less, or with
so much added to the number that each line begins with, as tools print them. The last form, of the profile "dense",
quotes the first line only. Quotes leave out the space around a line and end after a word.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, cast

from krunch_plugins.compression.segments import MARK, Mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from krunch_plugins.compression.segments import Segment

QUOTE = 14
"""Characters of a line that are quoted at most: two words or so. 40 cost 1.0 points on coding agents and 1.5 on
coding chats; 12 gained nothing more."""

MIN_CHARACTERS = 24
"""Shorter runs cannot save anything."""

MIN_SAVING = 3
"""Tokens. What a reference must save at least; below that it is not worth the reader's trouble."""

CANDIDATES = 8
"""Earlier places of a line that are looked at, latest first; keeps matching linear where a line stands everywhere."""

TRIES = 64
"""Places that may have to be passed over until a reference is resolved; more, and it is not written."""

_TELLING, _TELLING_BRIEF = 6, 3
"""Characters. A run does not begin or end with a line that says less than this, such as a brace; the second is for
references that do not quote the end."""

_SHIFT = r"(indent|numbers) ([+-][0-9]+)"
_LINES = re.compile(rf"{MARK}\[([1-9][0-9]*) lines(?:, {_SHIFT}:)? (.*?) … (.*)\]")
_BRIEF = re.compile(rf"{MARK}\[([1-9][0-9]*)(?:, {_SHIFT}:)? (.*)\]")
_LINE = re.compile(rf"{MARK}\[(?:{_SHIFT}: )?(.*)\]")
_OPEN = MARK + "["
_JOIN = " … "
_SPECIAL = re.compile(r"indent|numbers|lines|[0-9]+[ ,]")
_NUMBERED = re.compile(r"([ ]*)([0-9]{1,9})((?:[:\t→]|[ ]?[|│])[ ]?)(?![0-9])(.*)", re.DOTALL)


_BEFORE_NUMBERS = frozenset(" 0123456789")


class Shift(NamedTuple):
    """How lines differ from those that stood before: `by` spaces of indentation, or `by` in their line numbers."""

    what: str
    by: int

    def __str__(self) -> str:
        return f"{self.what} {self.by:+}"

    def apply(self, line: str) -> str | None:
        """The line that stood before, shifted; None if it cannot be."""
        if self.what == "indent":
            if not line.strip():
                return line
            if self.by > 0:
                return " " * self.by + line
            return line[-self.by :] if line.startswith(" " * -self.by) else None
        parts = _NUMBERED.fullmatch(line)
        if parts is None:
            return None
        space, number, mark, rest = parts.groups()
        shifted = str(int(number) + self.by)
        # Numbers are aligned on the right where there is space in front of them.
        return (shifted.rjust(len(space) + len(number)) if space else shifted) + mark + rest


def quote(line: str) -> str:
    """The beginning of a line, without the space around it, cut after a word."""
    text = line.strip()
    if len(text) <= QUOTE:
        return text
    cut = text.rfind(" ", 6, QUOTE + 1)
    return text[: cut if cut > 0 else QUOTE].rstrip()


def _numbered(line: str) -> re.Match[str] | None:
    """A line with a number in front, in its parts. Most lines have none, and that is seen at their first character."""
    return _NUMBERED.fullmatch(line) if line[:1] in _BEFORE_NUMBERS else None


class LineIndex:
    """All lines of all texts so far, found by their quotes. Grows only."""

    __slots__ = ("_numbered", "_places", "lines")

    def __init__(self, lines: Iterable[str | None] = ()) -> None:
        self.lines: list[str | None] = []
        self._places: dict[str, list[int]] = {}
        self._numbered: dict[str, list[int]] = {}
        for line in lines:
            self.add(line)

    def add(self, line: str | None) -> None:
        """Add the next line; None ends a text."""
        if line is None:
            self.lines.append(None)
        else:
            self.add_quoted(line, quote(line))

    def add_quoted(self, line: str, key: str) -> None:
        """Add the next line, whose quote is known."""
        if key:
            places = self._places.get(key)
            if places is None:
                self._places[key] = [len(self.lines)]
            else:
                places.append(len(self.lines))
            if line[0] in _BEFORE_NUMBERS and (parts := _NUMBERED.fullmatch(line)):
                self._numbered.setdefault(quote(parts[4]), []).append(len(self.lines))
        self.lines.append(line)

    def may_hold(self, line: str, key: str) -> bool:
        """Whether a look at `candidates` of a line with this quote can find any."""
        return key in self._places or (bool(self._numbered) and line[:1] in _BEFORE_NUMBERS)

    def add_text(self, text: str) -> None:
        """Add the lines of one whole text."""
        for line in text.split("\n"):
            self.add_quoted(line, quote(line))
        self.add(None)

    def candidates(self, line: str) -> Iterator[tuple[int, Shift | None]]:
        """Where a line stood before, latest first, and how it is shifted against that."""
        for place in reversed(self._places.get(quote(line), [])[-CANDIDATES:]):
            known = self.lines[place]
            assert known is not None
            if known == line:
                yield place, None
            elif known.lstrip(" ") == line.lstrip(" "):
                yield place, Shift("indent", len(line) - len(known))
        parts = _numbered(line) if self._numbered else None
        if parts is None or len(parts[4].strip()) < _TELLING:
            return
        for place in reversed(self._numbered.get(quote(parts[4]), [])[-CANDIDATES:]):
            before = _NUMBERED.fullmatch(self.lines[place] or "")
            assert before is not None
            by = int(parts[2]) - int(before[2])
            if by and before[4] == parts[4]:
                yield place, Shift("numbers", by)

    def resolve(self, count: int, first: str, last: str | None, tries: int | None = None) -> int | None:
        """Where the latest run of `count` lines begins whose first and last line (None: any) have these quotes."""
        places = self._places.get(first, [])
        for place in reversed(places if tries is None else places[-tries:]):
            end = place + count
            if end > len(self.lines):
                continue
            line = self.lines[end - 1]
            if line is not None and last in (None, quote(line)) and None not in self.lines[place:end]:
                return place
        return None


def refer(text: str, index: LineIndex, count: Callable[[str], int], *, brief: bool = False) -> list[Segment]:
    """Replace what stood before by references. Adds the lines of `text` to the index.

    Args:
        text: one whole text.
        index: the lines of all texts before it.
        count: tokens of a string.
        brief: quote only the first line where that is clear.
    """
    lines = text.split("\n")
    segments: list[Segment] = []
    literal: list[str] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        key = quote(line)
        if not index.may_hold(line, key):
            literal.append(line)
            index.add_quoted(line, key)
            position += 1
            continue
        run, shift = _longest_run(lines, position, index, _TELLING_BRIEF if brief else _TELLING)
        mark = _reference(lines[position : position + run], shift, index, count, brief=brief) if run else None
        if mark is None:
            run = 1
            literal.append(lines[position])
        else:
            if literal or segments:
                segments.append("\n".join([*([""] if segments else []), *literal, ""]))
                literal = []
            segments.append(mark)
        for line in lines[position : position + run]:
            index.add(line)
        position += run
    index.add(None)
    if not segments:
        return [text]
    if literal:
        segments.append("\n".join(["", *literal]))
    return segments


def resolve(segments: Sequence[Segment], index: LineIndex) -> str:
    """The inverse of `refer`. Adds the lines of the text to the index.

    Raises:
        KeyError: a reference that nothing before it resolves.
    """
    return "".join(walk(segments, index))


def walk(segments: Sequence[Segment], index: LineIndex) -> Iterator[str]:
    """What each segment of a text stands for, as `resolve` joins them; at the end its lines are in the index."""
    partial = ""
    for segment in segments:
        # Another stage's mark that stands here is none: it only looks like one.
        found = lookup(segment, index) if isinstance(segment, Mark) and segment.startswith(_OPEN) else segment
        yield found
        *complete, partial = (partial + found).split("\n")
        for line in complete:
            index.add(line)
    index.add(partial)
    index.add(None)


def lookup(mark: str, index: LineIndex, tries: int | None = None) -> str:
    """The lines that a reference stands for.

    Args:
        mark: the reference.
        index: the lines before it.
        tries: places that are looked at; None: all.

    Raises:
        KeyError: it stands for nothing.
    """
    last: str | None
    if parsed := _LINES.fullmatch(mark):
        count, what, by, first, last = int(parsed[1]), *parsed.groups()[1:]
    elif parsed := _BRIEF.fullmatch(mark):
        count, what, by, first, last = int(parsed[1]), *parsed.groups()[1:], None
    elif parsed := _LINE.fullmatch(mark):
        count, (what, by, first) = 1, parsed.groups()
        last = first
    else:
        raise KeyError(mark)
    place = index.resolve(count, first, last, tries)
    shift = Shift(what, int(by)) if what else None
    lines = None if place is None else _shifted(index.lines[place : place + count], shift)
    if lines is None:
        raise KeyError(mark)
    return "\n".join(lines)


def _shifted(lines: list[str | None], shift: Shift | None) -> list[str] | None:
    """Lines of one text, shifted; None where one of them cannot be."""
    shifted = lines if shift is None else [line if line is None else shift.apply(line) for line in lines]
    return None if None in shifted else cast("list[str]", shifted)


def _longest_run(lines: list[str], position: int, index: LineIndex, telling: int) -> tuple[int, Shift | None]:
    """How many lines from `position` on stood before in one piece, and how they are shifted; 0 if none did."""
    if len(lines[position].strip()) < telling:
        return 0, None
    best, chosen = 0, None
    for place, shift in index.candidates(lines[position]):
        length = 0
        end = min(len(lines) - position, len(index.lines) - place)
        while length < end:
            known = index.lines[place + length]
            if known is None or lines[position + length] != (known if shift is None else shift.apply(known)):
                break
            length += 1
        if length > best:
            best, chosen = length, shift
    while best > 1 and len(lines[position + best - 1].strip()) < telling:
        best -= 1  # a line at the end that says little makes a poor quote
    return best, chosen


def _reference(
    run: list[str], shift: Shift | None, index: LineIndex, count: Callable[[str], int], *, brief: bool
) -> Mark | None:
    """A reference to lines that stood before, or None where it would not pay or not be clear."""
    if sum(map(len, run)) < MIN_CHARACTERS:
        return None
    back = None if shift is None else Shift(shift.what, -shift.by)
    first, last = (quote(line if back is None else back.apply(line) or "") for line in (run[0], run[-1]))
    if not first or MARK in first + last:
        return None
    for mark, end in _marks(len(run), shift, first, last, brief=brief):
        if _is_clear(mark, run, shift, (first, end), index):
            return mark if count("\n".join(run)) - count(mark) >= MIN_SAVING else None
    return None


def _marks(lines: int, shift: Shift | None, first: str, last: str, *, brief: bool) -> Iterator[tuple[Mark, str | None]]:
    """Ways to write a reference, the shortest first, and what each says of the last line."""
    how = f", {shift}:" if shift else ""
    if lines == 1:
        yield Mark(f"{MARK}[{shift}: {first}]" if shift else f"{MARK}[{first}]"), first
    if brief or lines == 1:  # a line that begins with a number is not clear without
        yield Mark(f"{MARK}[{lines}{how} {first}]"), None
    if lines > 1:
        yield Mark(f"{MARK}[{lines} lines{how} {first}{_JOIN}{last}]"), last


def _is_clear(
    mark: Mark, run: list[str], shift: Shift | None, quotes: tuple[str, str | None], index: LineIndex
) -> bool:
    """Whether a reference is read as the lines that it is written for."""
    first, last = quotes
    if _JOIN[1] not in first + (last or "") and not _SPECIAL.match(first):  # there is one way to read it
        place = index.resolve(len(run), first, last, TRIES)
        return place is not None and _shifted(index.lines[place : place + len(run)], shift) == run
    try:
        return lookup(mark, index, TRIES) == "\n".join(run)
    except KeyError:
        return False
