"""Nearest vectors with a graph that a thread builds."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from krunch_plugins import BackgroundIndex
from krunch_plugins.recall.vectors import ExactIndex

needs_hnswlib = pytest.mark.skipif(
    find_spec("hnswlib") is None, reason="hnswlib is not installed: pip install 'krunch-plugins[search]'"
)
DIMENSION = 16


def made(count: int, seed: int = 0) -> Any:
    """Random vectors."""
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


def graph_of(index: BackgroundIndex) -> int:
    """How many vectors are in the graph."""
    return 0 if index._graph is None else len(index._graph)


@needs_hnswlib
def test_the_thread_shows_in_nothing_but_speed() -> None:
    """While vectors come and go, and are moved into a graph and out of it, answers are those of an exact index."""
    index, exact, vectors = BackgroundIndex(DIMENSION, 300), ExactIndex(DIMENSION), made(4000)
    sizes = []
    for start in range(0, 4000, 200):
        for one in (index, exact):
            one.add(range(start, start + 200), vectors[start : start + 200])
            one.remove(range(start, start + 20))
        if start % 1000 == 0:
            index.settle()
        for seed in range(5):
            query = made(1, seed=start + seed)[0]
            assert index.search(query, 5)[0].tolist() == exact.search(query, 5)[0].tolist()
            subset = range(seed, start, 3)
            assert index.search(query, 5, subset)[0].tolist() == exact.search(query, 5, subset)[0].tolist()
        sizes.append(graph_of(index))
    assert index.remove(range(3900)) == exact.remove(range(3900)) == 3500
    index.settle()

    assert (sizes[0], max(sizes) > 2000, graph_of(index)) == (0, True, 0)
    assert len(index) == 100
    assert index.search(vectors[3950], 100)[0].tolist() == exact.search(vectors[3950], 100)[0].tolist()


@needs_hnswlib
def test_what_was_replaced_does_not_wear_the_graph_out() -> None:
    """A graph whose vectors are replaced over and over is built anew, and finds what an exact index finds."""
    index, exact, vectors = BackgroundIndex(DIMENSION, 300), ExactIndex(DIMENSION), made(2000)
    for one in (index, exact):
        one.add(range(2000), vectors)
    index.settle()
    for round_ in range(1, 4):
        for one in (index, exact):
            one.remove(range(1500))
            one.add(range(1500), made(1500, seed=round_))
        index.settle()
        assert index._graph is not None
        assert index._graph.marked < 1500

    query = made(1, seed=9)[0]
    assert index.search(query, 20)[0].tolist() == exact.search(query, 20)[0].tolist()


@needs_hnswlib
def test_a_stopped_index_stays_right() -> None:
    """After `stop` no thread is left or begun, and everything is found, what comes later too."""
    others = set(threading.enumerate())  # of other tests in this process
    index, vectors = BackgroundIndex(DIMENSION, 300), made(9000)
    index.add(range(8000), vectors[:8000])
    index.stop()
    index.add(range(8000, 9000), vectors[8000:])

    assert [one.name for one in set(threading.enumerate()) - others if one.name == "krunch-nearest"] == []
    assert [int(index.search(vectors[key], 1)[0][0]) for key in (5, 4000, 8999)] == [5, 4000, 8999]


@needs_hnswlib
def test_a_process_may_end_while_a_graph_is_built() -> None:
    """A process that ends in the middle of a build ends soon, with the code that it would have had."""
    program = """
import numpy as np
from krunch_plugins import BackgroundIndex
index = BackgroundIndex(64)
index.add(range(40_000), np.random.default_rng(0).standard_normal((40_000, 64)))
while index._graph is None:
    pass
assert len(index._graph) < 40_000
raise SystemExit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (7, "")


def test_without_hnswlib_all_is_exact_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without hnswlib an index stays exact whatever its size; a large one says once what would make it faster."""
    monkeypatch.setitem(sys.modules, "hnswlib", None)  # an import raises ImportError
    monkeypatch.delitem(sys.modules, "krunch_plugins.recall.hnsw", raising=False)
    monkeypatch.delattr("krunch_plugins.recall.hnsw", raising=False)
    monkeypatch.setattr("krunch_plugins.recall.background.SLOW_FROM", 100)
    index, vectors = BackgroundIndex(DIMENSION, 20), made(300)
    with caplog.at_level(logging.WARNING, "krunch"):
        index.add(range(90), vectors[:90])
        assert caplog.records == []
        index.add(range(90, 200), vectors[90:200])
        index.add(range(200, 300), vectors[200:])

    assert [record.getMessage() for record in caplog.records if "krunch-plugins[search]" in record.getMessage()]
    assert len(caplog.records) == 1
    assert index.search(vectors[250], 1)[0].tolist() == [250]
