"""Forgetting leaves nothing; retention removes what is old and nothing else."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from krunch_plugins import ConversationStore, Turn
from krunch_plugins.storage import ledger
from krunch_plugins.storage.cold import DiskTier
from krunch_plugins.turns import APART

from .conftest import many, says

if TYPE_CHECKING:
    from pathlib import Path

Open = Callable[..., ConversationStore]
SECRET = "Xylophone-4711"


def _everything(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def _small_sessions(store: ConversationStore, count: int = 64) -> None:
    """Enough alike small sessions that a dictionary pays."""
    chance = random.Random(1)
    phrases = [f"{SECRET} says {chance.randbytes(40).hex()}" for _ in range(60)]
    for index in range(count):
        store.append(f"small-{index}", says(*(chance.choice(phrases) for _ in range(4))), tenant="t")


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_no_byte_is_left(open_store: Open, tmp_path: Path, codec: str) -> None:
    """After forget, no file holds the text, the session's id, its summary, its state or its log."""
    store = open_store(codec=codec)
    store.append("stays", many(50))
    store.append(f"{SECRET}-id", says(*(f"{SECRET} {number}" * 50 for number in range(150))))
    store.evict(f"{SECRET}-id")
    store.append(f"{SECRET}-id", says(f"{SECRET} in the log"))
    store.set_summary(f"{SECRET}-id", f"about {SECRET}")
    store.put_state(f"{SECRET}-id", f"{SECRET}-state", SECRET.encode() * 9)
    assert SECRET.encode() in _everything(tmp_path)
    report = store.forget(f"{SECRET}-id")

    assert SECRET.encode() not in _everything(tmp_path)
    assert (report.sessions, report.turns, report.states, report.log_entries) == (1, 151, 1, 1)
    assert report.segments >= 1
    assert report.scrubbed
    assert store.sessions() == ["stays"]
    assert store.recent(f"{SECRET}-id") == []
    assert [turn.message for turn in store.turns("stays")] == many(50)
    assert store.check().ok


def test_forgetting_nobody(open_store: Open) -> None:
    """Forgetting a session that does not exist removes nothing and says so."""
    store = open_store()

    assert store.forget("nobody").sessions == 0


def test_dictionaries_that_saw_the_text_are_rebuilt(open_store: Open, tmp_path: Path) -> None:
    """Forgetting a session leaves no dictionary that saw it, and all other sessions readable."""
    store = open_store()
    _small_sessions(store)
    store.append("of-another", says("text"), tenant="other")
    store.compact()
    before = {name: store.turns(name, tenant="t") for name in store.sessions("t")}
    with_dictionary = sum(info.bytes for name in before if (info := store.info(name, "t")))
    learnt = SECRET.encode() in _everything(tmp_path)
    seen = 0
    for index in range(0, 64, 4):
        seen += store.forget(f"small-{index}", tenant="t").dictionaries
        del before[f"small-{index}"]
    store.close()
    store = open_store()

    assert learnt
    assert seen >= 1
    assert all(store.turns(name, tenant="t") == turns for name, turns in before.items())
    assert with_dictionary < sum(len(str(turns)) for turns in before.values()) / 3
    assert store.check().ok


