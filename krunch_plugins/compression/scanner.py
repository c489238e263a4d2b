"""Finds what a reply has of its request's marks, in text that arrives in pieces, and what each stands for.

The rules are those by which `legend` reads a request, with two differences. Nothing that a reply writes defines
anything. And where the request would be wrong, a reply is just text: what stands for nothing stays as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression.copied import FoldedValue, Outcome, Rows
from krunch_plugins.compression.copied_listing import CopiedListing
from krunch_plugins.compression.line_numbers import LINES_TO
from krunch_plugins.compression.meanings import LINE, Lines
from krunch_plugins.compression.pieces import SPECIAL, Piece, PieceReader
from krunch_plugins.compression.segments import MARK
from krunch_plugins.compression.shapes import Shape
from krunch_plugins.compression.templates import Template

if TYPE_CHECKING:
    from krunch_plugins.compression.dictionary import Definition
    from krunch_plugins.compression.meanings import Meanings, Values

_OR_QUOTE = re.compile(f'{SPECIAL.pattern}|"')


class Edit(NamedTuple):
    """A stretch of the scanned text, from `start` to before `end`, and what stands there instead.

    `spelled`: in JSON text, `text` is JSON already and is not put into a string.
    """

    start: int
    end: int
    text: str
    spelled: bool = False


class Scan(NamedTuple):
    """What one look at a text found.

    Attributes:
        edits: in order, not overlapping, all before `stop`.
        stop: where the text begins that cannot be decided without knowing how it goes on.
        expanded: how many of the edits put the meaning of something in its place (the others drop an escape).
        quote: a quotation mark stands at `stop`, and it belongs to nothing that was found.
    """

    edits: list[Edit]
    stop: int
    expanded: int
    quote: bool = False


_Reader = FoldedValue | Rows | CopiedListing


class Where(Lines):
    """What a scanner remembers of a text between one look and the next. Belongs to one text.

    Attributes:
        before: the character in front, as it was written; "" behind what was expanded.
        marks: how many marks stand right in front, as they were written.
        above: by template, the values of the last row.
        block: what may go on at the next line: rows of a template, and how many, or lines of a run.
        copy: what is being read; None: nothing.
    """

    __slots__ = ("above", "before", "block", "copy", "marks")

    def __init__(self) -> None:
        super().__init__()
        self.before = ""
        self.marks = 0
        self.above: dict[int, Values] = {}
        self.block: tuple[Template, int] | CopiedListing | None = None
        self.copy: _Copy | None = None

    def again(self) -> Where:
        """The same, for another look from the same place on."""
        other = Where()
        other.line, other.line_above, other.begun, other.block = self.line, self.line_above, self.begun, self.block
        other.before, other.marks = self.before, self.marks
        other.above = dict(self.above)
        return other

    def passed(self, written: str) -> None:
        """Text has gone by as it was written."""
        if not written:
            return
        self.add(written)
        self.before = written[-1]
        run = len(written) - len(written.rstrip(MARK))
        self.marks = run + (self.marks if run == len(written) else 0)

    def stood(self, meaning: str) -> None:
        """Something has gone by that stands for this text."""
        self.add(meaning)
        self.before, self.marks = "", 0


class _Copy:
    """What is being read: a value or rows, and the pieces that it is fed. Places count from its beginning."""

    __slots__ = ("end", "fed", "pieces", "reader", "skip", "where")

    def __init__(self, reader: _Reader, skip: int) -> None:
        self.reader, self.skip = reader, skip
        self.where = Where()
        self.end = skip
        self.fed = 0
        self.pieces: list[tuple[int, int, Piece]] = []

    def feed(self, start: int, piece: Piece) -> Outcome | None:
        """Hand on a piece that begins at `start`."""
        self.pieces.append((self.fed, start, piece))
        self.fed += len(piece.text)
        self.end = piece.end
        if piece.plain:
            self.where.passed(piece.text)
        else:
            self.where.stood(piece.text)
        return self.reader.feed(piece.text, plain=piece.plain)

    def place(self, length: int) -> tuple[int, str]:
        """Where the first `length` characters that were fed end in the text, and what of a symbol is left over."""
        for offset, start, piece in reversed(self.pieces):
            if offset < length:
                if piece.plain:
                    return start + length - offset, ""
                return piece.end, piece.text[length - offset :]
        return self.skip, ""


def has_special(text: str, start: int, stop: int) -> bool:
    """Whether anything in a stretch of text could be a mark or a letter that is a symbol."""
    return SPECIAL.search(text, start, stop) is not None


class MarkScanner:
    """Finds the marks of one request in texts. Immutable."""

    __slots__ = ("_meanings",)

    pairs = False
    """No mark holds characters that JSON escapes as two halves."""

    def __init__(self, meanings: Meanings) -> None:
        self._meanings = meanings

    def scan(self, text: str, where: Where, *, final: bool = False, bare: bool = False) -> Scan:
        """Look at a text.

        Args:
            text: what has not been decided yet, and what has come since.
            where: what went before; is taken on.
            final: nothing comes after `text`; everything in it is decided.
            bare: this is JSON outside its strings: a quotation mark ends it, where it is no part of a folded value.
        """
        if not bare and self.passes(text, where):
            return Scan([], len(text), 0)
        look = _Look(self._meanings, text, where, final=final, bare=bare)
        look.run()
        return Scan(look.edits, look.position, look.expanded, look.quote)

    def passes(self, text: str, where: Where) -> bool:
        """Whether a text stays as it is, whatever comes after it; if so it has gone by. `where` is then taken on."""
        if where.copy is not None or where.block is not None or SPECIAL.search(text):
            return False
        where.passed(text)
        return True


class _Look:
    """One look at a text, from left to right."""

    __slots__ = ("_bare", "_final", "_meanings", "_reader", "_text", "_where", "edits", "expanded", "position", "quote")

    def __init__(self, meanings: Meanings, text: str, where: Where, *, final: bool, bare: bool) -> None:
        self._meanings, self._text, self._where = meanings, text, where
        self._final, self._bare = final, bare
        self._reader = PieceReader(meanings, text, final=final)
        self.edits: list[Edit] = []
        self.expanded = self.position = 0
        self.quote = False

    def run(self) -> None:
        """Read what is decided; `position` is where the rest begins."""
        where, start = self._where, self.position
        while True:
            copy = where.copy
            if copy is None:
                start = self.position
                if where.block and where.before == "\n" and not self._bare:  # as written: a row may mean a line's end
                    copy = where.copy = _Copy(self._going_on(where.block), 0)
            place = start + copy.end if copy else start
            piece = self._piece(place)
            if piece is not None and not self.quote:
                self.position = start
                self._take(piece, place)
            elif copy and self._final and place == len(self._text):
                self._close(copy, copy.reader.end(), start)
            else:
                break

    def _piece(self, place: int) -> Piece | None:
        """The piece that begins at a place; None if there is none, or it is undecided."""
        where = self._where
        found = (_OR_QUOTE if self._bare else SPECIAL).search(self._text, place)
        stop = found.start() if found else len(self._text)
        if self._bare and found and found[0] == '"' and where.copy is not None:
            found = SPECIAL.search(self._text, place)
            stop = found.start() if found else len(self._text)
        if place == len(self._text):
            return None
        if stop > place:
            if where.block and where.copy is None:  # what follows the line's end may be the next row
                newline = self._text.find("\n", place, stop)
                stop = stop if newline < 0 else newline + 1
            return Piece(stop, self._text[place:stop])
        if self._text[place] == '"':
            self.quote = True
            return None
        near = where if where.copy is None else where.copy.where
        return self._reader.special(place, near, where)

    def _take(self, piece: Piece, place: int) -> None:
        """Read a piece: as part of what is being read, as the beginning of something, or for itself."""
        where, start = self._where, self.position
        if where.copy is not None:
            copy = where.copy
            written = self._text[place : piece.end]
            stands_for = not piece.plain or piece.opens is not None or piece.mark
            if stands_for and isinstance(copy.reader, Rows) and copy.reader.quotes(written):
                piece = Piece(piece.end, written)
            if piece.opens is None and not piece.mark:
                outcome = copy.feed(place - start, piece._replace(end=piece.end - start))
            else:
                outcome = copy.reader.mark(piece.opens)
                if outcome is None:
                    copy.end = piece.end - start
            if outcome is not None:
                self._close(copy, outcome, start)
            return
        if piece.opens is not None:
            reader = self._copy(piece.opens)
            if reader is not None:
                where.copy = _Copy(reader, piece.end - place)
                return
        written = self._text[place : piece.end]
        self.position = piece.end
        if piece.escape:
            self.edits.append(Edit(place, place + 1, ""))
            where.stood(written[1:])
        elif piece.plain:
            where.passed(written)
        else:
            self.edits.append(Edit(place, piece.end, piece.text))
            self.expanded += piece.text != ""
            where.stood(piece.text)

    def _copy(self, opens: Definition | str) -> _Reader | None:
        """What reads on behind a mark."""
        if isinstance(opens, str) and opens.startswith(LINES_TO):
            last = int(opens.removeprefix(LINES_TO))
            return None if self._bare else CopiedListing(self._meanings.numbered_lines, last)
        if isinstance(opens, str):
            return FoldedValue(opens, None)
        if isinstance(opens, Shape):
            return FoldedValue(None, opens)
        return self._rows(opens) if isinstance(opens, Template) and not self._bare else None

    def _going_on(self, block: tuple[Template, int] | CopiedListing) -> _Reader:
        """What reads the next line of a block."""
        return block.going_on() if isinstance(block, CopiedListing) else self._rows(*block)

    def _rows(self, template: Template, remaining: int = 0) -> Rows:
        above = self._where.above.get(template.number)
        lead = self._where.line[: LINE - 1] + self._where.before
        return Rows(template, self._meanings.rows(template.number), above, lead if self._where.line else "", remaining)

    def _close(self, copy: _Copy, outcome: Outcome, start: int) -> None:
        """What was being read is at its end, or is nothing after all."""
        where = self._where
        where.copy = None
        if outcome.text is None:
            self.position = start + copy.skip
            where.passed(self._text[start : self.position])
            where.block = None
            return
        stop, rest = copy.place(outcome.length)
        self.position = start + stop
        self.edits.append(Edit(start, self.position, outcome.text + rest, self._bare))
        self.expanded += outcome.text != ""
        where.stood(outcome.text + rest)
        reader = copy.reader
        if isinstance(reader, Rows):
            if reader.above is not None:
                where.above[reader.template.number] = reader.above
            where.block = (reader.template, outcome.remaining) if outcome.remaining else None
        elif isinstance(reader, CopiedListing):
            where.block = reader if outcome.remaining else None
