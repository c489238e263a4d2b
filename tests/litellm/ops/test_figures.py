"""What workers share: nothing is lost or counted twice, resets reach all, and it stays bounded."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from typing import TYPE_CHECKING

from krunch_litellm.entries import HOUR, Failed, Replied
from krunch_litellm.figures import FILE, HOURS, SERIES, Figures, Reset

from tests.litellm.ops.conftest import prepared

if TYPE_CHECKING:
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