def test_a_dictionary_keeps_nothing_that_was_forgotten(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text of some sessions that a dictionary learnt by heart is in no file once these sessions are forgotten."""
    keys = random.Random(1)  # which sessions a dictionary learns from depends on their keys, which are random
    monkeypatch.setattr(ledger, "secrets", SimpleNamespace(token_hex=lambda size: keys.randbytes(size).hex()))
    store = open_store()
    _small_sessions(store)
    rare = "Quetzalcoatl-0815 " + random.Random(5).randbytes(40).hex()
    for index in range(24):
        store.append(f"rare-{index}", says(f"{rare} {index}", f"{index} {rare}"), tenant="t")
    store.compact()
    learnt = rare.encode() in _everything(tmp_path)
    report = [store.forget(f"rare-{index}", tenant="t") for index in range(24)]

    assert learnt
    assert sum(item.dictionaries for item in report) >= 1
    assert b"Quetzalcoatl" not in _everything(tmp_path)
    assert len(store.sessions("t")) == 64
    assert store.check().ok


def test_those_who_keep_something_elsewhere_are_asked(open_store: Open) -> None:
    """A search index or a folder of snapshots registers itself, removes its part, and is counted."""
    store = open_store()
    asked: list[tuple[str, str | None]] = []

    def forgetter(session: str, tenant: str | None) -> int:
        asked.append((session, tenant))
        return 3

    store.on_forget(forgetter)
    store.append("s", says("x"), tenant="t")
    report = store.forget("s", tenant="t")

    assert asked == [("s", "t")]
    assert report.elsewhere == 3


def test_forgetting_while_others_append(open_store: Open) -> None:
    """A session that is forgotten again and again while others append to it is never half there."""
    store = open_store()
    stop = threading.Event()
    wrong: list[str] = []

    def write() -> None:
        while not stop.is_set():
            numbers = store.append("s", many(3))
            if numbers.start % 3:
                wrong.append(str(numbers))

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        store.forget("s")
    stop.set()
    for thread in threads:
        thread.join()
    turns = store.turns("s")

    assert wrong == []
    assert [turn.message for turn in turns] == many(3) * (len(turns) // 3)
    assert store.check().ok


def test_retention_by_age(open_store: Open, tmp_path: Path) -> None:
    """Turns older than the days set go, from the front; numbers of the others stay; an old session goes entirely."""
    day = 86_400.0
    clock = [0.0]
    store = open_store(retention_days=30, clock=lambda: clock[0], codec="none")
    store.append("old", says(f"{SECRET} a"))
    store.append("both", says(*(f"{SECRET} {number}" for number in range(40))))
    clock[0] = 20 * day
    store.append("both", says("young", "younger"))
    store.evict("both")
    early = store.expire(now=29 * day)
    late = store.expire(now=31 * day)
    info = store.info("both")

    assert (early.turns, early.sessions) == (0, 0)
    assert (late.turns, late.sessions) == (41, 1)
    assert store.sessions() == ["both"]
    assert [(turn.number, turn.message["content"]) for turn in store.turns("both")] == [(40, "young"), (41, "younger")]
    assert [turn.number for turn in store.recent("both")] == [40, 41]
    assert info is not None
    assert (info.first, info.turns) == (40, 2)
    assert SECRET.encode() not in _everything(tmp_path)
    assert store.append("both", says("next")) == range(42, 43)
    assert store.check().ok


def test_retention_leaves_a_session_that_is_used_again_while_it_is_at_work(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process appends after the sessions were listed is acknowledged, and stays."""
    day = 86_400.0
    clock = [day]
    store = open_store(retention_days=1, clock=lambda: clock[0])
    other = open_store(clock=lambda: clock[0])
    for name in ("a", "b", "c"):
        store.append(name, says("old"))
    clock[0] = 30 * day
    listed = ledger.Ledger.sessions

    def sessions(of: ledger.Ledger, tenant: str | None) -> object:
        found = listed(of, tenant)
        other.append("b", says("I am back"))
        return found

    monkeypatch.setattr(ledger.Ledger, "sessions", sessions)
    report = store.expire()

    assert report.sessions == 2
    assert store.info("a") is None
    assert store.turns("b")[-1].message == says("I am back")[0]


def test_trimming_all_the_time_does_not_rebuild_the_file_all_the_time(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebuilding it keeps writers waiting, the longer the larger it is."""
    rebuilt = []
    scrub = DiskTier.scrub

    def slow(tier: DiskTier) -> bool:
        rebuilt.append(time.monotonic())
        time.sleep(0.2)
        return scrub(tier)

    monkeypatch.setattr(DiskTier, "scrub", slow)
    store = open_store(upkeep_seconds=0.02)
    store.append("log", many(40))
    for start in range(1, 40):
        store.trim("log", start)
        time.sleep(0.02)

    assert len(rebuilt) == 1


def test_retention_by_count(open_store: Open) -> None:
    """At most so many turns of a session are kept, the newest, also across segments and pages."""
    store = open_store(retention_turns=1100)
    messages = many(2500)
    store.append("s", messages)
    store.append("short", many(3))
    report = store.expire()
    store.append("s", says("one more"))

    assert report.turns == 1400
    assert [turn.message for turn in store.turns("s")][:-1] == messages[1400:]
    assert store.turns("s", 0, 1400) == []
    assert len(store.turns("short")) == 3
    assert store.check().ok
    assert list(store.export("s"))[1].startswith('{"number":1400,')


def test_everything_is_kept_by_default(open_store: Open) -> None:
    """Without retention set, expire removes nothing, however old it is."""
    store = open_store()
    store.append("s", [Turn(0, says("x")[0], 0.0)])

    assert store.expire(now=1e12).turns == 0
    assert len(store.turns("s")) == 1


def test_followers(open_store: Open) -> None:
    """A follower is woken by each change and reads its tenant's events in order, other processes' too."""
    store, other = open_store(), open_store()
    woken: list[str | None] = []
    end = store.subscribe(woken.append)
    first, cursor = store.since(None, tenant="t")
    store.append("a", many(2), tenant="t")
    other.append("a", many(1), tenant="t")
    other.append("b", many(4), tenant="t")
    store.append("elsewhere", many(1))
    some, cursor = store.since(cursor, tenant="t")
    other.append("b", many(2), tenant="t")
    store.forget("a", tenant="t")
    more, cursor = store.since(cursor, tenant="t")
    none, cursor = store.since(cursor, tenant="t")
    end()
    store.append("b", many(1), tenant="t")

    assert first == none == []
    assert [(event.kind, event.session, event.start, event.stop) for event in some] == [
        ("append", "a", 0, 3), ("append", "b", 0, 4)]  # fmt: skip
    assert [(event.kind, event.session, event.start, event.stop) for event in more] == [
        ("append", "b", 4, 6), ("forget", None, 0, 0)]  # fmt: skip
    assert more[1].key == some[0].key
    assert woken == ["t", None, "t"]


def test_a_follower_can_start_late_or_stay_away(open_store: Open) -> None:
    """Whoever begins, or was away for long, is told everything there is; in pages, none twice, none missing."""
    store = open_store()
    cursor = store.since(None)[1]
    for index in range(400):
        store.append(f"s{index % 3}", many(2))
    seen: dict[str, list[int]] = {}
    calls = 0
    while True:
        events, cursor = store.since(cursor, limit=37)
        calls += 1
        if not events:
            break
        for event in events:
            seen.setdefault(event.session or "", []).extend(range(event.start, event.stop))
    fresh, _ = store.since(None)
    reset, _ = store.since("00000000:5")

    assert calls > 5
    assert {name: len(numbers) for name, numbers in seen.items()} == {"s0": 268, "s1": 266, "s2": 266}
    assert all(numbers == list(range(len(numbers))) for numbers in seen.values())
    assert sorted((event.session, event.stop) for event in fresh) == [("s0", 268), ("s1", 266), ("s2", 266)]
    assert reset[0].kind == "reset"
    assert len(reset) == 4


def test_trimming_one_session(open_store: Open) -> None:
    """Turns before a number are removed, from the log, from segments and for those who follow; the others stay."""
    store = open_store()
    told: list[str | None] = []
    store.append("long", many(250), tenant="t")
    store.append("other", many(3), tenant="t")
    _, cursor = store.since(None, tenant="t")
    store.subscribe(told.append)
    removed = [store.trim("long", start, tenant="t") for start in (0, 120, 120, 60)]

    info = store.info("long", "t")
    assert removed == [0, 120, 0, 0]
    assert info is not None
    assert (info.first, info.stop, info.turns) == (120, 250, 130)
    assert [turn.message for turn in store.turns("long", tenant="t")] == many(250)[120:]
    assert [turn.number for turn in store.recent("long", 200, tenant="t")] == list(range(120, 250))
    assert told == ["t"]
    assert [(event.kind, event.start) for event in store.since(cursor, tenant="t")[0]] == [("trim", 120)]
    assert len(store.turns("other", tenant="t")) == 3
    assert store.check().ok


def test_trimming_everything(open_store: Open, tmp_path: Path) -> None:
    """A session can lose all its turns and goes on with the next number; what it said is overwritten in time."""
    store = open_store()
    store.append("s", says(SECRET, SECRET))
    removed = store.trim("s", 99)
    assert store.append("s", says("next")) == range(2, 3)
    store.forget("nobody")
    store.append("gone", says("x"))
    store.forget("gone")  # settles what is left over, as the background thread does

    assert removed == 2
    assert [turn.message["content"] for turn in store.turns("s")] == ["next"]
    assert store.trim("nobody", 5) == 0
    assert SECRET.encode() not in _everything(tmp_path)


@pytest.mark.parametrize("packed", [0, 3])
@pytest.mark.parametrize("start", [5, 6])
def test_trimming_where_the_end_is_lost(open_store: Open, tmp_path: Path, packed: int, start: int) -> None:
    """Trimming removes everything also where the newest turns were lost to damage, and the session goes on."""
    store = open_store(upkeep_seconds=0)
    for number in range(6):
        store.append("s", says(f"{SECRET} {number}"))
        if number + 1 == packed:
            store.evict("s")
    with closing(sqlite3.connect(tmp_path / "store" / "cache.db")) as database, database:
        rows = database.execute("select key from Cache where key like 'l/%' order by rowid desc limit 2").fetchall()
        database.executemany("update Cache set value = x'00' where key = ?", rows)
    store.close()
    store = open_store(upkeep_seconds=0)
    store.check(repair=True)
    info = store.info("s")
    assert info is not None
    assert info.missing == ((4, 6),)
    removed = store.trim("s", start)
    assert store.append("s", says("next")) == range(6, 7)

    assert removed == start
    assert [(turn.number, turn.message["content"]) for turn in store.turns("s")] == [(6, "next")]
    assert store.check().ok


def test_retention_is_for_conversations(open_store: Open) -> None:
    """Logs of other things that lie apart are not cut by retention, and nobody is told when they leave RAM."""
    told: list[str | None] = []
    store = open_store(retention_turns=2, on_evict=lambda *event: told.append(event[3]))
    for tenant in ("t", f"{APART}checkpoints"):
        store.append("s", many(5), tenant=tenant)
    store.expire()
    for tenant in ("t", f"{APART}checkpoints"):
        store.evict("s", tenant=tenant)

    assert len(store.turns("s", tenant="t")) == 2
    assert store.turns("s", tenant=f"{APART}checkpoints")[0].message == many(5)[0]
    assert told
    assert set(told) == {"t"}


def test_states_go_with_the_turns_that_they_quote(open_store: Open, tmp_path: Path) -> None:
    """A state put with a turn's number goes when that turn goes; others stay, and it may be put anew."""
    store = open_store(retention_turns=4, codec="none")
    store.append("s", many(6))
    store.put_state("s", "quotes", SECRET.encode(), turn=1)
    store.put_state("s", "young", b"young", turn=4)
    store.put_state("s", "apart", b"apart")
    store.put_state("s", "once", SECRET.encode(), turn=0)
    store.put_state("s", "once", b"no quote any more")
    assert store.swap_state("s", "swapped", SECRET.encode(), expect=None, turn=1)
    report = store.expire()

    assert (report.turns, report.states) == (2, 2)
    names = ("quotes", "swapped", "young", "apart", "once")
    assert [store.get_state("s", name) for name in names] == [None, None, b"young", b"apart", b"no quote any more"]
    assert SECRET.encode() not in _everything(tmp_path)
    assert store.trim("s", 5) == 3
    assert store.get_state("s", "young") is None
    store.put_state("s", "late", b"of a turn that is gone", turn=2)
    assert store.expire().states == 1
    assert store.check().ok


def test_states_that_quote_turns_grow_old(open_store: Open) -> None:
    """With retention by age such a state also goes by its own age, be there turns or not."""
    day = 86_400.0
    clock = [0.0]
    store = open_store(retention_days=30, clock=lambda: clock[0])
    store.put_state("s", "quotes", b"quote", turn=0)
    store.put_state("s", "apart", b"apart")
    clock[0] = 20 * day
    store.append("s", says("young"))

    assert store.expire(now=29 * day).states == 0
    assert store.expire(now=31 * day).states == 1
    assert store.get_state("s", "quotes") is None
    assert store.get_state("s", "apart") == b"apart"


def test_those_who_quote_turns_are_told_when_turns_go(open_store: Open) -> None:
    """`on_trim` names what is left of each session, before states go, so that a listener can clean its own."""
    store = open_store(retention_turns=2)
    told: list[tuple[str | None, dict[str, int]]] = []

    def clean(tenant: str | None, firsts: Mapping[str, int]) -> int:
        told.append((tenant, dict(firsts)))
        store.put_state("a", "quotes", b"only the new", tenant="t", turn=3)
        return 1

    leave = store.on_trim(clean)
    for session in ("a", "b"):
        store.append(session, many(4), tenant="t")
    store.append("a", many(1))
    store.put_state("a", "quotes", b"old and new", tenant="t", turn=1)
    report = store.expire()
    leave()
    store.trim("b", 3, tenant="t")

    assert told == [("t", {"a": 2, "b": 2})]
    assert (report.elsewhere, report.states) == (1, 0)
    assert store.get_state("a", "quotes", tenant="t") == b"only the new"
