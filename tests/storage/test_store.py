"""ConversationStore through its public surface, on a real disk."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krunch_plugins import ConversationStore, Turn
from krunch_plugins.errors import NotStorable, QuotaExceeded, SessionExists, StoreClosed

from .conftest import many, says

if TYPE_CHECKING:
    from pathlib import Path

Open = Callable[..., ConversationStore]

any_text = st.text(st.characters(), max_size=40)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | any_text
any_json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4), max_leaves=12
)
any_message = st.dictionaries(any_text, any_json, max_size=5)


def _same(one: Any, other: Any) -> bool:
    """Equality under which NaN equals NaN, and 1 does not equal 1.0 or True."""
    return repr(one) == repr(other)


@pytest.mark.smoke
def test_what_was_stored_comes_back(open_store: Open) -> None:
    """Messages come back whole and in order, from RAM, from the log, from segments and after a new start."""
    messages = many(250)
    store = open_store()
    numbers = [store.append("s", messages[start : start + 10]) for start in range(0, 250, 10)]
    from_both = store.turns("s")
    store.evict("s")
    packed = store.info("s")
    from_disk = store.turns("s")
    store.close()
    again = open_store().turns("s")

    assert numbers[3] == range(30, 40)
    assert packed is not None
    assert packed.packed == packed.turns == 250
    assert [turn.message for turn in from_both] == messages
    assert from_both == from_disk == again
    assert [turn.number for turn in again] == list(range(250))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(any_message, min_size=1, max_size=6), metadata=st.dictionaries(any_text, any_json, max_size=3))
def test_any_json_comes_back_equal(tmp_path: Path, messages: list[dict[str, Any]], metadata: dict[str, Any]) -> None:
    """Lone surrogates, NaN, infinities, big numbers, empty strings and unknown keys survive disk, export and import."""
    turns = [Turn(0, message, 1.5, 7, metadata) for message in messages]
    with ConversationStore(tmp_path / os.urandom(8).hex(), upkeep_seconds=0) as store:
        store.append("s", turns)
        hot = store.turns("s")
        store.evict("s")
        cold = store.turns("s")
        lines = [line.encode("utf-8").decode("utf-8") for line in store.export("s")]
        store.import_(lines, session="copy")
        copied = store.turns("copy")

    for read in (hot, cold, copied):
        assert _same([turn.message for turn in read], messages)
        assert all(_same(turn.metadata, metadata) and turn.tokens == 7 and turn.timestamp == 1.5 for turn in read)


def test_a_turn_keeps_all_its_attributes(open_store: Open) -> None:
    """Timestamp, tokens, metadata and embedding of a Turn are stored; only its number is given anew."""
    store = open_store()
    turn = Turn(99, says("hello")[0], 123.456789, 5, {"a": [1, math.inf]}, [0.1, 2.0, -0.5])
    store.append("s", [turn, *says("plain")])
    store.evict("s")
    first, second = store.turns("s")

    assert first == Turn(0, turn.message, 123.456789, 5, {"a": [1, math.inf]}, [0.1, 2.0, -0.5])
    assert (second.number, second.tokens, second.metadata, second.embedding) == (1, None, {}, None)


def test_large_messages(open_store: Open) -> None:
    """A message of 10 MB is stored and read like any other."""
    big = says("x" * 10_000_000, "small")
    store = open_store()
    store.append("s", big)
    store.evict("s")

    assert [turn.message for turn in store.turns("s")] == big


@pytest.mark.parametrize(
    "bad",
    [{"k": b"bytes"}, {1: "key"}, {"k": {"deep": [object()]}}, {"k": {1, 2}}],
    ids=["bytes", "key", "object", "set"],
)
def test_what_json_cannot_express_is_refused(open_store: Open, bad: dict[Any, Any]) -> None:
    """Such a message raises and says where it is; nothing of the call is stored."""
    store = open_store()

    with pytest.raises(NotStorable, match=r"messages\[1\]"):
        store.append("s", [*says("fine"), bad])
    assert store.turns("s") == []


def test_endless_nesting_is_refused(open_store: Open) -> None:
    """A message that contains itself raises instead of ending the process."""
    store = open_store()
    message: dict[str, Any] = {"role": "user"}
    message["content"] = [message]

    with pytest.raises(NotStorable):
        store.append("s", [message])


def test_the_caller_and_the_store_share_nothing(open_store: Open) -> None:
    """Changing what was handed in or out does not change the history."""
    store = open_store()
    message = {"role": "user", "content": [{"type": "text", "text": "as it was"}]}
    store.append("s", [message])
    message["content"][0]["text"] = "changed"  # type: ignore[index]
    store.recent("s")[0].message["content"][0]["text"] = "changed"

    assert store.recent("s")[0].message["content"] == [{"type": "text", "text": "as it was"}]


def test_ranges(open_store: Open) -> None:
    """Any range is read as a slice is; beyond the ends there is nothing; negative numbers are an error."""
    store = open_store()
    messages = many(130)
    store.append("s", messages[:100])
    store.evict("s")
    store.append("s", messages[100:])

    for start, stop in ((0, 5), (95, 105), (99, 100), (100, 101), (120, 999), (125, None), (130, None), (7, 3)):
        assert [turn.message for turn in store.turns("s", start, stop)] == messages[start:stop]
    assert store.turns("nobody") == []
    with pytest.raises(ValueError, match="recent"):
        store.turns("s", -3)


def test_recent(open_store: Open) -> None:
    """Recent gives the newest turns, limited by count and by tokens, also more than RAM holds."""
    store = open_store()
    turns = [Turn(0, message, 0.0, 10) for message in many(60)]
    store.append("s", turns)
    store.append("uncounted", says("x" * 40, "y" * 40))

    assert [turn.number for turn in store.recent("s")] == list(range(40, 60))
    assert [turn.number for turn in store.recent("s", 50)] == list(range(10, 60))
    assert [turn.number for turn in store.recent("s", 50, tokens=35)] == [57, 58, 59]
    assert [turn.number for turn in store.recent("uncounted", tokens=19)] == [1]
    assert store.recent("s", tokens=5) == store.recent("s", 0) == store.recent("nobody") == []


def test_token_counts(open_store: Open) -> None:
    """With a counter, messages are counted when they are appended; given counts stay."""
    store = open_store(count_tokens=lambda message: len(message["content"]))
    store.append("s", [*says("four"), Turn(0, says("x")[0], 0.0, 99)])

    assert [turn.tokens for turn in store.turns("s")] == [4, 99]


def test_tenants_do_not_see_each_other(open_store: Open) -> None:
    """The same session id under another tenant, none, or an empty one is another session in every call."""
    store = open_store()
    tenants = (None, "", "a", "b")
    for tenant in tenants:
        store.append("s", says(f"of {tenant!r}"), tenant=tenant)
        store.put_state("s", "n", repr(tenant).encode(), tenant=tenant)
        store.set_summary("s", f"summary of {tenant!r}", tenant=tenant)
    store.forget("s", tenant="b")

    for tenant in tenants[:-1]:
        info = store.info("s", tenant)
        assert [turn.message["content"] for turn in store.turns("s", tenant=tenant)] == [f"of {tenant!r}"]
        assert store.get_state("s", "n", tenant=tenant) == repr(tenant).encode()
        assert info is not None
        assert (info.summary, info.tenant) == (f"summary of {tenant!r}", tenant)
        assert store.sessions(tenant) == ["s"]
    assert store.turns("s", tenant="b") == store.recent("s", tenant="b") == []
    assert store.sessions("b") == []
    assert store.info("s", "b") is None
    assert store.get_state("s", "n", tenant="b") is None


@pytest.mark.parametrize(
    "session", ["", "../../etc/passwd", "a/b\\c:d", "\0", "\ud800", "ß∂ü", "x" * 5000, "CON", "~", "$HOME"]
)
def test_ids_are_data(open_store: Open, tmp_path: Path, session: str) -> None:
    """Any string is a session's and a tenant's id; it never becomes a path."""
    store = open_store()
    store.append(session, says("hello"), tenant=session)
    store.evict(session, tenant=session)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}

    assert store.sessions(session) == [session]
    assert store.turns(session, tenant=session)[0].message == says("hello")[0]
    assert files <= {"cache.db", "cache.db-wal", "cache.db-shm", "in-use.lock"}


def test_session_ids_must_be_text(open_store: Open) -> None:
    """An id that is no string is a TypeError in every call."""
    store = open_store()
    number: Any = 7
    for call in (store.turns, store.recent, store.info, store.forget):
        with pytest.raises(TypeError):
            call(number)


def test_info_summary_and_metadata(open_store: Open) -> None:
    """Info knows times, counts and bytes; summary and metadata stay with the session across packing and restarts."""
    clock = [1000.0]
    store = open_store(clock=lambda: clock[0])
    store.append("s", many(5))
    clock[0] = 2000.0
    store.append("s", many(5))
    store.set_summary("s", "weather; \ud800")
    store.set_metadata("s", {"user": "ann", "scores": [math.inf]})
    store.evict("s")
    store.close()
    info = open_store().info("s")

    assert info is not None
    assert (info.created, info.last_used, info.turns, info.first, info.stop) == (1000.0, 2000.0, 10, 0, 10)
    assert (info.summary, info.metadata) == ("weather; \ud800", {"user": "ann", "scores": [math.inf]})
    assert 0 < info.bytes < 2000


def test_evictions_are_told_before_they_happen(open_store: Open) -> None:
    """on_evict gets each turn once, in order, with the reason; one that raises loses nothing."""
    told: list[tuple[str, list[int], str, str | None]] = []
    clock = [0.0]

    def listen(session: str, turns: list[Turn], reason: str, tenant: str | None) -> None:
        told.append((session, [turn.number for turn in turns], reason, tenant))
        raise RuntimeError("a plugin that is broken")

    store = open_store(on_evict=listen, hot_turns=3, hot_ttl=60.0, clock=lambda: clock[0])
    store.append("s", many(5), tenant="t")
    clock[0] = 100.0
    store.append("other", many(1))
    store.append("gone", many(1))
    store.forget("gone")
    store.close()

    assert told == [
        ("s", [0, 1], "size", "t"),
        ("s", [2, 3, 4], "ttl", "t"),
        ("gone", [0], "forget", None),
        ("other", [0], "close", None),
    ]
    assert store.stats().listener_failures == 4
    assert store.stats().evicted == {"size": 2, "ttl": 3, "forget": 1, "close": 1}
    assert len(open_store().turns("s", tenant="t")) == 5


def test_ram_is_bounded(open_store: Open) -> None:
    """Over its bytes, the session used least recently leaves RAM and is packed."""
    store = open_store(hot_bytes=110_000, hot_turns=1000)
    for name in ("a", "b", "c", "d"):
        store.append(name, many(40))
        store.recent("a")
    packed = {name: info.packed for name in "abcd" if (info := store.info(name))}

    assert store.stats().hot_bytes <= 110_000
    assert packed == {"a": 0, "b": 40, "c": 40, "d": 0}


def test_long_logs_are_packed_in_the_background(open_store: Open) -> None:
    """After 100 messages a session's log is packed, without anybody asking, and nothing is late or lost by it."""
    store = open_store(upkeep_seconds=60.0)
    messages = many(350)
    for message in messages:
        store.append("s", [message])
    during = [turn.message for turn in store.turns("s")]
    store.close()
    info = open_store().info("s")

    assert during == messages
    assert info is not None
    assert info.packed == 350
    assert store.stats().packed >= 300


