"""KrunchStore does what LangGraph's own store does, on disk, for many processes, and with our search."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from krunch_langchain import KrunchStore
from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from krunch_plugins import ConversationStore
from krunch_plugins.errors import NotStorable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from langgraph.store.base import BaseStore, IndexConfig, Item


class Clock:
    """Time that moves when it is told to, and a microsecond with every look."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        self.now += 0.000_001
        return self.now


def embed(texts: list[str]) -> list[list[float]]:
    """Vectors of 8 dimensions that depend on the text alone."""
    rows = []
    for text in texts:
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        rows.append([byte - 127.5 for byte in digest])
    return rows


def index(**more: Any) -> IndexConfig:
    """An index over the field `text`."""
    return {"dims": 8, "embed": embed, "fields": ["text"], **more}  # type: ignore[typeddict-item]


@pytest.fixture
def clock() -> Clock:
    """Time that the test moves."""
    return Clock()


@pytest.fixture
def conversations(tmp_path: Path, clock: Clock) -> Iterator[ConversationStore]:
    """A store in a folder of its own."""
    with ConversationStore(tmp_path / "store", upkeep_seconds=0, clock=clock) as store:
        yield store


def plain(result: Any) -> Any:
    """A result without its times, which two stores cannot share."""
    if isinstance(result, list):
        return [plain(each) for each in result]
    if result is None or isinstance(result, tuple):
        return result
    score = getattr(result, "score", None)
    return result.namespace, result.key, result.value, None if score is None else round(score, 9)


LABELS = ("a", "b", "users", "ü")
NAMESPACES = st.lists(st.sampled_from(LABELS), min_size=1, max_size=3).map(tuple)
KEYS = st.sampled_from(["k1", "k2", "k3", "", "ключ"])
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.sampled_from(["x", "y", "10", ""])
VALUES = st.fixed_dictionaries(
    {"text": st.sampled_from(["tea", "coffee", "green tea", "a train to Ulm"]), "n": st.integers(0, 9)},
    optional={"kind": st.sampled_from(["x", "y"]), "deep": st.fixed_dictionaries({"tags": st.lists(SCALARS)})},
)
FILTERS: st.SearchStrategy[Any] = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(0, 9)
        | st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte", "$eq", "$ne"]), st.integers(0, 9), min_size=1),
        "kind": st.sampled_from(["x", "y", None]) | st.just({"$ne": "x"}),
        "deep": st.just({"tags": ["x"]}) | st.just({"tags": []}),
    },
)


