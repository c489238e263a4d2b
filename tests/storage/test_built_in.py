"""The store as a part of Krunch: what an exchange leaves in it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from own_threads import begun_since

from krunch_plugins import ConversationStore, Krunch, Settings, Turn, hookimpl, restore
from krunch_plugins.errors import PluginError, StoreError
from krunch_plugins.snapshots import SessionFiles

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOG = "\n".join(f"2026-11-21 10:00:{n:02} INFO worker-{n % 3} request {n * 37} finished in {n} ms" for n in range(40))


def settings(home: Path | str, **options: Any) -> Settings:
    """Settings with a store."""
    return Settings(home=str(home), **options)


def converse(krunch: Krunch, rounds: int, *, session: str | None, tenant: str | None = None) -> list[dict[str, Any]]:
    """A client that resends its whole history with each request."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": LOG}]
    for number in range(rounds):
        exchange = krunch.prepare(messages, model="gpt-4o", session=session, tenant=tenant)
        reply = exchange.finish({"role": "assistant", "content": f"reply {number}"})
        messages += [reply, {"role": "user", "content": f"and then {number}?"}]
    return messages[:-1]


def test_each_message_is_recorded_once_and_as_the_caller_gave_it(tmp_path: Path) -> None:
    """However often the client resends its history, each turn is there once, uncompressed, in order."""
    with Krunch(settings(tmp_path)) as krunch:
        messages = converse(krunch, 4, session="s")
        assert krunch.store is not None
        turns = krunch.store.turns("s")

    assert [turn.message for turn in turns] == messages


def test_without_a_home_recent_turns_live_in_memory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who did not ask for a store has nothing on disk, and the last turns of each session until the end."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with Krunch(Settings(hot_turns=3)) as krunch:
        messages = converse(krunch, 3, session="s", tenant="one")
        recent = krunch.recent("s", tenant="one")

        assert krunch.store is None
        assert [turn.message for turn in recent] == messages[-3:]
        assert [turn.number for turn in recent] == [3, 4, 5]
        assert krunch.recent("s", 1, tenant="one") == recent[-1:]
        assert krunch.recent("s") == []
        krunch.forget("s", tenant="one")
        assert krunch.recent("s", tenant="one") == []

    assert list(tmp_path.iterdir()) == []


def test_recent_turns_leave_memory_after_their_time_and_the_plugins_are_told() -> None:
    """The tier is bounded in time too; what leaves is told before it is gone."""
    now = [1_000_000.0]
    heard: list[tuple[str, int, str, str | None]] = []

    class Listener:
        from krunch_plugins import hookimpl

        @hookimpl
        def on_evict(self, session: str, turns: list[Any], reason: str, tenant: str | None) -> None:
            heard.append((session, len(turns), reason, tenant))

    with Krunch(Settings(hot_ttl=60), plugins=[Listener()], clock=lambda: now[0]) as krunch:
        converse(krunch, 2, session="s")
        assert heard == []
        now[0] += 61

        assert krunch.recent("s") == []

    assert heard == [("s", 4, "ttl", None)]


def test_recent_turns_are_as_the_client_last_sent_them() -> None:
    """What stays of a conversation keeps its time; what differs, even 1 from True, is replaced; it may get shorter."""
    now = [100.0]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "one", "seen": 1},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    with Krunch(Settings(), clock=lambda: now[0]) as krunch:
        krunch.prepare(messages, model="gpt-4o", session="s").finish({"role": "assistant", "content": "four"})
        now[0] = 200.0
        messages[0] = {**messages[0], "seen": True}
        messages += [{"role": "assistant", "content": "four"}, {"role": "user", "content": "five"}]
        krunch.prepare(messages, model="gpt-4o", session="s").finish({"role": "assistant", "content": "six"})
        assert [turn.timestamp for turn in krunch.recent("s")] == [200.0, 100.0, 100.0, 100.0, 200.0, 200.0]
        assert krunch.recent("s")[0].message["seen"] is True
        krunch.prepare(messages[:1], model="gpt-4o", session="s").finish({"role": "assistant", "content": "2"})

        assert [turn.message["content"] for turn in krunch.recent("s")] == ["one", "2"]


