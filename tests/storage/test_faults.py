"""Killed writers, damaged files, full and forbidden disks: real ones."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from krunch_plugins import ConversationStore
from krunch_plugins.errors import DatabaseDamaged, FrameDamaged, StoreBusy, StoreError, StoreFull, StoreUnavailable
from krunch_plugins.storage import repair, salvage

from .conftest import many, says

Open = Callable[..., ConversationStore]
BENCH = Path(__file__).parents[2] / "bench" / "kill_storage.py"
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the writers are forked")


@needs_fork
@pytest.mark.parametrize(("what", "rounds"), [("kill", 12), ("flip", 60)])
def test_nothing_is_lost_in_a_short_run(what: str, rounds: int) -> None:
    """Killed writers lose, double and damage nothing; damaged files are detected or harmless."""
    run = subprocess.run(
        [sys.executable, BENCH, what, "--rounds", str(rounds), "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["bad"] == {}


WRITER = """
import sys
from krunch_plugins import ConversationStore
with ConversationStore(sys.argv[1]) as store:
    for at in range(0, 60, 3):
        texts = [{"role": "user", "content": f"{sys.argv[2]}:{at + i}"} for i in range(3)]
        numbers = store.append("shared", texts)
        assert len(numbers) == 3
        if at % 12 == 0:
            store.evict("shared")
"""


def test_eight_processes_append_to_one_session(tmp_path: Path) -> None:
    """Nothing is lost or doubled, each batch stays together, each writer's order is kept, from a new directory on."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "s", str(who)]) for who in range(8)]
    codes = [writer.wait(120) for writer in writers]
    with ConversationStore(tmp_path / "s", upkeep_seconds=0) as store:
        texts = [turn.message["content"] for turn in store.turns("shared")]
        report = store.check()

    assert codes == [0] * 8
    assert len(texts) == 480
    for who in range(8):
        assert [text for text in texts if text.startswith(f"{who}:")] == [f"{who}:{at}" for at in range(60)]
    for at in range(0, 480, 3):
        assert len({text.partition(":")[0] for text in texts[at : at + 3]}) == 1
    assert report.ok


@needs_fork
def test_a_store_survives_a_fork(open_store: Open) -> None:
    """A forked child and its parent both go on with the store that the parent had opened."""
    store = open_store(upkeep_seconds=60.0)
    store.append("s", says("before"))
    child = os.fork()
    if child == 0:
        try:
            store.append("s", says("child"))
            os._exit(0 if len(store.recent("s")) >= 2 else 1)
        except BaseException:  # noqa: BLE001 - the child must not return into pytest
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    store.append("s", says("parent"))

    assert code == 0
    assert [turn.message["content"] for turn in store.turns("s")] == ["before", "child", "parent"]


def _damage(directory: Path, where: str, change: str) -> None:
    with sqlite3.connect(directory / "cache.db") as connection:
        changed = connection.execute(f"UPDATE Cache SET {change} WHERE key LIKE ?", (where,)).rowcount
    connection.close()
    assert changed


