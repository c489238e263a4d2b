"""Vectors as a long-term memory stores them: each exactly, as text."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Packed = Sequence[str]


def pack(vector: Sequence[float]) -> Packed:
    """Type and base64 of the smallest float type that holds every value exactly."""
    exact = np.asarray(vector, dtype="<f8")
    for kind in ("<f2", "<f4"):
        with np.errstate(over="ignore"):
            smaller = exact.astype(kind)
        if np.array_equal(smaller.astype("<f8"), exact, equal_nan=True):
            exact = smaller
            break
    return [exact.dtype.str, base64.b64encode(exact.tobytes()).decode("ascii")]


def unpacked(vectors: Sequence[Packed], dimension: int) -> tuple[list[int], NDArray[np.float64]]:
    """Those vectors that are of a length and finite: where they stand, and a matrix of them, scaled to length 1."""
    rows = [np.frombuffer(base64.b64decode(data), dtype=kind) for kind, data in vectors]
    fit = [at for at, row in enumerate(rows) if len(row) == dimension and np.isfinite(row).all()]
    matrix = np.zeros((len(fit), dimension))
    for number, at in enumerate(fit):
        matrix[number] = rows[at]
    return fit, unit(matrix)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows scaled to length 1; rows of zeros stay as they are."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled = np.zeros_like(rows)
    np.divide(rows, lengths, out=scaled, where=lengths > 0)
    return scaled
