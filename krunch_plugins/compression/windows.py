"""Putting texts back where marks and tokens stand, in text that arrives in pieces: none missed, little held back."""

from __future__ import annotations

import copy
import json
import re
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from krunch_plugins.compression.scanner import Edit, MarkScanner, Scan, Where, has_special

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_plugins.compression.meanings import Meanings

_PAIR_BEGUN = r"\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?\Z"
"""The first half of a surrogate pair at the end of the text, the second still to come."""

_ESCAPE = r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_STRING_TEXT = re.compile(rf'(?:[^"\\]++|{_ESCAPE})*+')
_OPEN_STRING_TEXT = re.compile(rf'(?:[^"\\]++|(?!{_PAIR_BEGUN}){_ESCAPE})*+')
"""A stretch of JSON text between quotes; the second stops before half a surrogate pair at the end."""
_ESCAPE_BEGUN = re.compile(rf"{_PAIR_BEGUN}|\\(?:u[0-9a-fA-F]{{0,3}})?\Z")
_UNIT = re.compile(r"[^\\]+|\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\u(.{4})|\\(.)")
_SHORT_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class _Scanner(Protocol):
    """What finds something in a text and says what stands there instead."""

    @property
    def pairs(self) -> bool:
        """What is looked for holds characters that JSON escapes as two halves."""

    def scan(self, text: str, where: Where, *, final: bool = False, bare: bool = False) -> Scan:
        """Look at a text; see `MarkScanner.scan`."""

    def passes(self, text: str, where: Where) -> bool:
        """Whether a text stays as it is; see `MarkScanner.passes`."""


class TokenScanner:
    """Finds tokens that plugins have put into a request: leftmost first, the longest where several begin. Immutable.

    Args:
        tokens: token → text.
    """

    __slots__ = ("_begun", "_firsts", "_longest", "_token", "_tokens", "pairs")

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = {token: text for token, text in tokens.items() if token}
        self._begun = {token[:end] for token in self._tokens for end in range(1, len(token))}
        self._firsts = {token[0] for token in self._tokens}
        self._longest = max(map(len, self._tokens), default=0)
        self._token = re.compile("|".join(map(re.escape, sorted(self._tokens, key=len, reverse=True))) or r"(?!)")
        self.pairs = any(char > "\uffff" or "\ud800" <= char <= "\udfff" for token in self._tokens for char in token)
        """A token holds characters that JSON escapes as two halves."""

    def scan(self, text: str, where: Where, *, final: bool = False, bare: bool = False) -> Scan:  # noqa: ARG002 - as `MarkScanner` takes it
        """Look at a text.

        Args:
            text: what has not been decided yet, and what has come since.
            where: what went before, which does not matter here.
            final: nothing comes after `text`; everything in it is decided.
            bare: whether this is outside the strings of JSON, which does not matter either.
        """
        edits: list[Edit] = []
        position = 0
        undecided = self._undecided(text, final=final)
        while True:
            found = self._token.search(text, position)
            hold = undecided[bisect_left(undecided, position)]
            if found is None or hold <= found.start():
                return Scan(edits, hold, len(edits))
            position = found.end()
            edits.append(Edit(found.start(), position, self._tokens[found[0]]))

    def passes(self, text: str, where: Where) -> bool:  # noqa: ARG002 - as above
        """Whether a text stays as it is, whatever comes after it."""
        return self._token.search(text) is None and self._undecided(text, final=False)[0] == len(text)

    def _undecided(self, text: str, *, final: bool) -> list[int]:
        """Where a token may have begun that the text's end cuts off, in order; at last the end itself."""
        if final:
            return [len(text)]
        tail = range(max(0, len(text) - self._longest + 1), len(text))
        return [*(at for at in tail if text[at] in self._firsts and text[at:] in self._begun), len(text)]


