"""Stage 4: the dictionary. Finds phrases that repeat within a text, and applies those that are known.

A text is cut into atoms, the smallest pieces that a symbol may stand for; what an atom is, is the profile. Mining is a
suffix array over the atoms, its LCP intervals as candidates, and lazy greedy selection by tokens saved: an entry of
L tokens that occurs n times saves (n - 1) · (L - symbol) - definition. Only the new text is mined: earlier messages
cannot be changed any more, and as evidence they were measured to be worth 0 to 0.3 %.
"""

from __future__ import annotations

import heapq
import re
import threading
from contextlib import suppress
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydivsufsort import divsufsort, kasai
from pydivsufsort.dll import libdivsufsort

from krunch_plugins.compression.segments import CLOSE, LETTERS, MARK, Mark, Symbol, opening

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from krunch_plugins.settings import Profile
    from krunch_plugins.tokens import Tokenizer

# Letters, digits, underscore, and everything outside ASCII that is not a known space, punctuation, arrow or box: a
# script we do not know is not cut inside a run, nor is an emoji from its modifiers.
_WORD = (
    r"[0-9A-Za-z_\u00aa\u00ad\u00b2\u00b3\u00b5\u00b9\u00ba\u00bc-\u00be\u00c0-\u1fff\u200b-\u200d\u2060-\u218f"
    r"\u2300-\u24ff\u25a0-\u2fff\u3005-\u3007\u3021-\u302f\u3031-\ufeff\uff10-\U0010ffff]"
)
# What joins words into one: names, dates, numbers, e-mail addresses. A colon, comma, slash or plus joins digits only,
# but for the plus of 1e+16, 1.2.3-rc.1+build.5 and mia+work@example.com, the slashes of 31/Jan/2024, the colons of
# fe80::1 and aa:bb:cc, and the narrow spaces of 1 000 000.
_JOINTS = (
    r"[-.@'\u2019]+",
    r"(?<=\d)[,:/+](?=\d)",  # of every script: people write times in their own digits
    r"(?<=[0-9][eE])\+(?=[0-9])",
    r"(?<=[0-9])\+(?=[A-Za-z][0-9A-Za-z.-]*(?![0-9A-Za-z.(\[-]))",
    r"\+(?=[\w.%+-]{1,64}@)",
    r"(?<=[0-9])/(?=[A-Z][a-z][a-z]/[0-9]{4})",
    r"(?<=[0-9]/[A-Z][a-z][a-z])/(?=[0-9]{4})",
    r"(?<=[0-9A-Fa-f]):{1,2}(?=[0-9A-Fa-f]{1,4}(?![0-9A-Za-z_]))",
    r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))",
)
# Lookaheads for single characters spare most places the alternatives behind them: a third of the time.
_VALUE = rf"{_WORD}+(?:(?=[-.@'\u2019,:/+\u00a0\u2009\u202f])(?:{'|'.join(_JOINTS)}){_WORD}+)*"
_SIGNED = rf"(?=[-+\u2212.])(?<![0-9A-Za-z_)\]])(?:[-+\u2212]\.?|\.)(?=\d){_VALUE}"
# A literal mark goes with what makes it one, and with the rest of a value that begins with its number.
_MARKS = rf"{MARK}+(?:[0-9]*[={{\[]|{_VALUE})?"
# A rule such as ======== is one thing.
_RULES = rf"(?=[-=*#~.+/<>|]{{4}})(?:{'|'.join(re.escape(char) + '{4,}' for char in '=-*#~.+/<>|')})"
_REST = rf"{_RULES}|\n| +(?= )|\t+|[^\n]"
_STRING = rf'"(?:[^"\\\n{MARK}]|\\.){{0,200}}+"'
_WHOLE = rf' ?(?:[^\s{MARK}()\[\]{{}}<>"=,;]|(?<=\d)[,\u00a0\u2009\u202f](?=\d))+'

