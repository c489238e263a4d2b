"""How well and how fast old turns are found again: the figures in docs/recall.md.

    python bench/recall.py quality CORPUS    share of evidence found, by set and category, with and without each part
    python bench/recall.py speed             100,000 turns in 1,000 sessions: indexing, appending, searching

CORPUS is a folder with pairs of files NAME.jsonl and NAME_qa.jsonl, as the corpus has them, or with LoCoMo's
`locomo10.json`; bench/data has questions about the conversations of `chat.jsonl`. What else there is, see
recall_sets.py.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recall_sets

from krunch_plugins import Krunch, Settings, Turn
from krunch_plugins.recall.texts import text_of
from krunch_plugins.recall.word_terms import terms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from recall_sets import Question, QuestionSet

ARMS: dict[str, dict[str, Any]] = {
    "words, turns only": {"voices": ["words"], "window_weight": 0.0},
    "words (with windows)": {"voices": ["words"]},
    "vectors": {"voices": ["vectors"]},
    "topics": {"voices": ["topics"]},
    "words + vectors, equal": {"voices": ["words", "vectors"], "weights": {"words": 1.0, "vectors": 1.0}},
    "words + topics": {"voices": ["words", "topics"]},
    "words + vectors + topics": {"voices": ["words", "vectors", "topics"]},
    "default": {},
}
USUAL = "BM25 as usual"
"""What anybody would take: SQLite's FTS5 over the turns of the conversation, stemmed, without stop words."""
DEPTHS = (5, 10, 20)


def quality(corpus: Path, arms: Sequence[str], only: str, half: int | None = None) -> None:
    """Print a table for each set, and the categories of the default."""
    extra = Path(__file__).parent / "data"
    sets = [*recall_sets.read(corpus), *recall_sets.read_beside(extra, corpus)]
    sets = [found for found in sets if only in found.name]
    for found in sets if half is None else [found.half(half) for found in sets]:
        print(f"\n{found.name}: {len(found.questions)} questions, {len(found.conversations)} conversations")
        print(f"{'':28}" + "".join(f"{f'@{depth}':>8}" for depth in DEPTHS) + f"{'MRR':>8}")
        if USUAL in arms:
            print(f"{USUAL:28}" + "".join(f"{figure:8.3f}" for figure in _figures(_as_usual(found))))
        with tempfile.TemporaryDirectory() as home:
            _store(found, home)
            for arm in (arm for arm in arms if arm != USUAL):
                with Krunch(Settings(home=home, recall=ARMS[arm])) as krunch:
                    krunch.flush()
                    results = [(question, _ask(krunch, question)) for question in found.questions]
                print(f"{arm:28}" + "".join(f"{figure:8.3f}" for figure in _figures(results)))
                if arm == "default":
                    _categories(results)


def _store(found: QuestionSet, home: str) -> None:
    """Each message's time is its number, if it has no other, so that a question can leave out what came later."""
    with Krunch(Settings(home=home, recall={"voices": []})) as krunch:
        assert krunch.store is not None
        for session, messages in found.conversations.items():
            times = found.times.get(session) or map(float, range(len(messages)))
            krunch.store.append(session, [Turn(0, *one) for one in zip(messages, times, strict=True)])


def _ask(krunch: Krunch, question: Question) -> list[int]:
    before = None if question.before is None else float(question.before)
    hits = krunch.search(question.text, session=question.session, k=max(DEPTHS), before=before)
    return [hit.turn.number for hit in hits]


def _as_usual(found: QuestionSet) -> list[tuple[Question, list[int]]]:
    """What `USUAL` finds."""
    results = []
    with sqlite3.connect(":memory:") as database:
        for name, messages in found.conversations.items():
            database.execute("CREATE VIRTUAL TABLE turns USING fts5(text, tokenize='porter unicode61')")
            rows = [(number, " ".join(terms(text_of(message)))) for number, message in enumerate(messages, 1)]
            database.executemany("INSERT INTO turns(rowid, text) VALUES(?, ?)", rows)
            for question in (question for question in found.questions if question.session == name):
                wanted = " OR ".join(f'"{term}"' for term in dict.fromkeys(terms(question.text)))
                sql = "SELECT rowid - 1 FROM turns WHERE turns MATCH ? AND rowid <= ? ORDER BY rank, rowid LIMIT ?"
                before = len(messages) if question.before is None else question.before
                hits = database.execute(sql, (wanted, before, max(DEPTHS))).fetchall() if wanted else []
                results.append((question, [number for (number,) in hits]))
            database.execute("DROP TABLE turns")
    return results


def _figures(results: list[tuple[Question, list[int]]]) -> list[float]:
    """The mean share of evidence found at each depth, and the mean reciprocal rank of the first."""
    shares = [
        statistics.fmean(
            len(question.evidence & set(found[:depth])) / len(question.evidence) for question, found in results
        )
        for depth in DEPTHS
    ]
    ranks = [next((i for i, number in enumerate(found, 1) if number in q.evidence), 0) for q, found in results]
    return [*shares, statistics.fmean(1 / rank if rank else 0.0 for rank in ranks)]


