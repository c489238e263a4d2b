"""Following the store: what an index is told, in which pieces, and what happens when it fails."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krunch_plugins import ConversationStore, Krunch, Settings
from krunch_plugins.recall.following import Follower

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from krunch_plugins.turns import TurnEvent


class Numbers:
    """An index of turn numbers by session key, in memory."""

    def __init__(self) -> None:
        self.cursors: dict[str | None, str] = {}
        self.turns: dict[str | None, dict[str, set[int]]] = defaultdict(dict)
        self.told: list[tuple[str | None, list[TurnEvent], str | None]] = []
        self.fails = 0
        self.busy = False
        self.closed = self.flushed = 0
        self.before: Callable[[], None] = lambda: None

    def cursor(self, tenant: str | None) -> str | None:
        return self.cursors.get(tenant)

    @contextlib.contextmanager
    def writing(self, tenant: str | None) -> Iterator[bool]:
        yield not self.busy

    def apply(self, tenant: str | None, events: Sequence[TurnEvent], cursor: str | None) -> None:
        self.before()
        if self.fails:
            self.fails -= 1
            raise RuntimeError("text of a turn")
        self.told.append((tenant, list(events), cursor))
        has = self.turns[tenant]
        for event in events:
            if event.kind == "reset":
                has.clear()
            elif event.kind == "append":
                has.setdefault(event.key, set()).update(range(event.start, event.stop))
            elif event.kind == "trim":
                has[event.key] = {number for number in has.get(event.key, ()) if number >= event.start}
            else:
                has.pop(event.key, None)
        if cursor is not None:
            self.cursors[tenant] = cursor

    def forget(self, tenant: str | None, session: str, is_gone: Callable[[str], bool]) -> int:
        gone = [key for key in self.turns[tenant] if is_gone(key)]
        return sum(len(self.turns[tenant].pop(key)) for key in gone)

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.closed += 1


def says(count: int) -> list[dict[str, Any]]:
    """Some messages."""
    return [{"role": "user", "content": f"message {number}"} for number in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ConversationStore]:
    """An empty store."""
    with ConversationStore(tmp_path, upkeep_seconds=0) as made:
        yield made


@pytest.fixture
def follow(store: ConversationStore) -> Iterator[Callable[..., tuple[Numbers, Follower]]]:
    """Makes followers, and closes them in the end."""
    made: list[Follower] = []

    def make(**options: Any) -> tuple[Numbers, Follower]:
        index = Numbers()
        made.append(Follower(store, index, "numbers", **options))
        return index, made[-1]

    yield make
    for follower in made:
        follower.close()


def truth(store: ConversationStore, tenant: str | None) -> list[list[int]]:
    """The numbers that the store has."""
    return sorted([turn.number for turn in store.turns(name, tenant=tenant)] for name in store.sessions(tenant))


def known(index: Numbers, tenant: str | None) -> list[list[int]]:
    """The numbers that an index has."""
    return sorted(sorted(numbers) for numbers in index.turns[tenant].values() if numbers)


def test_an_append_is_taken_in_before_it_returns(store: ConversationStore, follow: Callable[..., Any]) -> None:
    """With `at_once` the index has the turns when the call that stored them returns."""
    index, _ = follow(at_once=True)
    store.append("s", says(3))

    assert known(index, None) == [[0, 1, 2]]
    store.append("t", says(2), tenant="acme")
    assert known(index, "acme") == [[0, 1]]
    store.forget("s")
    assert known(index, None) == []


def test_much_is_left_to_the_background(store: ConversationStore, follow: Callable[..., Any]) -> None:
    """An append does not wait for thousands of turns that an index lacks; `flush` does."""
    store.append("s", says(3000))
    index, follower = follow(at_once=True)
    release = threading.Event()
    index.before = lambda: release.wait(60) and None
    store.append("s", says(1))

    assert known(index, None) == []
    release.set()
    assert follower.flush(30)
    assert known(index, None) == [list(range(3001))]


def test_long_news_come_in_pieces(store: ConversationStore, follow: Callable[..., Any]) -> None:
    """No call of `apply` gets more turns than a chunk; the cursor comes with the last one; it begins with a reset."""
    store.append("a", says(25))
    store.append("b", says(3))
    store.append("c", says(13))
    index, follower = follow(chunk=10)

    assert follower.catch_up(None)
    sizes = [sum(event.stop - event.start for event in events if event.kind == "append") for _, events, _ in index.told]
    assert sum(sizes) == 41
    assert max(sizes) <= 10
    assert [cursor is None for _, _, cursor in index.told] == [True] * (len(sizes) - 1) + [False]
    assert index.told[0][1][0].kind == "reset"
    assert known(index, None) == truth(store, None)


def test_a_build_that_was_broken_off_begins_anew(store: ConversationStore, follow: Callable[..., Any]) -> None:
    """What it had is dropped first: some of it may have been forgotten meanwhile."""
    store.append("a", says(25))
    store.append("b", says(3))
    index, follower = follow(chunk=10)
    index.before = lambda: setattr(index, "fails", len(index.told) == 2)
    with pytest.raises(RuntimeError):
        follower.catch_up(None)
    assert known(index, None)
    index.before = lambda: None
    store.forget("a")
    assert follower.catch_up(None)

    assert known(index, None) == [[0, 1, 2]]


def test_what_fails_is_logged_and_tried_again(
    store: ConversationStore, follow: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The background tries again by itself, `flush` at once; the log names the index and no text."""
    index, follower = follow()
    index.fails = 1
    with caplog.at_level(logging.WARNING, "krunch"):
        store.append("s", says(2))
        deadline = time.monotonic() + 20
        while not known(index, None) and time.monotonic() < deadline:
            time.sleep(0.02)

    assert known(index, None) == [[0, 1]]
    assert caplog.messages == ["index 'numbers' is behind, and is tried again: RuntimeError"]
    index.fails = 1
    store.append("s", says(1))
    while index.fails or not (
        follower._failures or known(index, None) == [[0, 1, 2]]
    ):  # it tries again within a second
        time.sleep(0.01)
    assert follower.flush(60)
    assert known(index, None) == [[0, 1, 2]]