class _Stage:
    """One scanner over one text that arrives in pieces."""

    __slots__ = ("_held", "_scanner", "_where", "expanded")

    def __init__(self, scanner: _Scanner) -> None:
        self._scanner, self._where = scanner, Where()
        self._held, self.expanded = "", 0

    def feed(self, text: str, *, final: bool = False) -> str:
        """Take more text; give back all that is decided. With `final`, all there is, ready for another text."""
        text = self._held + text
        out, stop = self._scan(text, range(len(text) + 1), text, final=final)
        self._held = text[stop:]
        return out

    def passes(self, text: str) -> bool:
        """Whether nothing is held back and a text stays as it is; if so it has gone by."""
        return not self._held and self._scanner.passes(text, self._where)

    @property
    def held(self) -> str:
        """What is not decided yet."""
        return self._held

    def again(self) -> Self:
        """The same, for another look at what is held back."""
        other = copy.copy(self)
        other._where = self._where.again()  # noqa: SLF001 - one of its own kind
        return other

    def _scan(self, raw: str, starts: Sequence[int], text: str, *, final: bool) -> tuple[str, int]:
        """Scan `text`, whose character i is spelled in `raw` from `starts[i]` on: what goes out, and where it stops."""
        scan = self._scanner.scan(text, self._where, final=final)
        if final:
            self._where = Where()
        return self._written(raw, starts, scan), starts[scan.stop]

    def _written(self, raw: str, starts: Sequence[int], scan: Scan) -> str:
        """What goes out, as it is spelled."""
        self.expanded += scan.expanded
        out: list[str] = []
        done = starts[0]
        for edit in scan.edits:
            out += raw[done : starts[edit.start]], edit.text if edit.spelled else self._spell(edit.text)
            done = starts[edit.end]
        out.append(raw[done : starts[scan.stop]])
        return "".join(out)

    def _spell(self, text: str) -> str:
        return text


class _JsonStage(_Stage):
    """The same for text that is JSON: what is scanned is what the escapes stand for, what goes out is escaped.

    Quotes end what is scanned, so nothing is held back, or found, across the end of a string. So does what is no
    escape in JSON at all. There is one thing that is found outside strings and has strings in it: a folded value.
    """

    __slots__ = ("_decoded", "_inside")

    def __init__(self, scanner: _Scanner) -> None:
        super().__init__(scanner)
        self._inside = False
        self._decoded: _Decoded | None = None

    def passes(self, text: str) -> bool:  # noqa: ARG002 - as the class it is built on
        """False: whether a text is within a string has to be read."""
        return False

    def again(self) -> Self:
        other = super().again()
        other._decoded = None  # noqa: SLF001 - one of its own kind; what is decoded is added to in place
        return other

    def feed(self, text: str, *, final: bool = False) -> str:
        raw = self._held + text
        out: list[str] = []
        position: int | None = 0
        while position is not None:
            read = (
                self._read_string if self._inside or not isinstance(self._scanner, MarkScanner) else self._read_outside
            )
            piece, position = read(raw, position, final=final)
            out.append(piece)
        if final:
            self._inside = False
        return "".join(out)

    def _read_string(self, raw: str, position: int, *, final: bool) -> tuple[str, int | None]:
        """Read on within a string: what goes out, and where to go on; None: at the end, or undecided."""
        pairs = self._scanner.pairs
        stretch = _OPEN_STRING_TEXT if pairs and not final else _STRING_TEXT
        before, self._decoded = self._decoded, None
        begun = before.end if before else position
        match = stretch.match(raw, begun)
        end = match.end() if match else begun
        cut = not final and _ESCAPE_BEGUN.match(raw, end) is not None
        decoded, starts = _decode(raw, begun, end, pairs=pairs)
        if before:
            decoded, starts = before.text + decoded, _joined(before.starts, starts)
        if end == len(raw) or cut:
            piece, stop = self._scan(raw, starts, decoded, final=final)
            self._held = raw[stop:]
            if stop == 0 and not pairs:  # all of it is held back, and may be for long: it is not decoded each time
                self._decoded = _Decoded(end, decoded, starts)
            return piece, None
        following = min(end + (1 if raw[end] == '"' else 2), len(raw))
        self._inside = raw[end] != '"'
        return self._scan(raw, starts, decoded, final=True)[0] + raw[end:following], following

    def _read_outside(self, raw: str, position: int, *, final: bool) -> tuple[str, int | None]:
        """Read on outside strings, likewise."""
        quote = raw.find('"', position)
        if quote >= 0 and self._where.copy is None and not has_special(raw, position, quote):
            scan = Scan([], quote - position, 0, quote=True)
        else:
            scan = self._scanner.scan(raw[position:], self._where, final=final, bare=True)
        piece = self._written(raw, range(position, len(raw) + 1), scan)
        stop = position + scan.stop
        if scan.quote:
            self._where, self._inside = Where(), True
            return piece + '"', stop + 1
        self._held = raw[stop:]
        if final:
            self._where = Where()
        return piece, None

    def _spell(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=False)[1:-1]


