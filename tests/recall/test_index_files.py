"""The files of the index of words: they may be lost, damaged and shared, and keep nothing of what is forgotten."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import ConversationStore, Krunch, SearchQuery, Settings, abandoned
from krunch_plugins.errors import StoreBusy
from krunch_plugins.recall import held_files
from krunch_plugins.recall.database import IndexDatabase
from krunch_plugins.recall.files import FileLock

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "bench"))
import kill_recall

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = ["teal", "amber", "harbour", "violin", "ledger", "comet", "garden"]
OPTIONS: dict[str, Any] = {"voices": ["words"]}


def fill(home: Path, turns: int = 60) -> None:
    """A store with a few sessions of two tenants, and its indexes."""
    chance = random.Random(turns)
    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert krunch.store is not None
        for number in range(turns):
            text = " ".join(chance.choices(WORDS, k=5))
            tenant = None if number % 2 else "acme"
            krunch.store.append(f"s{number % 3}", [{"role": "user", "content": text}], tenant=tenant)


def answers(krunch: Krunch) -> list[Any]:
    """What is found, with the scores that words give."""
    voice = krunch._recall._voices["words"]
    asked = [
        SearchQuery(word, session, tenant) for word in WORDS for session in (None, "s1") for tenant in (None, "acme")
    ]
    return [[(hit.session, hit.turn.number, hit.score) for hit in voice.search(query)] for query in asked]


def rebuilt(home: Path) -> list[Any]:
    """What is found in indexes that are made of the store alone."""
    with kill_recall.Elsewhere(home) as store, Krunch(Settings(recall=OPTIONS), store=store) as krunch:
        return answers(krunch)


def index_files(home: Path) -> list[Path]:
    """All files of the indexes."""
    return sorted(path for path in (home / "recall").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home to copy."""
    home = tmp_path_factory.mktemp("filled") / "home"
    fill(home)
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    """A copy of a filled home."""
    return Path(shutil.copytree(filled, tmp_path / "home"))


def test_an_index_that_grew_equals_one_that_was_made_anew(home: Path) -> None:
    """Hits, order and scores are the same, to the last bit."""
    right = rebuilt(home)

    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert answers(krunch) == right
    assert any(right)


