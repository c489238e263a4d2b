"""Stage 4, the new entries: finds phrases that repeat within a text and pay for their definition.

A suffix array over the atoms, its LCP intervals as candidates, and lazy greedy selection by tokens saved: an entry of
L tokens that occurs n times saves (n - 1) · (L - symbol) - definition. Only the new text is mined: earlier messages
cannot be changed any more, and as evidence they were measured to be worth 0 to 0.3 %.
"""

from __future__ import annotations

import heapq
import threading
from contextlib import suppress
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydivsufsort import divsufsort, kasai
from pydivsufsort.dll import libdivsufsort

from krunch_plugins.compression.phrases import (
    CLOSING,
    DEFINITION_TOKENS,
    OPENING,
    SYMBOL_TOKENS,
    is_closed,
)
from krunch_plugins.compression.segments import MARK, Mark, Symbol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from krunch_plugins.tokens import Tokenizer

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
    if len(atoms) <= SHORT and len(set(pairwise(atoms))) >= len(atoms) - 1:  # nothing repeats, as in most short texts
        return []
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
        closed[[number for atom, number in ids.items() if atom[0] in CLOSING and is_closed(atom)]] = 1
        marks[
            [
                number
                for atom, number in ids.items()
                if atom[-1] in OPENING or (atom[0] == MARK and isinstance(atom, Mark))
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
