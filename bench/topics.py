"""How far the torus keeps what is near: `python bench/topics.py FOLDER`. Figures in docs/topics.md.

FOLDER holds conversations as *.jsonl. For each of at least 60 turns, by the built-in embedder: the rank correlation of
distance on the torus with distance by cosine, and how many of a turn's ten nearest turns by cosine are among its ten
nearest on the torus; for the map that Krunch fits, for random planes, and for random places. What the voice does to
recall is measured by `bench/recall.py quality`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from krunch_plugins.recall.embedders import HashingEmbedder
from krunch_plugins.recall.texts import text_of
from krunch_plugins.recall.topics import TopicMap

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

TURNS = 60
NEAREST = 10


def fitted(vectors: Floats) -> Floats:
    """The map that Krunch fits."""
    return TopicMap.fit(vectors).angles(vectors)


def random_planes(vectors: Floats) -> Floats:
    """Angles in two planes that are drawn: a map that needs no fitting."""
    drawn = vectors @ np.random.default_rng(1).standard_normal((vectors.shape[1], 4))
    return np.asarray(np.arctan2(drawn[:, 1::2], drawn[:, 0::2]) % (2 * np.pi), dtype=np.float32)


def random_places(vectors: Floats) -> Floats:
    """Places that mean nothing."""
    return np.asarray(np.random.default_rng(2).random((len(vectors), 2)) * 2 * np.pi, dtype=np.float32)


def ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The rank of each value."""
    return np.argsort(np.argsort(values))


def kept(vectors: Floats, angles: Floats) -> tuple[float, float]:
    """Rank correlation of the distances, and share of the nearest turns that stay nearest."""
    apart = np.abs(angles[:, None] - angles[None])
    distance = np.sqrt((np.minimum(apart, 2 * np.pi - apart) ** 2).sum(axis=-1)).astype(np.float64)
    meaning = (1 - vectors @ vectors.T).astype(np.float64)
    pairs = np.triu_indices(len(vectors), 1)
    correlation = float(np.corrcoef(ranks(distance[pairs]), ranks(meaning[pairs]))[0, 1])
    for one in (distance, meaning):
        np.fill_diagonal(one, np.inf)
    near, truth = (np.argsort(one, axis=1)[:, :NEAREST] for one in (distance, meaning))
    shares = [len(set(a) & set(b)) / NEAREST for a, b in zip(near.tolist(), truth.tolist(), strict=True)]
    return correlation, float(np.mean(shares))


def main() -> None:
    """Print the table."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - one argument
        raise SystemExit(__doc__)
    embedder = HashingEmbedder()
    maps: dict[str, Callable[[Floats], Floats]] = {
        "fitted planes": fitted,
        "random planes": random_planes,
        "random places": random_places,
    }
    print(f"{'':40}" + "".join(f"{name:>18}" for name in maps) + "    (rank correlation, nearest kept)")
    for path in sorted(Path(sys.argv[1]).glob("*.jsonl")):
        figures = []
        with path.open(encoding="utf-8") as lines:
            for conversation in map(json.loads, lines):
                texts = [text for text in map(text_of, conversation.get("messages", ())) if text.strip()]
                if len(texts) >= TURNS:
                    vectors = embedder.embed(texts)
                    figures.append([kept(vectors, made(vectors)) for made in maps.values()])
        if figures:
            means = np.mean(figures, axis=0)
            name = f"{path.name}, {len(figures)} conversations"
            print(f"{name:40}" + "".join(f"{correlation:11.3f} {share:6.3f}" for correlation, share in means))


if __name__ == "__main__":
    main()
