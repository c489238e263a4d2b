"""What workers share: nothing is lost or counted twice, resets reach all, and it stays bounded."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import stat
import time
from typing import TYPE_CHECKING

import litellm
import prometheus_client
import pytest
from krunch_litellm import telemetry
from krunch_litellm.entries import HOUR, Failed, Prepared, Replied
from krunch_litellm.figures import FILE, HOURS, SERIES, Figures, Reset
from krunch_litellm.workers import Workers

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD = """
CREATE TABLE conversations (
    name BLOB PRIMARY KEY, tenant TEXT NOT NULL, session TEXT, model TEXT NOT NULL, used REAL NOT NULL,
    requests INTEGER NOT NULL, tokens_before INTEGER NOT NULL, tokens_after INTEGER NOT NULL,
    cost_plain REAL NOT NULL, cost_sent REAL NOT NULL, symbols INTEGER NOT NULL, reasons TEXT NOT NULL,
    replies INTEGER NOT NULL DEFAULT 0, partial INTEGER NOT NULL DEFAULT 0, input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0, written_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0
);
INSERT INTO conversations (name, tenant, session, model, used, requests, tokens_before, tokens_after, cost_plain,
    cost_sent, symbols, reasons) VALUES (CAST('t/s' AS BLOB), 't', 's', 'm', 1e10, 7, 70, 50, 0, 0, 2, '{}');
"""
"""The table of the first databases that has more columns now, with a row."""


def prepared(tenant: str = "t", session: str | None = "s", at: float = 0.0) -> Prepared:
    """A request."""
    name = f"{tenant}/{session}".encode()
    return Prepared(name, tenant, session, "m", at or time.time(), 100, 60, 10, 0.2, 0.1, 3, {"compressed": 1})


def replied(at: float, asked: float = 0.0) -> Replied:
    """A reply to one of its session's requests."""
    return Replied(b"t/s", "t", "m", at, False, 9, 5, 0, 2, asked)


def hours(figures: Figures, tenant: str | None) -> dict[tuple[str, int], tuple[int, int, int]]:
    """Requests, tokens before and replies of each model and hour."""
    told = figures.summary(tenant).hours
    return {(row["model"], row["hour"]): (row["requests"], row["tokens_before"], row["replies"]) for row in told}


def add_many(folder: Path, count: int) -> None:
    """What one worker does."""
    figures = Figures(folder)
    for number in range(count):
        figures.add([prepared(session=f"s{number % 3}"), Replied(b"t/s0", "t", "m", time.time(), False, 9, 5, 0, 2)])
    figures.close()


def note_one(home: Path) -> None:
    """What a worker does that ends as soon as it has served a request."""
    with Krunch(Settings(home=home)) as krunch:
        telemetry.workers(krunch).note(prepared())


@pytest.fixture
def krunch(tmp_path: Path) -> Iterator[Krunch]:
    """A Krunch with a store, whose directory the workers share."""
    with Krunch(Settings(home=tmp_path / "home")) as krunch:
        yield krunch


def test_a_session_that_was_counted_twice_tells_its_newest_request(tmp_path: Path) -> None:
    """A request whose compression failed is not known by its conversation, but by its session."""
    figures, now = Figures(tmp_path), time.time()
    for name, at in ((b"a", now - 9), (b"b", now), (b"c", now - 5)):
        figures.add([prepared(at=at)._replace(name=name)])

    assert [row["name"] for row, _ in figures.sessions("t", "s")] == [b"b", b"c", b"a"]
    figures.close()


