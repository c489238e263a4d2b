"""Times of the toroidal memory's step: `python bench/torus.py`. Each is the best of several rounds, in CPU time."""

from __future__ import annotations

import time

import numpy as np

from krunch_plugins.recall.torus import ToroidalMemory

SIZES = ((50, 20_000), (200, 2_000), (1_000, 100))
ROUNDS = 5


def step_time(size: int, steps: int) -> float:
    """Seconds of one step of a square grid, at best."""
    memory = ToroidalMemory(size, size)
    memory.fill(np.random.default_rng(0).random((size, size)))
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        memory.step(steps // ROUNDS)
        best = min(best, (time.process_time() - start) / (steps // ROUNDS))
    return best


def main() -> None:
    """Print the table."""
    print("grid           step")
    for size, steps in SIZES:
        print(f"{size:5} x {size:<5} {1e6 * step_time(size, steps):9,.1f} µs")


if __name__ == "__main__":
    main()
