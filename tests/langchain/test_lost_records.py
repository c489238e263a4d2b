"""Where damage has taken records of a long-term memory or a byte store, nothing that was removed comes back unsaid."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from krunch_langchain import KrunchByteStore, KrunchStore
from langgraph.store.base import GetOp, PutOp

from krunch_plugins import ConversationStore
from krunch_plugins.errors import FrameDamaged, RecordsLost, SessionsDamaged

if TYPE_CHECKING:
    from pathlib import Path


def lose(opened: ConversationStore, folder: Path, which: list[int], *, repair: bool = True) -> None:
    """Damage records of the log that was begun first, by their place in it, and have the store repaired."""
    with closing(sqlite3.connect(folder / "cache.db")) as database, database:
        logs = database.execute("select key, value from Cache where key like 'l/%' order by rowid").fetchall()
        first = [(key, data) for key, data in logs if key.split("/")[1] == logs[0][0].split("/")[1]]
        for key, data in (first[place] for place in which):
            database.execute("update Cache set value = ? where key = ?", (bytes([*data[:-1], data[-1] ^ 255]), key))
    opened._tiers.reset()
    if repair:
        opened.check(repair=True)


def test_a_lost_removal_is_said(tmp_path: Path) -> None:
    """A byte store whose record of a removal is lost raises until it is told how to go on; the key stays away then."""
    with ConversationStore(tmp_path, upkeep_seconds=0) as opened:
        store = KrunchByteStore(store=opened)
        for key in ("a", "b", "c"):
            store.mset([(key, key.encode())])
        store.mdelete(["b"])
        store.mset([("d", b"d"), ("a", b"new")])
        lose(opened, tmp_path, [3], repair=False)
        with pytest.raises(FrameDamaged):
            KrunchByteStore(store=opened).mget(["b"])
        opened.check(repair=True)
        damaged, other = KrunchByteStore(store=opened), KrunchByteStore(store=opened)
        for call in (
            lambda: damaged.mget(["b"]),
            lambda: list(damaged.yield_keys()),
            lambda: damaged.mset([("e", b"e")]),
            lambda: damaged.mdelete(["a"]),
            lambda: other.mget(["d"]),
        ):
            with pytest.raises(RecordsLost, match=r"1 records.*accept_loss") as raised:
                call()
            assert raised.value.lost == 1

        assert damaged.accept_loss(keep=False) == 2
        for one in (damaged, other, KrunchByteStore(store=opened)):
            assert one.mget(["a", "b", "c", "d"]) == [b"new", None, None, b"d"]
        assert damaged.accept_loss(keep=False) == 0
        other.mset([("b", b"again")])
        assert damaged.mget(["b"]) == [b"again"]


@pytest.mark.parametrize("last", [False, True])
def test_what_is_doubtful_can_be_kept(tmp_path: Path, *, last: bool) -> None:
    """With `keep`, what is left is there as it was before the loss; also where the last record is the lost one."""
    with ConversationStore(tmp_path, upkeep_seconds=0) as opened:
        store = KrunchByteStore(store=opened)
        store.mset([("a", b"old")])
        store.mset([("a", b"lost")])
        if not last:
            store.mset([("b", b"b")])
        lose(opened, tmp_path, [1])
        store = KrunchByteStore(store=opened)
        with pytest.raises(RecordsLost):
            store.mget(["a"])

        assert store.accept_loss(keep=True) == 1
        assert KrunchByteStore(store=opened).mget(["a", "b"]) == [b"old", None if last else b"b"]


def test_nothing_is_left(tmp_path: Path) -> None:
    """Where all that is left is doubtful and is given up, the store is empty, for other processes too, and works."""
    with ConversationStore(tmp_path, upkeep_seconds=0) as opened, ConversationStore(tmp_path) as elsewhere:
        store = KrunchByteStore(store=opened)
        store.mset([("a", b"old")])
        store.mdelete(["x", "a"])
        store.mset([("b", b"b")])
        store.mdelete(["b"])
        for key in ("c", "d"):
            store.mset([(key, b"1")])
        lose(opened, tmp_path, [-1])
        store, other = KrunchByteStore(store=opened), KrunchByteStore(store=elsewhere)
        for one in (store, other):
            with pytest.raises(RecordsLost):
                one.mget(["c"])

        assert store.accept_loss(keep=False) == 1
        assert list(other.yield_keys()) == list(store.yield_keys()) == []
        other.mset([("d", b"2")])
        assert store.mget(["c", "d"]) == [None, b"2"]


def test_other_namespaces_go_on(tmp_path: Path) -> None:
    """A namespace of which records are lost raises where it is used, by name; all others are as ever, swept too."""
    now = [1_000_000.0]
    with ConversationStore(tmp_path, upkeep_seconds=0, clock=lambda: now[0]) as opened:
        store = KrunchStore(opened)
        store.put(("u", "ann"), "secret", {"x": 1})
        store.delete(("u", "ann"), "other")
        store.put(("u", "ann"), "k", {"x": 2})
        store.delete(("u", "ann"), "secret")
        for key, ttl in (("k", None), ("short", 1.0)):
            store.put(("u", "bob"), key, {"x": 3}, ttl=ttl)
        lose(opened, tmp_path, [-1])
        now[0] += 3600
        store = KrunchStore(opened, ttl={"sweep_interval_minutes": 1e-9})  # type: ignore[arg-type]  # minutes are whole

        found: Any = store.batch([GetOp(("u", "bob"), "k"), PutOp(("u", "bob"), "new", {"x": 4})])
        assert found[0].value == {"x": 3}
        assert [item.key for item in store.search(("u", "bob"))] == ["k", "new"]
        assert store.list_namespaces() == [("u", "ann"), ("u", "bob")]
        for use in (
            lambda: store.get(("u", "ann"), "secret"),
            lambda: store.search(("u", "ann")),
            lambda: store.search(("u",)),
            lambda: store.search(("u",), query="x"),
            lambda: store.put(("u", "ann"), "k", {"x": 5}),
        ):
            with pytest.raises(RecordsLost) as raised:
                use()
            assert raised.value.session == '["u","ann"]'
        for all_over in (store.compact, store.sweep_ttl):
            with pytest.raises(SessionsDamaged) as told:
                all_over()
            assert told.value.sessions == ('["u","ann"]',)
        assert opened.info('["u","bob"]', next(filter(None, opened.tenants()))).turns == 2  # type: ignore[union-attr]
        assert store.accept_loss(("u", "bob"), keep=False) == 0
        assert store.accept_loss(keep=False) == 2
        assert [item.key for item in store.search(("u",))] == ["k", "new"]
        assert store.compact() == 0


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=2, max_size=12),
    lost=st.lists(st.integers(0, 11), min_size=1, max_size=3, unique=True),
    keep=st.booleans(),
)
def test_no_loss_goes_unsaid(
    steps: list[tuple[str, bool]], lost: list[int], tmp_path_factory: pytest.TempPathFactory, *, keep: bool
) -> None:
    """Whatever is put and removed, and whichever records are lost: it is said, and what is certain is there after."""
    folder = tmp_path_factory.mktemp("store")
    with ConversationStore(folder, upkeep_seconds=0) as opened:
        store = KrunchByteStore(store=opened)
        records: list[tuple[str, bytes | None]] = []
        for number, (key, put) in enumerate(steps):
            if put:
                store.mset([(key, b"%d" % number)])
                records.append((key, b"%d" % number))
            elif store.mget([key]) != [None]:
                store.mdelete([key])
                records.append((key, None))
        turns: Any = opened.turns("", tenant=next(filter(None, opened.tenants()), "none"))
        if len(turns) != len(records):  # it was written anew when it was empty
            return
        places = sorted(place for place in lost if place < len(records))
        if not places:
            return
        lose(opened, folder, places)
        store = KrunchByteStore(store=opened)
        with pytest.raises(RecordsLost, match=f"^{len(places)} records"):
            store.mget(["a"])
        store.accept_loss(keep=keep)

        left = {}
        for place, (key, value) in enumerate(records):
            if place not in places and (keep or place > places[-1]):
                left[key] = value
        assert store.mget(list("abc")) == [left.get(key) for key in "abc"]
