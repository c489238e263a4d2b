"""The marks on the wire: what a symbol, a definition and an escape look like. The only file that says what is a mark.

A symbol is the mark and a number, `¤12`. It is defined where its text stands first, `¤12=the text¤`, so a definition
costs its four marks and no copy of the text. The first text of a request that defines something of a kind begins
with one sentence that says so. The other marks are:

    ¤[...]       a reference to lines that stood before (see `repeats`)
    ¤12{ ¤12[    a JSON value that defines a shape; ¤12( and so on is a value of this shape (see `folds`)
    ¤{json2}     the style of the JSON value behind it
    ¤{lines to 9}  the numbers up to this one, of the lines behind it, are left out (see `line_numbers`)
    ¤12| ¤12*    rows of a template, which a line `¤12|...` in front of a text has defined (see `templates`)

Literals that would be read as marks are escaped by one mark more: in front of a number that is defined or has an
equals sign or bracket behind it, in front of a bracket, and at the very beginning of a text. A literal `¤7`
elsewhere, where no ¤7 is defined, stays as it is; a number that occurs so is never defined later.

In the dense profile names are letters as long as there are some (see `segments.LETTERS`): a letter by itself is a
symbol, `¤` in front of it makes it the letter, or begins its definition if an equals sign is behind it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from krunch_plugins.compression.line_numbers import LINES_TO
from krunch_plugins.compression.phrases import Phrase
from krunch_plugins.compression.segments import LETTERS, MARK, Mark, Segment, merge, numbered, opening
from krunch_plugins.compression.shapes import Shape
from krunch_plugins.compression.templates import SEPARATORS, Template

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sequence

    from krunch_plugins.compression.dictionary import Definition, View
    from krunch_plugins.turns import Message

INSTRUCTIONS = {
    "phrase": f"{MARK}N=text{MARK} defines {MARK}N.\n",
    "shape": f"{MARK}N(...) has the keys of {MARK}N{{...}}.\n",
    "template": f"{MARK}N rows fill the {{}} of line {MARK}N|...; empty: as above.\n",
}
"""What symbols mean, by kind; how to write is left to the model. In front of the first text that defines one."""

_RUN = re.compile(rf"({MARK}+)(?:([0-9]+|[{LETTERS}](?![{LETTERS}]))([={{\[]?)|[{{\[])?")
_LONE_LETTER = re.compile(rf"(?<![{LETTERS}{MARK}])[{LETTERS}](?![{LETTERS}])")
_NEXT = re.compile(rf"{MARK}|[{LETTERS}]+")
_LETTER = re.compile(rf"[{LETTERS}]")
# Quotes hold no marks.
_REFERENCE = re.compile(rf"{MARK}\[[^\n{MARK}]*\](?=[\n{MARK}]|\Z)")
_STYLE = re.compile(rf"{MARK}\{{(?:[a-z0-9]+|{LINES_TO}[1-9][0-9]*)\}}")
_TEMPLATE = re.compile(rf"{MARK}([1-9][0-9]*)([{SEPARATORS}])([^\n]*\{{\}}[^\n]*)\n")
_NUMBER = re.compile(rf"(?:{MARK}|\\+u00[aA]4)([0-9]+)")


class Span(NamedTuple):
    """Where in a text as sent something stands that is no literal: from `start` to before `end`.

    `name` is the name of the entry that is used or defined there, or a whole mark without a number, or "" for what
    closes a definition, escapes a literal or stands in front of the text. `defines` if a definition begins there.
    """

    start: int
    end: int
    name: str = ""
    defines: bool = False


def head(added: Sequence[Definition], told: frozenset[str]) -> str:
    """What stands in front of a text that defines `added`: how to read it, if not `told` already, and templates."""
    kinds = {definition.kind for definition in added} - told
    lines = [definition.line for definition in added if isinstance(definition, Template)]
    return "".join([*(INSTRUCTIONS[kind] for kind in sorted(kinds)), *lines])


def literal_names(text: str) -> set[str]:
    r"""What stands in `text` and looks like the name of an entry, its mark also JSON-escaped (`\u00a4`)."""
    if text.isascii() and "u00" not in text:
        return set()
    numbers = _NUMBER.findall(text) if MARK in text or "u00" in text else ()
    return {MARK + number for number in numbers}.union(_LETTER.findall(text))


def escape(text: str, defined: Container[str]) -> str:
    """Escape the literals in `text` that look like marks; `defined` are the symbols that mean something."""
    if text.isascii():
        return text

    def longer(run: re.Match[str]) -> str:
        return MARK + run[0] if _is_mark(run, defined) else run[0]

    def marked(letter: re.Match[str]) -> str:
        return MARK + letter[0] if letter[0] in defined else letter[0]

    if MARK in text:
        text = _RUN.sub(longer, text)
    return _LONE_LETTER.sub(marked, text) if _LETTER.search(text) else text


def escape_start(sent: str, original: str) -> str:
    """Escape a mark at the very beginning of a text, where an instruction would stand.

    Args:
        sent: the text to send, without its instruction, with symbols and with literals escaped.
        original: the text that it stands for, to tell a literal at the beginning from a symbol.
    """
    if original.startswith(MARK) and _marks(sent) == _marks(original):
        return MARK + sent
    return sent


def split(sent: str, view: View) -> list[Segment]:
    """Undo symbols, definitions and escapes: the literal text and the other marks of a text as sent.

    Args:
        sent: a whole text.
        view: what is defined before it. What it defines is added.
    """
    if sent.isascii():
        return [sent] if sent else []
    return _Splitter(sent, view).split()


def spans(sent: str, view: View) -> list[Span]:
    """Everything in a text as sent that is no literal, in order; takes what `split` takes, and adds to `view` too."""
    splitter = _Splitter(sent, view)
    splitter.split()
    return splitter.spans


class _Splitter:
    """Reads one text from left to right. `out` is what has been read, `open` the definitions that are not closed."""

    __slots__ = ("open", "out", "sent", "spans", "view")

    def __init__(self, sent: str, view: View) -> None:
        self.sent, self.view = sent, view
        self.out: list[Segment] = []
        self.open: list[tuple[str, int]] = []
        self.spans: list[Span] = []

    def split(self) -> list[Segment]:
        """The segments of the text."""
        sent, position = self.sent, 0
        for kind in sorted(INSTRUCTIONS):
            if sent.startswith(INSTRUCTIONS[kind], position):
                self.spans.append(Span(position, position + len(INSTRUCTIONS[kind])))
                position = self.spans[-1].end
        while (line := _TEMPLATE.match(sent, position)) and numbered(int(line[1])) not in self.view:
            self.view.add(Template(int(line[1]), line[2], line[3]))
            self.spans.append(Span(position, line.end(), numbered(int(line[1])), defines=True))
            position = line.end()
        if sent.startswith(MARK * 2, position):
            run = _RUN.match(sent, position)
            assert run is not None
            self.spans.append(Span(position, position + 1))
            self.out.append(run[0][1:])  # with the letter behind it, which is no symbol then
            position = run.end()
        while found := _NEXT.search(sent, position):
            start = found.start()
            self.out.append(sent[position:start])
            if found[0] == MARK:
                run = _RUN.match(sent, start)
                assert run is not None
                position = self._mark(run)
            else:
                position = found.end()
                definition = self.view.get(found[0]) if len(found[0]) == 1 else None
                if isinstance(definition, Phrase):
                    self.spans.append(Span(start, position, found[0]))
                self.out.append(definition.text if isinstance(definition, Phrase) else found[0])
        self.out.append(sent[position:])
        for name, first in reversed(self.open):  # never closed, so it is no definition
            self.out.insert(first, opening(name))
        return merge(self.out)

    def _mark(self, run: re.Match[str]) -> int:
        """Read what begins with one or more marks; returns where to go on."""
        if self.open and (len(run[1]) > 1 or not run[2]):
            name, first = self.open.pop()
            self.view.add(Phrase(name, "".join(self.out[first:]), ()))
            self.spans.append(Span(run.start(), run.start() + 1))
            return run.start() + 1
        if not _is_mark(run, self.view):
            self.out.append(run[0])
            return run.end()
        if len(run[1]) > 1:
            self.spans.append(Span(run.start(), run.start() + 1))
            self.out.append(run[0][1:])
            return run.end()
        if not run[2]:
            mark = (_REFERENCE if run[0][-1] == "[" else _STYLE).match(self.sent, run.start())
            if mark:
                self.spans.append(Span(*mark.span(), mark[0]))
            self.out.append(Mark(mark[0]) if mark else run[0])
            return mark.end() if mark else run.end()
        return self._name(run, run[2] if run[2] in LETTERS else MARK + run[2])

    def _name(self, run: re.Match[str], name: str) -> int:
        """Read a mark with a name behind it: a symbol, an escaped letter, or the beginning of a definition."""
        definition = self.view.get(name)
        if definition is None and run[3] == "=":
            self.open.append((name, len(self.out)))
            self.spans.append(Span(*run.span(), name, defines=True))
            return run.end()
        if definition is None and name in LETTERS:  # not ours: we would have escaped it
            self.out.append(run[0])
            return run.end()
        if definition is None:
            self.spans.append(Span(run.start(), run.end(2), name, defines=True))
            self.view.add(Shape(int(run[2]), ()))  # what its keys are is read later
            self.out.append(Mark(name))
        elif name in LETTERS:
            self.spans.append(Span(run.start(), run.start() + 1))
            self.out.append(name)
        else:
            self.spans.append(Span(run.start(), run.end(2), name))
            self.out.append(definition.text if isinstance(definition, Phrase) else Mark(name))
        return run.end(2)


def texts(message: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a message that compression may change: string content, and the text of text parts."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if _is_text_part(part):
                yield part["text"]


def map_texts(message: Message, change: Callable[[str], str]) -> Message:
    """A copy of a message with `change` applied to each of its `texts`, in order; the rest is shared."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    if isinstance(content, list):
        parts = [{**part, "text": change(part["text"])} if _is_text_part(part) else part for part in content]
        return {**message, "content": parts}
    return dict(message)


def replace_texts(message: Message, sent: Sequence[str]) -> Message:
    """A copy of a message with its `texts` replaced, one for one."""
    if isinstance(message.get("content"), str):  # as most are
        return {**message, "content": sent[0]}
    remaining = iter(sent)
    return map_texts(message, lambda _: next(remaining))


def arguments(message: Mapping[str, Any]) -> Iterator[str]:
    """Tool-call arguments of a message: never changed, but scanned for literals that look like symbols."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        text = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(text, str):
            yield text


def _is_mark(run: re.Match[str], defined: Container[str]) -> bool:
    """Whether marks with this behind them mean something."""
    if run[2] is None:
        return run[0][-1] != MARK
    if run[2] in LETTERS:
        return run[3] == "=" or run[2] in defined
    return bool(run[3]) or MARK + run[2] in defined


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _marks(text: str) -> int:
    return len(text) - len(text.lstrip(MARK))