def test_flush_says_when_it_did_not_work(store: ConversationStore, follow: Callable[..., Any]) -> None:
    """It returns False when the index keeps failing, and when time runs out."""
    index, follower = follow()
    index.fails = 1000
    store.append("s", says(2))

    assert not follower.flush(20)
    index.fails = 0
    release = threading.Event()
    index.before = lambda: release.wait(10) and None
    assert not follower.flush(0.05)
    release.set()
    assert follower.flush(20)
    assert index.flushed == 2


def test_a_search_waits_no_longer_than_it_is_told(store: ConversationStore, follow: Callable[..., Any]) -> None:
    """Where another process writes the index, catching up ends when its time is over."""
    index, follower = follow()
    index.busy = True
    store.append("s", says(2))

    assert not follower.catch_up(None, 0.05)
    index.busy = False
    assert follower.catch_up(None, 5)


def test_forgetting_is_not_kept_waiting_by_a_build(store: ConversationStore, follow: Callable[..., Any]) -> None:
    """A session leaves the index between two pieces of a long build."""
    store.append("a", says(40))
    index, follower = follow(chunk=10)
    started, release = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        release.wait(60)

    index.before = wait
    follower.wake(None)
    assert started.wait(60)
    store.forget("a")
    removed: list[int] = []
    thread = threading.Thread(target=lambda: removed.append(follower.forget("a", None)))
    thread.start()
    while not follower._wishes[None]:
        time.sleep(0.01)
    release.set()
    thread.join(60)

    assert 0 < removed[0] < 40


def test_turns_that_came_and_went_do_not_hide_what_came_after(
    store: ConversationStore, follow: Callable[..., Any]
) -> None:
    """Appends to a session that was forgotten since are no news, but that it was forgotten is."""
    store.append("a", says(2))
    index, follower = follow()
    follower.catch_up(None)
    with ConversationStore(store.directory, upkeep_seconds=0) as other:
        other.append("a", says(3))
        other.forget("a")

        assert follower.catch_up(None)
        assert known(index, None) == []
        for name in "bcd":
            other.append(name, says(1))
            other.forget(name)
        other.append("e", says(1))
        assert follower.catch_up(None)
        assert known(index, None) == [[0]]


def test_closing_twice_does_no_harm(store: ConversationStore, follow: Callable[..., Any]) -> None:
    """The index is closed once, and nothing is told any more."""
    index, follower = follow(at_once=True)
    follower.close()
    follower.close()
    store.append("s", says(1))

    assert index.closed == 1
    assert index.told == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["append", "append", "forget", "look", "expire"]), st.sampled_from("ab"), st.integers(1, 9)
        ),
        max_size=20,
    ),
    chunk=st.integers(1, 6),
)
def test_an_index_has_what_the_store_has(
    steps: list[tuple[str, str, int]], chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After any order of appends, forgetting and retention, looked at or not, it knows the turns that there are."""
    home = tmp_path_factory.mktemp("store")
    with ConversationStore(home, upkeep_seconds=0, retention_turns=12) as store:
        now, late = Numbers(), Numbers()
        followers = [Follower(store, now, "now", at_once=True, chunk=chunk), Follower(store, late, "late", chunk=chunk)]
        for kind, session, count in steps:
            if kind == "append":
                store.append(session, says(count))
            elif kind == "forget":
                store.forget(session)
            elif kind == "expire":
                store.expire()
            else:
                followers[1].catch_up(None)
        assert known(now, None) == truth(store, None)
        followers[1].catch_up(None)
        assert known(late, None) == truth(store, None)
        for follower in followers:
            follower.close()


def test_a_closed_krunch_lets_go_of_its_threads(tmp_path: Path) -> None:
    """After `close` no thread of recall is left, and the search of a closed store is an empty one."""
    others = set(threading.enumerate())  # of other tests in this process
    with Krunch(Settings(home=tmp_path, recall={"voices": ["words"]})) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", says(5))
        krunch.forget("s")
        krunch.flush()

    assert [one.name for one in set(threading.enumerate()) - others if one.name.startswith("krunch-words")] == []
