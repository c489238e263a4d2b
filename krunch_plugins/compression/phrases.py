"""Stage 4: the dictionary. Cuts texts into atoms and applies known phrases; `phrase_mining` finds new ones.

Atoms are the smallest pieces that a symbol may stand for; what an atom is, is the profile.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression.segments import CLOSE, LETTERS, MARK, Mark, Symbol, opening

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_plugins.settings import Profile

_WORD = (
    r"[0-9A-Za-z_\u00aa\u00ad\u00b2\u00b3\u00b5\u00b9\u00ba\u00bc-\u00be\u00c0-\u1fff\u200b-\u200d\u2060-\u218f"
    r"\u2300-\u24ff\u25a0-\u2fff\u3005-\u3007\u3021-\u302f\u3031-\ufeff\uff10-\U0010ffff]"
)
# What joins words into one: names, dates, numbers, e-mail addresses. A colon, comma, slash or plus joins digits only,
# but for the plus of 1e+16, 1.2.3-rc.1+build.5, 1.0.0-alpha+001 and mia+work@example.com, the slashes of 31/Jan/2024,
# the colons of fe80::1 and aa:bb:cc, and the narrow spaces of 1 000 000.
_JOINTS = (
    r"(?<=\d)-[\w.-]{1,64}\+(?=[0-9A-Za-z_][\w.-]*+(?![(\[]))",
    r"[-.@'\u2019]+",
    r"(?<=\d)[,:/+](?=\d)",  # of every script: people write times in their own digits
    r"(?<=[0-9.][eE])\+(?=[0-9])",  # numpy writes 1.e+16
    r"(?<=[0-9])\+(?=[A-Za-z][0-9A-Za-z.-]*(?![0-9A-Za-z.(\[-]))",
    r"\+(?=[\w.%+-]{1,64}@)",
    r"(?<=[0-9])/(?=[A-Z][a-z][a-z]/[0-9]{4})",
    r"(?<=[0-9]/[A-Z][a-z][a-z])/(?=[0-9]{4})",
    r"(?<=[0-9A-Fa-f]):{1,2}(?=[0-9A-Fa-f]{1,4}(?![0-9A-Za-z_]))",
    r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))",
)
# Lookaheads for single characters spare most places the alternatives behind them: a third of the time.
_VALUE = rf"{_WORD}+(?:(?=[-.@'\u2019,:/+\u00a0\u2009\u202f])(?:{'|'.join(_JOINTS)}){_WORD}+)*"
# A time of day belongs to the date in front of it, also behind a space. Templates alone may tell the two apart.
_DATE_AND_TIME = r"(?<=\d{4}-\d\d-\d\d) (?=\d\d:\d\d)"
_WITH_TIME = rf"(?:{_DATE_AND_TIME}{_VALUE})?"
_SIGNED = rf"(?=[-+\u2212.])(?<![0-9A-Za-z_)\]])(?:[-+\u2212]\.?|\.)(?=\d){_VALUE}"
# A literal mark goes with what makes it one, and with the rest of a value that begins with its number.
_MARKS = rf"{MARK}+(?:[0-9]*[={{\[]|{_VALUE})?"
# A rule such as ======== is one thing.
_RULES = rf"(?=[-=*#~.+/<>|]{{4}})(?:{'|'.join(re.escape(char) + '{4,}' for char in '=-*#~.+/<>|')})"
_REST = rf"{_RULES}|\n| +(?= )|\t+|[^\n]"
_STRING = rf'"(?:[^"\\\n{MARK}]|\\.){{0,200}}+"'
_WHOLE = rf' ?(?:[^\s{MARK}()\[\]{{}}<>"=,;]|(?<=\d)[,\u00a0\u2009\u202f](?=\d)|{_DATE_AND_TIME})+'

ATOMS = {
    "balanced": re.compile(rf" ?(?:{_VALUE}|{_SIGNED}){_WITH_TIME}|{_MARKS}|{_REST}"),
    "safe": re.compile(rf"{_STRING}|{_WHOLE}|{_MARKS}|{_REST}"),
    "dense": re.compile(rf" ?[A-Za-z]+|[0-9]+|{MARK}+(?:[0-9]+[={{\[]?|[{{\[])?|{_REST}"),
}
"""What a symbol may stand for at the least, by profile. Every text is the concatenation of its atoms.