def test_a_session_in_use_is_packed_as_well_in_the_end(open_store: Open) -> None:
    """Segments that were written in a hurry, over several pages, take no more room once the session has left RAM."""
    store = open_store()
    messages = many(2600, 5)
    for start in range(0, 2600, 13):
        store.append("bit by bit", messages[start : start + 13])
    store.append("at once", messages)
    store.evict("at once")
    early, best = store.info("bit by bit"), store.info("at once")
    store.evict("bit by bit")
    late = store.info("bit by bit")

    assert early is not None
    assert late is not None
    assert best is not None
    assert early.packed > 2400
    assert late.bytes < early.bytes
    assert late.bytes < 1.1 * best.bytes
    assert [turn.message for turn in store.turns("bit by bit")] == messages
    assert store.check().ok


def test_another_process_is_seen_at_once(open_store: Open) -> None:
    """What another opener of the directory appended or forgot shows in recent() and turns(), in spite of RAM."""
    one, other = open_store(), open_store()
    one.append("s", says("first"))
    other.append("s", says("second"))
    seen = [turn.message["content"] for turn in one.recent("s")]
    one.append("s", says("third"))
    back = [turn.message["content"] for turn in other.recent("s")]
    other.forget("s")
    gone = one.recent("s")
    one.append("s", says("anew"))

    assert seen == ["first", "second"]
    assert back == ["first", "second", "third"]
    assert gone == []
    assert [turn.message["content"] for turn in other.turns("s")] == ["anew"]


