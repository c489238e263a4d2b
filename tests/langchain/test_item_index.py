"""KrunchStore's search by the user's own embeddings among many items: as InMemoryStore has it, or nearly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from krunch_langchain import KrunchStore
from langgraph.store.base import PutOp
from langgraph.store.memory import InMemoryStore

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def conversations(tmp_path: Path) -> Iterator[ConversationStore]:
    """A store in a folder of its own."""
    with ConversationStore(tmp_path / "store", upkeep_seconds=0) as store:
        yield store


def index_over(vectors: Any) -> Any:
    """An index whose texts are numbers of rows."""

    def embed(texts: list[str]) -> list[list[float]]:
        return [vectors[int(text)].tolist() for text in texts]

    return {"dims": vectors.shape[1], "embed": embed, "fields": ["text"]}


def put(store: Any, count: int, spread: int = 1) -> None:
    """Put items whose texts are the numbers of the rows, dealt out to several namespaces."""
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        store.batch([PutOp(("n", f"{n % spread}"), f"k{n}", {"text": str(n), "third": n % 3 == 0}) for n in numbers])


def plain(items: list[Any]) -> list[tuple[Any, ...]]:
    """What was found, with scores as far as two ways of counting agree."""
    return [(item.namespace, item.key, None if item.score is None else round(item.score, 9)) for item in items]


def test_vectors_that_hardly_differ_are_told_apart(conversations: ConversationStore) -> None:
    """Items closer to each other than float16 can tell come in the order, and with the scores, of InMemoryStore."""
    random = np.random.default_rng(0)
    vectors = np.concatenate(
        [
            random.standard_normal(32) + 1e-5 * random.standard_normal((300, 32)),
            random.standard_normal((700, 32)),
            np.zeros((3, 32)),
        ]
    )
    index = index_over(vectors)
    ours, theirs = KrunchStore(conversations, index=index), InMemoryStore(index=index)
    for store in (ours, theirs):
        put(store, len(vectors), spread=7)

    for query in ("0", "299", "500"):
        for prefix in (("n",), ("n", "3"), ()):
            for limit, offset in ((10, 0), (10, 25), (400, 0), (2000, 0)):
                found = [store.search(prefix, query=query, limit=limit, offset=offset) for store in (ours, theirs)]
                assert plain(found[0]) == plain(found[1])
        kept = [store.search(("n",), query=query, filter={"third": True}, limit=50) for store in (ours, theirs)]
        assert plain(kept[0]) == plain(kept[1])
    nowhere = ours.search(("n",), query="1002", limit=200)  # a query of zeros; InMemoryStore divides by its length
    assert [(item.key, item.score) for item in nowhere[:2]] == [("k0", 0.0), ("k7", 0.0)]
    assert len(nowhere) == 200


def test_among_very_many_the_nearest_are_found(conversations: ConversationStore) -> None:
    """Above 10,000 items: nearly all of the nearest while a graph is built and after, all of them with a filter."""
    random = np.random.default_rng(0)
    groups = random.standard_normal((600, 48))
    vectors = groups[random.integers(600, size=12_020)] + 0.5 * random.standard_normal((12_020, 48))
    store = KrunchStore(conversations, index=index_over(vectors))
    put(store, 12_000, spread=3)
    held = vectors[:12_000] / np.linalg.norm(vectors[:12_000], axis=1, keepdims=True)

    for round_ in range(2):
        shares = []
        for number in range(12_000, 12_020):
            scores = held @ vectors[number] / np.linalg.norm(vectors[number])
            found = store.search(("n",), query=str(number), limit=10)
            assert [item.score for item in found] == pytest.approx([scores[int(item.key[1:])] for item in found])
            shares.append(len({item.key for item in found} & {f"k{n}" for n in np.argsort(-scores)[:10]}) / 10)
            thirds = store.search(("n",), query=str(number), filter={"third": True}, limit=10)
            assert [item.key for item in thirds] == [f"k{3 * n}" for n in np.argsort(-scores[::3])[:10]]
        assert np.mean(shares) >= 0.98
        store.put(("n", "0"), f"k{3 * round_}", {"text": "12019", "third": False})
        assert store.search(("n",), query="12019", limit=1)[0].key == f"k{3 * round_}"
        store.put(("n", "0"), f"k{3 * round_}", {"text": str(3 * round_), "third": True})
        store._indexes.of(("n",), 48)._index.settle()


def test_whatever_happens_to_a_namespace_shows_in_searches(conversations: ConversationStore) -> None:
    """An index follows other stores: what they put, delete and compact, logs that are written anew or forgotten."""
    vectors = np.random.default_rng(0).standard_normal((400, 16))
    ours, other = (KrunchStore(conversations, index=index_over(vectors)) for _ in range(2))
    put(other, 200, spread=2)

    def nearest(query: int, prefix: tuple[str, ...] = ("n",)) -> str:
        return ours.search(prefix, query=str(query), limit=1)[0].key

    assert (nearest(7), nearest(8, ("n", "0"))) == ("k7", "k8")
    for _ in range(4):
        for number in range(0, 200, 2):  # the log is written anew on the way
            other.put(("n", "0"), f"k{number}", {"text": str(200 + number)})
    other.delete(("n", "1"), "k7")
    other.put(("n", "1"), "new", {"text": "399"})
    assert [nearest(query) for query in (208, 399)] == ["k8", "new"]
    assert nearest(7) != "k7"
    other.compact()
    assert [nearest(query) for query in (208, 399, 9)] == ["k8", "new", "k9"]
    tenant = next(name for name in conversations.tenants() if name)
    conversations.forget('["n","1"]', tenant=tenant)
    assert [nearest(query) for query in (208, 399)] == ["k8", nearest(399, ("n", "0"))]
    assert len(ours.search(("n",), query="9", limit=500)) == 100
    put(other, 200, spread=2)
    assert [nearest(query) for query in (9, 8)] == ["k9", "k8"]


def test_expired_items_take_no_place(tmp_path: Path) -> None:
    """Items that have expired and are not swept yet are not found, and those behind them are, as many as wanted."""
    vectors = np.random.default_rng(0).standard_normal((300, 16))
    now = [1_000_000.0]
    with ConversationStore(tmp_path, upkeep_seconds=0, clock=lambda: now[0]) as conversations:
        store = KrunchStore(conversations, index=index_over(vectors), ttl={"refresh_on_read": False})
        store.batch([PutOp(("n",), f"k{n}", {"text": "0"}, ttl=1.0) for n in range(200)])
        store.batch([PutOp(("n",), f"k{n}", {"text": str(n)}) for n in range(200, 300)])
        assert len(store.search(("n",), query="0", limit=200)) == 200
        now[0] += 90

        found = store.search(("n",), query="0", limit=60)
        assert len(found) == 60
        assert {item.score is None or int(item.key[1:]) >= 200 for item in found} == {True}
        assert None not in {item.score for item in found}
