"""Nearest vectors: exact, as a graph, and the one that switches; each against a plain count over all vectors."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_process import in_own_process

from krunch_plugins import BackgroundIndex
from krunch_plugins.errors import WrongDimension
from krunch_plugins.recall.vectors import AdaptiveIndex, ExactIndex

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HNSW = find_spec("hnswlib") is not None
needs_hnswlib = pytest.mark.skipif(not HNSW, reason="hnswlib is not installed: pip install 'krunch-plugins[search]'")
DIMENSION = 8
HALF = 1e-3
"""What rounding to float16 may do to a cosine."""


def graph(dimension: int = DIMENSION) -> Any:
    """A graph; imported where it is used, because hnswlib need not be installed."""
    from krunch_plugins.recall.hnsw import HnswIndex

    return HnswIndex(dimension)


def switching(dimension: int = DIMENSION) -> AdaptiveIndex:
    """An index that becomes a graph early."""
    return AdaptiveIndex(dimension, exact_up_to=12)


def background(dimension: int = DIMENSION) -> BackgroundIndex:
    """An index that a thread makes a graph early."""
    return BackgroundIndex(dimension, exact_up_to=12)


KINDS = [
    pytest.param(ExactIndex, id="exact"),
    pytest.param(graph, id="graph", marks=needs_hnswlib),
    pytest.param(switching, id="adaptive", marks=needs_hnswlib),
    pytest.param(background, id="background", marks=needs_hnswlib),
]


def made(count: int, dimension: int = DIMENSION, seed: int = 0) -> Any:
    """Random vectors."""
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


def best(vectors: dict[int, Any], query: Any, k: int) -> list[tuple[int, float]]:
    """What a search should find, by the definition."""
    scores = [
        (-round(float(v @ query / np.linalg.norm(v) / np.linalg.norm(query)), 5), key) for key, v in vectors.items()
    ]
    return [(key, -score) for score, key in sorted(scores)[:k]]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_changes_leave_what_a_plain_count_finds(kind: Callable[[int], Any], data: st.DataObject) -> None:
    """After any adds, replacements and removals, a search finds what comparing with every vector finds."""
    index = kind(DIMENSION)
    known: dict[int, Any] = {}
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    for _ in range(data.draw(st.integers(1, 8))):
        ids = data.draw(st.lists(st.integers(0, 60), max_size=25, unique=True))
        if data.draw(st.booleans()):
            vectors = random.standard_normal((len(ids), DIMENSION)).astype(np.float32)
            index.add(ids, vectors)
            known |= dict(zip(ids, vectors, strict=True))
        else:
            assert index.remove(ids) == len(known.keys() & set(ids))
            known = {key: vector for key, vector in known.items() if key not in ids}

    query = random.standard_normal(DIMENSION)
    subset = data.draw(st.none() | st.lists(st.integers(0, 80), max_size=20, unique=True))
    k = data.draw(st.integers(1, 100))
    ids, scores = index.search(query, k, subset)
    among = known if subset is None else {key: known[key] for key in subset if key in known}
    assert len(index) == len(known)
    np.testing.assert_allclose(scores, [score for _, score in best(among, query, k)], atol=HALF)
    for key, score in zip(ids.tolist(), scores.tolist(), strict=True):
        assert abs(score - dict(best({key: among[key]}, query, 1))[key]) < HALF


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_index_finds_nothing(kind: Callable[[int], Any]) -> None:
    """Nothing is found in an index without vectors, or among ids that it does not have."""
    index = kind(DIMENSION)
    assert len(index.search(made(1)[0], 5)[0]) == 0
    index.add([3], made(1))
    assert len(index.search(made(1)[0], 5, [0, 1, 99, -4])[0]) == 0
    assert index.remove([3]) == 1
    assert index.remove([3]) == 0

    assert len(index.search(made(1)[0], 5)[0]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_is_gives_all(kind: Callable[[int], Any]) -> None:
    """A k above the number of vectors gives all of them, the nearest first."""
    index = kind(DIMENSION)
    index.add(range(20), made(20))

    ids, scores = index.search(made(1, seed=1)[0], 1000)
    assert sorted(ids.tolist()) == list(range(20))
    assert list(scores) == sorted(scores, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_another_dimension_is_refused_by_name(kind: Callable[[int], Any]) -> None:
    """Vectors and queries of another length raise an error that has both lengths, and change nothing."""
    index = kind(DIMENSION)
    with pytest.raises(WrongDimension, match=r"5 dimensions.* has 8") as raised:
        index.add([0], made(1, 5))
    with pytest.raises(WrongDimension, match=r"9 dimensions.* has 8"):
        index.search(made(1, 9)[0], 1)

    assert (raised.value.expected, raised.value.found) == (8, 5)
    assert len(index) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(kind: Callable[[int], Any], bad: float) -> None:
    """NaN and infinite values are refused, in vectors and in queries, and nothing of that add is kept."""
    index, vectors = kind(DIMENSION), made(3)
    vectors[1, 2] = bad
    with pytest.raises(ValueError, match="1 of 3 vectors"):
        index.add([0, 1, 2], vectors)
    with pytest.raises(ValueError, match="query"):
        index.search(vectors[1], 1)

    assert len(index) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_zeros_are_near_nothing(kind: Callable[[int], Any]) -> None:
    """A vector of zeros is not kept, takes out the one that had its id, and finds nothing."""
    index = kind(DIMENSION)
    index.add([0, 1], made(2))
    index.add([1, 2], np.zeros((2, DIMENSION)))

    assert len(index) == 1
    assert index.search(made(1)[0], 5)[0].tolist() == [0]
    assert len(index.search(np.zeros(DIMENSION), 5)[0]) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ids", "count", "words"), [([0], 2, "1 ids for 2"), ([-1, 0], 2, "-1 is below 0")])
def test_ids_are_checked(kind: Callable[[int], Any], ids: list[int], count: int, words: str) -> None:
    """Each vector needs one id from 0, and k is at least 1."""
    with pytest.raises(ValueError, match=words):
        kind(DIMENSION).add(ids, made(count))
    with pytest.raises(ValueError, match="k is 0"):
        kind(DIMENSION).search(made(1)[0], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_same_id_twice_the_last_counts(kind: Callable[[int], Any]) -> None:
    """An id that is given twice in one add has the last vector given for it."""
    index, vectors = kind(DIMENSION), made(2)
    index.add([7, 7], vectors)

    assert len(index) == 1
    assert index.search(vectors[1], 1)[1][0] == pytest.approx(1.0, abs=HALF)


def test_the_exact_index_wipes_what_it_removes() -> None:
    """A removed vector does not stay in memory behind the block's end."""
    index = ExactIndex(DIMENSION)
    index.add(range(5), made(5))
    index.remove([1, 4])

    assert not index._block[3:].any()