ATOMS = {
    "balanced": re.compile(rf" ?(?:{_VALUE}|{_SIGNED})|{_MARKS}|{_REST}"),
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

MIN_ATOMS = 2
LONGEST = 4096
"""Atoms. Longer repeats are cut: they are rare, and a legend's line must stay readable."""

LEAST_TOKENS = 12
"""Tokens of what repeats in a text, below which no phrase pays: two of 6 for a symbol of one token, else of 7."""

PATIENCE = 64
"""Occurrences that selection looks at, for each atom of the text. Ordinary text needs 5 to 20; text of one period, in
which every place is an occurrence of a thousand phrases, would need one for each pair of atoms."""


SHORT = 600
"""Atoms. Texts up to this length are sorted without divsufsort, see `_short_suffix_array`."""


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
            if start < free_from or (start and _is_open(atoms[start - 1])):
                continue
            for phrase in by_start[pair]:
                stop = start + len(phrase.atoms)
                if tuple(atoms[start:stop]) == phrase.atoms and not (stop < len(atoms) and _is_closed(atoms[stop])):
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


class Mining(NamedTuple):
    """What a phrase may be.

    Attributes:
        multiline: it may go across newlines.
        nested: it may hold symbols.
        apart: two symbols never stand side by side, because they are letters of one token each.
    """

    multiline: bool
    nested: bool
    apart: bool

    def walls(self, ids: Mapping[str, int]) -> list[int]:
        """The numbers of those atoms that are never part of a phrase."""
        marks = [(atom, number) for atom, number in ids.items() if atom[0] == MARK or isinstance(atom, Mark)]
        walls = [number for atom, number in marks if not (self.nested and isinstance(atom, Symbol))]
        if not self.multiline and "\n" in ids:
            walls.append(ids["\n"])
        return walls


class Candidate(NamedTuple):
    """A phrase that pays: where it stands, and how many atoms it has."""

    starts: list[int]
    length: int


def mine(atoms: Sequence[str], text: str, tokens: list[int], tokenizer: Tokenizer, how: Mining) -> list[Candidate]:
    """Phrases that repeat within one text and pay for their legend, without overlap, in the order of their first use.

    Args:
        atoms: the text, cut; a mark that stands in it already is one atom and is never part of a phrase.
        text: the same in one piece.
        tokens: the same in tokens.
        tokenizer: what made `tokens`.
        how: what a phrase may be.
    """
    ids = dict(zip(dict.fromkeys(atoms), count()))
    array = np.fromiter(map(ids.__getitem__, atoms), dtype=np.int64, count=len(atoms))
    borders = _tokens_before(array, ids, text, tokens, tokenizer)
    intervals = _repeated(array, ids, borders, how)
    if intervals is None:
        return []
    before: list[int] = borders.tolist()
    heap = intervals.candidates(before)
    return _select(heap, intervals, _Selection(array, ids, before, how)) if heap else []


_Promise = tuple[int, int, int, int, int]
"""A candidate in the heap: -tokens saved at most, order, length in atoms, first suffix, behind the last."""


class _Intervals:
    """LCP intervals of the parts of a text in which any pair of atoms repeats.

    Attributes:
        places: where each suffix begins in the text, in the order of the suffixes.
        common: how many atoms each suffix shares with the next.
        kinds: changes at each suffix from the atom before it to that of the next, summed up; where the sum does not
            change within an interval, the interval's phrase can be longer on its left. Such a pair is no candidate:
            the longer pair saves more. With more occurrences it stays one: it may be free where the longer is not.
    """

    __slots__ = ("common", "kinds", "places")

    def __init__(self, sequence: NDArray[np.int64], origin: NDArray[np.int64]) -> None:
        compact = np.unique(sequence, return_inverse=True)[1]
        if len(compact) <= SHORT:
            suffixes = _short_suffix_array(compact)
        else:
            kind = np.uint8 if compact.max() < 1 << 8 else np.uint16 if compact.max() < 1 << 16 else np.uint32
            suffixes = _suffix_array(np.ascontiguousarray(compact, dtype=kind))
        self.common: list[int] = kasai(compact.astype(np.uint32), suffixes).tolist()
        self.places: list[int] = origin[suffixes].tolist()
        preceding = np.where(suffixes > 0, compact[suffixes - 1], -1)
        changes = np.concatenate(([0], np.cumsum(preceding[1:] != preceding[:-1])))
        self.kinds: list[int] = changes.tolist()

    def candidates(self, before: list[int]) -> list[_Promise]:
        """Intervals that could pay."""
        found: list[_Promise] = []
        stack: list[tuple[int, int]] = []
        common, places, kinds = self.common, self.places, self.kinds
        common[-1] = 0
        for index, length in enumerate(common):
            left = index
            while stack and stack[-1][0] > length:
                shared, left = stack.pop()
                if shared < MIN_ATOMS or (index == left + 1 and kinds[index] == kinds[left]):
                    continue
                shared = min(shared, LONGEST)
                start = places[left]
                tokens = before[start + shared] - before[start]
                occurrences = min(index - left + 1, len(common) // shared)  # no more can stand side by side
                gain = (occurrences - 1) * (tokens - SYMBOL_TOKENS) - DEFINITION_TOKENS
                if gain > 0:
                    found.append((-gain, len(found), shared, left, index + 1))
            if length and (not stack or stack[-1][0] < length):
                stack.append((length, left))
        return found


class _Selection:
    """What has been selected so far, and what a candidate would still save."""

    __slots__ = ("apart", "before", "no_start", "no_stop", "symbol_tokens", "taken")

    def __init__(self, array: NDArray[np.int64], ids: Mapping[str, int], before: list[int], how: Mining) -> None:
        self.before, self.apart = before, how.apart
        self.symbol_tokens = SYMBOL_TOKENS - how.apart
        self.taken = bytearray(len(array))
        closed, marks = np.zeros(len(ids), dtype=np.uint8), np.zeros(len(ids), dtype=np.uint8)
        closed[[number for atom, number in ids.items() if atom[0] in _CLOSING and _is_closed(atom)]] = 1
        marks[
            [
                number
                for atom, number in ids.items()
                if atom[-1] in _OPENING or (atom[0] == MARK and isinstance(atom, Mark))
            ]
        ] = 1
        self.no_stop = bytearray(closed[array].tobytes() + b"\0")
        self.no_start = bytearray(b"\0" + marks[array].tobytes())

    def free(self, starts: Sequence[int], length: int) -> tuple[int, list[int]]:
        """Tokens saved by replacing what is still free of the occurrences, and these."""
        taken, no_stop, no_start = self.taken, self.no_stop, self.no_start
        before = self.before
        free: list[int] = []
        free_from = covered = 0
        for start in starts:
            stop = start + length
            if start < free_from or no_stop[stop] or no_start[start] or taken.find(1, start, stop) >= 0:
                continue
            if self.apart and (start == free_from or taken[start - 1] or taken[stop : stop + 1] == b"\x01"):
                continue
            free.append(start)
            covered += before[stop] - before[start]
            free_from = stop
        if len(free) < 2:  # noqa: PLR2004 - once is no repetition
            return 0, []
        first = before[free[0] + length] - before[free[0]]
        return covered - first - self.symbol_tokens * (len(free) - 1) - DEFINITION_TOKENS, free

    def is_worth_cutting(self, starts: Sequence[int], length: int) -> bool:
        """Whether two occurrences could be free with an atom less at one of their ends: all between these must be."""
        taken, free = self.taken, 0
        for start in starts:
            if taken.find(1, start + 1, start + length - 1) < 0:
                free += 1
                if free == 2:  # noqa: PLR2004 - once is no repetition
                    return True
        return False

    def take(self, starts: Sequence[int], length: int) -> None:
        """Mark the atoms of these occurrences as replaced."""
        for start in starts:
            self.taken[start : start + length] = b"\x01" * length


def _repeated(
    array: NDArray[np.int64], ids: Mapping[str, int], borders: NDArray[np.int64], how: Mining
) -> _Intervals | None:
    """The parts of a text in which pairs of atoms repeat, or None if they are too little for any phrase to pay."""
    if len(array) < 2 * MIN_ATOMS:
        return None
    walls = how.walls(ids)
    if walls:
        is_wall = np.zeros(len(ids), dtype=bool)
        is_wall[walls] = True
        where = np.flatnonzero(is_wall[array])
        array = array.copy()
        array[where] = len(ids) + np.arange(len(where))  # a wall is equal to nothing
    top = len(ids) + len(array)
    pairs = array[:-1] * top + array[1:]
    ordered = np.sort(pairs)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return None
    hit = twice[np.minimum(np.searchsorted(twice, pairs), len(twice) - 1)] == pairs
    edges = np.flatnonzero(np.diff(np.concatenate(([False], hit, [False]))))
    starts, stops = edges[::2], edges[1::2] + 1
    sizes = borders[stops] - borders[starts]
    enough = sizes > SYMBOL_TOKENS - how.apart
    if int(sizes[enough].sum()) < LEAST_TOKENS:
        return None
    inside = np.zeros(len(array) + 1, dtype=np.int64)
    inside[starts[enough]] = 1
    inside[stops[enough]] -= 1  # no two parts end at one place, but one may begin where another ends
    where = np.flatnonzero(np.cumsum(inside[:-1]))
    behind_gap = np.zeros(len(where), dtype=np.int64)
    behind_gap[1:] = where[1:] - where[:-1] > 1
    places = np.arange(len(where)) + np.cumsum(behind_gap)
    origin = np.full(places[-1] + 1, -1, dtype=np.int64)
    origin[places] = where
    gaps = np.flatnonzero(origin < 0)
    sequence = array[origin]
    sequence[gaps] = top + np.arange(len(gaps))
    return _Intervals(sequence, origin)


_threads = threading.local()


def _suffix_array(sequence: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.int32]:
    """The suffix array, computed in one thread.

    The library is built with OpenMP, whose threads wait actively for work: two processes at once on two cores were
    5 to 7 times slower than one after the other. The limit holds for the thread that sets it.
    """
    if not hasattr(_threads, "limited"):
        with suppress(AttributeError, OSError):  # built without OpenMP, or its runtime is not reached this way
            libdivsufsort.omp_set_num_threads(1)
        _threads.limited = True
    suffixes: NDArray[np.int32] = divsufsort(sequence)
    return suffixes


def _short_suffix_array(sequence: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """The suffix array by prefix doubling, which has no table of 65,536 buckets to set up.

    For 100 to 300 atoms 35 to 45 microseconds against 80 (divsufsort), for 1,000 as many as that.
    """
    count, step = len(sequence), 1
    rank = sequence.astype(np.int64) + 1
    while True:
        key = rank * (count + 2)
        key[:-step] += rank[step:]
        suffixes = np.argsort(key, kind="stable")
        ordered = key[suffixes]
        new = np.ones(count, dtype=np.int64)
        np.cumsum(ordered[1:] != ordered[:-1], out=new[1:])
        new[1:] += 1
        if new[-1] == count:
            return suffixes.astype(np.int32)
        rank[suffixes] = new
        step *= 2


def _tokens_before(
    array: NDArray[np.int64], ids: Mapping[str, int], text: str, tokens: list[int], tokenizer: Tokenizer
) -> NDArray[np.int64]:
    """For each border between atoms, how many tokens start before it."""
    starts = np.cumsum(tokenizer.token_lengths(tokens), dtype=np.int64)
    if text.isascii():
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    else:
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        for atom, number in [(atom, number) for atom, number in ids.items() if not atom.isascii()]:
            lengths[number] = len(atom.encode("utf-8", "replace"))
    borders = np.cumsum(lengths[array])
    # `starts` holds where each token ends, that is where the next one starts; the first starts at 0.
    return np.concatenate(([0], np.searchsorted(starts[:-1], borders) + 1))


def _select(heap: list[_Promise], intervals: _Intervals, selection: _Selection) -> list[Candidate]:
    """Lazy greedy: the candidate that saves most is looked at again, and taken if it still does."""
    heapq.heapify(heap)
    places: dict[int, list[int]] = {}
    chosen: list[Candidate] = []
    patience = PATIENCE * len(selection.taken)
    while heap and patience > 0:
        promised, order, length, left, right = heapq.heappop(heap)
        starts = places.get(order)
        if starts is None:
            starts = sorted(intervals.places[left:right])
        patience -= len(starts)
        gain, free = selection.free(starts, length)
        if gain < -promised and length > MIN_ATOMS and selection.is_worth_cutting(starts, length):
            # Something is in the way of some occurrences: without its last or first atom it may stand in more places.
            patience -= 2 * len(starts)
            later = [start + 1 for start in starts]
            shorter = max((selection.free(at, length - 1)[0], at is starts, at) for at in (starts, later))
            if shorter[0] > max(gain, 0):
                places[order] = shorter[2]
                heapq.heappush(heap, (-shorter[0], order, length - 1, left, right))
                continue
        if gain <= 0:
            continue
        if -gain > promised and heap and -gain > heap[0][0]:
            places[order] = free
            heapq.heappush(heap, (-gain, order, length, left, right))
            continue
        selection.take(free, length)
        chosen.append(Candidate(free, length))
    return sorted(chosen)


_OPENING = frozenset(MARK + LETTERS)
_CLOSING = _OPENING | frozenset("0123456789")


def _is_open(atom: str) -> bool:
    """Whether no symbol can stand right behind this atom: a mark, or a letter of those that may be symbols."""
    return atom[-1] in _OPENING or isinstance(atom, Mark)


def _is_closed(atom: str) -> bool:
    """Whether no symbol can stand right in front of this atom: a digit, a letter as above, a reference on its line."""
    return "0" <= atom[0] <= "9" or atom[0] in LETTERS or (isinstance(atom, Mark) and atom[1:2] == "[")
