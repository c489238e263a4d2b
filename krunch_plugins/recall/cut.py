"""Where old messages leave a request that exceeds the window: a pure function of the message list.

The list is gone through message by message, as the conversation grew. So the answer for a list says where every shorter
one was cut: the cut stays where it is while messages are added, and any process finds the same. What the request's own
length says (a request ends here, a reply has come there) is not looked at, because the next request no longer shows it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.recall.messages import calls, is_instruction, is_result, is_users, results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_plugins.turns import Message

LEAST_ROOM = 8
"""One of so many parts of the window is always left to messages that may leave, whatever those take that stay: with
less room every request would break the cached prefix, and the window would be exceeded all the same."""


class Limits(NamedTuple):
    """The window.

    Attributes:
        window: tokens that a request may have.
        recalled: tokens of these that are kept free, after the first cut, for what is recalled.
        pinned: how many first messages stay, those of the system not counted, if they take no more than half of it.
    """

    window: int
    recalled: int
    pinned: int


@dataclass(slots=True)
class Cut:
    """What leaves a list of messages.

    Attributes:
        position: messages before it leave, but for those that stay; 0: nothing leaves.
        cuts: how many there were while the conversation grew.
        pinned: messages before this position stay.
        anchor: position of what the user said last, if that is before the cut and nothing of the user after it: in a
            long row of tool calls it says what they are for. It stays until the next cut. None: there is none.
        held: positions of results of pinned calls; they stay as well.
        late: positions after the cut of results whose calls have left before they came; they leave as well.
        tokens: of all messages that do not leave.
        staying: tokens of those among them that stand before the cut.
    """

    position: int = 0
    cuts: int = 0
    pinned: int = 0
    anchor: int | None = None
    held: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)
    tokens: int = 0
    staying: int = 0

    def leaves(self, index: int, message: Message) -> bool:
        """Whether the message at this position leaves."""
        if index in self.late:
            return True
        stays = index < self.pinned or index == self.anchor or index in self.held or is_instruction(message)
        return index < self.position and not stays


def find_cut(messages: Sequence[Message], lengths: Sequence[int], limits: Limits) -> Cut:
    """Where to cut.

    What is kept takes between a quarter and a half of the window, less what never leaves, and begins with a message of
    the user if it can. Where messages are too large for that it takes up to three quarters, else less than one. A cut
    never comes between a tool call and its result.

    Args:
        messages: the request.
        lengths: tokens of each message.
        limits: the window.
    """
    folding = _Folding(messages, lengths, limits)
    for index in range(len(messages)):
        folding.add(index)
    return folding.cut


class Units:
    """Which messages belong together: a tool call, all its results, and what came in between."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self._open: set[str] = set()
        self._made: dict[str, int] = {}

    def add(self, index: int, message: Message) -> list[int]:
        """Take in the next message; positions of the calls that it answers."""
        made = [self._made[call] for call in results(message) if call in self._made]
        if is_result(message):
            self._open.difference_update(results(message))
        else:
            if message.get("role") == "assistant":
                self._open.clear()  # the model was asked again: what was not answered by now never will be
            if not self._open:
                self.starts.append(index)
        for call in calls(message):
            self._open.add(call)
            self._made[call] = index
        return made

    def join(self, position: int) -> None:
        """Nothing begins anew after this position any more."""
        while self.starts and self.starts[-1] > position:
            self.starts.pop()


class _Folding:
    """The state after some of the messages."""

    def __init__(self, messages: Sequence[Message], lengths: Sequence[int], limits: Limits) -> None:
        self._messages, self._limits = messages, limits
        self._sums = [0, *accumulate(lengths)]
        self._staying = [0]
        self._units = Units()
        self._asked = -1  # where the user spoke last
        self.cut = Cut(pinned=_pinned(messages, lengths, limits))

    def add(self, index: int) -> None:
        """Take in the next message, and cut if there is too much now."""
        if is_users(self._messages[index]):
            self._asked = index
        for call in self._units.add(index, self._messages[index]):
            if call < self.cut.pinned or call in self.cut.held:
                self.cut.held.add(index)
            elif self.cut.leaves(call, self._messages[call]):
                self.cut.late.add(index)
            else:
                self._units.join(call)
        self.cut.held -= self.cut.late  # it answers calls of several messages, one of which has left
        stays = index < self.cut.pinned or index in self.cut.held or is_instruction(self._messages[index])
        self._staying.append(self._staying[-1] + (self._sums[index + 1] - self._sums[index] if stays else 0))
        self._move(index)

    def _move(self, index: int) -> None:
        stop, cut = index + 1, self.cut
        kept = self._sums[stop] - self._sums[cut.position]
        spare = self._limits.recalled if cut.cuts else 0
        if kept > self._room(cut.position, self._limits.window - spare) - self._anchored():
            position = self._best(cut.position, stop)
            if position > cut.position:
                cut.position, cut.cuts = position, cut.cuts + 1
                self._drop_anchor()
        late = sum(self._sums[at + 1] - self._sums[at] for at in cut.late if at >= cut.position)
        cut.staying = self._staying[cut.position] + self._anchored()
        cut.tokens = cut.staying + self._sums[stop] - self._sums[cut.position] - late

    def _drop_anchor(self) -> None:
        """Choose what the user said last anew, right after a cut; a message too large for that is not kept."""
        asked, cut = self._asked, self.cut
        cut.anchor = asked if cut.pinned <= asked < cut.position else None
        if self._anchored() * 4 > self._room(cut.position, self._limits.window):
            cut.anchor = None

    def _anchored(self) -> int:
        at = self.cut.anchor
        return 0 if at is None else self._sums[at + 1] - self._sums[at]

    def _room(self, position: int, window: int) -> int:
        """Tokens for what comes after a cut."""
        return max(window - self._staying[position], self._limits.window // LEAST_ROOM)

    def _best(self, position: int, stop: int) -> int:
        """The next place to cut at; `position` if there is none."""
        starts = self._units.starts
        first = bisect_right(starts, max(position, self.cut.pinned))
        half = most = None
        for start in starts[first:]:
            kept, room = self._sums[stop] - self._sums[start], self._room(start, self._limits.window)
            if kept * 4 < room:
                break
            if kept * 2 <= room:
                if is_users(self._messages[start]):
                    return start
                half = start if half is None else half
            elif kept * 4 <= room * 3 and most is None:
                most = start  # a large message that came last is rather kept than lost
        chosen = half if half is not None else most
        if chosen is not None:
            return chosen
        fitting = (at for at in starts[first:] if self._fits_half(at, stop))
        return next(fitting, starts[-1] if first < len(starts) else position)

    def _fits_half(self, start: int, stop: int) -> bool:
        return (self._sums[stop] - self._sums[start]) * 2 <= self._room(start, self._limits.window)


def _pinned(messages: Sequence[Message], lengths: Sequence[int], limits: Limits) -> int:
    """Before which position everything stays: as many first messages as are pinned, and take no more than half."""
    position = count = taken = 0
    for message, length in zip(messages, lengths, strict=True):
        if not is_instruction(message):
            count, taken = count + 1, taken + length
            if count > limits.pinned or taken * 2 > limits.window:
                break
        position += 1
    return position
