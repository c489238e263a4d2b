"""Lines without their numbers that a reply has copied from its request, read line by line as they arrive.

A line gets its number back only if the request has that very line with that number. What a model adds, leaves out or
writes behind the lines stays as it wrote it; so do lines that it has numbered itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from krunch_plugins.compression.copied import LONGEST, NOTHING, Outcome
from krunch_plugins.compression.line_numbers import Numbering, first_number, is_kept, may_begin

if TYPE_CHECKING:
    from collections.abc import Container


class CopiedListing:
    """Reads lines of one run, from what stands behind its mark on, or from a later line on.

    Args:
        known: the numbered lines of the request.
        last: the number of the last line.
        number: that of the line where reading goes on; None: the first line, which says so itself, is still to come.
        numbering: how they are written, if that is known.
    """

    __slots__ = ("_at", "_done", "_known", "_text", "last", "number", "numbering")

    def __init__(
        self, known: Container[str], last: int, number: int | None = None, numbering: Numbering | None = None
    ) -> None:
        self._known, self.last, self.number, self.numbering = known, last, number, numbering
        self._text = ""
        self._at = 0
        self._done = NOTHING

    def mark(self, definition: object) -> Outcome | None:  # noqa: ARG002 - as other readers take it
        """A mark stands here: no line of a run holds one."""
        return self.end()

    def end(self) -> Outcome:
        """The text is at its end. Nothing behind a line's end is no line, but for the last of the run."""
        if len(self._text) > self._at or self.remaining == 1:
            self._take(len(self._text))
        return self._done._replace(remaining=0)

    def going_on(self) -> CopiedListing:
        """What reads the next line."""
        return CopiedListing(self._known, self.last, self.number, self.numbering)

    def feed(self, text: str, *, plain: bool) -> Outcome | None:
        """Take more of the text; None: the line goes on. What is not `plain` stands there in a shorter form."""
        seen = len(self._text)
        self._text += text
        if self.number is None and first_number(self._text) is None:
            return None if may_begin(self._text) else NOTHING
        while (stop := self._text.find("\n", max(seen, self._at))) >= 0:
            if not self._take(stop) or self.remaining == 0 or plain:
                return self._done
            self._at = stop + 1
        return None if len(self._text) - self._at <= LONGEST else self._done

    @property
    def remaining(self) -> int:
        """How many lines of the run may follow."""
        return 0 if self.number is None else max(self.last - self.number + 1, 0)

    def _take(self, stop: int) -> bool:
        """Read the line that ends at `stop`; whether it is one of the run."""
        line = self._text[self._at : stop]
        whole: str | None = None
        if self.number is None or self.numbering is None:
            found = first_number(line)
            if found is not None and line in self._known:
                (self.number, self.numbering), whole = found, line
        else:
            prefix = self.numbering.prefix(self.number)
            if line.startswith(prefix):
                whole = line
            elif not is_kept(self.number) and prefix + line in self._known:
                whole = prefix + line
        if whole is None or self.number is None:
            self.last = -1
            self._done = self._done._replace(remaining=0)
            return False
        self.number += 1
        before = "" if self._done.text is None else f"{self._done.text}\n"
        self._done = Outcome(before + whole, stop, self.remaining)
        return True
