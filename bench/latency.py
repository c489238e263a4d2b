"""How long Krunch takes, and whether that stays so: a conversation of 300 turns, large requests, threads, as Markdown.

    python bench/latency.py                       on texts like those of the demo
    python bench/latency.py FILES --plot out.png  on texts of these conversations; draws time and memory, turn by turn

Times are CPU time, so that other work on the machine does not count; those of threads are wall time against wall time
of the same run. The texts of the files are cut into turns in their order. Where there are not enough, they come
again with other numbers and in another order of lines.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from krunch_plugins import Krunch, Settings
from krunch_plugins.compression.legend import texts
from krunch_plugins.conversations import Conversation, read_conversations
from krunch_plugins.tokens import Tokenizer, encoding_for, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODEL = "gpt-4o"
DEMO = Path(__file__).resolve().parent.parent / "krunch_plugins" / "data" / "demo.jsonl"

TURN_TOKENS = 340
"""New tokens of a turn of the long conversation: 300 turns are 100,000 tokens."""

LARGE_TOKENS = 2_000
"""New tokens of a large request."""

LARGE_REQUESTS = 60
"""Large requests; a session takes ten, one after the other."""

SESSIONS = 8
"""Threads, each with a session of its own."""

EVERY = 10
"""Turns between two looks at the memory, which take long."""

Message = dict[str, Any]


class Long(NamedTuple):
    """What the turns of a long conversation took.

    Attributes:
        milliseconds: CPU time of each turn, for 1,000 new tokens.
        history: tokens of the history, at every tenth turn.
        memory: bytes that Krunch holds, at the same turns.
        again: milliseconds of the last request, sent once more.
        cold: seconds of the last request for a Krunch that has seen nothing.
    """

    milliseconds: list[float]
    history: list[int]
    memory: list[int]
    again: float
    cold: float


class Source:
    """New texts of a given size, as long as anybody asks for them."""

    def __init__(self, files: Sequence[Path], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lines = self._endless([line for file in files for line in _lines_of(file)])

    def text(self, tokens: int) -> str:
        """The next text, of about so many tokens."""
        lines: list[str] = []
        size = 0
        while size < tokens:
            line = next(self._lines)
            lines.append(line)
            size += self._tokenizer.count(line) + 1
        return "\n".join(lines)

    def turns(self, number: int, tokens: int) -> list[Message]:
        """A conversation of so many turns: a text, and a short reply."""
        pairs = [
            ({"role": "user", "content": self.text(tokens)}, {"role": "assistant", "content": f"Noted, {turn}."})
            for turn in range(number)
        ]
        return [message for pair in pairs for message in pair]

    def _endless(self, lines: list[str]) -> Iterator[str]:
        yield from lines
        for again in count(1):
            rng = random.Random(again)
            blocks = [lines[start : start + 8] for start in range(0, len(lines), 8)]
            rng.shuffle(blocks)
            for line in (line for block in blocks for line in block):
                yield re.sub("[0-9]", lambda _, rng=rng: str(rng.randrange(10)), line)  # type: ignore[misc]


def _lines_of(file: Path) -> Iterator[str]:
    """The lines of all texts of a file, cut where they are very long."""
    for found, _ in read_conversations(file):
        for message in found.messages if isinstance(found, Conversation) else ():
            for text in texts(message):
                for line in text.split("\n"):
                    yield from (line[start : start + 800] for start in range(0, max(len(line), 1), 800))


def cpu(krunch: Krunch, messages: Sequence[Message], session: str) -> float:
    """Milliseconds of CPU time that a request takes."""
    start = time.process_time()
    krunch.prepare(messages, model=MODEL, session=session)
    return 1e3 * (time.process_time() - start)


def long_conversation(messages: list[Message], tokenizer: Tokenizer, settings: Settings) -> Long:
    """Play a long conversation, once for the time and once for the memory."""
    sizes = [tokenizer.count(str(message["content"])) for message in messages]
    stops = range(1, len(messages), 2)
    taken: list[float] = []
    with Krunch(settings) as krunch:
        for stop in stops:
            new = sum(sizes[max(stop - 2, 0) : stop])
            taken.append(1e3 * cpu(krunch, messages[:stop], "long") / new)
        whole = messages[: stops[-1]]
        again = statistics.median(cpu(krunch, whole, "long") for _ in range(20))
    with Krunch(settings) as krunch:
        cold = cpu(krunch, whole, "cold") / 1e3
    history, memory = [], []
    with Krunch(settings) as krunch:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for turn, stop in enumerate(stops, 1):
            krunch.prepare(messages[:stop], model=MODEL, session="memory")
            if turn % EVERY == 0:
                history.append(sum(sizes[:stop]))
                memory.append(tracemalloc.get_traced_memory()[0] - before)
        tracemalloc.stop()
    return Long(taken, history, memory, again, cold)


def large_requests(source: Source, settings: Settings) -> list[float]:
    """Milliseconds of requests with many new tokens."""
    taken: list[float] = []
    with Krunch(settings) as krunch:
        for session in range(LARGE_REQUESTS // 10):
            messages = source.turns(10, LARGE_TOKENS)
            taken += [cpu(krunch, messages[:stop], f"large {session}") for stop in range(1, len(messages), 2)]
    return taken


def threads(source: Source, settings: Settings) -> tuple[float, float]:
    """Seconds of wall time for eight sessions, one after the other and in a thread each."""
    sessions = [source.turns(12, 1_000) for _ in range(SESSIONS)]

    def play(krunch: Krunch, number: int) -> None:
        for stop in range(1, len(sessions[number]), 2):
            krunch.prepare(sessions[number][:stop], model=MODEL, session=f"thread {number}")

    with Krunch(settings) as krunch:
        start = time.perf_counter()
        for number in range(SESSIONS):
            play(krunch, number)
        in_turn = time.perf_counter() - start
    with Krunch(settings) as krunch, ThreadPoolExecutor(SESSIONS) as pool:
        start = time.perf_counter()
        list(pool.map(lambda number: play(krunch, number), range(SESSIONS)))
        at_once = time.perf_counter() - start
    return in_turn, at_once


def plot(long: Long, path: Path) -> None:
    """Draw time and memory of the long conversation, turn by turn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    numbers = range(1, len(long.milliseconds) + 1)
    upper.plot(numbers, long.milliseconds, ".", color="tab:gray", markersize=3, label="a turn")
    middles = [statistics.median(long.milliseconds[max(turn - 15, 0) : turn + 15]) for turn in numbers]
    upper.plot(numbers, middles, color="tab:purple", label="median of 30 turns around it")
    upper.set_ylabel("CPU ms for 1,000 new tokens")
    upper.legend(loc="upper right")
    shares = [memory / tokens for memory, tokens in zip(long.memory, long.history, strict=True)]
    lower.plot(range(EVERY, EVERY * len(shares) + 1, EVERY), shares, color="tab:purple")
    lower.set_ylabel("bytes for a token of the history")
    lower.set_xlabel("turn")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def rows(long: Long, large: list[float], wall: tuple[float, float]) -> Iterator[tuple[str, str]]:
    """What was measured, in words and figures."""
    turns = len(long.milliseconds)
    tenth = max(turns // 10, 1)
    first, last = long.milliseconds[:tenth], long.milliseconds[-tenth:]
    yield f"1,000 new tokens, median of {turns} turns", f"{statistics.median(long.milliseconds):.2f} ms"
    yield (
        f"the same, first and last {tenth} turns",
        f"{statistics.median(first):.2f} and {statistics.median(last):.2f} ms",
    )
    yield f"a request with {LARGE_TOKENS:,} new tokens, p50", f"{statistics.median(large):.1f} ms"
    yield "the same, p95", f"{statistics.quantiles(large, n=20)[-1]:.1f} ms"
    yield f"the same request again at {long.history[-1]:,} tokens of history", f"{long.again:.2f} ms"
    yield f"a conversation of {long.history[-1]:,} tokens at once", f"{long.cold:.2f} s"
    shares = [memory / tokens for memory, tokens in zip(long.memory, long.history, strict=True)]
    yield (
        f"memory for a token of history, at turn {EVERY} and {EVERY * len(shares)}",
        f"{shares[0]:.0f} and {shares[-1]:.0f} bytes",
    )
    yield f"{SESSIONS} sessions in turn and in {SESSIONS} threads (wall time)", f"{wall[0]:.1f} and {wall[1]:.1f} s"


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="*", type=Path, default=[DEMO], help="files, or folders of *.jsonl")
    parser.add_argument("--turns", type=int, default=300, help="turns of the long conversation")
    parser.add_argument("--profile", choices=("safe", "balanced", "dense"), default="balanced")
    parser.add_argument("--plot", type=Path, help="a picture to draw; its format is the suffix's")
    chosen = parser.parse_args()
    if chosen.turns < EVERY:
        parser.error(f"--turns must be at least {EVERY}")
    files = [file for path in chosen.corpus for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    tokenizer = load(encoding_for(MODEL)[0], wait=True)
    settings = Settings.model_validate({"profile": chosen.profile})
    source = Source(files, tokenizer)
    with Krunch(settings) as krunch:  # imports and tables are made on first use, which is not what is measured
        krunch.prepare(source.turns(2, 200), model=MODEL)
    long = long_conversation(source.turns(chosen.turns, TURN_TOKENS), tokenizer, settings)
    if chosen.plot:
        plot(long, chosen.plot)
        print(f"drawn in {chosen.plot}", file=sys.stderr)
    print(f"| {chosen.profile} | |\n|---|---:|")
    for what, figure in rows(long, large_requests(source, settings), threads(source, settings)):
        print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