def test_what_several_processes_add_is_all_there(tmp_path: Path) -> None:
    """Two processes that count at the same time lose nothing."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_many, args=(tmp_path, 100)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    summary = Figures(tmp_path).summary("t")
    assert summary.requests == 200
    assert sum(one["requests"] for one in summary.conversations) == 200
    assert summary.models[0]["cached_tokens"] == 1000
    assert len(summary.conversations) == 3


def test_what_a_worker_noted_last_is_written_when_it_ends(krunch: Krunch) -> None:
    """A proxy that is stopped right after a reply has counted it."""
    assert krunch.settings.home is not None
    worker = multiprocessing.get_context("spawn").Process(target=note_one, args=(krunch.settings.home,))
    worker.start()
    worker.join()

    assert (worker.exitcode, Workers(krunch, float).figures.summary("t").requests) == (0, 1)


def test_conversations_and_series_are_bounded(tmp_path: Path) -> None:
    """The least recently used conversation goes first, old ones go, and a series keeps its last requests."""
    now = [1_000.0]
    figures = Figures(tmp_path, max_conversations=5, max_idle=100, clock=lambda: now[0])
    for number in range(20):
        figures.add([prepared(session=f"s{number}", at=now[0] + number)])
    assert [one["session"] for one in figures.summary(None).conversations] == ["s19", "s18", "s17", "s16", "s15"]

    figures.add([prepared(session="s19", at=now[0] + 30) for _ in range(SERIES + 20)])
    ((_, series),) = figures.sessions("t", "s19")
    assert [series[0]["number"], series[-1]["number"], len(series)] == [22, SERIES + 21, SERIES]

    now[0] += 1_000
    assert figures.summary(None).conversations == []
    assert figures.summary(None).requests == 140


def test_hours_are_those_of_the_requests_in_all_workers(tmp_path: Path) -> None:
    """What two workers add to an hour is one row; a reply counts for the hour of its request, however late it comes."""
    noon = 12.0 * HOUR
    mine, other = (Figures(tmp_path, clock=lambda: noon) for _ in range(2))
    mine.add([prepared(at=noon - 0.001), prepared(at=noon)])
    other.add([prepared(at=noon + 3599.999), prepared("t2", at=noon), prepared(at=noon)._replace(model="n")])
    other.add([replied(at=noon + 5, asked=noon - 0.001), replied(at=noon + 9000, asked=noon)])
    mine.add([replied(at=noon + 9000), replied(at=noon + 9000, asked=HOUR)])  # of requests that nobody counted

    assert (
        hours(mine, "t")
        == hours(other, "t")
        == {("m", 11): (1, 100, 1), ("m", 12): (2, 200, 1), ("n", 12): (1, 100, 0)}
    )
    assert hours(mine, None) == {**hours(mine, "t"), ("m", 12): (3, 300, 1)}
    assert mine.summary("t").models[0]["replies"] == 4, "in the totals each reply counts"


def test_hours_are_bounded(tmp_path: Path) -> None:
    """The last hours that had requests stay, however far apart they are; those before go, whoever writes."""
    now = [0.0]
    mine, other = (Figures(tmp_path, clock=lambda: now[0]) for _ in range(2))
    for number in range(HOURS + 1):
        now[0] = 5.0 * HOUR * number
        (mine, other)[number % 2].add([prepared(("t", "t2")[number % 3 == 0], at=now[0] or 1.0)])

    kept = [hour for _, hour in hours(mine, None)]
    assert kept == [5 * number for number in range(1, HOURS + 1)]
    assert [hour for _, hour in hours(mine, "t2")] == [hour for hour in kept if hour % 15 == 0]
    other.add([prepared(at=HOUR), Failed("t", now[0], "prepare", "ValueError")])
    assert [hour for _, hour in hours(mine, None)] == kept, "what was held back for days comes too late"
    mine.add([prepared(at=now[0] + 60)])
    assert [hour for _, hour in hours(mine, None)] == kept, "the last hour goes on"


def test_a_reset_takes_the_hours_of_a_tenant(tmp_path: Path) -> None:
    """Those of others stay; a reset of a session leaves them as they are, a reset of everything leaves none."""
    mine, other = Figures(tmp_path), Figures(tmp_path)
    mine.add([prepared(at=2.0 * HOUR), prepared("t2", at=2.0 * HOUR)])

    other.reset("t", "s")
    assert hours(other, None) == {("m", 2): (2, 200, 0)}
    other.reset("t")
    assert (hours(mine, "t"), hours(mine, None)) == ({}, {("m", 2): (1, 100, 0)})
    mine.add([replied(at=time.time() + 1, asked=2.0 * HOUR)])
    assert hours(mine, "t") == {}
    mine.reset(None)
    assert hours(other, None) == {}


def test_what_was_served_last_is_told_whoever_writes_last(tmp_path: Path) -> None:
    """A worker that writes late what it has served early changes nothing of what is told of the last request."""
    mine, other = (Figures(tmp_path, clock=lambda: 2_000.0) for _ in range(2))
    other.add([prepared(at=2_000.0)._replace(symbols=9, legend=b"new", scope=b"new", deployment="new")])
    mine.add([prepared(at=1_000.0)._replace(symbols=5, legend=b"old", scope=b"old", deployment="old")])

    ((row, _),) = mine.sessions("t", "s")
    assert (row["requests"], row["used"]) == (2, 2_000.0)
    assert (row["symbols"], row["legend"], row["scope"], row["deployment"]) == (9, b"new", b"new", "new")


def test_a_database_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """What was counted before there were hashes of legends stays, and is added to, by several workers at once."""
    base = sqlite3.connect(tmp_path / FILE)
    base.executescript(OLD)
    base.close()

    first, second = Figures(tmp_path), Figures(tmp_path)
    ((before, _),) = second.sessions("t", "s")
    first.add([prepared(at=2e10)._replace(legend=b"hash")])
    second.add([prepared(session="s2")])

    assert (before["legend"], before["scope"], before["deployment"]) == (b"", b"", "")
    ((after, _),) = second.sessions("t", "s")
    assert (after["requests"], after["legend"]) == (8, b"hash")
    assert first.key == second.key != Figures(None).key


def test_a_reset_takes_its_own_and_what_came_before_it(tmp_path: Path) -> None:
    """A reset of a tenant or a session leaves others, and drops what another worker had not written yet."""
    mine, other = Figures(tmp_path), Figures(tmp_path)
    before = time.time()
    mine.add([prepared(), prepared(session="s2"), prepared("t2"), Failed("t", before, "prepare", "ValueError")])

    mine.reset("t", "s2")
    assert mine.sessions("t", "s2") == []
    assert len(mine.sessions("t", "s")) == 1
    mine.reset("t")
    other.add([prepared(at=before), prepared("t2", at=before), prepared(session="s9", at=time.time() + 1)])

    assert [one["session"] for one in other.summary("t").conversations] == ["s9"]
    assert other.summary("t").problems == []
    assert other.summary("t2").requests == 2
    assert other.resets_since(0) == ([Reset("t", "s2"), Reset("t", None)], 2)
    assert other.summary(None).requests == 3


def test_a_reset_is_heard_by_other_workers_once(krunch: Krunch) -> None:
    """Each worker hears of a reset before its next request, once; the one that made it does not hear of it."""
    first, second = Workers(krunch, lambda: 1.0), Workers(krunch, lambda: 2.0)
    first.note(prepared())

    first.reset("t")

    assert second.heed() == [Reset("t", None)]
    assert [first.heed(), second.heed()] == [[], []]
    assert second.figures.summary(None).requests == 0
    second.reset(None)
    assert first.heed() == [Reset(None, None)]
    first.close()
    second.close()


def test_resets_that_cross_reach_all(krunch: Krunch) -> None:
    """A worker that resets before it has heard of another's reset still hears of it."""
    first, second, third = (Workers(krunch, lambda: 1.0) for _ in range(3))

    first.reset("alice", "s")
    assert third.heed() == [Reset("alice", "s")]
    second.reset("bob")

    assert second.heed() == [Reset("alice", "s")]
    assert first.heed() == third.heed() == [Reset("bob", None)]
    assert not any(worker.heed() or worker.is_behind for worker in (first, second, third))
    for worker in (first, second, third):
        worker.close()