class LikeInMemoryStore(RuleBasedStateMachine):
    """Every operation gives what InMemoryStore gives, whoever of two processes' worth of stores is asked."""

    directory: Path

    @initialize(with_index=st.sampled_from(["", "index"]))
    def start(self, with_index: str) -> None:
        """Two stores on one directory, opened separately, as two processes have them."""
        chosen = index() if with_index else None
        self.with_index = with_index
        self.oracle = InMemoryStore(index=chosen)
        where = self.directory / f"{id(self)}"
        self.opened = [ConversationStore(where, upkeep_seconds=0) for _ in range(2)]
        self.ours = [KrunchStore(store, index=chosen) for store in self.opened]

    def both(self, which: int, operation: Any) -> None:
        theirs, ours = (operation(store) for store in (self.oracle, self.ours[which]))
        assert plain(ours) == plain(theirs)

    @rule(which=st.integers(0, 1), namespace=NAMESPACES, key=KEYS, value=VALUES)
    def put(self, which: int, namespace: tuple[str, ...], key: str, value: dict[str, Any]) -> None:
        self.both(which, lambda store: store.put(namespace, key, value))

    @rule(which=st.integers(0, 1), namespace=NAMESPACES, key=KEYS)
    def get_or_delete(self, which: int, namespace: tuple[str, ...], key: str) -> None:
        if namespace in self.oracle._data:  # asking it for one that is not there would make it
            self.both(which, lambda store: store.get(namespace, key))
            self.both(which, lambda store: store.delete(namespace, key))
        else:
            assert self.ours[which].get(namespace, key) is None
        assert self.ours[which].get(namespace, key) is None

    @rule(
        which=st.integers(0, 1),
        prefix=st.lists(st.sampled_from(LABELS), max_size=2).map(tuple),
        wanted=FILTERS,
        query=st.none() | st.sampled_from(["tea", "train", "coffee"]),
        limit=st.integers(1, 6),
        offset=st.integers(0, 3),
    )
    def search(
        self, which: int, prefix: tuple[str, ...], wanted: Any, query: str | None, limit: int, offset: int
    ) -> None:
        query = query if self.with_index else None  # without an index, InMemoryStore knows no queries
        self.both(which, lambda store: store.search(prefix, filter=wanted, query=query, limit=limit, offset=offset))

    @rule(
        which=st.integers(0, 1),
        prefix=st.none() | st.lists(st.sampled_from([*LABELS, "*"]), min_size=1, max_size=2).map(tuple),
        suffix=st.none() | st.lists(st.sampled_from([*LABELS, "*"]), min_size=1, max_size=2).map(tuple),
        depth=st.none() | st.integers(1, 3),
        page=st.tuples(st.integers(1, 5), st.integers(0, 2)),
    )
    def namespaces(self, which: int, prefix: Any, suffix: Any, depth: int | None, page: tuple[int, int]) -> None:
        # InMemoryStore goes on listing namespaces that hold nothing any more; those are taken out of it for a while.
        empty = {name: items for name, items in self.oracle._data.items() if not items}
        full = {name: items for name, items in self.oracle._data.items() if items}
        order = list(self.oracle._data)
        for name in empty:
            del self.oracle._data[name]
        limit, offset = page
        self.both(
            which,
            lambda store: store.list_namespaces(
                prefix=prefix, suffix=suffix, max_depth=depth, limit=limit, offset=offset
            ),
        )
        self.oracle._data.clear()
        self.oracle._data.update({name: full.get(name, {}) for name in order})

    @rule(which=st.integers(0, 1), namespace=NAMESPACES, values=st.lists(VALUES, min_size=1, max_size=3))
    def batch(self, which: int, namespace: tuple[str, ...], values: list[dict[str, Any]]) -> None:
        """Reads of a batch see what was before it; of two puts of one key, the last counts."""
        different = {value["text"]: value for value in values}.values()  # InMemoryStore fails on one text twice
        puts = [PutOp(namespace, f"k{number}", value) for number, value in enumerate(different)]
        last = PutOp(namespace, "k0", {"text": "the last one", "n": 1})
        ops = [SearchOp(namespace), *puts, last, ListNamespacesOp(max_depth=1, limit=0)]
        self.both(which, lambda store: store.batch(ops))

    def teardown(self) -> None:
        for store in getattr(self, "opened", []):
            store.close()