def sizes_of_a_growing_exact_index() -> list[float]:
    """Bytes per vector that all arrays of this process take, while an index grows by 100 vectors at a time to 3,000."""
    vectors, sizes = made(100, 448), []
    arrays = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    tracemalloc.start()
    index = ExactIndex(448)
    for start in range(0, 3000, 100):
        index.add(range(start, start + 100), vectors)
        traces = tracemalloc.take_snapshot().filter_traces([arrays]).traces
        sizes.append(sum(trace.size for trace in traces) / len(index))
    return sizes


def test_the_exact_index_has_little_room_to_spare() -> None:
    """A vector of the built-in embedder takes at most 2 KB, all that an index holds for it included, while it grows."""
    sizes = in_own_process(sizes_of_a_growing_exact_index)

    assert len(sizes) == 30
    assert max(sizes[9:]) <= 2048 - 100  # and room for what searches filter by


@needs_hnswlib
def test_the_switch_shows_in_nothing_but_speed() -> None:
    """While an index grows past its limit and shrinks again, its answers are those of an exact one."""
    index, exact, vectors = AdaptiveIndex(16, exact_up_to=100), ExactIndex(16), made(400, 16)
    kinds = []
    for start in range(0, 400, 40):
        for one in (index, exact):
            one.add(range(start, start + 40), vectors[start : start + 40])
        kinds.append(index.graph is not None)
        query = made(1, 16, seed=start)[0]
        assert index.search(query, 5)[0].tolist() == exact.search(query, 5)[0].tolist()
    for one in (index, exact):
        one.remove(range(360))

    query = made(1, 16, seed=9)[0]
    assert index.search(query, 50)[0].tolist() == exact.search(query, 50)[0].tolist()
    assert (kinds[0], kinds[-1], index.graph) == (False, True, None)


@needs_hnswlib
@pytest.mark.parametrize("dimension", [32, 384])
def test_the_graph_finds_what_exact_search_finds(dimension: int) -> None:
    """Among 4,000 vectors that lie in groups, the graph finds at least .99 of the ten nearest, sketches or not."""
    random = np.random.default_rng(0)
    vectors = made(200, dimension)[random.integers(200, size=4000)] + 0.5 * made(4000, dimension, seed=1)
    index, exact = graph(dimension), ExactIndex(dimension)
    for one in (index, exact):
        one.add(range(4000), vectors)
    shares = []
    for query in vectors[:100] + 0.5 * made(100, dimension, seed=2):
        found, truth = index.search(query, 10), exact.search(query, 10)
        shares.append(np.mean(found[1] >= truth[1][-1] - 1e-5))

    assert np.mean(shares) >= 0.99


