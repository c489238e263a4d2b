"""Numbers in front of lines, as tools print them: a run that counts up keeps its first number and each tenth.

    ¤{lines to 433}12	def area(shape):
        if shape.kind == "circle":
    ...
    20	    return width * height

The mark says the last number of the run; how numbers are aligned, and what stands behind them, shows at the first. No
reader has to count further than nine lines. On 36 conversations of coding agents, most of which print files so, that
saves 7 points more in the profile "balanced" and 5 in "dense".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression.segments import MARK, Listing, Mark, Segment, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EACH = 10
"""Lines from one number that is kept to the next."""

MIN_LINES = 6
"""Shorter runs cannot save what the mark costs."""

SURE = 16
"""Lines. Longer runs are not counted by themselves: a number is a token at least, and the mark is not ten."""

LINES_TO = "lines to "

LARGEST = 999_999_999
"""Larger numbers are none of lines."""

_MARK = re.compile(rf"{MARK}\{{{LINES_TO}([1-9][0-9]{{0,8}})\}}")
_HEAD = re.compile(r"( {0,12})(0|[1-9][0-9]{0,8})( ?[|│]|[:\t→])")
_HEAD_BEGUN = re.compile(r" {0,12}[0-9]{0,9} ?\Z")
_BEFORE_HEAD = frozenset(" 0123456789")


class Numbering(NamedTuple):
    """How the lines of a run are numbered.

    Attributes:
        width: to how many characters numbers are aligned on the right; 0: not at all.
        separator: what stands behind them.
    """

    width: int
    separator: str

    def prefix(self, number: int) -> str:
        """What stands in front of the line with a number."""
        return str(number).rjust(self.width) + self.separator


def first_number(line: str) -> tuple[int, Numbering] | None:
    """The number of the first line of a run, and how it is written; None if it has none."""
    head = _HEAD.match(line) if line[:1] in _BEFORE_HEAD else None
    if head is None:
        return None
    return int(head[2]), Numbering(len(head[1]) + len(head[2]) if head[1] else 0, head[3])


def may_begin(text: str) -> bool:
    """Whether a text that is no numbered line may become one when more of it is there."""
    return _HEAD_BEGUN.match(text) is not None


def is_kept(number: int) -> bool:
    """Whether a line in a run, not its first, keeps its number."""
    return number % EACH == 0


def drop(segments: list[Segment], count: Callable[[str], int]) -> list[Segment]:
    """Leave out numbers that count up.

    Args:
        segments: a text. Its marks stay where they are, and a line that one of them is part of is not a line.
        count: real tokens of a string.

    Returns:
        The segments, with a mark and a `Listing` in the place of each run.
    """
    out: list[Segment] = []
    for index, segment in enumerate(segments):
        if isinstance(segment, Mark) or segment.count("\n") < MIN_LINES - 1:
            out.append(segment)
            continue
        lines = segment.split("\n")
        stop = len(lines) - (index + 1 < len(segments))
        done, behind = 0, ""
        for start, end, number, numbering in _runs(lines, 1 if index else 0, stop):
            listing = _without(lines[start:end], number, numbering)
            mark = Mark(f"{MARK}{{{LINES_TO}{number + end - start - 1}}}")
            if end - start < SURE and count(mark + listing) >= count("\n".join(lines[start:end])):
                continue
            out += [behind + "".join(f"{line}\n" for line in lines[done:start]), mark, listing]
            done, behind = end, "\n" * (end < len(lines))
        out.append(behind + "\n".join(lines[done:]))
    return merge(out)


def give_back(segments: list[Segment]) -> list[Segment]:
    """Undo `drop`.

    Args:
        segments: what `drop` returned, listings and the literals behind them joined. What is no run stays as it is.

    Returns:
        The segments that `drop` was given, merged.
    """
    out: list[Segment] = []
    runs = [index for index, segment in enumerate(segments) if isinstance(segment, Mark) and _MARK.fullmatch(segment)]
    done = 0
    for index in runs:
        text = segments[index + 1] if index + 1 < len(segments) else MARK
        lines = None if isinstance(text, Mark) else _numbered(text, segments[index])
        if lines is not None:
            out += [*segments[done:index], lines]
            done = index + 2
    return merge([*out, *segments[done:]]) if out else segments


def _runs(lines: list[str], start: int, stop: int) -> Iterator[tuple[int, int, int, Numbering]]:
    """Where runs begin and end, their first number, and how they are numbered."""
    at = start
    while at + MIN_LINES <= stop:
        found = first_number(lines[at])
        if found is None:
            at += 1
            continue
        number, numbering = found
        begin = at
        at += 1
        while at < stop and lines[at].startswith(prefix := numbering.prefix(number + at - begin)):
            if lines[at].startswith(prefix, len(prefix)):  # without its number it would look as if it had kept it
                break
            if number + at - begin > LARGEST:
                break
            at += 1
        if at - begin >= MIN_LINES:
            yield begin, at, number, numbering


def _without(lines: list[str], number: int, numbering: Numbering) -> Listing:
    """The lines of a run without the numbers that are left out."""
    kept = [
        line if at == number or is_kept(at) else line.removeprefix(numbering.prefix(at))
        for at, line in enumerate(lines, number)
    ]
    return Listing("\n".join(kept))


def _numbered(text: str, mark: str) -> str | None:
    """The text behind a mark with all the numbers of the run that it begins with; None if it begins with none."""
    found, told = first_number(text), _MARK.fullmatch(mark)
    assert told is not None
    if found is None:
        return None
    number, numbering = found
    size = int(told[1]) - number + 1
    lines = text.split("\n", size) if 1 < size <= text.count("\n") + 1 else []
    if not lines:
        return None
    for at in range(1, size):
        prefix = numbering.prefix(number + at)
        if not is_kept(number + at):
            lines[at] = prefix + lines[at]
        elif not lines[at].startswith(prefix):
            return None
    return "\n".join(lines)