class _Decoded(NamedTuple):
    """What the beginning of a held-back text stands for, up to `end`; see `_decode`."""

    end: int
    text: str
    starts: Sequence[int]


def _joined(before: Sequence[int], after: Sequence[int]) -> Sequence[int]:
    """Where characters are spelled in two stretches of which the second begins where the first ends."""
    if isinstance(before, range) and isinstance(after, range):
        return range(before.start, after.stop)
    joined = before if isinstance(before, list) else list(before)
    joined.pop()  # the end of the first is the beginning of the second
    joined.extend(after)
    return joined


def _decode(raw: str, start: int, end: int, *, pairs: bool) -> tuple[str, Sequence[int]]:
    """What raw[start:end], the inside of a JSON string, stands for; and where in `raw` each character is spelled."""
    if "\\" not in raw[start:end]:
        return raw[start:end], range(start, end + 1)
    out: list[str] = []
    starts: list[int] = []
    for unit in _UNIT.finditer(raw, start, end):
        high, low, code, short = unit.groups()
        at = unit.start()
        if high and pairs:
            out.append(chr(0x10000 + ((int(high, 16) & 0x3FF) << 10) + (int(low, 16) & 0x3FF)))
            starts.append(at)
        elif high:
            out += chr(int(high, 16)), chr(int(low, 16))
            starts += at, at + 6
        elif code or short:
            out.append(chr(int(code, 16)) if code else _SHORT_ESCAPES.get(short, short))
            starts.append(at)
        else:
            out.append(unit[0])
            starts.extend(range(at, unit.end()))
    return "".join(out), [*starts, end]


class Window:
    """One text on its way out: marks are expanded, then substitutions undone, whatever pieces it comes in."""

    __slots__ = ("_marks", "_stages")

    def __init__(self, marks: MarkScanner | None, tokens: TokenScanner | None, *, json_text: bool) -> None:
        make = _JsonStage if json_text else _Stage
        self._marks = make(marks) if marks else None
        self._stages = [stage for stage in (self._marks, make(tokens) if tokens else None) if stage]

    @property
    def expanded(self) -> int:
        """Symbols and other marks that were expanded so far."""
        return self._marks.expanded if self._marks else 0

    @property
    def held(self) -> str:
        """What is held back, as it stands before or between the stages."""
        return "".join(stage.held for stage in reversed(self._stages))

    def feed(self, text: str) -> str:
        """Take more of the text; give back what is decided by now."""
        for stage in self._stages:
            text = stage.feed(text)
        return text

    def passes(self, text: str) -> bool:
        """Whether nothing is held back and `feed` would give back `text` itself; if so, that has been fed.

        Much cheaper than `feed` where nothing has to be expanded, as in most of what a model writes.
        """
        # The tokens' stage first: it remembers nothing, so that nothing has happened where the other one says no.
        return all(stage.passes(text) for stage in reversed(self._stages))

    def end(self) -> str:
        """The text is at its end: what was held back. The window can then be used for another text."""
        return _end(self._stages)

    def rest(self) -> str:
        """What `end` would give back; changes nothing."""
        return _end([stage.again() for stage in self._stages])


def _end(stages: Sequence[_Stage]) -> str:
    text = ""
    for stage in stages:
        text = stage.feed(text, final=True)
    return text


class Windows:
    """Makes windows for one reply; what they look for is prepared once. Immutable.

    Args:
        meanings: what the marks of the request stand for; None: it has none.
        substitutions: token → the text it stands for; looked for in what the marks were expanded to.
    """

    __slots__ = ("_marks", "_tokens")

    def __init__(self, meanings: Meanings | None, substitutions: Mapping[str, str]) -> None:
        self._marks = MarkScanner(meanings) if meanings else None
        self._tokens = TokenScanner(substitutions) if substitutions else None

    def open(self, *, json_text: bool = False) -> Window:
        """A fresh window, for plain text or for JSON text."""
        return Window(self._marks, self._tokens, json_text=json_text)