@needs_hnswlib
def test_equal_vectors_keep_nobody_from_the_others() -> None:
    """Where a third of all vectors are equal, as those of "thanks", the graph finds the others as well as ever."""
    random = np.random.default_rng(0)
    vectors = made(300, 200)[random.integers(300, size=6000)] + 0.5 * made(6000, 200, seed=1)
    equal = random.permutation(6000)[:2000]
    vectors[equal] = vectors[0]
    index, exact = graph(200), ExactIndex(200)
    exact.add(range(6000), vectors)
    for key in equal.tolist():
        index.add([key], vectors[:1])
    index.add(range(6000), vectors)
    shares = []
    for query in vectors[:100] + 0.5 * made(100, 200, seed=2):
        found, truth = index.search(query, 10), exact.search(query, 10)
        shares.append(np.mean(found[1] >= truth[1][-1] - 1e-5))

    assert np.mean(shares) >= 0.99
    assert index.search(vectors[0], 50)[0].tolist() == exact.search(vectors[0], 50)[0].tolist()


@needs_hnswlib
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_equal_vectors_come_and_go_one_by_one(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of a few vectors that many ids share, each id is found as long as it is there, also after a restart."""
    from krunch_plugins.recall.hnsw import HnswIndex

    random = np.random.default_rng(seed)
    index, exact, pool = graph(), ExactIndex(DIMENSION), made(5, seed=seed)
    for one in (index, exact):
        one.add(range(2000), pool[np.arange(2000) % 5])
    for _ in range(6):
        changed = random.permutation(2000)[: random.integers(1, 120)]
        vectors = pool[random.integers(5, size=len(changed))]
        for one in (index, exact):
            one.remove(changed[::2] if seed % 2 else changed)
            one.add(changed[::3], vectors[::3])
    for key in range(1995, 2000):  # a vector that all but one id have left
        for one in (index, exact):
            one.add(range(key % 5, 1995, 5), np.tile(-pool[key % 5], (399, 1)))
    path = tmp_path_factory.mktemp("graph") / "graph"
    noted = index.save(path)

    for found in (index, HnswIndex.load(path, noted, DIMENSION)):
        assert found is not None
        assert len(found) == len(exact)
        for query in [*pool, *-pool]:
            assert found.search(query, 1000)[0].tolist() == exact.search(query, 1000)[0].tolist()


@needs_hnswlib
def test_removed_vectors_leave_the_graph_with_compact() -> None:
    """Removed vectors are never found, and after `compact` they are no longer in memory or in the file."""
    index, vectors = graph(), made(1000)
    index.add(range(1000), vectors)
    index.remove(range(900))
    assert index.marked == 900
    assert not index._block.get(np.arange(900)).any()  # only the sketches are left
    assert set(index.search(vectors[5], 50)[0].tolist()) <= set(range(900, 1000))
    index.compact()

    assert (index.marked, len(index)) == (0, 100)
    assert index.ids().tolist() == list(range(900, 1000))
    assert index.search(vectors[950], 1)[0].tolist() == [950]


@needs_hnswlib
def test_what_takes_long_is_given_up_when_it_is_to_stop() -> None:
    """Once an index is to stop it builds no graph: it stays exact, or keeps its marks, and answers as before."""
    stopping = threading.Event()
    index, vectors = AdaptiveIndex(DIMENSION, 100, stopping), made(400)
    index.add(range(200), vectors[:200])
    index.remove(range(20))
    stopping.set()
    index.compact()
    assert (index.marked, len(index)) == (20, 180)
    assert index.search(vectors[50], 1)[0].tolist() == [50]
    exact = AdaptiveIndex(DIMENSION, 100, stopping)
    exact.add(range(200), vectors[:200])

    assert exact.graph is None
    assert exact.search(vectors[50], 1)[0].tolist() == [50]


@needs_hnswlib
def test_a_saved_graph_comes_back(tmp_path: Path) -> None:
    """A graph that was saved and loaded finds the same, can grow and shrink, and its file is for its owner only."""
    from krunch_plugins.recall.hnsw import HnswIndex

    index, vectors = graph(), made(700)
    index.add(range(700), vectors)
    index.remove([5])
    noted = index.save(tmp_path / "graph")
    loaded = HnswIndex.load(tmp_path / "graph", noted, DIMENSION)
    assert loaded is not None
    before = index.search(vectors[9], 20)[0].tolist()

    assert loaded.search(vectors[9], 20)[0].tolist() == before
    assert (tmp_path / "graph").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "graph.half").stat().st_mode & 0o777 == 0o600
    assert loaded.get(range(700))[1].tobytes() == index.get(range(700))[1].tobytes()
    loaded.add(range(700, 1500), made(800, seed=3))
    loaded.remove([9])
    assert len(loaded) == 699 - 1 + 800


@needs_hnswlib
def test_a_damaged_graph_is_never_loaded(tmp_path: Path) -> None:
    """Of a graph's two files, one with any bit changed, cut, lengthened or missing makes both count as missing."""
    from krunch_plugins.recall.hnsw import GraphFile, HnswIndex

    index = graph()
    index.add(range(40), made(40))
    path = tmp_path / "graph"
    noted = index.save(path)
    for file in (path, tmp_path / "graph.half"):
        whole = file.read_bytes()
        for at in np.random.default_rng(0).integers(len(whole), size=60).tolist():
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            assert HnswIndex.load(path, noted, DIMENSION) is None
        for data in (b"", whole[:-1], whole + b"x"):
            file.write_bytes(data)
            assert HnswIndex.load(path, noted, DIMENSION) is None
        file.unlink()
        assert HnswIndex.load(path, noted, DIMENSION) is None
        file.write_bytes(whole)

    assert HnswIndex.load(path, GraphFile(noted.size, noted.digest, 39, 0), DIMENSION) is None
    assert HnswIndex.load(path, noted, DIMENSION) is not None


@needs_hnswlib
@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="there is no limit on file sizes here to play a full disk")
def test_a_full_disk_is_noticed(tmp_path: Path) -> None:
    """Where the disk takes only a part of the graph, saving raises; hnswlib itself says nothing."""
    program = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from krunch_plugins.recall.hnsw import HnswIndex
