"""The pieces that a reply's text is read in: plain text, symbols, escapes, references, what opens something longer."""

from __future__ import annotations

import re
from string import digits as DIGITS  # noqa: N812 - a constant
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression import legend
from krunch_plugins.compression.json_styles import STYLES
from krunch_plugins.compression.line_numbers import LINES_TO
from krunch_plugins.compression.phrases import Phrase
from krunch_plugins.compression.segments import LETTERS, MARK
from krunch_plugins.compression.shapes import Shape

if TYPE_CHECKING:
    from krunch_plugins.compression.dictionary import Definition
    from krunch_plugins.compression.meanings import Meanings
    from krunch_plugins.compression.scanner import Where

_MARKS = re.compile(f"{MARK}+")
SPECIAL = re.compile(rf"{MARK}+|[{LETTERS}]+")
_NUMBER = re.compile("[0-9]+")  # not \d, which takes the digits of every script
_LETTERS = re.compile(f"[{LETTERS}]+")
_STYLE = re.compile(rf"\{{([a-z0-9]+|{LINES_TO}[1-9][0-9]{{0,8}})\}}")
_STYLE_BEGUN = re.compile(r"\{[a-z0-9 ]{0,20}\Z")

_LONGEST_REFERENCE = 256
"""Characters. The encoder's are under 100; a model may have written more spaces."""


class Piece(NamedTuple):
    """A piece of text, up to `end`, that is read at once.

    Attributes:
        end: where it ends.
        text: what it stands for.
        plain: that is how it is written.
        escape: it is an escaped literal; all but its first mark stays.
        opens: the definition, or what is said in curly brackets, whose mark it is: more belongs to it.
        mark: it is a mark of its own, a reference.
    """

    end: int
    text: str
    plain: bool = True
    escape: bool = False
    opens: Definition | str | None = None
    mark: bool = False


class PieceReader:
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
        if open_end and (
            definition is not None
            or self._meanings.begins(number)
            or (marks and self._meanings.begins_literal(MARK * (marks + 1) + number))
        ):
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
        if self._meanings.writes(MARK * (marks + 1) + behind):
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
        """A style of a value, or a run of lines, if the request has such: the value or the lines stand behind it."""
        style = _STYLE.match(self._text, at + 1)
        if style is None:
            begun = not self._final and _STYLE_BEGUN.match(self._text, at + 1)
            return None if begun else self._plain(at, at + 2)
        known = style[1] in STYLES or style[1].startswith(LINES_TO)
        opens = style[1] if known and self._meanings.writes(MARK + style[0]) else None
        return Piece(style.end(), self._text[at : style.end()], opens=opens)

    def _instruction(self, at: int, *, begun: bool) -> Piece | None:
        """A sentence that explains the notation: it is no part of the text that it stands in front of."""
        for kind in sorted(self._meanings.told):
            sentence = legend.INSTRUCTIONS[kind]
            if self._text.startswith(sentence, at):
                # In a text that talks about such requests it may stand anywhere.
                if begun and self._meanings.quotes(sentence):
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
            found = SPECIAL.search(text, at)
            start = found.start() if found else len(text)
            if not left.startswith(text[at:start]):
                return -1
            left = left[start - at :]
            if found is None:
                return -1 if self._final else None
            if not left and text[start] == MARK:
                return self._closing(start)
            part = self._part(start, found[0], len(value))
            if part is None:
                return None
            at, meaning = part
            if not left.startswith(meaning):
                return -1
            left = left[len(meaning) :]

    def _closing(self, at: int) -> int | None:
        """Where a definition ends whose text is followed by the mark at a place; as `_definition`.

        It goes on with that mark where a symbol or a definition begins there, for the encoder ends none in front of a
        digit or a letter: in `¤1=text¤2` the text is a literal behind a symbol and an equals sign.
        """
        text, end = self._text, at + 1
        number = _NUMBER.match(text, end)
        if (end if number is None else number.end()) == len(text) and not self._final:
            return None
        if number is None:
            return -1 if _LETTERS.match(text, end) else end
        return end if self._meanings.get(MARK + number[0]) is None else -1

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