def test_a_damaged_frame_is_told_and_moved_aside(open_store: Open, tmp_path: Path) -> None:
    """One damaged segment raises with session, segment and codec; others stay readable; repair keeps its bytes."""
    store = open_store()
    messages = many(1200)
    store.append("s", messages)
    store.append("fine", many(3))
    store.evict("s")
    store.close()
    with sqlite3.connect(tmp_path / "store" / "cache.db") as connection:
        row, value = connection.execute(
            "SELECT rowid, value FROM Cache WHERE key LIKE 'g/%/0' ORDER BY length(value) DESC"
        ).fetchone()
        flipped = value[:400] + bytes([value[400] ^ 1]) + value[401:]
        connection.execute("UPDATE Cache SET value = ? WHERE rowid = ?", (flipped, row))
    connection.close()
    store = open_store()
    with pytest.raises(FrameDamaged) as caught:
        store.turns("s")
    rest = store.turns("s", 1024)
    found = store.check()
    repaired = store.check(repair=True)
    after = store.check()
    info = store.info("s")
    aside = dict(store.quarantined())

    assert caught.value.session == "s"
    assert caught.value.segment.endswith("/0")
    assert caught.value.codec == "zstd"
    assert [turn.message for turn in rest] == messages[1024:]
    assert [damage.session for damage in found.damage] == ["s"]
    assert not found.ok
    assert (repaired.ok, repaired.quarantined, repaired.missing) == (False, 1, 1024)
    assert after.ok
    assert info is not None
    assert (info.missing, info.turns) == (((0, 1024),), 176)
    assert [turn.number for turn in store.turns("s")] == list(range(1024, 1200))
    assert len(aside) == 1
    assert len(store.turns("fine")) == 3
    assert store.append("s", says("on")) == range(1200, 1201)
    assert store.forget("s").quarantined == 1
    assert list(store.quarantined()) == []


@pytest.mark.parametrize("where", ["root", "t/%", "d/%", "s/%", "i/%", "p/%", "x/%", "e/%"])
@pytest.mark.parametrize("change", ["value = substr(value, 1, 40)", "key = 'zz' || key", "expire_time = 1.0"])
def test_lost_indexes_are_made_anew(open_store: Open, tmp_path: Path, where: str, change: str) -> None:
    """Whatever record is lost, nothing is silently missing, and repair brings every turn back from the frames."""
    store = open_store()
    for number in range(40):
        store.append(f"s{number % 2}", many(3), tenant="t")
    store.put_state("s0", "n", b"state", tenant="t")
    store.set_summary("s0", "about", tenant="t")
    store.evict("s0", tenant="t")
    store.close()
    _damage(tmp_path / "store", where, change)
    store = open_store()
    for name in ("s0", "s1"):
        with contextlib.suppress(StoreError):
            assert len(store.turns(name, tenant="t")) == 60
    found = store.check()
    store.check(repair=True)

    assert not found.ok
    assert store.check().ok
    for name in ("s0", "s1"):
        assert [turn.message for turn in store.turns(name, tenant="t")] == many(3) * 20
    assert sorted(store.sessions("t")) == ["s0", "s1"]
    assert store.append("s1", says("on"), tenant="t") == range(60, 61)


@pytest.mark.parametrize("page", [0, 1, 3])
def test_an_unreadable_database_is_salvaged(open_store: Open, tmp_path: Path, page: int) -> None:
    """A database that SQLite cannot read raises; repair brings back every intact frame and keeps the damaged file."""
    store = open_store()
    for number in range(30):
        store.append(f"s{number}", many(20))
    store.append("forgotten", many(3))
    store.close()
    path = tmp_path / "store" / "cache.db"
    data = bytearray(path.read_bytes())
    data[page * 4096 : page * 4096 + 90] = bytes(90)
    path.write_bytes(data)
    store = open_store()
    refused = 0
    for number in range(30):
        try:
            assert [turn.message for turn in store.turns(f"s{number}")] == many(20)
        except StoreError:
            refused += 1
    report = store.check(repair=True)
    kept = [number for number in range(30) if store.turns(f"s{number}")]

    assert refused
    assert report.salvaged > 30
    assert store.check().ok
    assert len(kept) >= 25
    assert all([turn.message for turn in store.turns(f"s{number}")] == many(20) for number in kept)
    assert [name for name, _ in store.quarantined() if name.endswith("cache.db")]
    store.forget("s29")
    assert list(store.quarantined()) == []


def test_no_repair_under_another_process(open_store: Open, tmp_path: Path) -> None:
    """A database is not replaced while another process has it open."""
    store = open_store()
    store.append("s", many(3))
    store.close()
    path = tmp_path / "store" / "cache.db"
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])
    one, _other = open_store(), open_store()

    with pytest.raises(DatabaseDamaged):
        one.turns("s")
    with pytest.raises(StoreBusy):
        one.check(repair=True)
    assert path.read_bytes()[:100] == b"\0" * 100


