"""A text on its way through the stages: literal text, and marks that stand for something."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK = "¤"
"""Opens every mark. The generic currency sign: one token in cl100k and o200k, and no living text has it before a
digit."""


class Mark(str):
    """A piece of wire text that is no literal: exactly what is sent, beginning with `MARK`.

    Which kinds there are, and how each looks, is said in `legend`.
    """

    __slots__ = ()


class Symbol(str):
    """The name of an entry where it stands for the entry's text."""

    __slots__ = ()


class Listing(str):
    """Literal text that only the last stage, phrases, may take apart."""

    __slots__ = ()


Segment = str | Mark
"""Literal text (a plain `str` or a `Listing`, never escaped) or a `Mark`."""


_SCRIPTS = (
    range(0x10D0, 0x10F1),  # Georgian
    range(0x561, 0x588),  # Armenian, small and capital
    range(0x531, 0x557),
    range(0xD80, 0xE00),  # Sinhala, with the signs that are written on letters
    range(0xB00, 0xB80),  # Odia
    range(0x1780, 0x17D4),  # Khmer
)

LETTERS = "".join(chr(letter) for script in _SCRIPTS for letter in script)
"""Names of one token in o200k, for the dense profile, are among these letters; the first are taken first.

A letter is a symbol only where no other of these stands beside it, so the words of these languages are never symbols.
Signs that are no letters would be, and answers use them: bullets, arrows, circled digits. A letter that stands
anywhere in a conversation so far is not used. With Georgian and Armenian alone, 103 names, the longest conversations
of coding agents ran out of them: 0.7 points over all.
"""


def numbered(number: int) -> str:
    """The name of an entry with a number: `¤12`."""
    return f"{MARK}{number}"


def opening(name: str) -> str:
    """Begins the text that an entry is defined by: `¤12=`."""
    return f"{name}=" if name.startswith(MARK) else f"{MARK}{name}="


CLOSE = MARK
"""Ends the text that a symbol is defined by."""


def merge(segments: Iterable[Segment]) -> list[Segment]:
    """The same with empty literals dropped and neighbouring literals joined, but for listings."""
    out: list[Segment] = []
    literal: list[str] = []
    for segment in segments:
        if isinstance(segment, Mark | Listing):
            if literal:
                out.append("".join(literal))
                literal = []
            out.append(segment)
        elif segment:
            literal.append(segment)
    if literal:
        out.append("".join(literal))
    return out