def test_it_does_what_in_memory_store_does(tmp_path: Path) -> None:
    """Sequences of operations give, one by one, what LangGraph's InMemoryStore gives."""
    LikeInMemoryStore.directory = tmp_path
    machine = LikeInMemoryStore.TestCase
    machine.settings = settings(
        max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    machine().runTest()


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    """Values of all JSON types, and dates, bytes and tuples, come back equal from a store that is opened anew."""
    value = {"a": [1, 2.5, None, True, {"b": "ü"}], "when": Clock, "data": b"\x00\xff", "pair": (1, 2)}
    value["when"] = __import__("datetime").datetime(2026, 1, 2, 3, 4)
    with ConversationStore(tmp_path) as conversations:
        KrunchStore(conversations).put(("users", "ann"), "profile", value)
    with ConversationStore(tmp_path) as conversations:
        item = KrunchStore(conversations).get(("users", "ann"), "profile")

    assert item is not None
    assert item.value == value
    assert item.created_at.tzinfo is not None


def test_what_cannot_be_stored_changes_nothing(conversations: ConversationStore) -> None:
    """A value that has no form in JSON raises and says where; the batch stores nothing."""
    store = KrunchStore(conversations)
    with pytest.raises(NotStorable, match="object"):
        store.batch([PutOp(("a",), "good", {"x": 1}), PutOp(("a",), "bad", {"x": object()})])
    with pytest.raises(InvalidNamespaceError):
        store.batch([GetOp(("a.b",), "k")])
    store.put(("a",), "k", {"x": 1})
    with pytest.raises(ValueError, match=r"\$near"):
        store.search(("a",), filter={"x": {"$near": 1}})

    assert [item.key for item in store.search(("a",))] == ["k"]


def test_filters_that_compare(conversations: ConversationStore) -> None:
    """Numbers compare as numbers, other texts as texts, and what cannot be compared does not pass."""
    store = KrunchStore(conversations)
    for key, value in {"n": 5, "text": "2026-03-01", "digits": "7", "none": None}.items():
        store.put(("f",), key, {"v": value})

    def found(**condition: Any) -> list[str]:
        asked = {f"${name}": limit for name, limit in condition.items()}
        return [item.key for item in store.search(("f",), filter={"v": asked})]

    assert found(gt=4) == ["n", "digits"]
    assert found(gte="2026-01-01", lt="2027-01-01") == ["text"]
    assert found(ne=5) == ["text", "digits", "none"]


def test_a_caller_cannot_change_what_is_stored(conversations: ConversationStore) -> None:
    """Neither the value that was given nor the one that was got is the one that is kept."""
    store, value = KrunchStore(conversations), {"tags": ["x"]}
    store.put(("a",), "k", value)
    value["tags"].append("y")
    for _ in range(2):
        item = store.get(("a",), "k")
        assert item is not None
        assert item.value == {"tags": ["x"]}
        item.value["tags"].clear()


def test_an_item_keeps_the_time_of_its_creation(conversations: ConversationStore) -> None:
    """Putting a key again moves `updated_at` only; after a delete it is a new item."""
    store = KrunchStore(conversations)

    def put() -> Item:
        store.put(("a",), "k", {"x": 1})
        item = store.get(("a",), "k")
        assert item is not None
        return item

    first, second = put(), put()
    store.delete(("a",), "k")
    third = put()
    for _ in range(100):
        last = put()  # the log is written anew on the way

    assert (first.created_at, first.updated_at) == (first.updated_at, second.created_at)
    assert second.updated_at > first.updated_at
    assert third.created_at > second.updated_at
    assert last.created_at == third.created_at
    assert last.updated_at > third.updated_at


def test_the_log_does_not_grow_with_changes(conversations: ConversationStore) -> None:
    """Replaced and deleted items are given up: 2,000 changes of five keys leave a short log, and nothing when empty."""
    store = KrunchStore(conversations)
    for number in range(400):
        store.batch([PutOp(("a",), f"k{key}", {"n": number}) for key in range(5)])
    tenant = next(name for name in conversations.tenants() if name)
    info = conversations.info('["a"]', tenant)
    assert info is not None
    assert info.turns < 100
    assert [item.value["n"] for item in store.search(("a",))] == [399] * 5
    for key in range(5):
        store.delete(("a",), f"k{key}")

    assert conversations.turns('["a"]', tenant=tenant) == []
    assert store.list_namespaces() == []
    assert store.search(()) == []


def test_deleted_values_leave_the_disk(tmp_path: Path) -> None:
    """After `compact` and the store's own cleaning, no file holds a value that was replaced or deleted."""
    with ConversationStore(tmp_path, codec="none", upkeep_seconds=0) as opened:
        store = KrunchStore(opened)
        for number in range(10):
            store.put(("a",), f"k{number}", {"x": f"secret-4711-{number}"})
        store.put(("a",), "k0", {"x": "open"})
        for number in range(1, 9):
            store.delete(("a",), f"k{number}")
        assert store.compact() == 17
        assert store.compact() == 0
        opened.append("other", [{"role": "user", "content": "x"}])
        opened.forget("other")  # cleans up, as the background thread does

        files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert [number for number in range(10) if b"secret-4711-%d" % number in files] == [9]
        assert [item.key for item in store.search(("a",))] == ["k0", "k9"]


def test_time_to_live(conversations: ConversationStore, clock: Clock) -> None:
    """Items go when their minutes are over; reading lets them live on, unless told not to; a sweep removes them."""
    store = KrunchStore(conversations, ttl={"default_ttl": 10.0})
    for key in ("read", "searched", "peeked"):
        store.put(("t",), key, {"k": key})
    store.put(("t",), "kept", {"k": "kept"}, ttl=None)
    clock.now += 6 * 60
    assert store.get(("t",), "read") is not None
    assert [item.key for item in store.search(("t",), filter={"k": "searched"})] == ["searched"]
    assert store.get(("t",), "peeked", refresh_ttl=False) is not None
    clock.now += 6 * 60

    assert [item.key for item in store.search(("t",), refresh_ttl=False)] == ["read", "searched", "kept"]
    assert store.get(("t",), "peeked") is None
    assert store.sweep_ttl() == 1
    clock.now += 60 * 60
    assert store.sweep_ttl() == 2
    assert [item.key for item in KrunchStore(conversations).search(())] == ["kept"]


def test_a_sweep_is_made_now_and_then(conversations: ConversationStore, clock: Clock) -> None:
    """With `sweep_interval_minutes`, what has expired is removed by a later call."""
    store = KrunchStore(conversations, ttl={"sweep_interval_minutes": 1e-6})  # type: ignore[arg-type]  # minutes are whole
    store.put(("t",), "k", {"x": 1}, ttl=1)
    clock.now += 120
    store.get(("other",), "k")

    assert conversations.turns('["t"]', tenant=next(name for name in conversations.tenants() if name)) == []
    assert store.list_namespaces() == []


async def test_async_callers(conversations: ConversationStore) -> None:
    """Async calls do the same, with an embedder that is async only, many at a time."""

    async def later(texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return embed(texts)

    store = KrunchStore(conversations, index=index(embed=later))
    await asyncio.gather(*(store.aput(("a",), f"k{n}", {"text": f"text {n}"}) for n in range(20)))
    found = await store.asearch(("a",), query="text 7", limit=3)
    await store.adelete(("a",), "k7")

    assert found[0].key == "k7"
    assert found[0].score == pytest.approx(1.0)
    assert await store.aget(("a",), "k7") is None
    assert len(await store.asearch(("a",), limit=50)) == 19
    assert await store.alist_namespaces() == [("a",)]


def test_an_index_of_other_dimensions(conversations: ConversationStore) -> None:
    """Vectors of another length than the index says are refused; those of an older index are passed over."""
    with pytest.raises(ValueError, match="8 dimensions"):
        KrunchStore(conversations, index=index(embed=lambda texts: [[1.0] for _ in texts])).put(
            ("a",), "k", {"text": "t"}
        )
    KrunchStore(conversations, index=index()).put(("a",), "old", {"text": "t"})
    store = KrunchStore(conversations, index={"dims": 1, "embed": lambda texts: [[1.0] for _ in texts]})

    assert [(item.key, item.score) for item in store.search(("a",), query="t")] == [("old", None)]


def test_tenants_never_see_each_other(conversations: ConversationStore) -> None:
    """What one tenant puts is neither got, found, listed nor changed by another, and is nobody's conversation."""
    stores: list[BaseStore] = [KrunchStore(conversations, tenant=tenant) for tenant in (None, "", "acme", "acme\x1fx")]
    for number, store in enumerate(stores):
        store.put(("users",), "k", {"text": f"secret {number}"})
    conversations.append('["users"]', [{"role": "user", "content": "hello"}], tenant="acme")
    stores[0].delete(("users",), "k")

    assert [[item.value["text"] for item in store.search(())] for store in stores] == [
        [], ["secret 1"], ["secret 2"], ["secret 3"]
    ]  # fmt: skip
    assert conversations.sessions() == []
    assert conversations.sessions("acme") == ['["users"]']
    assert len(conversations.turns('["users"]', tenant="acme")) == 1
