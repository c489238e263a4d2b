"""What a search of `KrunchStore` by the user's own embeddings costs as it fills. Figures in docs/langchain-memory.md.

.venv/bin/python bench/langchain_store.py --sizes 1000,10000,50000 --namespaces 1,100

Made-up vectors that lie as those of texts do. For each size, and number of namespaces that the items are spread over:
the first search of a process, which reads them all; then, when all that goes on in the background is done, searches
over everything, over one namespace, with a filter that half of the items pass, without a query, and right after a put.
Medians of CPU time of the searching thread, ms. `found` is the share of the ten nearest that is found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from krunch_langchain import KrunchStore
from langgraph.store.base import PutOp
from vectors import texts_like

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

QUERIES = 40
K = 10
_BATCH = 2000


def median(search: Callable[[int], Any], count: int = QUERIES) -> float:
    """Median of the thread's CPU time, ms."""
    times = []
    for number in range(count):
        start = time.thread_time()
        search(number)
        times.append(1e3 * (time.thread_time() - start))
    return float(np.median(times))


def measure(size: int, spread: int, dimension: int) -> dict[str, float]:
    """The figures of one size."""
    made: NDArray[np.float32] = texts_like(size + QUERIES, dimension)
    names = [("notes", f"n{number}") for number in range(spread)]

    def embed(texts: list[str]) -> list[list[float]]:
        return [made[int(text)].tolist() for text in texts]

    index: Any = {"dims": dimension, "embed": embed, "fields": ["text"]}
    with tempfile.TemporaryDirectory() as folder, ConversationStore(Path(folder), upkeep_seconds=0) as conversations:
        store = KrunchStore(conversations, index=index)
        for first in range(0, size, _BATCH):
            numbers = range(first, min(first + _BATCH, size))
            store.batch([PutOp(names[n % spread], f"k{n}", {"text": str(n), "even": n % 2 == 0}) for n in numbers])
        store = KrunchStore(conversations, index=index)  # as another process has it

        def all_over(number: int) -> list[Any]:
            return store.search(("notes",), query=str(size + number), limit=K)

        start = time.perf_counter()
        all_over(0)
        reading = 1e3 * (time.perf_counter() - start)
        settle(all_over)
        found = []
        for number in range(QUERIES):
            nearest = set(np.argsort(-(made[:size] @ made[size + number]))[:K].tolist())
            found.append(len(nearest & {int(item.value["text"]) for item in all_over(number)}) / K)

        after = []
        for number in range(QUERIES):
            again = number % (size // spread) * spread
            store.put(names[0], f"k{again}", {"text": str(again), "even": number % 2 == 1})
            after.append(median(lambda _: all_over(number), 1))  # noqa: B023 - it is called at once
        return {
            "first": reading,
            "all": median(all_over),
            "one": median(lambda number: store.search(names[0], query=str(size + number), limit=K)),
            "filter": median(
                lambda number: store.search(("notes",), query=str(size + number), filter={"even": True}, limit=K)
            ),
            "no query": median(lambda _: store.search(("notes",), limit=K)),
            "after a put": float(np.median(after)),
            "found": float(np.mean(found)),
        }


def settle(search: Callable[[int], Any]) -> None:
    """Search until the process does nothing besides."""
    while True:
        search(0)
        busy, start = time.process_time(), time.monotonic()
        time.sleep(0.5)
        if time.process_time() - busy < 0.1 * (time.monotonic() - start):
            return


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,50000")
    parser.add_argument("--namespaces", default="1")
    parser.add_argument("--dimension", type=int, default=384)
    given = parser.parse_args()
    for spread in map(int, given.namespaces.split(",")):
        for size in map(int, given.sizes.split(",")):
            figures = measure(size, spread, given.dimension)
            print(
                json.dumps({"items": size, "namespaces": spread} | {k: round(v, 3) for k, v in figures.items()}),
                flush=True,
            )


if __name__ == "__main__":
    main()