def test_resets_that_follow_at_once_are_all_heard(krunch: Krunch) -> None:
    """However fast resets follow one another, each is heard."""
    first, second = Workers(krunch, lambda: 1.0), Workers(krunch, lambda: 1.0)

    for number in range(20):
        first.reset(f"t{number}")
        assert second.heed() == [Reset(f"t{number}", None)]
    first.close()
    second.close()


def test_resets_are_heard_though_what_tells_of_them_was_cleared_away(krunch: Krunch) -> None:
    """Where old files are removed from the shared directory, the next reset is heard by old workers and by new ones."""
    first, second = Workers(krunch, lambda: 1.0), Workers(krunch, lambda: 1.0)
    assert first.directory is not None
    (first.directory / "resets").unlink()
    third = Workers(krunch, lambda: 1.0)
    second.flush()  # as the thread that writes does every few seconds

    first.reset("t")

    assert [second.heed(), third.heed()] == [[Reset("t", None)]] * 2
    for worker in (first, second, third):
        worker.close()


def test_a_reset_that_could_not_be_read_is_heard_later(krunch: Krunch) -> None:
    """A worker that cannot read the database at the moment asks it again before its next request."""
    first, second = Workers(krunch, lambda: 1.0), Workers(krunch, lambda: 1.0)
    first.reset("t")
    database = second.figures
    second.figures = Figures(None)
    second.figures.close()  # every read fails now
    assert second.heed() == []

    second.figures = database

    assert second.heed() == [Reset("t", None)]
    first.close()
    second.close()


