"""Finds what a reply has of its request's marks, in text that arrives in pieces, and what each stands for.

The rules are those by which `legend` reads a request, with two differences. Nothing that a reply writes defines
anything. And where the request would be wrong, a reply is just text: what stands for nothing stays as it is.
"""

from __future__ import annotations

import re
from string import digits as DIGITS  # noqa: N812 - a constant
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression import legend
from krunch_plugins.compression.copied import FoldedValue, Outcome, Rows
from krunch_plugins.compression.json_styles import STYLES
from krunch_plugins.compression.meanings import LINE, Lines
from krunch_plugins.compression.phrases import Phrase
from krunch_plugins.compression.segments import LETTERS, MARK
from krunch_plugins.compression.shapes import Shape
from krunch_plugins.compression.templates import Template

if TYPE_CHECKING:
    from krunch_plugins.compression.dictionary import Definition
    from krunch_plugins.compression.meanings import Meanings, Values

_MARKS = re.compile(f"{MARK}+")
_SPECIAL = re.compile(rf"{MARK}+|[{LETTERS}]+")
_SPECIAL_OR_QUOTE = re.compile(rf'{MARK}+|[{LETTERS}]+|"')
_NUMBER = re.compile("[0-9]+")  # not \d, which takes the digits of every script
_LETTERS = re.compile(f"[{LETTERS}]+")
_STYLE = re.compile(r"\{([a-z0-9]+)\}")
_STYLE_BEGUN = re.compile(r"\{[a-z0-9]{0,12}\Z")

_LONGEST_REFERENCE = 256
"""Characters. The encoder's are under 100; a model may have written more spaces."""


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


class Piece(NamedTuple):
    """A piece of text, up to `end`, that is read at once.

    Attributes:
        end: where it ends.
        text: what it stands for.
        plain: that is how it is written.
        escape: it is an escaped literal; all but its first mark stays.
        opens: the definition, or the name of a style, whose mark it is: more belongs to it.
        mark: it is a mark of its own, a reference.
    """

    end: int
    text: str
    plain: bool = True
    escape: bool = False
    opens: Definition | str | None = None
    mark: bool = False


class Where(Lines):
    """What a scanner remembers of a text between one look and the next. Belongs to one text.

    Attributes:
        before: the character in front, as it was written; "" behind what was expanded.
        marks: how many marks stand right in front, as they were written.
        above: by template, the values of the last row.
        block: the template whose rows may go on at the next line, and how many of them.
        copy: what is being read; None: nothing.
    """

    __slots__ = ("above", "before", "block", "copy", "marks")

    def __init__(self) -> None:
        super().__init__()
        self.before = ""
        self.marks = 0
        self.above: dict[int, Values] = {}
        self.block: tuple[Template, int] | None = None
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

    def __init__(self, reader: FoldedValue | Rows, skip: int) -> None:
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
    return _SPECIAL.search(text, start, stop) is not None


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
        if not bare and where.copy is None and where.block is None and not _SPECIAL.search(text):
            where.passed(text)
            return Scan([], len(text), 0)
        look = _Look(self._meanings, text, where, final=final, bare=bare)
        look.run()
        return Scan(look.edits, look.position, look.expanded, look.quote)


class _Look:
    """One look at a text, from left to right."""

    __slots__ = ("_bare", "_final", "_meanings", "_reader", "_text", "_where", "edits", "expanded", "position", "quote")

    def __init__(self, meanings: Meanings, text: str, where: Where, *, final: bool, bare: bool) -> None:
        self._meanings, self._text, self._where = meanings, text, where
        self._final, self._bare = final, bare
        self._reader = _PieceReader(meanings, text, final=final)
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
                if where.block and not where.line and not self._bare:
                    template, remaining = where.block
                    copy = where.copy = _Copy(self._rows(template, remaining), 0)
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
        found = (_SPECIAL_OR_QUOTE if self._bare else _SPECIAL).search(self._text, place)
        stop = found.start() if found else len(self._text)
        if self._bare and found and found[0] == '"' and where.copy is not None:
            found = _SPECIAL.search(self._text, place)
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

    def _copy(self, opens: Definition | str) -> FoldedValue | Rows | None:
        """What reads on behind a mark."""
        if isinstance(opens, str):
            return FoldedValue(opens, None)
        if isinstance(opens, Shape):
            return FoldedValue(None, opens)
        return self._rows(opens) if isinstance(opens, Template) and not self._bare else None

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


