"""Kill the process that appends and searches, damage its index files, start again: search must equal a rebuild.

    python bench/kill_recall.py [--rounds 1000] [--seed 1] [--writers 2] [--voices words vectors]

Each round forks processes that append, search, forget and flush on one home, kills them all at a random moment, then
breaks a file or two of the indexes (or none), opens the home anew and compares answers with those of indexes that are
built from the store alone. Every other round has limits so low that a few vectors are a graph, and files are written
often. The store itself is not damaged; bench/kill_storage.py does that.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from itertools import zip_longest
from pathlib import Path

from krunch_plugins import ConversationStore, Krunch, Settings
from krunch_plugins.errors import KrunchError
from krunch_plugins.recall import embedding_space
from krunch_plugins.recall.vector_search import Vectors
from krunch_plugins.recall.vectors import EXACT_UP_TO

WORDS = ("teal", "amber", "harbour", "violin", "ledger", "comet", "garden", "ferry", "saffron", "glacier", "pocket")
TENANTS = (None, "acme")
MOST_TURNS = 400
"""Sessions are forgotten beyond this, so that a rebuild stays short."""


GRAPH_FROM, SAVE_FROM = 50, 16
"""Vectors from which on there is a graph, and changes after which files are written, in every other round."""


class Elsewhere(ConversationStore):
    """The same store, whose indexes are temporary."""

    @property
    def directory(self) -> None:
        """No place for indexes."""


def limit(exact_up_to: int, save_from: int) -> None:
    """Set the limits of all indexes that are opened from now on."""
    assert Vectors.__init__.__kwdefaults__ is not None
    Vectors.__init__.__kwdefaults__["exact_up_to"] = exact_up_to
    embedding_space.SAVE_FROM = save_from


def work(home: Path, seed: int, voices: list[str]) -> None:
    """Append, search and forget until killed."""
    chance = random.Random(seed)
    with Krunch(_settings(home, voices)) as krunch:
        assert krunch.store is not None
        while True:
            session, tenant = f"s{chance.randrange(6)}", chance.choice(TENANTS)
            act = chance.random()
            try:
                if act < 0.7:  # noqa: PLR2004 - most of what happens are appends
                    krunch.store.append(session, [_message(chance) for _ in range(chance.randint(1, 4))], tenant=tenant)
                elif act < 0.9:  # noqa: PLR2004 - then searches
                    krunch.search(_query(chance), tenant=tenant)
                elif act < 0.97:  # noqa: PLR2004 - then forgetting
                    krunch.forget(session, tenant=tenant)
                else:
                    krunch.flush(1.0)
            except KrunchError as error:
                print(f"a worker got {type(error).__name__}: {error}", file=sys.stderr)


def one_round(home: Path, chance: random.Random, writers: int, voices: list[str]) -> str:
    """Let processes work, kill them, damage something; what was damaged."""
    children = []
    for _ in range(writers):
        seed = chance.randrange(1 << 30)
        child = os.fork()
        if child == 0:
            try:
                work(home, seed, voices)
            finally:
                os._exit(1)
        children.append(child)
    time.sleep(chance.uniform(0.02, 0.4))
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    files = sorted(path for path in (home / "recall").rglob("*") if path.is_file())
    return damage(chance, files) if files and chance.random() < 0.7 else "nothing"  # noqa: PLR2004 - some are left whole


def damage(chance: random.Random, files: list[Path]) -> str:
    """Break one or two files; what was done to which."""
    done = []
    for path in chance.sample(files, min(len(files), chance.choice([1, 1, 2]))):
        data = bytearray(path.read_bytes())
        kind = chance.choice(["flip", "cut", "remove", "noise"])
        if kind == "remove":
            path.unlink()
        elif kind == "flip" and data:
            for _ in range(chance.choice([1, 1, 30])):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
        elif kind == "cut":
            path.write_bytes(data[: chance.randrange(len(data) + 1)])
        else:
            at = chance.randrange(len(data) + 1)
            path.write_bytes(data[:at] + chance.randbytes(64) + data[at + 64 :])
        done.append(f"{kind} {path.name}")
    return ", ".join(done)


def compare(home: Path, chance: random.Random, voices: list[str]) -> list[str]:
    """Questions whose answers differ from those of a rebuild."""
    queries = [_query(chance) for _ in range(6)]
    settings = _settings(home, voices)
    wrong = []
    with Elsewhere(home) as store, Krunch(settings, store=store) as rebuilt, Krunch(settings) as krunch:
        assert krunch.store is not None
        for tenant in TENANTS:
            asked = [(query, session) for query in queries for session in (None, f"s{chance.randrange(6)}")]
            first = [_answer(krunch, *question, tenant) for question in asked] if voices == ["words"] else None
            krunch.flush()
            rebuilt.flush()
            second = [_answer(krunch, *question, tenant) for question in asked]
            right = [_answer(rebuilt, *question, tenant) for question in asked]
            for kind, answers in (("at once", first or right), ("after a flush", second)):
                pairs = zip(asked, answers, right, strict=True)
                wrong += [f"{question} {kind}: {_difference(a, b)}" for question, a, b in pairs if a != b]
            sessions = krunch.store.sessions(tenant)
            counts = {session: len(krunch.store.turns(session, tenant=tenant)) for session in sessions}
            while sum(counts.values()) > MOST_TURNS:
                session = counts.popitem()[0]
                krunch.forget(session, tenant=tenant)
    return wrong


def _answer(krunch: Krunch, query: str, session: str | None, tenant: str | None) -> list[tuple[object, ...]]:
    hits = krunch.search(query, session=session, tenant=tenant)
    return [(hit.session, hit.turn.number, hit.turn.message, sorted(hit.found_by.items())) for hit in hits]


def _difference(answer: list[tuple[object, ...]], right: list[tuple[object, ...]]) -> str:
    """The first hit that is another one, without its text."""
    for rank, (one, other) in enumerate(zip_longest(answer, right), 1):
        if one != other:
            return f"rank {rank} is {one and (*one[:2], one[3])}, and {other and (*other[:2], other[3])} in a rebuild"
    return "nothing"


def _settings(home: Path, voices: list[str]) -> Settings:
    return Settings(home=home, recall={"voices": voices})


def _message(chance: random.Random) -> dict[str, str]:
    text = " ".join(chance.choices(WORDS, k=chance.randint(1, 40)))
    return {"role": chance.choice(["user", "assistant"]), "content": text}


def _query(chance: random.Random) -> str:
    return " ".join(chance.sample(WORDS, chance.randint(1, 3)))


def main() -> int:
    """Run; exit code 1 if any answer differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--voices", nargs="+", default=["words", "vectors"])
    parser.add_argument("--keep", type=Path, help="stop at the first round that fails, and leave a copy of its home")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    seen: Counter[str] = Counter()
    failed = 0
    usual = EXACT_UP_TO, embedding_space.SAVE_FROM
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for number in range(1, arguments.rounds + 1):
            limit(*(usual if number % 2 else (GRAPH_FROM, SAVE_FROM)))
            damaged = one_round(home, chance, arguments.writers, arguments.voices)
            seen.update(damaged.split(", "))
            if wrong := compare(home, chance, arguments.voices):
                failed += 1
                print(f"round {number} ({damaged}): {len(wrong)} answers differ from a rebuild: {wrong[0]}", flush=True)
                if arguments.keep:
                    shutil.copytree(home, arguments.keep)
                    return 1
            if number % 50 == 0:
                print(f"{number} rounds, {failed} failed", flush=True)
    print(f"{arguments.rounds} rounds, {failed} with answers that differ from a rebuild")
    print("damaged: " + ", ".join(f"{what} {count}" for what, count in seen.most_common()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