def test_recent_turns_are_copies() -> None:
    """What the caller does to its messages afterwards does not reach what is held, nor the other way round."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "as it was"}]}]
    with Krunch(Settings()) as krunch:
        krunch.prepare(messages, model="gpt-4o", session="s").finish({"role": "assistant", "content": "yes"})
        messages[0]["content"][0]["text"] = "changed"

        assert krunch.recent("s")[0].message["content"][0]["text"] == "as it was"


def test_an_exchange_without_a_session_is_not_recorded(tmp_path: Path) -> None:
    """Two users may both open with "hi": without a session nobody knows whose conversation it is."""
    with Krunch(settings(tmp_path)) as krunch:
        converse(krunch, 2, session=None)
        assert krunch.store is not None

        assert krunch.store.sessions() == []


def test_tenants_with_the_same_session_id_have_histories_of_their_own(tmp_path: Path) -> None:
    """What belongs to one tenant is invisible to every other."""
    with Krunch(settings(tmp_path)) as krunch:
        converse(krunch, 1, session="s", tenant="one")
        assert krunch.store is not None

        assert len(krunch.store.turns("s", tenant="one")) == 2
        assert krunch.store.info("s", "two") is None
        assert krunch.store.info("s") is None


def test_a_streamed_reply_is_recorded_at_its_end_and_a_broken_one_says_so(tmp_path: Path) -> None:
    """The turn is the assembled reply; `partial` tells that the stream was broken off."""
    messages = [{"role": "user", "content": LOG}]
    with Krunch(settings(tmp_path)) as krunch:
        for session, partial in (("whole", False), ("broken", True)):
            stream = krunch.prepare(messages, model="gpt-4o", session=session).stream()
            for text in ("one ", "two"):
                stream.feed({"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]})
            stream.flush(partial=partial)
        assert krunch.store is not None
        whole, broken = krunch.store.turns("whole")[-1], krunch.store.turns("broken")[-1]

    assert whole.message["content"] == broken.message["content"] == "one two"
    assert "partial" not in whole.metadata
    assert broken.metadata["partial"] is True


def test_a_restarted_worker_records_on_and_sends_the_same(tmp_path: Path) -> None:
    """A new process finds the history: nothing is recorded twice, and what was sent stays as it was."""
    with Krunch(settings(tmp_path)) as krunch:
        messages = converse(krunch, 2, session="s")
        sent = krunch.prepare(messages, model="gpt-4o", session="s").messages
    with Krunch(settings(tmp_path)) as krunch:
        exchange = krunch.prepare([*messages, {"role": "user", "content": "more"}], model="gpt-4o", session="s")
        exchange.finish({"role": "assistant", "content": "certainly"})
        assert krunch.store is not None
        turns = krunch.store.turns("s")

    assert exchange.messages[: len(sent)] == sent
    assert restore(exchange.messages)[:-1] == messages
    assert len(turns) == len(messages) + 2


def test_a_rebase_survives_a_restart_through_the_store(tmp_path: Path) -> None:
    """With a store, `rebase="cold"` needs no other memo store: its point is kept with the session."""
    now = [1_000_000.0]
    options = {"rebase": "cold", "cache_lifetimes": {"*": 60}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": LOG + f"\nround {n}"} for n in range(3)]
    with Krunch(settings(tmp_path, **options), clock=lambda: now[0]) as krunch:
        krunch.prepare(messages, model="gpt-4o", session="s")
        now[0] += 3600
        rebased = krunch.prepare(messages, model="gpt-4o", session="s").messages
    with Krunch(settings(tmp_path, **options), clock=lambda: now[0] + 1) as krunch:
        again = krunch.prepare(messages, model="gpt-4o", session="s").messages

    assert again == rebased
    assert restore(again) == messages


def test_a_store_that_fails_does_not_fail_the_exchange(tmp_path: Path) -> None:
    """Recording fails open: the caller has the reply, the report and the statistics say what happened."""
    with Krunch(settings(tmp_path)) as krunch:
        exchange = krunch.prepare([{"role": "user", "content": LOG}], model="gpt-4o", session="s")
        assert krunch.store is not None
        krunch.store.close()

        reply = exchange.finish({"role": "assistant", "content": "fine"})

    assert reply["content"] == "fine"
    assert [problem.error for problem in exchange.report.problems] == ["store_failed"]


def test_a_home_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    """Stored data fails loudly: a wrong directory is no reason to go on without a history."""
    file = tmp_path / "file"
    file.write_text("not a directory", encoding="utf-8")

    with pytest.raises(StoreError):
        Krunch(settings(file))


def test_a_forgotten_session_leaves_nothing(tmp_path: Path) -> None:
    """`forget` removes history and statistics; other sessions stay."""
    with Krunch(settings(tmp_path)) as krunch:
        converse(krunch, 2, session="s")
        converse(krunch, 1, session="other")

        forgotten = krunch.forget("s")

        assert forgotten is not None
        assert forgotten.turns == 4
        assert krunch.stats("s") is None
        assert krunch.store is not None
        assert krunch.store.sessions() == ["other"]


def test_on_evict_is_told_of_turns_that_leave_memory(tmp_path: Path) -> None:
    """The plugins of a Krunch hear of its store's evictions."""
    heard: list[tuple[str, int, str]] = []

    class Listener:
        from krunch_plugins import hookimpl

        @hookimpl
        def on_evict(self, session: str, turns: list[Any], reason: str) -> None:
            heard.append((session, len(turns), reason))

    with Krunch(settings(tmp_path), plugins=[Listener()]) as krunch:
        converse(krunch, 2, session="s")

    assert heard == [("s", 4, "close")]


