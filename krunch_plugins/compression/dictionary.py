"""What the messages of a conversation have defined so far: numbered entries, and the lines that can be referred to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import TYPE_CHECKING

from krunch_plugins.compression.efficiency import Monitor
from krunch_plugins.compression.phrases import Phrase, PhraseIndex
from krunch_plugins.compression.repeats import LineIndex
from krunch_plugins.compression.segments import MARK, numbered
from krunch_plugins.compression.shapes import Shape, ShapeBook
from krunch_plugins.compression.templates import Template, TemplateBook

if TYPE_CHECKING:
    from collections.abc import Iterable

Definition = Phrase | Shape | Template
"""One numbered entry, of any kind. Never changed, never defined again."""


class Dictionary:
    """Definitions and lines in the order in which they came. Grows only; the states of a conversation share it."""

    __slots__ = ("definitions", "lines", "lock", "phrases", "position", "shapes", "templates")

    def __init__(self, definitions: Iterable[Definition] = (), lines: Iterable[str | None] = ()) -> None:
        self.lock = threading.Lock()
        self.definitions: list[Definition] = []
        self.position: dict[str, int] = {}
        self.phrases = PhraseIndex()
        self.shapes = ShapeBook()
        self.templates = TemplateBook()
        self.lines = LineIndex(lines)
        self.extend(definitions)

    def extend(self, definitions: Iterable[Definition]) -> None:
        """Add definitions; their names must be new."""
        for definition in definitions:
            self.position[definition.name] = len(self.definitions)
            self.definitions.append(definition)
            if isinstance(definition, Phrase):
                self.phrases.add(definition)
            elif isinstance(definition, Shape):
                self.shapes.add(*definition)
            else:
                self.templates.add(definition)


class View:
    """The first `known` definitions of a dictionary, and some more that are not in it yet."""

    __slots__ = ("dictionary", "known", "more")

    def __init__(self, dictionary: Dictionary, known: int) -> None:
        self.dictionary, self.known = dictionary, known
        self.more: dict[str, Definition] = {}

    def get(self, name: str) -> Definition | None:
        """The definition of a symbol such as `¤12`, or None."""
        position = self.dictionary.position.get(name)
        if position is not None and position < self.known:
            return self.dictionary.definitions[position]
        return self.more.get(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def add(self, definition: Definition) -> None:
        """Add a definition to the view, not to the dictionary."""
        self.more[definition.name] = definition


class SymbolTable(Mapping[str, str]):
    """What each phrase symbol stands for: `¤12` to its text. A view: making one costs nothing."""

    __slots__ = ("_dictionary", "_known")

    def __init__(self, dictionary: Dictionary, known: int) -> None:
        self._dictionary, self._known = dictionary, known

    def __getitem__(self, name: str) -> str:
        position = self._dictionary.position[name]
        definition = self._dictionary.definitions[position]
        if position >= self._known or not isinstance(definition, Phrase):
            raise KeyError(name)
        return definition.text

    def __iter__(self) -> Iterator[str]:
        return (phrase.name for phrase in self._phrases())

    def __len__(self) -> int:
        return sum(1 for _ in self._phrases())

    def _phrases(self) -> Iterator[Phrase]:
        known = islice(self._dictionary.definitions, self._known)
        return (definition for definition in known if isinstance(definition, Phrase))


@dataclass(slots=True)
class State:
    """What the messages so far have defined.

    Attributes:
        dictionary: shared by all states of one line of messages; what lies beyond `known` and `lines` belongs to
            later messages.
        known: how many definitions there are.
        lines: how many lines there are.
        literals: names that stand literally in some text so far, and are therefore never defined.
        told: the kinds of definitions that there have been.
        monitor: what new entries have saved of late.
        plain_tokens: tokens of the texts so far as they came.
        sent_tokens: the same as sent.
    """

    dictionary: Dictionary
    known: int
    lines: int
    literals: frozenset[str]
    told: frozenset[str] = frozenset()
    monitor: Monitor = field(default_factory=Monitor)
    plain_tokens: int = 0
    sent_tokens: int = 0

    @classmethod
    def empty(cls, literals: Iterable[str] = ()) -> State:
        """The state before the first message; `literals` are those of the tool definitions."""
        return cls(Dictionary(), 0, 0, frozenset(literals))

    def own(self) -> State:
        """The same state with a dictionary of its own, reserved, for when others go on from this one too."""
        source = self.dictionary
        own = Dictionary(source.definitions[: self.known], source.lines.lines[: self.lines])
        own.lock.acquire()
        return replace(self, dictionary=own)

    def claim(self) -> bool:
        """Reserve the dictionary for going on from this state; False if others do, or have gone on from it already."""
        if not self.dictionary.lock.acquire(blocking=False):
            return False
        if len(self.dictionary.definitions) == self.known and len(self.dictionary.lines.lines) == self.lines:
            return True
        self.dictionary.lock.release()
        return False

    def release(self) -> None:
        """Let go of a dictionary that `claim` or `own` has reserved."""
        self.dictionary.lock.release()

    def after(self, literals: frozenset[str]) -> State:
        """The state after what has been added to the dictionary meanwhile."""
        definitions, told = self.dictionary.definitions, self.told
        known, lines = len(definitions), len(self.dictionary.lines.lines)
        if known > self.known:
            told = told.union(definition.kind for definition in definitions[self.known :])
        # Not dataclasses.replace, here and below: these run for each message, and take a third of the time.
        return State(self.dictionary, known, lines, literals, told, self.monitor, self.plain_tokens, self.sent_tokens)

    def with_monitor(self, monitor: Monitor) -> State:
        """The same state with another monitor."""
        known, lines, literals, told = self.known, self.lines, self.literals, self.told
        return State(self.dictionary, known, lines, literals, told, monitor, self.plain_tokens, self.sent_tokens)

    def numbers(self, last: int = 0) -> Iterator[int]:
        """Numbers beyond `last` that can still be defined, ascending."""
        if not last:
            newest = reversed(self.dictionary.definitions)  # of this state: it is the newest, or could not add
            last = next((int(definition.name[1:]) for definition in newest if definition.name.startswith(MARK)), 0)
        return (number for number in count(last + 1) if numbered(number) not in self.literals)

    def free(self, letters: str) -> Iterator[str]:
        """Which of the letters can still be names."""
        taken = self.dictionary.position
        return (letter for letter in letters if letter not in taken and letter not in self.literals)
