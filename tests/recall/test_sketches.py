"""What an index of many vectors keeps of them: halves, bit for bit, and sketches that are about as near as they are."""

from __future__ import annotations

import io

import numpy as np
import pytest

from krunch_plugins.recall.sketches import HalfBlock, Projection, sketch_size


def test_every_value_of_float16_comes_back_bit_for_bit() -> None:
    """What is put in as a value of float16 is got as the same value, the smallest ones and both zeros too."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].astype(np.float32).reshape(-1, 8)
    block = HalfBlock(8)
    block.put(np.arange(len(finite)), finite)

    assert block.get(np.arange(len(finite))).tobytes() == finite.tobytes()


def test_rows_are_written_read_and_wiped_by_id() -> None:
    """Rows of any ids go through a file in order, and nothing of a wiped one is left."""
    ids = np.array([3, 4, 200_000])
    vectors = np.array([[0.5, -0.25], [1.0, 0.0], [0.125, 0.75]], dtype=np.float32)
    block, other = HalfBlock(2), HalfBlock(2)
    block.put(ids, vectors)
    file = io.BytesIO()
    block.write(ids, file)
    other.read(ids, io.BytesIO(file.getvalue()))
    block.wipe(ids[:1])

    assert other.get(ids).tolist() == vectors.tolist()
    assert not block.get(ids[:1]).any()
    assert block.get(ids[[2, 1]]).tolist() == vectors[[2, 1]].tolist()
    assert len(file.getvalue()) == 12
    with pytest.raises(ValueError, match="reshape"):
        other.read(ids, io.BytesIO(file.getvalue()[:-4]))


@pytest.mark.parametrize("sampled", [0, 20, 200])
@pytest.mark.parametrize(("dimension", "size"), [(2, 2), (128, 128), (200, 128), (384, 160), (448, 192), (1536, 672)])
def test_a_sketch_is_shorter_and_tells_about_the_same_cosines(dimension: int, size: int, sampled: int) -> None:
    """Cosines of sketches differ from those of the vectors by what random directions allow, or less with a sample."""
    random = np.random.default_rng(1)
    vectors = random.standard_normal((200, dimension)).astype(np.float32)
    vectors += 2 * random.standard_normal(dimension).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = Projection.learned(dimension, vectors[:sampled] if sampled else None)(vectors)
    off = np.abs(found @ found.T - vectors @ vectors.T).std()

    assert found.shape == (200, size) == (200, sketch_size(dimension))
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    assert off < 1e-6 + (0 if size == dimension else 0.7 / size**0.5)


def test_a_projection_comes_back_from_its_file() -> None:
    """Sketches are made by what was written with them, whatever a new sample would say; half of it is refused."""
    vectors = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
    projection = Projection.learned(200, vectors)
    assert Projection.learned(200)(vectors).tobytes() != projection(vectors).tobytes()
    file = io.BytesIO()
    projection.write(file)
    other = Projection.read(200, io.BytesIO(file.getvalue()))

    assert other(vectors).tobytes() == projection(vectors).tobytes()
    with pytest.raises(ValueError, match="reshape"):
        Projection.read(200, io.BytesIO(file.getvalue()[:-4]))
