"""The tables of figures in the README: what Krunch saves on conversations, and what others do, as Markdown.

    make bench                                  the conversations of the demo
    make bench CORPUS=folder/                   every *.jsonl in it
    python bench/compression.py --readme FILES  also writes the tables into README.md
    python bench/compression.py --no-peers      Krunch alone; nothing is installed

A file holds one conversation a line, as `krunch replay` takes them; at most 12 conversations of a file and 80 messages
of a conversation are played, so that the long ones do not drown the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from peers import PEERS, NotRun, use_local_tokenizers
from peers import measure as measure_peer

from krunch_plugins import Krunch, Settings
from krunch_plugins.conversations import Conversation, Malformed, read_conversations
from krunch_plugins.replay import Totals, play
from krunch_plugins.tokens import encoding_for, load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MODEL = "gpt-4o"
ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "krunch_plugins" / "data" / "demo.jsonl"
PEERS_INTRODUCTION = (
    "",
    "The same conversations and requests with others, in the same process: tokens saved over all requests, and cost.",
    "*Restored* counts the requests in which each text is what it was, or JSON, or TOON, for an equal value.",
    "",
)
START, END = "<!-- figures -->", "<!-- /figures -->"
HEADINGS = (
    "conversations",
    "profile",
    "saved",
    "of the last request",
    "worst request",
    "cost",
    "restored",
    "ms per 1,000 tokens",
)


def measure(conversations: Iterable[Conversation], profile: str) -> Totals:
    """Play conversations and add up."""
    totals, tokenizer = Totals(), load(encoding_for(MODEL)[0], wait=True)
    with Krunch(Settings.model_validate({"profile": profile})) as krunch:
        # Imports and tables are made on first use, which is not what is measured.
        krunch.prepare([{"role": "user", "content": "warm up " * 50}], model=MODEL)
        for conversation in conversations:
            totals.add(play(conversation, krunch, tokenizer, model=MODEL).requests)
    return totals


def load_conversations(file: Path, conversations: int, messages: int) -> Iterator[Conversation]:
    """The first conversations of a file, each cut to its first messages."""
    for found, _ in islice(read_conversations(file), conversations):
        if isinstance(found, Malformed):
            sys.exit(str(found))
        yield dataclasses.replace(found, messages=found.messages[:messages])


def rows(files: Iterable[Path], profiles: Iterable[str], conversations: int, messages: int) -> Iterator[str]:
    """The lines of the table, as they are measured."""
    yield "| " + " | ".join(HEADINGS) + " |"
    yield "|---|---|" + "---:|" * (len(HEADINGS) - 2)
    for file in files:
        for profile in profiles:
            totals = measure(load_conversations(file, conversations, messages), profile)
            if totals.requests:
                yield row(file, profile, totals)


def peer_rows(files: Sequence[Path], conversations: int, messages: int) -> Iterator[str]:
    """The same for other ways to make requests smaller: one line for each, saved and cost for each file."""
    yield "| | " + " | ".join(file.stem for file in files) + " | restored | ms per 1,000 tokens |"
    yield "|---|" + "---:|" * (len(files) + 2)
    tokenizer = load(encoding_for(MODEL)[0], wait=True)
    for peer in PEERS:
        found = [measure_peer(peer, load_conversations(file, conversations, messages), tokenizer) for file in files]
        cells = [one.why if isinstance(one, NotRun) else f"{100 * one.saved:.1f} %, {one.cost:.2f}" for one in found]
        run = [totals for totals in found if isinstance(totals, Totals)]
        new, milliseconds = sum(one.new_tokens for one in run), sum(one.milliseconds for one in run)
        cells.append(f"{sum(one.restored for one in run)} of {sum(one.requests for one in run)}")
        cells.append(f"{1_000 * milliseconds / new:.1f}" if new else "")
        yield f"| {peer.name} | " + " | ".join(cells) + " |"


def row(file: Path, profile: str, totals: Totals) -> str:
    """One line of the table."""
    cells = (
        f"{file.stem} ({totals.conversations})",
        profile,
        f"{100 * totals.saved:.1f} %",
        f"{100 * totals.net:.1f} %",
        f"{100 * totals.worst:.1f} %",
        f"{totals.cost:.2f}",
        f"{totals.restored} of {totals.requests}",
        f"{totals.milliseconds_per_1000:.1f}",
    )
    return "| " + " | ".join(cells) + " |"


def write_readme(table: str) -> None:
    """Put the table between the marks in README.md."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START, 1)
    after = rest.split(END, 1)[1]
    readme.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description="What Krunch saves, as a Markdown table.")
    parser.add_argument("corpus", nargs="*", type=Path, default=[DEMO], help="files, or folders of *.jsonl")
    parser.add_argument(
        "--profile",
        action="append",
        choices=("safe", "balanced", "dense"),
        help="may be repeated; default balanced and dense",
    )
    parser.add_argument("--conversations", type=int, default=12, help="conversations of a file, at most")
    parser.add_argument("--messages", type=int, default=80, help="messages of a conversation, at most")
    parser.add_argument("--readme", action="store_true", help="write it into README.md, too")
    parser.add_argument("--no-peers", action="store_true", help="measure Krunch alone")
    chosen = parser.parse_args()
    use_local_tokenizers()
    files = [file for path in chosen.corpus for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    lines = []
    parts = [rows(files, chosen.profile or ["balanced", "dense"], chosen.conversations, chosen.messages)]
    if not chosen.no_peers:
        parts += [iter(PEERS_INTRODUCTION), peer_rows(files, chosen.conversations, chosen.messages)]
    for line in chain.from_iterable(parts):
        print(line, flush=True)
        lines.append(line)
    if chosen.readme:
        write_readme("\n".join(lines))


if __name__ == "__main__":
    main()