def test_threads_share_a_store(open_store: Open) -> None:
    """Threads that append to one session lose nothing, keep their own order and get numbers of their own."""
    store = open_store(upkeep_seconds=60.0)

    def work(who: int) -> list[int]:
        numbers: list[int] = []
        for at in range(0, 40, 2):
            numbers += store.append("s", says(f"{who}:{at}", f"{who}:{at + 1}"))
            store.recent("s")
        return numbers

    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(work, range(6)))
    contents = [turn.message["content"] for turn in store.turns("s")]

    assert sorted(chain.from_iterable(numbers)) == list(range(240))
    for who, got in enumerate(numbers):
        assert [contents[number] for number in got] == [f"{who}:{at}" for at in range(40)]
    assert store.check().ok


def test_append_only_if_nobody_was_quicker(open_store: Open) -> None:
    """append_if stores nothing when the session's next number is another one."""
    store = open_store()
    store.append("s", says("a", "b"))
    late = store.append_if("s", says("late"), expect=1)
    right = store.append_if("s", says("c"), expect=2)

    assert late is None
    assert right == range(2, 3)
    assert len(store.turns("s")) == 3


def test_export_and_import(open_store: Open) -> None:
    """A session survives export, forgetting and import with all it has; each line is JSON."""
    store = open_store()
    store.append(
        "s", [Turn(0, message, 5.25 + index, index, {"k": index}, [0.5]) for index, message in enumerate(many(300))]
    )
    store.set_summary("s", "about")
    store.set_metadata("s", {"a": 1})
    before, info = store.turns("s"), store.info("s")
    lines = list(store.export("s"))
    store.forget("s")
    names = store.import_(lines)
    after = store.info("s")

    assert names == ["s"]
    assert store.turns("s") == before
    assert list(store.export("s")) == lines
    assert all(json.loads(line) for line in lines)
    assert info is not None
    assert after is not None
    assert (after.created, after.last_used, after.metadata, after.summary) == (
        info.created, info.last_used, info.metadata, info.summary)  # fmt: skip
    assert list(store.export("nobody")) == []
    assert store.check().ok


