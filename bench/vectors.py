"""What the search by vectors costs and finds. Figures in docs/embeddings.md.

    python bench/vectors.py speed [FOLDER] [--sizes 1000,10000,30000,100000] [--dimension 384]
    python bench/vectors.py memory [--count 100000] [--dimension 384]
    python bench/vectors.py embedder FOLDER

`speed`: exact search against the graph: CPU time, recall@10 of the graph, bytes, on made-up vectors, or on different
texts of the conversations in FOLDER (*.jsonl): turns, lines, and lines that follow each other. `memory`: bytes of a
vector, for the whole process. `embedder`: the built-in embedder alone: share of evidence among the first 5, 10, 20,
with the idf that ships, without any, with one that is learned from the conversation, and in float16; FOLDER has
long_memory.jsonl and long_memory_qa.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from krunch_plugins.recall import embedders
from krunch_plugins.recall.catalogue import Catalogue
from krunch_plugins.recall.embedders import HashingEmbedder, words
from krunch_plugins.recall.embedding_pages import rounded
from krunch_plugins.recall.hnsw import HnswIndex
from krunch_plugins.recall.sketches import SAMPLE, Projection
from krunch_plugins.recall.texts import text_of
from krunch_plugins.recall.vectors import AdaptiveIndex, ExactIndex, unit
from krunch_plugins.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Tables = Callable[[list[str]], Floats]

QUERIES = 300
SHORT = 30
"""Characters of a line that is left out."""
K = 10


def texts_like(count: int, dimension: int, seed: int = 0) -> Floats:
    """Vectors that lie as those of texts do: many small groups, unlike random ones, which have no near neighbours."""
    random = np.random.default_rng(seed)
    groups = random.standard_normal((max(8, count // 20), dimension)).astype(np.float32)
    directions = random.standard_normal((64, dimension)).astype(np.float32) * 1.5
    groups += random.standard_normal((len(groups), 64)).astype(np.float32) @ directions / 8
    made = np.empty((count, dimension), dtype=np.float32)
    for start in range(0, count, 4096):
        part = made[start : start + 4096]
        part[:] = groups[random.integers(len(groups), size=len(part))]
        part += 0.7 * random.standard_normal(part.shape).astype(np.float32)
    return unit(made)


def found(index: ExactIndex | HnswIndex | AdaptiveIndex, queries: Floats) -> tuple[list[Floats], float, float]:
    """Scores of all queries, median and 99th percentile of their CPU time in ms."""
    scores, times = [], []
    for query in queries:
        start = time.thread_time()
        scores.append(index.search(query, K)[1])
        times.append(1e3 * (time.thread_time() - start))
    return scores, float(np.percentile(times, 50)), float(np.percentile(times, 99))


def texts_of(folder: Path) -> list[str]:
    """Different texts, shuffled: all turns, their longer lines, and two and three lines that follow each other."""
    texts: dict[str, None] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as conversations:
            for conversation in map(json.loads, conversations):
                for message in conversation.get("messages", ()):
                    text = text_of(message)
                    lines = [line for line in text.split("\n") if len(line) > SHORT]
                    texts |= dict.fromkeys([text, *lines])
                    for size in (2, 3):
                        texts |= dict.fromkeys("\n".join(lines[at : at + size]) for at in range(len(lines) - size + 1))
    said = [text for text in texts if any(words(text))]
    return [said[at] for at in np.random.default_rng(0).permutation(len(said))]


def samples(size: int, dimension: int, texts: list[str]) -> tuple[Floats, Floats]:
    """Vectors, and queries near some of them: of texts and of two thirds of their words; made up, without texts."""
    random = np.random.default_rng(1)
    if not texts:
        vectors = texts_like(size, dimension)
        queries = vectors[random.integers(size, size=QUERIES)]
        return vectors, unit(queries + 0.7 * random.standard_normal(queries.shape).astype(np.float32) / dimension**0.5)
    hashing = HashingEmbedder(dimension)
    asked = [texts[at].split() for at in random.integers(size, size=QUERIES)]
    parts = [" ".join(random.permutation(one)[: max(1, len(one) * 2 // 3)].tolist()) for one in asked]
    return hashing.embed(texts[:size]), hashing.embed([part for part in parts if any(words(part))])


def speed(sizes: Sequence[int], dimension: int, texts: list[str]) -> None:
    """Exact search against the graph."""
    print(f"{dimension} dimensions; CPU ms a query: p50, p99; recall@{K} of the graph, and of vectors that were stored")
    print("in float16, against exact search in float32; the graph's bytes a vector; how fast it is built")
    for wanted in sizes:
        size = min(wanted, len(texts) or wanted)
        vectors, queries = samples(size, dimension, texts)
        exact, graph = (
            ExactIndex(dimension),
            HnswIndex(dimension, projection=Projection.learned(dimension, vectors[:SAMPLE])),
        )
        exact.add(np.arange(size), vectors)
        start = time.process_time()
        graph.add(np.arange(size), vectors)
        built = size / (time.process_time() - start)
        truth, exact_50, exact_99 = found(exact, queries)
        near, graph_50, graph_99 = found(graph, queries)
        recall = np.mean([np.mean(got >= best[-1] - 2e-6) for best, got in zip(truth, near, strict=True)])
        halved = ExactIndex(dimension)
        halved.add(np.arange(size), rounded(vectors))
        kept = np.mean([np.isin(halved.search(one, K)[0], exact.search(one, K)[0]).mean() for one in queries])
        print(
            f"{size:8,}  exact {exact_50:6.2f} {exact_99:6.2f}  graph {graph_50:5.2f} {graph_99:5.2f}  "
            f"recall {recall:.4f}  float16 {kept:.4f}  {graph.bytes / size:6,.0f} B  {built:6,.0f} a CPU second",
            flush=True,
        )


def memory(count: int, dimension: int) -> None:
    """Bytes a vector, as the process grows: while it is filled as a program fills it, and loaded from its files."""
    made = texts_like(1024, dimension)
    index = HnswIndex(dimension, projection=Projection.learned(dimension, made))
    empty = resident()
    for start in range(0, count, 1024):
        made += np.random.default_rng(start).standard_normal(made.shape, dtype=np.float32) / dimension**0.5
        index.add(np.arange(start, start + 1024), made)
    print(f"{len(index):,} vectors of {dimension}: {(resident() - empty) / len(index):,.0f} B each as it grew,")
    catalogue = Catalogue()
    for number in range(count):
        turn = Turn(number // 1000, {"role": "user"}, float(number))
        catalogue.add(f"key {number % 1000}", f"session {number % 1000}", turn, number << 32)
    print(f"{(resident() - empty) / len(index):,.0f} B each with whose they are, in 1,000 sessions,")
    del catalogue
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.hnsw")
        noted = index.save(path)
        del index
        empty = resident()
        loaded = HnswIndex.load(path, noted, dimension)
        assert loaded is not None
        grown = (resident() - empty) / len(loaded)
        print(f"{grown:,.0f} B each from its files, of {loaded.bytes / len(loaded):,.0f} B")


def resident() -> int:
    """Bytes of memory that the process has, without what it could give back (Linux, glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def embedder(folder: Path) -> None:
    """The built-in embedder on conversations with questions."""
    with (folder / "long_memory.jsonl").open(encoding="utf-8") as lines:
        conversations = {one["id"]: [text_of(message) for message in one["messages"]] for one in map(json.loads, lines)}
    with (folder / "long_memory_qa.jsonl").open(encoding="utf-8") as lines:
        questions = [one for one in map(json.loads, lines) if one["evidence_indices"]]
    shipped = embedders._idf()  # noqa: SLF001 - what is compared is the table
    print("share of evidence found                    @5    @10    @20")

    def show(name: str, turns: Tables, queries: Tables, dimension: int = 448, dtype: type = np.float32) -> None:
        hashing = HashingEmbedder(dimension)
        shares = []
        for key, texts in conversations.items():
            asked = [one for one in questions if one["conversation_id"] == key]
            with idf(turns(texts)):
                vectors = hashing.embed(texts).astype(dtype).astype(np.float32)
            with idf(queries(texts)):
                wanted = hashing.embed([one["question"] for one in asked])
            for one, query in zip(asked, wanted, strict=True):
                order = np.argsort(-(vectors @ query), kind="stable").tolist()
                evidence = set(one["evidence_indices"])
                shares.append([len(evidence & set(order[:k])) / len(evidence) for k in (5, 10, 20)])
        print(f"{name:38}", "  ".join(f"{value:.3f}" for value in np.mean(shares, axis=0)), flush=True)

    def fixed(_: list[str]) -> Floats:
        return shipped

    def none(_: list[str]) -> Floats:
        return np.ones_like(shipped)

    show("the idf that ships", fixed, fixed)
    show("the same, float16", fixed, fixed, dtype=np.float16)
    show("no idf", none, none)
    show("learned, for queries alone", none, own_idf)
    show("shipped for turns, learned for queries", fixed, own_idf)
    show("learned, for both", own_idf, own_idf)
    show("the idf that ships, 4,096 dimensions", fixed, fixed, dimension=4096)


@contextlib.contextmanager
def idf(table: Floats) -> Iterator[None]:
    """Have the embedder use another table for a while."""
    shipped = embedders._idf  # noqa: SLF001 - no setting
    try:
        setattr(embedders, "_idf", lambda: table)  # noqa: B010 - mypy knows its type
        embedders._features.cache_clear()  # noqa: SLF001
        yield
    finally:
        setattr(embedders, "_idf", shipped)  # noqa: B010
        embedders._features.cache_clear()  # noqa: SLF001


def own_idf(texts: list[str]) -> Floats:
    """The idf of these texts alone: what an idf that learns from the store would be in the end."""
    frequencies = np.zeros(embedders.BUCKETS)
    for text in texts:
        frequencies[list({bucket for word in set(words(text)) for bucket in embedders.buckets(word)})] += 1
    return np.asarray(np.maximum(np.log((len(texts) + 1) / (frequencies + 0.5)), 0), dtype=np.float32)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "embedder"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--sizes", default="1000,10000,30000,100000")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--count", type=int, default=100_000)
    given = parser.parse_args()
    if given.what == "speed":
        texts = texts_of(given.folder) if given.folder else []
        speed([int(size) for size in given.sizes.split(",")], given.dimension, texts)
    elif given.what == "memory":
        memory(given.count, given.dimension)
    elif given.folder is None:
        parser.error("embedder needs the folder of the conversations")
    else:
        embedder(given.folder)


if __name__ == "__main__":
    main()