def test_a_repair_that_was_refused_still_keeps_others_out(open_store: Open, tmp_path: Path) -> None:
    """Whoever was refused a repair has the store open as before: nobody else can replace the database under it."""
    store = open_store()
    store.append("s", many(3))
    store.close()
    path = tmp_path / "store" / "cache.db"
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])
    one, other = open_store(), open_store()
    with pytest.raises(StoreBusy):
        one.check(repair=True)

    with pytest.raises(StoreBusy):
        other.check(repair=True)
    one.close()
    assert other.check(repair=True).salvaged
    assert other.check().ok


def test_a_damaged_session_keeps_no_other_from_expiring(open_store: Open, tmp_path: Path) -> None:
    """Retention leaves out a session with a damaged frame and says so; all others lose what they must."""
    store = open_store(retention_turns=1)
    store.append("damaged", many(3))
    store.close()
    _damage(tmp_path / "store", "g/%", "value = substr(value, 1, 60)")
    store = open_store(retention_turns=1)
    for tenant in (None, "t"):
        for number in range(4):
            store.append(f"s{number}", many(3), tenant=tenant)

    with pytest.raises(FrameDamaged, match="damaged"):
        store.expire()
    assert all(len(store.turns(f"s{number}", tenant=tenant)) == 1 for tenant in (None, "t") for number in range(4))


