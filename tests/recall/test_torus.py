"""The toroidal memory against its definition, cell by cell."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krunch_plugins.recall.torus import ToroidalMemory
from krunch_plugins.snapshots import Checkpoints, Deltas, Format, load, read, save

if TYPE_CHECKING:
    from pathlib import Path


def random_memory(width: int, height: int, seed: int = 0, **options: Any) -> ToroidalMemory:
    """A memory with random cells."""
    memory = ToroidalMemory(width, height, **options)
    memory.fill(np.random.default_rng(seed).random((height, width)))
    return memory


def stepped(memory: ToroidalMemory) -> Any:
    """The cells after a step, by the rule itself."""
    r, d = memory.spread, memory.decay
    after = np.empty((memory.height, memory.width))
    for y in range(memory.height):
        for x in range(memory.width):
            v = memory.get(x, y)
            around = memory.get(x - 1, y) + memory.get(x + 1, y) + memory.get(x, y - 1) + memory.get(x, y + 1)
            after[y, x] = min(max(v + r / 4 * around - r * v - d * v, 0.0), 1.0)
    return after


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    spread=st.floats(0, 1),
    decay=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_step_is_the_rule(width: int, height: int, spread: float, decay: float, seed: int) -> None:
    """A step gives each cell v + r/4·Σn - r·v - d·v of the cells before, clamped, on grids of any shape."""
    memory = random_memory(width, height, seed, spread=spread, decay=decay, dtype=np.float64)
    wanted = stepped(memory)
    memory.step()

    np.testing.assert_allclose(memory.grid, wanted, atol=1e-12)
    assert memory.steps == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_large_grid_follows_the_rule_too(dtype: Any) -> None:
    """A grid that is worked on in several bands is stepped as a small one is."""
    memory = random_memory(300, 250, dtype=dtype)
    grid = memory.grid.astype(np.float64)
    for _ in range(3):
        around = sum(np.roll(grid, shift, axis) for shift in (-1, 1) for axis in (0, 1))
        grid = np.clip(grid + 0.25 / 4 * around - 0.25 * grid - 0.05 * grid, 0, 1)
    memory.step(3)

    assert memory.dtype == dtype
    np.testing.assert_allclose(memory.grid, grid, atol=1e-6)


def test_without_decay_no_heat_is_lost() -> None:
    """Diffusion alone moves heat around and keeps its sum; with decay the sum shrinks by that share."""
    memory = random_memory(20, 30, decay=0.0, dtype=np.float64)
    total = memory.statistics().total
    memory.step(50)
    fading = random_memory(20, 30, dtype=np.float64)
    fading.step(10)

    assert memory.statistics().total == pytest.approx(total)
    assert fading.statistics().total == pytest.approx(total * 0.95**10)


def test_coordinates_wrap_around() -> None:
    """Any whole numbers are coordinates; what leaves on one side comes in on the other."""
    memory = ToroidalMemory(5, 3)
    memory.set(-1, 7, 0.5)

    assert memory.get(4, 1) == memory.get(9, -2) == 0.5
    assert memory.grid[1, 4] == 0.5
    memory.set(0, 0, 1.0)
    memory.step()
    assert memory.get(4, 0) > 0
    assert memory.get(0, 2) > 0


@pytest.mark.parametrize(("value", "kept"), [(-3.0, 0.0), (7.0, 1.0), (math.inf, 1.0), (0.25, 0.25)])
def test_cells_are_clamped(value: float, kept: float) -> None:
    """Whatever is put into a cell ends up between 0 and 1."""
    memory = ToroidalMemory(4, 4)
    memory.set(1, 1, value)
    memory.fill(np.where(memory.grid > 0, memory.grid, memory.grid))

    assert memory.get(1, 1) == kept


def test_what_cannot_be_is_refused() -> None:
    """NaN, empty grids, other types, shapes and rates are errors that say what is allowed."""
    memory = ToroidalMemory(4, 3)
    with pytest.raises(ValueError, match="NaN"):
        memory.set(0, 0, math.nan)
    with pytest.raises(ValueError, match="NaN"):
        memory.fill(np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        memory.fill(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="1 or more"):
        ToroidalMemory(0, 5)
    with pytest.raises(ValueError, match="float32"):
        ToroidalMemory(5, 5, np.int32)
    with pytest.raises(ValueError, match="0 to 1"):
        ToroidalMemory(5, 5, decay=1.5)
    with pytest.raises(ValueError, match="moore"):
        memory.neighbours(0, 0, "hexagonal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read-only"):
        memory.grid[0, 0] = 1


def test_neighbourhoods_are_what_their_names_say() -> None:
    """Von Neumann's is a diamond, Moore's a square, both around the edges, each cell once, without the cell itself."""
    memory = ToroidalMemory(10, 10)

    assert memory.neighbours(0, 0) == [(0, 9), (9, 0), (1, 0), (0, 1)]
    assert len(memory.neighbours(0, 0, "moore")) == 8
    assert len(memory.neighbours(3, 3, "von_neumann", 2)) == 12
    assert len(memory.neighbours(3, 3, "moore", 2)) == 24
    assert memory.neighbours(3, 3, "moore", 0) == []
    assert (9, 9) in memory.neighbours(0, 0, "moore")
    assert sorted(ToroidalMemory(2, 2).neighbours(0, 0, "moore", 5)) == [(0, 1), (1, 0), (1, 1)]


def test_activation_falls_with_the_distance() -> None:
    """The place itself gets the whole amount, cells around it less, those beyond the radius nothing; edges wrap."""
    memory = ToroidalMemory(20, 20)
    memory.activate(0, 0, 0.8, radius=3)

    assert memory.get(0, 0) == pytest.approx(0.8)
    assert memory.get(-1, 0) == memory.get(1, 0) == memory.get(0, 19) == pytest.approx(0.6)
    assert 0 < memory.get(3, 0) < memory.get(2, 0) < memory.get(1, 0)
    assert memory.get(4, 0) == memory.get(3, 3) == 0
    memory.activate(5, 5, -1.0)
    memory.activate(0, 0, 5.0, radius=100)
    assert memory.grid.max() == 1
    assert memory.grid.min() > 0


def test_a_single_cell_is_the_nearest() -> None:
    """Without a radius the nearest cell alone is warmed."""
    memory = ToroidalMemory(10, 10)
    memory.activate(9.7, 4.2, 0.5)

    assert memory.get(0, 4) == 0.5
    assert memory.statistics().active == 1


def test_patterns_are_found_around_the_edges() -> None:
    """A pattern is found wherever it stands exactly, in reading order; NaN stands for anything."""
    memory = ToroidalMemory(6, 5)
    for x, y in ((5, 4), (2, 1)):
        memory.set(x, y, 0.25)
        memory.set(x + 1, y, 0.5)
        memory.set(x, y + 1, 0.75)

    assert memory.find([[0.25, 0.5], [0.75, 0.0]]) == [(2, 1), (5, 4)]
    assert memory.find([[0.25, math.nan], [0.75, math.nan]]) == [(2, 1), (5, 4)]
    assert memory.find([[0.25, 0.25]]) == []
    assert memory.find(np.zeros((6, 6))) == []
    assert len(memory.find([[math.nan]])) == 30
    with pytest.raises(ValueError, match="rows and columns"):
        memory.find([0.25])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), x=st.integers(0, 6), y=st.integers(0, 4), w=st.integers(1, 7), h=st.integers(1, 5))
def test_any_part_of_the_grid_is_found(seed: int, x: int, y: int, w: int, h: int) -> None:
    """Whatever part of the grid is looked for, the place that it was taken from is among what is found."""
    memory = random_memory(7, 5, seed)
    pattern = [[memory.get(x + dx, y + dy) for dx in range(w)] for dy in range(h)]

    assert (x, y) in memory.find(pattern)


def test_statistics_say_what_is_there() -> None:
    """Sum, mean, maximum and its place, active cells, entropy and steps are those of the grid."""
    memory = ToroidalMemory(4, 2)
    assert (memory.statistics().total, memory.statistics().entropy) == (0.0, 0.0)
    memory.set(3, 1, 0.5)
    memory.set(1, 0, 0.5)
    found = memory.statistics()

    assert (found.total, found.mean, found.maximum, found.hottest) == (1.0, 0.125, 0.5, (1, 0))
    assert (found.active, found.entropy, found.steps) == (2, 1.0, 0)


@pytest.mark.parametrize("format", ["binary", "json", "compressed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_state_is_saved_in_every_format(tmp_path: Path, format: Format, dtype: Any) -> None:  # noqa: A002
    """A memory that was saved goes on as if it had never been put away, bit for bit."""
    memory = random_memory(12, 9, dtype=dtype, spread=0.3, decay=0.1)
    memory.step(5)
    save(memory.state(), tmp_path / "torus.krunch", format)
    again = ToroidalMemory.from_state(load(tmp_path / "torus.krunch"))
    for one in (memory, again):
        one.step(7)

    assert again.grid.tobytes() == memory.grid.tobytes()
    assert (again.steps, again.spread, again.decay, again.dtype) == (12, 0.3, 0.1, dtype)


def test_state_is_saved_as_checkpoints_and_deltas(tmp_path: Path) -> None:
    """Checkpoints of several steps and changes that were appended give back the memory of that time."""
    memory, grids = random_memory(10, 10), {}
    checkpoints, deltas = Checkpoints(tmp_path / "steps", keep=3), Deltas(tmp_path / "torus.krunch")
    for step in range(5):
        memory.activate(step, step, 0.3)
        memory.step()
        grids[step] = memory.grid.tobytes()
        checkpoints.save(memory.state(), step)
        deltas.save(memory.state())

    assert checkpoints.steps() == [2, 3, 4]
    assert ToroidalMemory.from_state(checkpoints.load(3).state).grid.tobytes() == grids[3]
    assert ToroidalMemory.from_state(read(tmp_path / "torus.krunch").state).grid.tobytes() == grids[4]


def test_a_copy_is_another_memory() -> None:
    """What happens to a copy does not happen to the original."""
    memory = random_memory(5, 5)
    before = memory.grid.tobytes()
    copy = memory.copy()
    copy.step(3)

    assert memory.grid.tobytes() == before
    assert copy.grid.tobytes() != before
