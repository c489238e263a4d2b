"""Undoes the stages, last to first: from a text as sent to the text that it stands for; and `restore`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from krunch_plugins.compression import folds, legend, line_numbers, repeats, templates
from krunch_plugins.compression.dictionary import Dictionary, View
from krunch_plugins.compression.segments import numbered
from krunch_plugins.compression.shapes import Shape
from krunch_plugins.compression.templates import Template
from krunch_plugins.errors import RestoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from krunch_plugins.compression.dictionary import Definition
    from krunch_plugins.compression.segments import Segment
    from krunch_plugins.turns import Message


_LONG_NUMBER = "a number of thousands of digits"


def read(sent: str, dictionary: Dictionary, known: int) -> tuple[list[Segment], list[Definition]]:
    """A text as sent, with every stage undone but the references to earlier lines, and what it defines."""
    view = View(dictionary, known)

    def template(number: int) -> Template | None:
        definition = view.get(numbered(number))
        return definition if isinstance(definition, Template) else None

    segments = templates.fill(line_numbers.give_back(legend.split(sent, view)), template)
    segments, shapes = folds.unfold(segments, dictionary.shapes)
    for shape in shapes:
        view.add(Shape(*shape))
    # A number that only looked as if it defined a shape has none.
    return segments, [one for one in view.more.values() if not isinstance(one, Shape) or one.keys]


class Reader:
    """Reads the texts of a request one after the other, with no memory but of what stood in those before."""

    __slots__ = ("dictionary",)

    def __init__(self) -> None:
        self.dictionary = Dictionary()

    def read(self, sent: str) -> list[tuple[Segment, str]]:
        """The next text as sent: its literals and references, each with what it stands for.

        Raises:
            KeyError: something that no text before it defines.
        """
        try:
            segments, found = read(sent, self.dictionary, len(self.dictionary.definitions))
        except ValueError:  # a number of more digits than Python reads
            raise KeyError(_LONG_NUMBER) from None
        for definition in found:
            if isinstance(definition, Shape) and not definition.keys:  # what stands behind its name is no value
                raise KeyError(definition.name)
        self.dictionary.extend(found)
        try:
            return list(zip(segments, repeats.walk(segments, self.dictionary.lines), strict=True))
        except ValueError:
            raise KeyError(_LONG_NUMBER) from None


def restore(messages: Iterable[Message]) -> list[Message]:
    """Rebuild the messages that a request stands for, from nothing but the request.

    Args:
        messages: the messages as sent, all of them, in order. Not changed.

    Returns:
        The messages as compression received them. A list that was never compressed comes back equal, unless it holds
        literals that look like our marks.

    Raises:
        RestoreError: a message refers to something that no message before it defines.
    """
    reader = Reader()

    def undo(sent: str) -> str:
        return "".join(text for _, text in reader.read(sent))

    restored: list[Message] = []
    for index, message in enumerate(messages):
        try:
            restored.append(legend.map_texts(message, undo))
        except KeyError as error:
            raise RestoreError(index, str(error.args[0])) from None
    return restored
