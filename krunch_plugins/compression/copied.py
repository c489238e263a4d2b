"""Folded values and rows of templates that a reply has copied from its request, read piece by piece as they arrive.

A model is no serializer: what it copies may have other spaces, commas between the rows, or prose right behind. What
can mean only one thing is read; of everything else a reader says that it is none, and it stays as the model wrote it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression.json_styles import DEFAULT, STYLES, NotFoldableError, Value, serialize
from krunch_plugins.compression.meanings import Values, complete
from krunch_plugins.compression.notation import Row, Tree, read, resolve
from krunch_plugins.compression.shapes import Place, Shape, form_of, place_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_plugins.compression.templates import Template

LONGEST = 1 << 16
"""Characters of what one mark opens. Anything longer is left as it is, so that a stream never holds back more."""

_OUTSIDE = re.compile(r'["()\[\]{}\n\\\x00-\x08\x0b-\x1f\x7f]')
_INSIDE = re.compile(r'["\\]')
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_LOOSE = re.compile(r'("(?:[^"\\]|\\.)*+")|([\s,]+)', re.DOTALL)
_TIGHT = re.compile(r'("(?:[^"\\]|\\.)*+")|(?<=[(\[{]) | (?=[)\]}])', re.DOTALL)

_HEADER = re.compile(r"\*([1-9][0-9]{0,8})[ \t\r]{0,8}\n")
_HEADER_BEGUN = re.compile(r"\*(?:[1-9][0-9]{0,8}[ \t\r]{0,8})?\Z")
_BEHIND = re.compile(r"""\s|[`"'*)\]}>,;:.!?]+(?:\s|\Z)""")
"""How prose goes on behind a row."""

_LEAD = re.compile(r"[\s>*+-]*(?:[0-9]+[.)] +)?")
"""What stands on a line in front of its text: indentation, the signs of a list or a quotation."""


class Outcome(NamedTuple):
    """What has been read.

    Attributes:
        text: what it stands for; None: it is nothing, and stays as it is.
        length: how many of the characters fed were part of it.
        remaining: rows of the same block that may follow on the next lines.
    """

    text: str | None
    length: int = 0
    remaining: int = 0


NOTHING = Outcome(None)


class FoldedValue:
    """Reads one folded JSON value, from what stands behind its mark on.

    Args:
        style: the name of the style that a mark has said, or None.
        shape: the shape whose number a mark has said, or None.
    """

    __slots__ = ("_escaped", "_in_string", "_length", "_open", "_parts", "_shape", "_significant", "_style")

    def __init__(self, style: str | None, shape: Shape | None) -> None:
        self._style, self._shape = style, shape
        self._parts: list[str] = []
        self._open: list[str] = []
        self._in_string = self._escaped = False
        self._length = 0
        self._significant = ""

    def mark(self, definition: object) -> Outcome | None:
        """A mark stands here: the number behind a style, or one that no value can hold."""
        if self._length or self._shape is not None or not isinstance(definition, Shape):
            return NOTHING
        self._shape = definition
        return None

    def end(self) -> Outcome:
        """The text is at its end, the value is not."""
        return NOTHING

    def feed(self, text: str, *, plain: bool) -> Outcome | None:  # noqa: ARG002 - as `Rows` takes it
        """Take more of the text; None: the value goes on."""
        if not self._length and text and text[0] not in _CLOSING:
            return NOTHING
        at = 0
        while at < len(text):
            stop = self._string(text, at) if self._in_string else self._notation(text, at)
            if stop is None:
                return NOTHING
            at = stop
            if not self._open:
                self._parts.append(text[:at])
                return self._read(self._length + at)
        self._parts.append(text)
        self._length += len(text)
        return None if self._length <= LONGEST else NOTHING

    def _string(self, text: str, at: int) -> int | None:
        """Read on within a string."""
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _INSIDE.search(text, at)
        if found is None:
            return len(text)
        self._in_string = found[0] != '"'
        self._escaped = found[0] == "\\"
        return found.end()

    def _notation(self, text: str, at: int) -> int | None:
        """Read on outside strings; None where no value goes on so."""
        found = _OUTSIDE.search(text, at)
        stretch = text[at : found.start() if found else len(text)].strip(" \t,")
        if stretch:
            self._significant = stretch[-1]
        if found is None:
            return len(text)
        sign = found[0]
        if sign == "\n":  # lines are broken between rows, if at all, never in prose that only looks like a value
            return found.end() if self._significant in tuple("()[]{}") else None
        if sign == '"':
            self._in_string = True
        elif sign in _CLOSING:
            self._open.append(_CLOSING[sign])
        elif not self._open or sign != self._open.pop():
            return None
        self._significant = sign
        return found.end()

    def _read(self, length: int) -> Outcome:
        body = _LOOSE.sub(lambda found: found[1] or " ", "".join(self._parts))
        body = _TIGHT.sub(lambda found: found[1] or "", body)
        try:
            tree, end = read(body, 0)
            if end != len(body):
                return NOTHING
            value = self._resolve(tree)
            if self._shape is not None and not _is_of_shape(value, self._shape.keys):
                return NOTHING
        except (NotFoldableError, RecursionError):
            return NOTHING
        style = self._style or (DEFAULT.name if self._shape is None else self._shape.keys[0])
        return Outcome("".join(serialize(value, STYLES[style], 0)), length)

    def _resolve(self, tree: Tree) -> Value:
        """The value of a tree; rows get their keys from the shape.

        The text that defines a shape is read without it, as it was when it was written, one that uses it with it. Which
        of them has been copied can be told if only one way works, or if both give the same.
        """
        if self._shape is None:
            return resolve(tree, Place())
        found: list[Value] = []
        for keys in (None, self._shape.keys):
            try:
                found.append(resolve(tree, Place() if keys is None else place_of(keys)))
            except NotFoldableError:
                continue
        if not found:
            found.append(_resolve_part(tree, self._shape.keys))
        if any(_written(other) != _written(found[0]) for other in found[1:]):
            raise NotFoldableError("it means different things as a definition and behind one")
        return found[0]


def _resolve_part(tree: Tree, keys: tuple[str, ...]) -> Value:
    """One row out of an array, or several objects of a shape put into an array."""
    place = place_of(keys)
    if isinstance(tree, Row):
        while not place.elements.is_blank():
            place = place.elements
            if place.rows:
                return resolve(tree, place)
    elif isinstance(tree, list) and all(isinstance(row, Row) for row in tree):
        return [resolve(row, place) for row in tree]
    raise NotFoldableError("rows that the shape does not explain")


def _is_of_shape(value: Value, keys: tuple[str, ...]) -> bool:
    """Whether a value could be one of a shape: it has its form, or objects at all."""
    form = form_of(value)
    return form == keys[1] or len(json.loads(form)) > 1


def _written(value: Value) -> str:
    return "".join(serialize(value, DEFAULT, 0))


class Rows:
    """Reads rows of one template, from what stands behind its mark on, or from the next row of a block on.

    Args:
        template: whose rows they are; also an attribute.
        known: the rows of it that the request has.
        above: the row of it above in this reply, if there is one.
        lead: what stands in front of the mark on its line.
        remaining: how many rows of a block may follow; 0: a mark stands in front.
    """

    __slots__ = ("_at", "_block", "_constants", "_done", "_known", "_lead", "_remaining", "_text", "above",
                 "template")  # fmt: skip

    def __init__(
        self,
        template: Template,
        known: Mapping[str, Sequence[Values]],
        above: Values | None,
        lead: str,
        remaining: int = 0,
    ) -> None:
        self.template, self._known, self._lead, self._remaining = template, known, lead, remaining
        self._constants = template.constants
        self._block = remaining > 0
        self._text = ""
        self._at = 0 if remaining else -1
        self._done = NOTHING
        self.above = above

    @property
    def block(self) -> bool:
        """Whether these are rows of a block."""
        return self._block

    def mark(self, definition: object) -> Outcome | None:  # noqa: ARG002 - as `FoldedValue` takes it
        """A mark stands here: no row goes on behind it."""
        return self.end()

    def quotes(self, mark: str) -> bool:
        """Whether a mark that stands here is one of the text that the template is made of, in the line defining it."""
        defines = not self._block and not self._lead and self._at > 0
        return defines and self.template.text.startswith(self._text[self._at :] + mark)

    def end(self) -> Outcome:
        """The text is at its end, or a mark follows: that ends a row, too."""
        if self._at < 0:
            return NOTHING
        self._take(len(self._text), last=True)
        return self._done

    def feed(self, text: str, *, plain: bool) -> Outcome | None:
        """Take more of the text; None: the row goes on. What is not `plain` stands there in a shorter form."""
        seen = len(self._text)
        self._text += text
        if self._at < 0 and not self._begin():
            return None if self._at < 0 and _HEADER_BEGUN.match(self._text) else NOTHING
        while (stop := self._text.find("\n", max(seen, self._at))) >= 0:
            if not self._take(stop, last=False) or self._remaining == 0 or plain:
                return self._done
            self._at = stop + 1
        return None if len(self._text) - self._at <= LONGEST else self._done

    def _begin(self) -> bool:
        """Read what stands between the mark and the first row."""
        header = _HEADER.match(self._text)
        if header:
            self._at, self._remaining, self._block = header.end(), int(header[1]), True
        elif self._text.startswith(self.template.separator):
            self._at, self._remaining = 1, 1
        return self._at >= 0

    def _take(self, stop: int, *, last: bool) -> bool:
        """Read the row that ends at `stop`; whether it is one."""
        row = self._text[self._at : stop]
        if not self._block and not self._lead and row == self.template.text:
            self._done = Outcome("", stop + (not last))  # the line that defines the template
            return False
        length, values = self._in_block(row) if self._block else self._behind_mark(row)
        if values is None:
            return False
        self.above = values
        self._remaining -= 1
        space = row[: len(row) - len(row.lstrip())] if self._block and row not in self._known else ""
        line = self._constants[0] + "".join(map(str.__add__, values, self._constants[1:]))
        before = "" if self._done.text is None else f"{self._done.text}\n"
        self._done = Outcome(f"{before}{space}{line}", self._at + length, self._remaining)
        return length == len(row)

    def _in_block(self, row: str) -> tuple[int, Values | None]:
        """The values of a row in a block, and how long it is."""
        if row not in self._known and row.strip() in self._known:
            return len(row), self._values(row.strip())
        # Any line could be a row of one value; a model that leaves rows out would get its prose put into the template.
        if len(self._constants) == 2 and row not in self._known:  # noqa: PLR2004 - one slot has two sides
            return 0, None
        return len(row), self._values(row)

    def _behind_mark(self, line: str) -> tuple[int, Values | None]:
        """The values of a row behind its own mark, and how long it is: prose may stand behind it."""
        if line in self._known:
            return len(line), self._values(line)
        if self._lead.endswith("`") and "`" in line:
            length = line.index("`")
            return length, self._values(line[:length])
        for length in range(min(len(line) - 1, LONGEST >> 4), 0, -1):
            if line[:length] in self._known and _BEHIND.match(line, length):
                return length, self._values(line[:length])
        values = self._values(line)
        if values is None or not self._constants[-1] or _LEAD.fullmatch(self._lead):
            return len(line), values
        # Whether the last value ends where the line does can be told only if it is one word.
        return len(line), values if re.fullmatch(r"\S*\w", values[-1]) else None

    def _values(self, row: str) -> Values | None:
        """What fills the slots; None if this is no row, or nobody knows what it leaves out."""
        values = tuple(row.split(self.template.separator))
        meant = self._known.get(row) or self._known.get(self.template.separator.join(map(str.strip, values)), ())
        if len(meant) == 1:
            return meant[0]
        if len(values) != len(self._constants) - 1:
            return None
        completed = complete(values, self.above)
        return completed if not meant or completed in meant else None
