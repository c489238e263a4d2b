"""What a worker tells the others and hears from them; what goes wrong there harms no request."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import stat
from typing import TYPE_CHECKING

import litellm
import prometheus_client
import pytest
from krunch_litellm import telemetry
from krunch_litellm.figures import FILE, Figures, Reset
from krunch_litellm.workers import Workers

from krunch_plugins import Krunch, Settings
from tests.litellm.ops.conftest import prepared

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def note_one(home: Path) -> None:
    """What a worker does that ends as soon as it has served a request."""
    with Krunch(Settings(home=home)) as krunch:
        telemetry.workers(krunch).note(prepared())


@pytest.fixture
def krunch(tmp_path: Path) -> Iterator[Krunch]:
    """A Krunch with a store, whose directory the workers share."""
    with Krunch(Settings(home=tmp_path / "home")) as krunch:
        yield krunch


def test_what_a_worker_noted_last_is_written_when_it_ends(krunch: Krunch) -> None:
    """A proxy that is stopped right after a reply has counted it."""
    assert krunch.settings.home is not None
    worker = multiprocessing.get_context("spawn").Process(target=note_one, args=(krunch.settings.home,))
    worker.start()
    worker.join()

    assert (worker.exitcode, Workers(krunch, float).figures.summary("t").requests) == (0, 1)


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