In "safe", a quoted string is one value up to 200 characters; a longer one is prose, and its words are values.
"""

FIELDS = re.compile(rf"{_VALUE}|{_SIGNED}|{_MARKS}|{_REST}")
"""The atoms of "balanced" without the space in front of words."""

SYMBOL_TOKENS = 2
"""What a symbol costs: the mark and the number."""

DEFINITION_TOKENS = 4
"""What a definition costs beyond its text, which stands there anyway: the mark, the number, the equals sign, a mark."""


OPENING = frozenset(MARK + LETTERS)
"""Characters at the end of an atom behind which no symbol can stand."""

CLOSING = OPENING | frozenset("0123456789")
"""Characters at the beginning of an atom in front of which a symbol may not be able to stand: see `is_closed`."""


class Phrase(NamedTuple):
    """An entry of the dictionary: its symbol, its text, and the atoms that the text was cut into."""

    name: str
    text: str
    atoms: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Which kind of definition this is."""
        return "phrase"


class Piece(NamedTuple):
    """Atoms `start` to `stop` of a text are replaced by the symbol `name`, or define it where they stand."""

    start: int
    stop: int
    name: str
    defines: bool = False


class PhraseIndex:
    """The phrases known so far, found by their first two atoms. Grows only."""

    __slots__ = ("_by_start",)

    def __init__(self) -> None:
        self._by_start: dict[tuple[str, ...], list[Phrase]] = {}

    def add(self, phrase: Phrase) -> None:
        """Add an entry; its name must be new."""
        same = self._by_start.setdefault(phrase.atoms[:2], [])
        same.append(phrase)
        same.sort(key=lambda other: -len(other.atoms))

    def find(self, atoms: Sequence[str], *, apart: bool) -> list[Piece]:
        """Occurrences of known phrases, the longest at each place, from left to right, without overlap.

        Args:
            atoms: a text, cut.
            apart: as in `Mining`.
        """
        if not self._by_start:
            return []
        pieces: list[Piece] = []
        free_from = 0
        between = int(apart)
        by_start = self._by_start
        for start, pair in [(start, pair) for start, pair in enumerate(pairwise(atoms)) if pair in by_start]:
            if start < free_from or (start and is_open(atoms[start - 1])):
                continue
            for phrase in by_start[pair]:
                stop = start + len(phrase.atoms)
                if tuple(atoms[start:stop]) == phrase.atoms and not (stop < len(atoms) and is_closed(atoms[stop])):
                    pieces.append(Piece(start, stop, phrase.name))
                    free_from = stop + between
                    break
        return pieces


def cut(text: str, profile: Profile) -> list[str]:
    """The atoms of a text; joined they are the text."""
    return ATOMS[profile].findall(text)


def join(atoms: Sequence[str], pieces: Sequence[Piece]) -> list[str]:
    """The atoms with each piece replaced by its symbol, which is one atom of the result, or made its definition."""
    out: list[str] = []
    at = 0
    for piece in pieces:
        out.extend(atoms[at : piece.start])
        if piece.defines:
            out += (Mark(opening(piece.name)), *atoms[piece.start : piece.stop], Mark(CLOSE))
        else:
            out.append(Symbol(piece.name))
        at = piece.stop
    out.extend(atoms[at:])
    return out


def is_open(atom: str) -> bool:
    """Whether no symbol can stand right behind this atom: a mark, or a letter of those that may be symbols."""
    return atom[-1] in OPENING or isinstance(atom, Mark)


def is_closed(atom: str) -> bool:
    """Whether no symbol can stand right in front of this atom: a digit, a letter as above, a reference on its line."""
    return "0" <= atom[0] <= "9" or atom[0] in LETTERS or (isinstance(atom, Mark) and atom[1:2] == "[")