def test_nobody_opens_a_store_while_its_frames_are_saved(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first frame that a repair reads on, nobody else can store what the new database would not have."""
    store = open_store()
    store.append("s", many(3))
    store.close()
    path = tmp_path / "store" / "cache.db"
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])
    store = open_store()

    def rows(*files: Path) -> Iterator[tuple[str, bytes]]:
        with pytest.raises(StoreUnavailable, match="repairing"):
            open_store()
        return salvage.rows(*files)

    with monkeypatch.context() as patched:
        patched.setattr(repair, "sqlite_pages", SimpleNamespace(rows=rows))
        report = store.check(repair=True)

    assert report.salvaged
    assert len(store.turns("s")) == 3


@pytest.mark.parametrize("step", range(8))
def test_a_repair_that_is_killed_loses_nothing(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Killed between any two steps that change names, a repair can be finished, with what lay in the log, too."""
    store = open_store()
    for number in range(30):
        store.append(f"s{number}", many(20))
    store.close()
    path, steps = tmp_path / "store" / "cache.db", 0
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM Cache").fetchone()  # what comes now stays in the log until this ends
    store = open_store()
    store.append("logged", many(20))
    data = bytearray(path.read_bytes())
    middle = len(data) // 8192 * 4096
    data[middle : middle + 90] = bytes(90)
    path.write_bytes(data)

    def killed_at(name: str) -> Callable[..., object]:
        real = getattr(Path, name)

        def call(self: Path, *args: object, **options: object) -> object:
            nonlocal steps
            steps += 1
            if steps == step + 1:
                raise KeyboardInterrupt
            return real(self, *args, **options)

        return call

    with monkeypatch.context() as patched:
        for name in ("unlink", "replace"):
            patched.setattr(Path, name, killed_at(name))
        with contextlib.suppress(KeyboardInterrupt):
            store.check(repair=True)
    store.close()
    # Only what a repair finishes by itself and what a second one finds counts, not what lies in quarantine.
    store = open_store()
    store.check(repair=True)

    assert steps
    assert [turn.message for turn in store.turns("logged")] == many(20)
    assert store.check().ok
    reader.close()
    assert {one.name for one in (tmp_path / "store").iterdir()} <= {
        *("cache.db", "cache.db-wal", "cache.db-shm", "in-use.lock", "quarantine")
    }


FULL = """
import os, resource, signal, sys
from krunch_plugins import ConversationStore
from krunch_plugins.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = ConversationStore(sys.argv[1], upkeep_seconds=0)
store.append("s", [{"role": "user", "content": "first"}])
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))
stored = 1
try:
    for number in range(1000):
        store.append("s", [{"role": "user", "content": os.urandom(20_000).hex()}])
        stored += 1
except StoreError as error:
    print(type(error).__name__, stored, len(store.turns("s")))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.append("s", [{"role": "user", "content": "room again"}])
    print(len(store.turns("s")), store.check().ok)
"""


def test_no_room_left(tmp_path: Path) -> None:
    """When no more can be written, an append raises, all before it is there, and it works again when there is room."""
    run = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    error, stored, there, later, ok = run.stdout.split()

    assert error in ("StoreFull", "StoreUnavailable")
    assert stored == there
    assert (int(later), ok) == (int(stored) + 1, "True")


def test_a_full_database_says_so(open_store: Open) -> None:
    """SQLite's own "database or disk is full" is StoreFull; nothing of the call is stored, and the store goes on."""
    store = open_store()
    store.append("s", many(3))
    connection = store._tiers.opened.cold._cache._con  # type: ignore[union-attr]
    connection.execute("PRAGMA max_page_count = 30")

    with pytest.raises(StoreFull):
        store.append("s", [{"role": "user", "content": os.urandom(500_000).hex()}])
    assert len(store.turns("s")) == 3
    connection = store._tiers.opened.cold._cache._con  # type: ignore[union-attr]
    connection.execute("PRAGMA max_page_count = 1000000")
    assert store.append("s", many(1)) == range(3, 4)


def test_forgetting_on_a_full_disk(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room to rebuild the database, a session is forgotten everywhere, and what is left over comes later."""
    store = open_store()
    store.append("s", many(3))
    told: list[str] = []
    store.on_forget(lambda session, tenant: told.append(session) or 1)  # type: ignore[func-returns-value]
    cold = store._tiers.opened.cold

    def full() -> bool:
        raise StoreFull("the store")

    with monkeypatch.context() as patched:
        patched.setattr(cold, "scrub", full)
        report = store.forget("s")

    assert (report.sessions, report.elsewhere, report.scrubbed) == (1, 1, False)
    assert told == ["s"]
    assert store.sessions() == []


def test_a_directory_removed_while_open(open_store: Open, tmp_path: Path) -> None:
    """An append into a store whose directory is gone raises instead of writing into nothing."""
    store = open_store()
    store.append("s", many(3))
    shutil.rmtree(tmp_path / "store")

    with pytest.raises(StoreUnavailable, match="removed"):
        store.append("s", many(1))


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    """A path that cannot be a directory raises and names it."""
    (tmp_path / "file").write_text("x")

    with pytest.raises(StoreUnavailable, match="file"):
        ConversationStore(tmp_path / "file")
    with pytest.raises(StoreUnavailable, match="file"):
        ConversationStore(tmp_path / "file" / "below")


AS_NOBODY = """
import os, sys
from krunch_plugins import ConversationStore
from krunch_plugins.errors import StoreUnavailable
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    with ConversationStore(sys.argv[1], upkeep_seconds=0) as store:
        store.append("s", [{"role": "user", "content": "x"}])
except StoreUnavailable as error:
    print("refused:", error)
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs another user")
@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "no permission"])
def test_a_directory_that_must_not_be_written(mode: int) -> None:
    """A read-only or forbidden directory raises a clear error, and what is in it is not touched."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "store"
        with ConversationStore(directory, upkeep_seconds=0) as store:
            store.append("s", many(3))
        files = [directory, *directory.iterdir()]
        Path(name).chmod(0o755)
        for path in files:
            path.chmod(mode)
        run = subprocess.run([sys.executable, "-c", AS_NOBODY, directory], capture_output=True, text=True, check=False)
        for path in files:
            path.chmod(0o700)
        with ConversationStore(directory, upkeep_seconds=0) as store:
            left = len(store.turns("s"))

    assert run.stdout.startswith("refused:"), run.stdout + run.stderr
    assert left == 3
