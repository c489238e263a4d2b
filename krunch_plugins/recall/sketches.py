"""What an index of many vectors keeps instead of float32: halves for exact answers, and sketches to find candidates by.

A graph of float32 vectors takes 4 bytes a dimension, and gives vectors out one number at a time, as objects. Here each
vector is kept once in float16, the precision that embeddings are stored in, so nothing is lost; and the graph holds a
shorter projection of it, by which it finds candidates. That is less than 4 bytes a dimension, and any subset is
compared at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Halves = NDArray[np.uint16]
    Floats = NDArray[np.float32]

WHOLE_UP_TO = 128
"""Dimensions up to which a sketch is the vector itself: too few dimensions tell too little apart."""
SHARE = 0.4375
"""Dimensions of a sketch as a share of the vector's, at most."""
_STEP = 16
"""What they are a multiple of: hnswlib counts so many at once, and takes half as long again for what is left over."""
SAMPLE = 10_000
"""Vectors that are looked at, at most, to choose what sketches keep of them."""
_PART_BITS = 16
_WITHIN = (1 << _PART_BITS) - 1
_AT_ONCE = 4096
_SCALE = np.float32(2.0**112)
"""Between the exponents of float16 and float32, once the bits of the one stand where the other has them."""


class HalfBlock:
    """Vectors in float16 by id. Not thread-safe.

    In parts, so that nothing is copied when it grows. What was never written takes no memory.

    Args:
        dimension: length of each vector.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._parts: list[Halves] = []
        self._grow(1)

    def put(self, ids: Ids, vectors: Floats) -> None:
        """Keep vectors, no value of which may be above 1 by more than rounding does."""
        self._store(ids, vectors.astype(np.float16).view(np.uint16))

    def wipe(self, ids: Ids) -> None:
        """Leave nothing of these in memory."""
        for part, chosen in self._split(ids):
            self._parts[part][ids[chosen] & _WITHIN] = 0

    def halves(self, ids: Ids) -> Halves:
        """The bits of vectors, by which they are told to be equal; shape (n, dimension)."""
        if len(self._parts) == 1:
            return self._parts[0][ids]
        found = np.empty((len(ids), self._dimension), dtype=np.uint16)
        for part, chosen in self._split(ids):
            found[chosen] = self._parts[part][ids[chosen] & _WITHIN]
        return found

    def get(self, ids: Ids) -> Floats:
        """Vectors by id, shape (n, dimension).

        numpy needs 2 ns for each value of float16. As whole numbers their bits are moved to where float32 has them,
        which takes a tenth of that and comes to the same for all finite values.
        """
        found = self.halves(ids).astype(np.uint32)
        signs = found & 0x8000
        found &= 0x7FFF
        found <<= 13
        signs <<= 16
        found |= signs
        vectors = found.view(np.float32)
        vectors *= _SCALE
        return vectors

    def write(self, ids: Ids, file: BinaryIO) -> None:
        """Write the rows of these ids, one after the other."""
        for start in range(0, len(ids), _AT_ONCE):
            rows = self.halves(ids[start : start + _AT_ONCE])
            file.write(rows.astype("<u2", copy=False).tobytes())

    def read(self, ids: Ids, file: BinaryIO) -> None:
        """Take in what `write` wrote.

        Raises:
            ValueError: the file ends too early.
        """
        for start in range(0, len(ids), _AT_ONCE):
            rows = ids[start : start + _AT_ONCE]
            found = np.frombuffer(file.read(2 * self._dimension * len(rows)), dtype="<u2")
            self._store(rows, found.reshape(len(rows), self._dimension))

    def _store(self, ids: Ids, halves: Halves) -> None:
        self._grow(int(ids.max(initial=0)) + 1)
        for part, chosen in self._split(ids):
            self._parts[part][ids[chosen] & _WITHIN] = halves[chosen]

    def _grow(self, rows: int) -> None:
        while len(self._parts) << _PART_BITS < rows:
            self._parts.append(np.zeros((1 << _PART_BITS, self._dimension), dtype=np.uint16))

    def _split(self, ids: Ids) -> Iterator[tuple[int, slice | NDArray[np.bool_]]]:
        """The parts in which these lie, and which of them lie there."""
        if len(self._parts) == 1:
            yield 0, slice(None)
            return
        parts = ids >> _PART_BITS
        for part in np.unique(parts).tolist():
            yield part, parts == part


def sketch_size(dimension: int) -> int:
    """Length of the sketches of vectors of this length."""
    return dimension if dimension <= WHOLE_UP_TO else max(WHOLE_UP_TO, int(dimension * SHARE) // _STEP * _STEP)


class Projection:
    """Makes sketches: shorter vectors of length 1, whose cosines are about those of the vectors.

    It keeps the directions in which a sample has most of its length (its principal components, without taking the mean
    away). Random directions need no sample, and fit whatever comes later as well as what was there. But they find less:
    of the ten nearest of 30,000, .989 among the first 640 by sketches of 160 of 448 dimensions; these .994. Where the
    sample was of other texts than those that were searched, these were no worse than random ones.

    Args:
        directions: of length 1 and at right angles, shape (`sketch_size(dimension)`, dimension); see `learned`.
    """

    def __init__(self, directions: Floats) -> None:
        self._directions = directions

    @classmethod
    def learned(cls, dimension: int, sample: Floats | None = None) -> Self:
        """One for vectors of a length, by a sample of them, shape (n, dimension); None: random directions."""
        size = sketch_size(dimension)
        if size == dimension:
            return cls(np.eye(dimension, dtype=np.float32))
        found = np.random.default_rng(0).standard_normal((dimension, dimension), dtype=np.float32)
        if sample is not None:  # the random ones fill up what a small sample leaves open
            found = np.concatenate([sample, found * (1e-3 / dimension)])
        _, directions = np.linalg.eigh(found.T @ found)
        return cls(np.ascontiguousarray(directions[:, ::-1][:, :size].T))

    def __call__(self, vectors: Floats) -> Floats:
        """Sketches of vectors, shape (n, `sketch_size(dimension)`). Without BLAS, for the reason `cosines` gives."""
        if len(self._directions) == vectors.shape[1]:
            return vectors
        found: Floats = np.einsum("ij,kj->ik", vectors, self._directions)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        np.divide(found, lengths, out=found, where=lengths > 0)
        return found

    def write(self, file: BinaryIO) -> None:
        """Write it to a file: what holds sketches is of no use without what makes them."""
        file.write(self._directions.astype("<f4", copy=False).tobytes())

    @classmethod
    def read(cls, dimension: int, file: BinaryIO) -> Self:
        """What `write` wrote.

        Raises:
            ValueError: the file ends too early.
        """
        size = sketch_size(dimension)
        return cls(np.frombuffer(file.read(4 * size * dimension), dtype="<f4").reshape(size, dimension))