index = HnswIndex(8)
index.add(range(500), np.random.default_rng(0).standard_normal((500, 8)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    index.save(Path(sys.argv[1]))
except OSError as error:
    print("noticed:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "graph"], capture_output=True, text=True, check=True
    )

    assert "is the disk full?" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_searches_and_changes_may_come_from_any_threads(kind: Callable[[int], Any], tmp_path: Path) -> None:
    """Searches go on while vectors come, go, and are saved, and find only what is there."""
    index, vectors = kind(DIMENSION), made(1300)
    index.add(range(50), vectors[:50])
    failures: list[BaseException] = []
    done = threading.Event()

    def search(seed: int) -> None:
        try:
            while not done.is_set():
                ids, scores = index.search(made(1, seed=seed)[0], 10)
                assert len(ids) == len(scores) == 10
                assert set(ids.tolist()) <= set(range(1300))
                index.search(made(1, seed=seed)[0], 5, range(20, 40))
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [threading.Thread(target=search, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for start in range(50, 1300, 250):
        index.add(range(start, min(start + 250, 1300)), vectors[start : start + 250])
        index.remove(range(start, start + 50))
        if hasattr(index, "save"):
            index.save(tmp_path / f"graph-{start}")
    done.set()
    for thread in threads:
        thread.join()

    assert failures == []


def test_without_hnswlib_all_is_exact_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without hnswlib an index stays exact whatever its size; a large one says once what would make it faster."""
    monkeypatch.setitem(sys.modules, "hnswlib", None)  # an import raises ImportError
    monkeypatch.delitem(sys.modules, "krunch_plugins.recall.hnsw", raising=False)
    monkeypatch.delattr("krunch_plugins.recall.hnsw", raising=False)
    monkeypatch.setattr("krunch_plugins.recall.vectors.SLOW_FROM", 100)
    index, vectors = AdaptiveIndex(DIMENSION, exact_up_to=20), made(300)
    with caplog.at_level(logging.WARNING, "krunch"):
        index.add(range(90), vectors[:90])
        assert index.missing is None
        index.add(range(90, 200), vectors[90:200])
        index.add(range(200, 300), vectors[200:])

    assert index.graph is None
    assert "krunch-plugins[search]" in str(index.missing)
    assert len(caplog.records) == 1
    assert index.search(vectors[250], 1)[0].tolist() == [250]


def test_importing_the_index_imports_no_hnswlib() -> None:
    """A small index does without hnswlib; it is imported when there is a graph to build."""
    program = """
import sys
from krunch_plugins.recall.vectors import AdaptiveIndex
index = AdaptiveIndex(4)
index.add([0], [[1, 2, 3, 4]])
assert index.search([1, 2, 3, 4], 1)[0].tolist() == [0]
assert "hnswlib" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "KRUNCH_DISABLE_PLUGINS": "all"})