def _categories(results: list[tuple[Question, list[int]]]) -> None:
    by_category = defaultdict(list)
    for question, found in results:
        by_category[question.category].append((question, found))
    for category, those in sorted(by_category.items()):
        print(f"   {category:25}" + "".join(f"{figure:8.3f}" for figure in _figures(those)) + f"  ({len(those)})")


def speed(turns: int, sessions: int, words: Path | None) -> None:
    """Print what indexing, appending and searching take; CPU time of this process, with the wall clock beside it."""
    chance = random.Random(5)
    vocabulary = _vocabulary(chance, words)
    per_session = turns // sessions
    with tempfile.TemporaryDirectory() as home:
        with Krunch(Settings(home=home, recall={"voices": []})) as krunch:
            assert krunch.store is not None
            for number in range(sessions):
                krunch.store.append(f"session {number}", [_message(chance, vocabulary) for _ in range(per_session)])
        with Krunch(Settings(home=home)) as krunch:
            assert krunch.store is not None
            store = krunch.store
            began, cpu = time.perf_counter(), time.process_time()
            krunch.flush()
            print(f"index {turns:,} turns in {sessions:,} sessions: {time.process_time() - cpu:.0f} s of CPU,"
                  f" {time.perf_counter() - began:.0f} s")  # fmt: skip
            size = sum(path.stat().st_size for path in Path(home, "recall").rglob("*") if path.is_file())
            print(f"index files: {size / turns:,.0f} bytes a turn")
            queries = [" ".join(chance.choices(vocabulary[200:], k=6)) for _ in range(200)]
            names = [f"session {chance.randrange(sessions)}" for _ in queries]
            pairs = list(zip(queries, names, strict=True))
            _report("query within a session", [partial(krunch.search, q, session=s) for q, s in pairs])
            _report("query over all sessions", [partial(krunch.search, q) for q in queries])
            _report("the same again", [partial(krunch.search, q) for q in queries])
            batch = [[_message(chance, vocabulary)] for _ in range(300)]
            _report("append a turn", [partial(store.append, s, m) for (_, s), m in zip(pairs, batch, strict=False)])
        with Krunch(Settings(home=home, recall={"voices": []})) as krunch:
            assert krunch.store is not None
            store = krunch.store
            _report(
                "append, not indexed",
                [partial(store.append, s, m) for (_, s), m in zip(pairs, batch, strict=False)],
            )


def _vocabulary(chance: random.Random, words: Path | None) -> list[str]:
    if words is not None:
        return sorted(set(terms(words.read_text(encoding="utf-8"))))
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(chance.choices(letters, k=chance.randint(3, 10))) for _ in range(30_000)]


def _message(chance: random.Random, vocabulary: list[str]) -> dict[str, str]:
    """A turn of some 60 words, whose frequencies fall as in language (Zipf)."""
    count = chance.randint(20, 100)
    chosen = [vocabulary[min(int(chance.paretovariate(0.35)) - 1, len(vocabulary) - 1)] for _ in range(count)]
    return {"role": chance.choice(["user", "assistant"]), "content": " ".join(chosen)}


def _report(what: str, calls: Sequence[Callable[[], object]]) -> None:
    spent, waited = [], []
    for call in calls:
        cpu, clock = time.thread_time(), time.perf_counter()
        call()
        spent.append((time.thread_time() - cpu) * 1000)
        waited.append((time.perf_counter() - clock) * 1000)
    spent.sort()
    waited.sort()
    middle, late = len(calls) // 2, int(len(calls) * 0.95)
    line = f"{what:26} p50 {spent[middle]:7.2f} ms  p95 {spent[late]:7.2f} ms CPU"
    print(f"{line}   (clock {waited[middle]:.2f}, {waited[late]:.2f})")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("quality")
    one.add_argument("corpus", type=Path)
    one.add_argument("--arm", action="append", choices=[USUAL, *ARMS], help="only this one; may be repeated")
    one.add_argument("--set", default="", help="only sets with this in their name")
    one.add_argument("--half", type=int, choices=(0, 1), help="only every other conversation, to tune on or to report")
    other = commands.add_parser("speed")
    other.add_argument("--turns", type=int, default=100_000)
    other.add_argument("--sessions", type=int, default=1000)
    other.add_argument("--words", type=Path, help="a text whose words the turns are made of")
    arguments = parser.parse_args()
    if arguments.command == "quality":
        quality(arguments.corpus, arguments.arm or [USUAL, *ARMS], arguments.set, arguments.half)
    else:
        speed(arguments.turns, arguments.sessions, arguments.words)


if __name__ == "__main__":
    main()