def test_an_empty_home_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KRUNCH_HOME= in a shell means no store, not one in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KRUNCH_HOME", "")
    for options in (None, Settings(home="")):
        with Krunch(options) as krunch:
            converse(krunch, 1, session="s")

            assert krunch.store is None

    assert list(tmp_path.iterdir()) == []


def test_a_home_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings files are not read by a shell, so Krunch itself finds the user's directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with Krunch(settings("~/history")) as krunch:
        assert krunch.store is not None
        assert krunch.store.directory == tmp_path / "history"


def test_a_plugin_that_is_refused_leaves_no_open_store(tmp_path: Path) -> None:
    """A constructor that raises has closed what it opened: no thread of it runs on."""
    before = set(threading.enumerate())

    with pytest.raises(PluginError):
        Krunch(settings(tmp_path), plugins=[object()])

    assert begun_since(before) == []


def test_async_exchanges_are_recorded_off_the_event_loop(tmp_path: Path) -> None:
    """A disk that is busy keeps one caller waiting, not all that share the loop."""
    threads: list[int] = []

    class Follower:
        def __call__(self, tenant: str | None) -> None:
            threads.append(threading.get_ident())

    async def run(krunch: Krunch) -> None:
        messages = [{"role": "user", "content": "hello"}]
        exchange = await krunch.aprepare(messages, model="gpt-4o", session="whole")
        await exchange.afinish({"role": "assistant", "content": "hi"})
        stream = (await krunch.aprepare(messages, model="gpt-4o", session="streamed")).stream()
        stream.feed({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"}}]})
        await stream.aflush()

    with Krunch(settings(tmp_path)) as krunch:
        assert krunch.store is not None
        krunch.store.subscribe(Follower())
        asyncio.run(run(krunch))
        turns = [len(krunch.store.turns(session)) for session in ("whole", "streamed")]

    assert turns == [2, 2]
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_forgetting_reaches_files_that_lie_elsewhere(tmp_path: Path) -> None:
    """State that somebody keeps of a session in files goes with it, once they asked to be told."""
    files = SessionFiles(tmp_path / "state")
    with Krunch(settings(tmp_path / "home")) as krunch:
        assert krunch.store is not None
        krunch.store.on_forget(lambda session, tenant: len(files.forget(session, tenant=tenant)))
        for session in ("s", "other"):
            converse(krunch, 1, session=session, tenant="one")
            files.save(session, {"seen": 1}, tenant="one")
        krunch.forget("s", tenant="one")

        assert files.sessions("one") == ["other"]


class Watcher:
    """Counts the turns that leave memory."""

    def __init__(self) -> None:
        self.left = 0

    @hookimpl
    def on_evict(self, turns: Sequence[Turn]) -> None:
        self.left += len(turns)


def test_a_closed_krunch_lets_go_of_a_store_that_lives_on(tmp_path: Path) -> None:
    """A store of the caller stays open; a Krunch that was closed records nothing, its plugins hear nothing."""
    watchers = Watcher(), Watcher()
    with ConversationStore(tmp_path) as store, Krunch(store=store, plugins=[watchers[1]]) as other:
        with Krunch(store=store, plugins=[watchers[0]]) as krunch:
            krunch.prepare([{"role": "user", "content": "a"}], model="gpt-4o", session="s").finish(
                {"role": "assistant", "content": "b"}
            )
        late = krunch.prepare([{"role": "user", "content": "c"}], model="gpt-4o", session="s")
        late.finish({"role": "assistant", "content": "d"})
        other.prepare([{"role": "user", "content": "e"}], model="gpt-4o", session="t").finish(
            {"role": "assistant", "content": "f"}
        )
        for session in ("s", "t"):
            store.evict(session)

        assert [turn.message["content"] for turn in store.turns("s")] == ["a", "b"]
        assert [problem.error for problem in late.report.problems] == ["store_failed"]
        assert [turn.message["content"] for turn in store.turns("t")] == ["e", "f"]
        assert (watchers[0].left, watchers[1].left) == (0, 4)