@pytest.mark.parametrize("suffix", [".db", ".digest", ".open", ".writer"])
@pytest.mark.parametrize("damage", ["remove", "empty", "flip", "cut", "noise", "folder"])
def test_a_damaged_or_missing_file_is_made_anew(home: Path, suffix: str, damage: str) -> None:
    """Whatever happens to a file of the index while nobody has it open, the next search is right."""
    right = rebuilt(home)
    for path in [path for path in index_files(home) if path.suffix == suffix]:
        data = bytearray(path.read_bytes())
        if damage in ("remove", "folder"):
            path.unlink()
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "flip" and data:
            data[len(data) // 2] ^= 16
            path.write_bytes(data)
        elif damage == "cut":
            path.write_bytes(data[: len(data) // 2])
        else:
            path.write_bytes(data[:100] + b"x" * 4096 + data[100:])
    if damage == "folder":
        shutil.rmtree(home / "recall")

    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert answers(krunch) == right


def test_every_flipped_byte_is_noticed(home: Path) -> None:
    """Each of many single flips of the database leads to the right answer, or to the index being made anew."""
    right = rebuilt(home)
    database = next(path for path in index_files(home) if path.suffix == ".db" and path.stat().st_size)
    whole = database.read_bytes()
    chance = random.Random(4)
    for _ in range(12):
        data = bytearray(database.read_bytes())
        data[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        database.write_bytes(data)
        with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
            assert answers(krunch) == right


def test_a_file_that_is_removed_or_broken_while_it_is_open_is_made_anew(home: Path) -> None:
    """A search and an append notice that the database is gone, or cannot be read, and go on with a new one."""
    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert krunch.store is not None
        right = answers(krunch)
        for path in index_files(home):
            path.unlink()
        assert answers(krunch) == right

        shutil.rmtree(home / "recall")
        krunch.store.append("s1", [{"role": "user", "content": "a walrus"}])
        assert krunch.search("walrus")[0].session == "s1"
        right = answers(krunch)
        krunch.flush()
    for path in [path for path in index_files(home) if path.suffix == ".db"]:
        path.write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert answers(krunch) == right


@pytest.mark.parametrize("seed", [0, 1, 7, 13])
def test_forgetting_and_flushing_get_over_a_file_that_is_damaged(home: Path, seed: int) -> None:
    """Whatever was broken while the index was open: nothing is left of what was forgotten, and the rest is found."""
    chance = random.Random(seed)
    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert krunch.store is not None
        words = [word for word in WORDS if word != "amber"]
        for session in ("a", "b"):
            texts = (" ".join(["amber", *chance.choices(words, k=30)]) for _ in range(40))
            krunch.store.append(session, [{"role": "user", "content": text} for text in texts], tenant="damaged")
    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert krunch.search("amber", tenant="damaged")
        path = max((path for path in index_files(home) if path.suffix == ".db"), key=lambda path: path.stat().st_size)
        with path.open("r+b") as file:
            for page in range(chance.randrange(1, 8), path.stat().st_size // 4096, chance.randrange(1, 4)):
                file.seek(page * 4096 + chance.randrange(4000))
                file.write(chance.randbytes(64))
        krunch.forget("a", tenant="damaged")
        krunch.flush()

        assert {hit.session for hit in krunch.search("amber", k=100, tenant="damaged")} == {"b"}


def test_a_voice_that_cannot_forget_just_now_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another process keeps writing the words, that is an error, and the vectors are gone all the same."""
    monkeypatch.setattr("krunch_plugins.recall.word_index.WAIT", 0.05)
    with Krunch(Settings(home=tmp_path)) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", [{"role": "user", "content": f"amber {number}"} for number in range(300)])
        krunch.flush()
        (folder,) = (tmp_path / "recall").iterdir()
        assert list(folder.glob("vectors-*.krunch"))
        with FileLock(folder / "words.writer").holding(), pytest.raises(StoreBusy):
            krunch.forget("s")
        assert not list(folder.glob("vectors-*.krunch"))
        krunch.forget("s")

        assert krunch.search("amber") == []


def test_an_index_that_is_behind_catches_up(home: Path, tmp_path: Path) -> None:
    """Turns that were appended, trimmed and forgotten while no Krunch was open are taken in by the next search."""
    with ConversationStore(home, retention_turns=8) as store:
        store.append("s1", [{"role": "user", "content": f"amber {number}"} for number in range(5)])
        store.append("new", [{"role": "user", "content": "teal and violin"}])
        store.forget("s2")
        store.expire()
    right = rebuilt(home)

    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert answers(krunch) == right
        assert "s2" not in {hit.session for hit in krunch.search(" ".join(WORDS), k=100)}


def test_a_session_begun_again_under_its_id_is_another_one(open_krunch: Callable[..., Krunch]) -> None:
    """After forgetting, the same id finds only what was stored since, also for a Krunch that was not told."""
    krunch, other = open_krunch(), open_krunch()
    assert krunch.store is not None
    krunch.store.append("s", [{"role": "user", "content": "the old walrus"}, {"role": "user", "content": "old"}])
    assert other.search("walrus")
    krunch.forget("s")
    krunch.store.append("s", [{"role": "user", "content": "the new comet"}])

    for one in (krunch, other):
        assert one.search("walrus old") == []
        assert one.search("comet")[0].turn.number == 0


def test_forgetting_while_another_process_builds_the_index_spares_a_session_begun_again(
    home: Path, open_krunch: Callable[..., Krunch]
) -> None:
    """Who forgets waits for the other one; what was begun under the same id meanwhile is in the index, and stays."""
    forgetful, building = open_krunch(), open_krunch()
    assert forgetful.store is not None
    assert building.store is not None
    shutil.rmtree(home / "recall")
    forgetful._recall._voices["words"].version(None)  # it has the new one open, too
    index = building._recall._voices["words"]._index  # type: ignore[attr-defined]  # it is amid its build
    with index.writing(None) as mine:
        assert mine
        thread = threading.Thread(target=forgetful.forget, args=("s1",))
        thread.start()
        while building.store.info("s1") is not None:
            time.sleep(0.01)
        time.sleep(0.3)
        with ConversationStore(home) as other:
            other.append("s1", [{"role": "user", "content": "a walrus"}])
        events, cursor = building.store.since(None)
        index.apply(None, events, cursor)
    thread.join()

    assert [(hit.session, hit.turn.number) for hit in forgetful.search("walrus")] == [("s1", 0)]
    assert answers(forgetful) == rebuilt(home)


def test_nothing_of_a_forgotten_session_is_left_in_any_file(home: Path) -> None:
    """No byte of its words, its id or its metadata stays in the indexes, whatever else they hold."""
    secret = [f"zq{number}xsecret" for number in range(200)]
    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert krunch.store is not None
        krunch.store.append("zqsession", [{"role": "user", "content": " ".join(secret)}] * 3)
        krunch.flush()
        assert krunch.search("zq7xsecret")
        assert any(b"zq7xsecret" in path.read_bytes() for path in index_files(home))
        report = krunch.forget("zqsession")

        assert report is not None
        assert report.elsewhere >= 3
        assert [path for path in index_files(home) if b"xsecret" in path.read_bytes()] == []
        assert [path for path in index_files(home) if b"zqsession" in path.read_bytes()] == []
        assert krunch.search("zq7xsecret") == []


def test_nothing_of_expired_turns_is_left_after_a_flush(tmp_path: Path) -> None:
    """What retention removes leaves the index files, too."""
    with (
        ConversationStore(tmp_path, retention_turns=1, upkeep_seconds=0) as store,
        Krunch(Settings(recall=OPTIONS), store=store) as krunch,
    ):
        store.append("s", [{"role": "user", "content": "zqxfirst"}, {"role": "user", "content": "second"}])
        store.expire()
        krunch.flush()

        assert [path for path in index_files(tmp_path) if b"zqxfirst" in path.read_bytes()] == []
        assert krunch.search("second")


def test_the_command_that_forgets_forgets_in_the_indexes(home: Path) -> None:
    """`krunch forget` leaves nothing in them either."""
    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert krunch.store is not None
        krunch.store.append("mine", [{"role": "user", "content": "zqxsecret"}])
    done = run("from krunch_plugins.cli import main; main()", "forget", "mine", home=home)

    assert done.returncode == 0, done.stderr
    assert [path for path in index_files(home) if b"zqxsecret" in path.read_bytes()] == []


def test_index_files_are_for_their_owner_only(home: Path) -> None:
    """Folders 0700 and files 0600, and no file is named after a tenant."""
    paths = [home / "recall", *(home / "recall").rglob("*")]

    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} <= {0o600}
    assert not [path for path in paths if "acme" in path.name]


def run(program: str, *arguments: str, home: Path, wait: bool = True) -> Any:
    """A program in a process of its own."""
    command = [sys.executable, "-c", program, *arguments]
    environment = {"KRUNCH_HOME": str(home), "KRUNCH_RECALL_VOICES": "words", "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not wait:
        return process
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


WRITER = """
import sys
from krunch_plugins import Krunch
krunch = Krunch()
for number in range(40):
    name = f"word{sys.argv[1]}x{number}"
    krunch.store.append(f"s{number % 2}", [{"role": "user", "content": f"{name} amber"}])
    assert krunch.search(name)[0].turn.message["content"] == f"{name} amber", name
print("done")
"""


def test_several_processes_share_one_home(tmp_path: Path) -> None:
    """Processes that append and search at once each find their own turns at once, and in the end all of all."""
    home = tmp_path / "home"
    processes = [run(WRITER, str(number), home=home, wait=False) for number in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert out.strip() == "done", err  # none of them closed its Krunch, either

    database = next(path for path in index_files(home) if path.suffix == ".db")
    with database.open("rb") as file, Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert len(krunch.search("amber", k=1000)) == 120
        assert answers(krunch) == rebuilt(home)
        # It is open here, so that another file cannot get its number.
        assert os.path.samestat(os.fstat(file.fileno()), database.stat()), "it was made anew, though nothing happened"


def test_one_that_comes_and_goes_leaves_the_log_of_the_others(tmp_path: Path) -> None:
    """While a process has an index open, another one that opens and closes it does not take away its log."""
    home = tmp_path / "home"
    visit = "from krunch_plugins import Krunch\nwith Krunch() as krunch:\n    print(len(krunch.search('amber')))"
    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch, Krunch(Settings(home=home, recall=OPTIONS)) as other:
        assert krunch.store is not None
        for number in range(4):
            krunch.store.append(f"s{number}", [{"role": "user", "content": "amber"}])
            assert len(other.search("amber")) == number + 1 - number // 2
            log = next(path for path in index_files(home) if path.name == "words.db-wal")
            before = log.stat()
            assert run(visit, home=home).stdout.strip() == str(number + 1 - number // 2)
            assert os.path.samestat(log.stat(), before)
            if number % 2:
                krunch.forget(f"s{number}")  # this overwrites what is free, and notes the file's digest
        other.close()
        assert run(visit, home=home).stdout.strip() == "2"
        assert log.exists()
    assert run(visit, home=home).stdout.strip() == "2"


def test_a_program_that_never_closes_leaves_an_index_that_is_good(tmp_path: Path) -> None:
    """A program that ends without closing anything leaves an index that the next one takes as it is."""
    home = tmp_path / "home"
    assert run(WRITER, "0", home=home).stdout.strip() == "done"
    database = next(path for path in index_files(home) if path.suffix == ".db")
    with database.open("rb") as file, Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert len(krunch.search("amber", k=1000)) == 40
        assert os.path.samestat(os.fstat(file.fileno()), database.stat())


def test_the_collector_closes_no_index_itself(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever forgets to close has it closed soon, but not by the collector, which may run under any lock of ours."""
    closed: list[str] = []
    close = IndexDatabase.close

    def watched(database: IndexDatabase) -> None:
        close(database)
        closed.append(threading.current_thread().name)

    monkeypatch.setattr(IndexDatabase, "close", watched)
    with ConversationStore(home) as store:
        krunch = Krunch(Settings(recall=OPTIONS), store=store)
        store.append("new", [{"role": "user", "content": "amber"}])
        assert krunch.search("amber", session="new")
    (log,) = (path for path in index_files(home) if path.suffix == ".db-wal" and path.stat().st_size)
    database = log.with_suffix(".db")
    number = database.stat().st_ino

    def forget() -> None:
        nonlocal krunch, store
        with held_files._files.lock:
            del krunch, store
            gc.collect()

    thread = threading.Thread(target=forget, daemon=True)
    thread.start()
    thread.join(20.0)
    assert not thread.is_alive()
    assert abandoned.settle(20.0)

    assert closed == ["krunch-abandoned"]
    assert not log.exists()  # settled, with a digest: the next one takes it as it is
    with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
        assert krunch.search("amber", session="new")
        assert database.stat().st_ino == number


def test_a_killed_process_leaves_an_index_that_is_still_good(home: Path) -> None:
    """After SIGKILL amid appends the next one goes on with the same file, and finds what was appended."""
    program = WRITER.replace("range(40)", "range(100000)")
    process = run(program, "k", home=home, wait=False)
    with ConversationStore(home) as store:
        while not len(store.turns("s0")) > 25:
            time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    databases = [path for path in index_files(home) if path.suffix == ".db"]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in databases]  # so that others cannot get their numbers
        with Krunch(Settings(home=home, recall=OPTIONS)) as krunch:
            assert answers(krunch) == rebuilt(home)
            for file, path in zip(files, databases, strict=True):
                assert os.path.samestat(os.fstat(file.fileno()), path.stat())


def test_rounds_of_kill_damage_and_restart(tmp_path: Path) -> None:
    """Search equals a rebuild after each of a few rounds; bench/kill_recall.py runs a thousand."""
    chance = random.Random(11)
    for _ in range(4):
        program = (
            f"import kill_recall; from pathlib import Path; kill_recall.work(Path({str(tmp_path)!r}), 3, ['words'])"
        )
        path = str(Path(kill_recall.__file__).parent)
        process = run(f"import sys; sys.path.insert(0, {path!r}); {program}", home=tmp_path, wait=False)
        time.sleep(1.0 + chance.random() / 2)
        process.kill()
        process.communicate()
        files = index_files(tmp_path)
        if files:
            kill_recall.damage(chance, files)
        assert kill_recall.compare(tmp_path, chance, ["words"]) == []


def test_threads_append_and_search_at_once(open_krunch: Callable[..., Krunch]) -> None:
    """Many threads on one Krunch neither fail nor miss what they appended."""
    krunch = open_krunch()
    assert krunch.store is not None
    store, failed = krunch.store, []

    def work(mine: int) -> None:
        for number in range(15):
            store.append(f"s{mine}", [{"role": "user", "content": f"word{mine}x{number} amber"}])
            if not [hit for hit in krunch.search(f"word{mine}x{number}") if hit.turn.number == number]:
                failed.append((mine, number))
            if number == 7:
                krunch.forget(f"s{mine + 100}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert len(krunch.search("amber", k=1000)) == 90


def test_many_tenants_share_a_few_open_files(
    open_krunch: Callable[..., Krunch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are more tenants than databases that may be open, all of them are found."""
    monkeypatch.setattr("krunch_plugins.recall.word_index.MOST_OPEN", 2)
    krunch = open_krunch()
    assert krunch.store is not None
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(8):
        krunch.store.append("s", [{"role": "user", "content": "amber"}], tenant=f"tenant {number}")

    assert all(len(krunch.search("amber", tenant=f"tenant {number}")) == 1 for number in range(8))
    assert len(list(Path("/proc/self/fd").iterdir())) - before < 30


def test_a_store_elsewhere_has_temporary_indexes(tmp_path: Path) -> None:
    """Without a directory of the store's own the indexes lie in a temporary place, which goes when it is closed."""
    fill(tmp_path / "home")
    with kill_recall.Elsewhere(tmp_path / "home") as store:
        krunch = Krunch(Settings(recall=OPTIONS), store=store)
        assert krunch.search("amber")
        assert krunch._recall._files is not None
        place = krunch._recall._files.path
        assert place.is_dir()
        krunch.close()

    assert not place.exists()


@pytest.mark.parametrize(
    "end", ["del krunch, store; gc.collect(); abandoned.settle(20)", "", "os.fork() or sys.exit()"]
)
def test_temporary_indexes_go_though_nobody_closes_them(end: str, tmp_path: Path) -> None:
    """What was put into a temporary place goes with who put it there, or with the process; a forked one leaves it."""
    program = f"""
import gc, os, sys, tempfile
sys.path[:0] = [{str(Path(kill_recall.__file__).parent)!r}]
from kill_recall import Elsewhere
from krunch_plugins import Krunch, Settings, abandoned
tempfile.tempdir = sys.argv[2]
with Elsewhere(sys.argv[1]) as store:
    krunch = Krunch(Settings(recall={{"voices": ["words"]}}), store=store)
    store.append("s", [{{"role": "user", "content": "amber"}}])
    krunch.search("amber")
{end}
if "fork" in {end!r}:
    os.wait()
print(len(os.listdir(sys.argv[2])))
"""
    place = tmp_path / "temporary"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "home"), str(place)], capture_output=True, text=True, check=False
    )

    assert done.stdout.strip() == ("0" if "gc" in end else "1"), done.stderr
    assert list(place.iterdir()) == []
