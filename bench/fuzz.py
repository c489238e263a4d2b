"""Half a million conversations against the laws of compression: `python bench/fuzz.py --conversations 500000`.

The conversations are those of the property tests, each named by its seed. Every conversation is checked alone; some
also as replies, and some turn by turn, forked, with small memos, or in threads, which takes ten times as long; with
`--costly 1` all of them are. Half a million take two hours or so of one core. A case that fails is made as small
as it gets and written to a JSON file, which `--replay` runs again. The exit code is 1 if any law was broken.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "compression"))
import laws

from krunch_plugins import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Message = dict[str, Any]

BATCH = 200
"""Conversations that a process checks before it reports."""

SAY = 10_000
"""Conversations between two lines on how far it is, where no bar can be drawn."""

COSTLY = 8
"""Of so many conversations one goes through one of the checks that encode it many times."""

THREADED = 16
"""Of so many of these one is sent in threads."""

REPLIES = 4
"""Of so many conversations one is also expanded as replies."""

ROUNDS = 80
"""Passes over a failing conversation to make it smaller."""


class Failure(NamedTuple):
    """A law that a conversation broke."""

    seed: int
    law: str
    detail: str


def main() -> int:
    """Run the command; returns its exit code."""
    options = _options()
    laws.warm()
    if options.replay:
        return _replay(options.replay)
    options.folder.mkdir(parents=True, exist_ok=True)  # not after hours of work
    started = time.perf_counter()
    failures: list[Failure] = []
    done = 0
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    starts = range(options.seed, options.seed + options.conversations, BATCH)
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, TextColumn("{task.fields[broken]} broken")) as progress,
        ProcessPoolExecutor(options.processes, mp_context=context, initializer=laws.warm) as pool,
    ):
        task = progress.add_task("conversations", total=options.conversations, broken=0)
        end = options.seed + options.conversations
        jobs = [
            pool.submit(batch, start, min(start + BATCH, end), options.profile, options.longest, options.costly)
            for start in starts
        ]
        for job in as_completed(jobs):
            count, broken = job.result()
            done += count
            failures += broken
            progress.update(task, completed=done, broken=len(failures))
            for failure in broken:  # known even if the run is stopped
                progress.console.print(f"seed {failure.seed} broke a law: {failure.law}")
            if not progress.console.is_terminal and done // SAY > (done - count) // SAY:
                print(f"{done} conversations, {len(failures)} broke a law", flush=True)
            if len(failures) >= options.stop_after:
                pool.shutdown(cancel_futures=True)
                break
    seconds = time.perf_counter() - started
    print(f"{done} conversations in {seconds:.0f} s ({done / seconds:.0f}/s), seeds from {options.seed}, "
          f"profile {options.profile or 'any'}: {len(failures)} broke a law")  # fmt: skip
    _write(failures, options)
    return 1 if failures else 0


def batch(start: int, stop: int, profile: str | None, longest: int, costly: int = COSTLY) -> tuple[int, list[Failure]]:
    """Check the conversations of some seeds: how many they were, and what failed."""
    failures = []
    for seed in range(start, stop):
        failure = broken_by(laws.case_of_seed(seed, profile, longest), seed, costly)
        if failure:
            failures.append(failure)
    return stop - start, failures


def broken_by(case: laws.Case, seed: int, costly: int) -> Failure | None:
    """The law that a case breaks, if any. Which checks it goes through depends on the seed."""
    try:
        exchange = laws.check(case)
        if seed % REPLIES == 0:
            laws.check_replies(case, exchange, random.Random(seed))
        if seed % costly == 0:
            _check_costly(case, seed, seed // costly)
    except AssertionError as error:
        return Failure(seed, str(error).partition(":")[0], str(error))
    except Exception as error:  # noqa: BLE001 - a crash is a failure like any other
        return Failure(seed, type(error).__name__, repr(error))
    return None


def _check_costly(case: laws.Case, seed: int, number: int) -> None:
    """One of the checks that encode a conversation many times."""
    rng = random.Random(seed)
    if number % THREADED == 0:
        laws.check_threads([case, case.forked(rng), case.forked(rng)])
    elif number % 3 == 0:
        laws.check_causal(case)
    elif number % 3 == 1:
        laws.check_forks(case, rng)
    else:
        laws.check_memo(case, [rng.choice(laws.MEMO_SIZES)])


def reduce(case: laws.Case, failure: Failure, costly: int) -> laws.Case:
    """The smallest case that was found to break the same law."""
    for _ in range(ROUNDS):
        for smaller in _smaller(case):
            found = broken_by(smaller, failure.seed, costly)
            if found and found.law == failure.law:
                case = smaller
                break
        else:
            break
    return case


def _smaller(case: laws.Case) -> Iterator[laws.Case]:
    """The same case with something less, the largest pieces first."""
    messages = case.messages
    if case.tools:
        yield case._replace(tools=None)
    size = len(messages) // 2
    while size:
        for start in range(0, len(messages), size):
            yield case._replace(messages=messages[:start] + messages[start + size :])
        size //= 2
    for place, message in enumerate(messages):
        for shorter in _shorter(message):
            yield case._replace(messages=[*messages[:place], shorter, *messages[place + 1 :]])


def _shorter(message: Message) -> Iterator[Message]:
    for key in message.keys() - {"role", "content"}:
        yield {name: value for name, value in message.items() if name != key}
    content = message.get("content")
    if isinstance(content, list):
        for place, part in enumerate(content):
            yield {**message, "content": content[:place] + content[place + 1 :]}
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield {**message, "content": part["text"]}
    elif isinstance(content, str):
        size = len(content) // 2
        while size:
            for start in range(0, len(content), size):
                yield {**message, "content": content[:start] + content[start + size :]}
            size //= 2


def _write(failures: list[Failure], options: argparse.Namespace) -> None:
    """Print each kind of failure, and write the first of each, made smaller, to a file."""
    kinds = Counter(failure.law for failure in failures)
    for law, count in kinds.most_common():
        failure = min((each for each in failures if each.law == law), key=lambda each: each.seed)
        case = reduce(laws.case_of_seed(failure.seed, options.profile, options.longest), failure, options.costly)
        smallest = broken_by(case, failure.seed, options.costly) or failure
        path = Path(options.folder) / f"fuzz-{law.replace(' ', '-')}-{failure.seed}.json"
        # Lone surrogates do not survive every JSON reader, so the case is written as a Python literal, too.
        values = {"messages": case.messages, "tools": case.tools, "model": case.model, "seed": failure.seed}
        values["costly"] = options.costly
        settings = json.loads(case.settings.model_dump_json(exclude_defaults=True))
        literal = repr({**values, "settings": settings})
        path.write_text(
            json.dumps({"law": law, "detail": smallest.detail, "case": literal, **values}, indent=1), "utf-8"
        )
        print(f"{count} times: {smallest.detail[:200]}\n    seed {failure.seed}, made smaller in {path}")


def _replay(path: Path) -> int:
    """Run a case that was written."""
    values = ast.literal_eval(json.loads(path.read_text("utf-8"))["case"])
    case = laws.Case(values["messages"], values["tools"], Settings(**values["settings"]), values["model"])
    failure = broken_by(case, values["seed"], values.get("costly", 1))
    print(failure.detail if failure else "no law is broken")
    return 1 if failure else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--conversations", type=int, default=20_000, help="how many (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the first; the others count up from it (default: %(default)s)")
    add("--profile", choices=laws.PROFILES, help="only this profile (default: any, by seed)")
    add("--longest", type=int, default=60, help="messages of a conversation at most (default: %(default)s)")
    add("--processes", type=int, default=os.cpu_count() or 1, help="at once (default: %(default)s)")
    add("--costly", type=int, default=COSTLY, help="one of so many is encoded many times (default: %(default)s)")
    add("--stop-after", type=int, default=1_000, help="failures (default: %(default)s)")
    add("--folder", type=Path, default=Path(), help="where failing cases are written, made if need be (default: here)")
    add("--replay", type=Path, help="run one written case again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