def test_import_mixes_nothing(open_store: Open) -> None:
    """Importing into a session with turns raises; broken lines raise and name their number; neither leaves anything."""
    store = open_store()
    store.append("s", many(3))
    lines = list(store.export("s"))

    with pytest.raises(SessionExists):
        store.import_(lines)
    for bad in ([lines[1]], [lines[0], "{"], [lines[0], lines[1], lines[1]], [lines[0], '{"number": 0}'], ["[]"]):
        with pytest.raises(ValueError, match=r"line|turn"):
            store.import_(bad, session="new")
    assert len(store.turns("s")) == 3
    assert store.info("new") is None
    assert store.import_(lines, session="new", tenant="t") == ["new"]
    assert len(store.turns("new", tenant="t")) == 3


def test_state_is_kept_with_the_session(open_store: Open) -> None:
    """A wing's bytes come back, are replaced, and begin a session that has no turns."""
    clock = [10.0]
    store = open_store(clock=lambda: clock[0])
    store.put_state("s", "memo", b"one")
    clock[0] = 20.0
    store.put_state("s", "memo", b"two" * 10_000)
    store.put_state("s", "other", b"")
    store.close()
    again = open_store()

    assert again.get_state("s", "memo") == b"two" * 10_000
    assert again.get_state("s", "other") == b""
    assert again.get_state("s", "third") is again.get_state("nobody", "memo") is None
    assert again.last_used("s") == 20.0
    assert again.last_used("nobody") is None
    assert again.turns("s") == []


def test_quota(open_store: Open) -> None:
    """A tenant that has used up its bytes gets an error with the figures; others and what is stored are not touched."""
    store = open_store(tenant_quota_bytes=20_000)
    store.append("s", many(40), tenant="t")
    with pytest.raises(QuotaExceeded) as caught:  # noqa: PT012 - some appends fit
        for _ in range(100):
            store.append("s", [{"role": "user", "content": os.urandom(2000).hex()}], tenant="t")
    stored = len(store.turns("s", tenant="t"))
    store.append("s", many(40), tenant="other")

    assert (caught.value.tenant, caught.value.limit) == ("t", 20_000)
    assert caught.value.size > 20_000
    assert stored >= 40
    assert store.check().ok


