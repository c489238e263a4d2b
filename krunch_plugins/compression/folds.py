"""Stage 1: JSON in a text is sent without what can be told from the rest: spacing, most quotes, keys said before.

JSON is looked for anywhere: a whole text, a fenced block, a line, part of a line. It is folded only if it is written
exactly as a common serializer writes it, so that the same bytes can be written again. A folded value is a mark or two
and the value in the short notation of `notation`, which ends with its last bracket:

    ¤7{id:7 name:Ann}        a value that defines shape 7, written as `json.dumps` does by default
    ¤7(8 "Bob Ray")          a value of shape 7: the keys of before, in the spacing of before
    ¤{json2}¤7(9 Cy)         a value of shape 7, but indented by 2
    ¤{json}{id:7 name:Ann}   a value that defines no shape, written without spaces
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from krunch_plugins.compression.json_styles import DEFAULT, STYLES, Found, NotFoldableError, find_json, serialize
from krunch_plugins.compression.notation import Writer, read, resolve
from krunch_plugins.compression.segments import MARK, Listing, Mark, Segment, merge, numbered
from krunch_plugins.compression.shapes import Place, ShapeBook, define, form_of, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIN_GAIN = 3
"""Tokens that a value must save to be folded for its own sake. One that has or defines a shape need only be smaller."""

_Shape = tuple[int, tuple[str, ...]]


_STYLE_MARK = re.compile(MARK + r"\{([a-z0-9]+)\}")
_NUMBER_MARK = re.compile(MARK + "([1-9][0-9]*)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_OVER_LINES = re.compile(r'[{\[]\n[ \t]*["{\[]')


def fold(
    segments: list[Segment],
    shapes: ShapeBook,
    numbers: Iterator[int] | None,
    count: Callable[[str], int],
    *,
    ditto: bool = False,
) -> tuple[list[Segment], list[_Shape]]:
    """Fold the JSON in the literals of a text.

    Args:
        segments: the text. Its marks stay where they are; none of them may be a number or a style.
        shapes: those that are defined before this text. Not changed.
        numbers: fresh ones, for shapes that the text defines; None: it may define none.
        count: real tokens of a string.
        ditto: values that repeat the object before them may be replaced by a sign: smaller, and harder to read.

    Returns:
        The new segments, and the shapes that they define, for `shapes` once the text is sent.
    """
    out: list[Segment] = []
    folder = _Folder(shapes, numbers, count, Writer(ditto=ditto))
    for segment in segments:
        if isinstance(segment, Mark | Listing):
            out.append(segment)
        else:
            out += folder.fold(segment)
    return merge(out), folder.defined


def spans_lines(text: str) -> bool:
    """Whether a text holds JSON that could be folded and is written over several lines."""
    if _OVER_LINES.search(text) is None:  # fast, and so in nearly all texts
        return False
    return any(text.find("\n", found.start, found.end) >= 0 for found in find_json(text))


def unfold(segments: list[Segment], shapes: ShapeBook) -> tuple[list[Segment], list[_Shape]]:
    """Undo `fold`.

    Args:
        segments: what `fold` returned, neighbouring literals joined or not. What is no folded value stays as it is.
        shapes: those that are defined before this text. Not changed.

    Returns:
        The segments that `fold` was given, merged, and the shapes that the text defines.
    """
    return _Unfolder(shapes).unfold(merge(segments))


class _Known:
    """The shapes before a text, and those that the text itself defines."""

    __slots__ = ("_new", "_shapes", "defined")

    def __init__(self, shapes: ShapeBook) -> None:
        self._shapes, self._new = shapes, ShapeBook()
        self.defined: list[_Shape] = []

    def define(self, number: int, keys: tuple[str, ...]) -> None:
        self._new.add(number, keys)
        self.defined.append((number, keys))

    def keys(self, number: int) -> tuple[str, ...] | None:
        return self._shapes.keys(number) or self._new.keys(number)

    def number(self, form: str) -> int | None:
        found = self._shapes.number(form)
        return self._new.number(form) if found is None else found


class _Folder:
    """Folds one text, literal by literal."""

    __slots__ = ("_count", "_known", "_numbers", "_writer")

    def __init__(
        self, shapes: ShapeBook, numbers: Iterator[int] | None, count: Callable[[str], int], writer: Writer
    ) -> None:
        self._known, self._numbers, self._count, self._writer = _Known(shapes), numbers, count, writer

    @property
    def defined(self) -> list[_Shape]:
        return self._known.defined

    def fold(self, text: str) -> Iterator[Segment]:
        """The segments that a literal becomes."""
        last = 0
        for found in find_json(text):
            folded = self._fold_value(found, text[found.start : found.end])
            if folded:
                yield text[last : found.start]
                yield from folded
                last = found.end
        yield text[last:]

    def _fold_value(self, found: Found, source: str) -> list[Segment]:
        """The marks and the notation for a value, or nothing if that is not smaller."""
        before = self._count(source)
        style = Mark(f"{MARK}{{{found.style.name}}}")
        number = self._known.number(form_of(found.value))
        if number is not None:
            keys = self._known.keys(number)
            assert keys is not None, "what has a form has a number"
            body = self._writer.write(found.value, place_of(keys))
            marks = [Mark(numbered(number))] if keys[0] == found.style.name else [style, Mark(numbered(number))]
            return [*marks, body] if self._gain(before, *marks, body) > 0 else []
        place = Place()
        body = self._writer.write(found.value, place)
        defined = None if self._numbers is None else define(found.style.name, found.value, place)
        styled = [] if found.style is DEFAULT else [style]
        # A number costs two tokens now and saves all the keys when such a value comes again, as results of tools do.
        if self._numbers is not None and defined is not None and self._gain(before, *styled, numbered(99), body) > 0:
            number = next(self._numbers)
            self._known.define(number, defined)
            return [*styled, Mark(numbered(number)), body]
        return [style, body] if self._gain(before, style, body) >= MIN_GAIN else []

    def _gain(self, before: int, *segments: Segment) -> int:
        """Tokens saved by sending `segments`; nothing if they cannot be sent."""
        text = "".join(segments)
        # Half of a surrogate pair, which JSON can escape, cannot be sent as it is.
        return 0 if _SURROGATE.search(text) else before - self._count(text)


class _Unfolder:
    """Undoes `fold` for one text."""

    __slots__ = ("_known",)

    def __init__(self, shapes: ShapeBook) -> None:
        self._known = _Known(shapes)

    def unfold(self, segments: list[Segment]) -> tuple[list[Segment], list[_Shape]]:
        """The segments as they were before, and the shapes defined."""
        out: list[Segment] = []
        position = 0
        while position < len(segments):
            marks, opening = self._opening(segments, position)
            if marks and position + marks < len(segments):
                try:
                    out += self._unfold_value(opening, segments[position + marks])
                except NotFoldableError:
                    out += segments[position : position + marks]
                    position += marks
                else:
                    position += marks + 1
            else:
                out.append(segments[position])
                position += 1
        return merge(out), self._known.defined

    def _opening(self, segments: list[Segment], position: int) -> tuple[int, tuple[str | None, int | None]]:
        """How many marks open a folded value here (0: none do), and the style and the number that they say."""
        marks = 0
        style: str | None = None
        number: int | None = None
        if isinstance(segments[position], Mark):
            if (named := _STYLE_MARK.fullmatch(segments[position])) and named[1] in STYLES:
                style = named[1]
                marks = 1
            at = position + marks
            if at < len(segments) and isinstance(segments[at], Mark) and (n := _NUMBER_MARK.fullmatch(segments[at])):
                number = int(n[1])
                marks += 1
        return marks, (style, number)

    def _unfold_value(self, opening: tuple[str | None, int | None], text: Segment) -> list[Segment]:
        """The value at the beginning of the literal `text`, written in full, and the rest of the literal."""
        style, number = opening
        if isinstance(text, Mark) or text[:1] not in ("{", "[", "("):
            raise NotFoldableError("a mark that opens nothing")
        keys = None if number is None else self._known.keys(number)
        tree, end = read(text, 0)
        place = Place() if keys is None else place_of(keys)
        value = resolve(tree, place)
        if style is None:
            style = DEFAULT.name if keys is None else keys[0]
        if number is not None and keys is None:
            defined = define(style, value, place)
            if defined is None:
                raise NotFoldableError("too large for a shape")
            self._known.define(number, defined)
        return ["".join(serialize(value, STYLES[style], 0)), text[end:]]