class _PieceReader:
    """Reads the pieces of a text that are more than plain text."""

    __slots__ = ("_final", "_meanings", "_text")

    def __init__(self, meanings: Meanings, text: str, *, final: bool) -> None:
        self._meanings, self._text, self._final = meanings, text, final

    def special(self, at: int, near: Where, where: Where) -> Piece | None:
        """The piece at a place where marks or letters stand; None if it is undecided.

        Args:
            at: the place.
            near: what stands in front of it.
            where: the same, or what stands in front of the value or row that it is part of.
        """
        text = self._text
        if text[at] != MARK:
            return self._letters(at, near.before)
        run = _MARKS.match(text, at)
        assert run is not None
        behind = text[run.end() : run.end() + 1]
        if len(run[0]) > 1:
            return self._plain(at, run.end() - 1)
        if not behind:
            return self._plain(at, at + 1) if self._final else None
        if behind in DIGITS:
            return self._number(at, near.marks)
        if behind in LETTERS:
            return self._marked_letter(at, near.marks)
        return self._sign(at, behind, near.marks, where)

    def _sign(self, at: int, sign: str, marks: int, where: Where) -> Piece | None:
        """The piece at a mark with no name behind it."""
        if marks and sign in ("[", "{"):
            return self._escaped(at, marks, sign)
        if sign == "[":
            return self._reference(at, where.line_above if not where.line else "")
        if sign == "{":
            return self._style(at)
        if sign == "N" and not marks and not where.line and where.copy is None:
            return self._instruction(at, begun=where.begun)
        return self._plain(at, at + 1)

    def _plain(self, at: int, end: int) -> Piece:
        return Piece(end, self._text[at:end])

    def _letters(self, at: int, before: str) -> Piece | None:
        """A letter by itself may be a symbol; letters that stand together are none."""
        run = _LETTERS.match(self._text, at)
        assert run is not None
        if len(run[0]) > 1 or (before and before in LETTERS):
            return self._plain(at, run.end())
        definition = self._meanings.get(run[0])
        if definition is None:
            # What follows cannot make it one, and what it makes of what follows does not matter to what stays anyway.
            return self._plain(at, run.end())
        if run.end() == len(self._text) and not self._final:
            return None
        return Piece(run.end(), definition.text, plain=False) if isinstance(definition, Phrase) else None

    def _marked_letter(self, at: int, marks: int) -> Piece | None:
        """A letter behind a mark: itself, or the beginning of its definition."""
        run = _LETTERS.match(self._text, at + 1)
        assert run is not None
        end = run.end()
        if end == len(self._text) and not self._final:
            return None
        definition = self._meanings.get(run[0]) if len(run[0]) == 1 else None
        if isinstance(definition, Phrase):
            quoted = -1 if marks else self._definition(end, definition.text)
            if quoted is None:
                return None
            if quoted >= 0:
                return Piece(quoted, definition.text, plain=False)
            return Piece(end, run[0], plain=False, escape=True)
        if marks and len(run[0]) == 1 and self._text.startswith("=", end):
            return self._escaped(at, marks, run[0] + "=")
        return self._plain(at, end)

    def _number(self, at: int, marks: int) -> Piece | None:
        """A number behind a mark: a symbol, the beginning of a value, of a row or of a definition, or a literal."""
        digits = _NUMBER.match(self._text, at + 1)
        assert digits is not None
        end, number = digits.end(), digits[0]
        definition = self._meanings.get(MARK + number)
        open_end = end == len(self._text) and not self._final
        if open_end and (definition is not None or marks or self._meanings.begins(number)):
            return None
        behind = self._text[end : end + 1]
        if definition is None:
            literal = marks and behind in ("=", "{", "[")
            return self._escaped(at, marks, number + behind) if literal else self._plain(at, end)
        if marks:
            return Piece(end, number, plain=False, escape=True)
        if isinstance(definition, Phrase):
            return self._phrase(end, definition)
        opens = behind in ("(", "[", "{") if isinstance(definition, Shape) else behind in (definition.separator, "*")
        return Piece(end, self._text[at:end], opens=definition if opens and behind else None)

    def _phrase(self, end: int, phrase: Phrase) -> Piece | None:
        """A symbol whose name ends here, or the definition that it begins."""
        quoted = self._definition(end, phrase.text)
        return None if quoted is None else Piece(end if quoted < 0 else quoted, phrase.text, plain=False)

    def _escaped(self, at: int, marks: int, behind: str) -> Piece:
        """A mark with others in front of it and something behind it: an escaped literal, if the request has it so."""
        end = at + 1 + len(behind)
        if self._meanings.holds(f"(?<!{MARK}){MARK * (marks + 1)}{re.escape(behind)}"):
            return Piece(end, behind, plain=False, escape=True)
        return self._plain(at, end)

    def _reference(self, at: int, above: str) -> Piece | None:
        """A reference to earlier lines: the longest that the request has."""
        text, meanings = self._text, self._meanings
        stops = [stop for stop in (text.find("\n", at), text.find(MARK, at + 1)) if stop >= 0]
        limit = min([*stops, at + _LONGEST_REFERENCE, len(text)])
        if limit == len(text) and not self._final and meanings.begins_reference(text[at:limit]):
            return None
        end = text.rfind("]", at, limit) + 1
        while end > at and not meanings.is_reference(text[at:end]):
            end = text.rfind("]", at, end - 1) + 1
        lines = meanings.reference(text[at:end], above) if end > at else None
        if lines is None:
            return self._plain(at, max(end, at + 2))
        return Piece(end, lines, plain=False, mark=True)

    def _style(self, at: int) -> Piece | None:
        """The style of a value. Behind it the value may be of a shape, or stand for itself if the request has such."""
        style = _STYLE.match(self._text, at + 1)
        if style is None:
            begun = not self._final and _STYLE_BEGUN.match(self._text, at + 1)
            return None if begun else self._plain(at, at + 2)
        opens = style[1] if style[1] in STYLES and self._meanings.holds(re.escape(MARK + style[0])) else None
        return Piece(style.end(), self._text[at : style.end()], opens=opens)

    def _instruction(self, at: int, *, begun: bool) -> Piece | None:
        """A sentence that explains the notation: it is no part of the text that it stands in front of."""
        for kind in sorted(self._meanings.told):
            sentence = legend.INSTRUCTIONS[kind]
            if self._text.startswith(sentence, at):
                # In a text that talks about such requests it may stand anywhere.
                if begun and self._meanings.holds(rf"(?<!\A)(?<!\.\n){re.escape(sentence)}"):
                    break
                return Piece(at + len(sentence), "", plain=False)
            if not self._final and sentence.startswith(self._text[at:]):
                return None
        return self._plain(at, at + 1)

    def _definition(self, at: int, value: str) -> int | None:
        """Where a quoted definition ends whose name ends at `at`: `=`, its text, a mark.

        None if it is undecided, -1 if there is none. Symbols of shorter texts may stand for parts of its text; no
        others, so that the depth is bounded whatever a reply holds.
        """
        text, left = self._text, value
        if not text.startswith("=", at):
            return -1 if at < len(text) or self._final else None
        at += 1
        while True:
            found = _SPECIAL.search(text, at)
            start = found.start() if found else len(text)
            if not left.startswith(text[at:start]):
                return -1
            left = left[start - at :]
            if found is None:
                return -1 if self._final else None
            if not left and text[start] == MARK:
                return start + 1
            part = self._part(start, found[0], len(value))
            if part is None:
                return None
            at, meaning = part
            if not left.startswith(meaning):
                return -1
            left = left[len(meaning) :]

    def _part(self, at: int, run: str, limit: int) -> tuple[int, str] | None:
        """Where the symbol or literal in a definition ends that begins at a place, and what it stands for."""
        text = self._text
        key, end = run, at + len(run)
        if run[0] == MARK:
            name = _NUMBER.match(text, at + 1) or _LETTERS.match(text, at + 1)
            end = name.end() if name else at + 1
            key = text[at:end] if text[at + 1 : end].isascii() else text[at + 1 : end]
        if end == len(text) and not self._final:
            return None
        definition = self._meanings.get(key)
        if not isinstance(definition, Phrase) or len(definition.text) >= limit:
            return end, text[at:end]
        if run[0] == MARK:
            quoted = self._definition(end, definition.text)
            if quoted is None:
                return None
            if quoted >= 0:
                return quoted, definition.text
            if key in LETTERS:  # escaped
                return end, key
        return end, definition.text