def test_closed(open_store: Open) -> None:
    """A closed store says so; closing twice is fine."""
    store = open_store()
    store.append("s", says("x"))
    store.close()
    store.close()

    for call in (store.turns, store.recent, store.info, lambda s: store.append(s, says("y"))):
        with pytest.raises(StoreClosed):
            call("s")


def test_the_background_thread_ends_with_the_store(open_store: Open) -> None:
    """No thread is left behind."""
    before = set(threading.enumerate())
    store = open_store(upkeep_seconds=0.01)
    store.append("s", many(150))
    begun = {thread for thread in set(threading.enumerate()) - before if thread.name == "krunch-upkeep"}
    store.close()

    assert begun
    assert not [thread for thread in begun if thread.is_alive()]


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a directory the store lies in KRUNCH_HOME, made for its owner only."""
    monkeypatch.setenv("KRUNCH_HOME", str(tmp_path / "new" / "home"))
    with ConversationStore(upkeep_seconds=0) as store:
        store.append("s", says("x"))

        assert store.directory == tmp_path / "new" / "home"
        assert (tmp_path / "new" / "home").stat().st_mode & 0o777 == 0o700


def test_files_are_for_their_owner_only(open_store: Open, tmp_path: Path) -> None:
    """In a directory that others may read, the store's files are still the owner's."""
    (tmp_path / "store").mkdir(mode=0o755)
    store = open_store()
    store.append("s", says("x"))
    modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "store").iterdir()}

    assert {"cache.db", "cache.db-wal", "in-use.lock"} <= set(modes)
    assert set(modes.values()) == {0}


def test_a_clock_that_jumps_back(open_store: Open) -> None:
    """Order is by number; a clock that jumps loses and reorders nothing."""
    clock = [1e9]
    store = open_store(clock=lambda: clock[0], hot_turns=2)
    for step in (0, -5e8, 7e8, -9e8):
        clock[0] += step
        store.append("s", says(str(clock[0])))
    store.evict("s")

    assert [turn.number for turn in store.turns("s")] == [0, 1, 2, 3]
    assert store.check().ok


def test_state_is_put_only_where_the_session_is_still_the_same(open_store: Callable[..., ConversationStore]) -> None:
    """`put_state_if` begins no session, writes to none that was begun again, and does not count as use."""
    now = [100.0]
    store = open_store(clock=lambda: now[0])
    store.append("s", says("a"))
    (event,), _ = store.since(None)
    now[0] = 200.0

    assert store.put_state_if("s", "n", b"one", key=event.key)
    assert (store.get_state("s", "n"), store.last_used("s")) == (b"one", 100.0)
    assert not store.put_state_if("s", "n", b"two", key=event.key, tenant="acme")
    store.forget("s")
    assert not store.put_state_if("s", "n", b"two", key=event.key)
    assert store.sessions() == []
    store.append("s", says("b"))
    assert not store.put_state_if("s", "n", b"two", key=event.key)
    assert store.get_state("s", "n") is None


def test_state_that_changes_in_one_step(open_store: Open) -> None:
    """Changes of one state by many threads and two stores all count; one that fails leaves what was there."""
    stores = [open_store(), open_store()]

    def count(data: bytes | None) -> bytes:
        return b"%d" % (int(data or b"0") + 1)

    def fail(data: bytes | None) -> bytes:
        raise RuntimeError("no")

    workers = [
        threading.Thread(target=lambda store=store: [store.update_state("s", "n", count) for _ in range(10)])
        for store in stores * 2
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with pytest.raises(RuntimeError):
        stores[0].update_state("s", "n", fail)

    assert stores[1].get_state("s", "n") == b"40"
    assert stores[0].update_state("s", "n", count, tenant="t") == b"1"
    assert stores[0].check().ok


def test_forgotten_appends_do_not_hide_what_came_after(open_store: Callable[..., ConversationStore]) -> None:
    """However few events are asked for, none come only if nothing is new; forgotten appends are skipped."""
    store = open_store()
    store.append("first", says("a"))
    _, cursor = store.since(None)
    for number in range(5):
        store.append(f"gone{number}", says("b"))
    store.append("stays", says("c"))
    for number in range(5):
        store.forget(f"gone{number}")

    (event,), after = store.since(cursor, limit=1)
    assert (event.kind, event.session) == ("append", "stays")
    rest, _ = store.since(after)
    assert [event.kind for event in rest] == ["forget"] * 5