async def test_no_request_of_others_waits_for_the_database(krunch: Krunch, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a request waits to hear of a reset, because the database is locked, the event loop goes on."""
    shared, other = Workers(krunch, lambda: 1.0), Workers(krunch, lambda: 1.0)
    monkeypatch.setattr(telemetry, "_workers", shared)
    assert shared.directory is not None
    other.reset("t")
    elsewhere = sqlite3.connect(shared.directory / FILE, isolation_level=None)
    elsewhere.execute("BEGIN IMMEDIATE")
    shared.note(prepared())
    async with asyncio.timeout(60):
        while not shared.figures._lock.locked():  # noqa: ASYNC110 - until the thread that writes waits for the database
            await asyncio.sleep(0.01)

    waiting = asyncio.create_task(telemetry.aheed(krunch))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    elsewhere.execute("ROLLBACK")
    await waiting

    assert not shared.is_behind
    elsewhere.close()
    shared.close()
    other.close()


def test_the_shared_directory_is_private(krunch: Krunch) -> None:
    """Only the owner may read what workers share."""
    workers = Workers(krunch, lambda: 1.0)
    workers.note(prepared())
    workers.close()

    assert workers.directory is not None
    assert workers.directory.parent == krunch.settings.home
    assert stat.S_IMODE(workers.directory.stat().st_mode) == 0o700


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_a_directory_that_others_can_read_is_not_used(krunch: Krunch, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that is open to others, or no directory, is left alone: the worker counts for itself and says so."""
    assert krunch.settings.home is not None
    folder = krunch.settings.home / "proxy"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    workers = Workers(krunch, lambda: 1.0)
    workers.note(prepared())
    with workers._condition:
        assert workers._condition.wait_for(lambda: not workers._pending and not workers._busy, 60)
    workers.flush()

    assert workers.directory is None
    assert workers.figures.summary("t").requests == 1
    assert list(folder.iterdir()) == []
    assert "each counts for itself" in caplog.text
    workers.close()


def test_entries_wait_until_the_database_can_be_written(krunch: Krunch) -> None:
    """What cannot be written now is kept and written later."""
    workers = Workers(krunch, lambda: 1.0)
    assert workers.directory is not None
    database = workers.figures
    workers.figures = Figures(None)
    workers.figures.close()  # every write fails now
    workers.note(prepared())
    with pytest.raises(sqlite3.Error):
        workers.flush()

    workers.figures = database
    workers.note(prepared())
    workers.flush()

    assert database.summary("t").requests == 2
    workers.close()


def test_one_bad_entry_costs_only_itself(krunch: Krunch, caplog: pytest.LogCaptureFixture) -> None:
    """Names that UTF-8 cannot express are kept, escaped; what SQLite cannot take is dropped, counted and told."""
    workers = Workers(krunch, lambda: 1.0)
    workers.note(prepared()._replace(model="gpt-\ud800", session="s-\udfff"))
    workers.note(prepared()._replace(symbols=2**70, model="secret"))
    workers.note(prepared())
    workers.flush()
    workers.note(prepared())
    workers.flush()

    summary = workers.figures.summary("t")
    assert (summary.requests, workers.dropped) == (3, 1)
    problems = [(one["place"], one["error"], one["count"]) for one in workers.figures.summary(None).problems]
    assert problems == [("figures", "dropped", 1)], "whoever asks for the statistics is told"
    assert "gpt-\\ud800" in {model["model"] for model in summary.models}
    assert "OverflowError" in caplog.text
    assert "secret" not in caplog.text
    workers.close()


def test_metrics_that_cannot_be_made_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Where Prometheus refuses our metrics, as it does where another program took their names, the hooks go on."""
    taken = prometheus_client.Counter("krunch_requests", "Somebody else's.")
    litellm.callbacks.append("prometheus")
    try:
        telemetry.failed("prepare", ValueError("secret"))
    finally:
        litellm.callbacks.remove("prometheus")
        prometheus_client.REGISTRY.unregister(taken)

    assert "failed with ValueError" in caplog.text
    assert "secret" not in caplog.text
