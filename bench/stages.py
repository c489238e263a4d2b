"""What each stage of compression is worth: everything, everything without it, and it alone, as a Markdown table.

    python bench/stages.py FILES [--profile balanced] [--conversations 12] [--messages 80]

Files and folders as for `bench/compression.py`, played as there. Percent saved of the tokens of all requests; each
request is restored, whichever stages are off.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from unittest.mock import patch

from compression import DEMO, load_conversations, measure

from krunch_plugins.compression import encoder, folds, line_numbers, repeats, templates
from krunch_plugins.settings import Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

STAGES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "lines that stood before": (repeats, "refer", lambda text, *_, **__: [text]),
    "numbers of lines": (line_numbers, "drop", lambda segments, *_: segments),
    "JSON": (folds, "fold", lambda segments, *_, **__: (segments, [])),
    "lines of one form": (templates, "extract", lambda segments, *_: (segments, [])),
    "phrases": (encoder, "mine", lambda *_: []),
}
"""Each stage: what runs it, and what gives a text back as it came."""


def saved(file: Path, off: Collection[str], chosen: argparse.Namespace) -> float:
    """Percent saved of all requests of a file with some stages off.

    Raises:
        RuntimeError: a request was not restored.
    """
    with ExitStack() as patches:
        for stage in off:
            module, name, through = STAGES[stage]
            patches.enter_context(patch.object(module, name, through))
        totals = measure(load_conversations(file, chosen.conversations, chosen.messages), chosen.profile)
    if totals.restored != totals.requests:
        raise RuntimeError(f"{file}: {totals.restored} of {totals.requests} requests were restored without {off}")
    return 100 * totals.saved


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description="What each stage of compression is worth, as a Markdown table.")
    parser.add_argument("corpus", nargs="*", type=Path, default=[DEMO], help="files, or folders of *.jsonl")
    parser.add_argument("--profile", choices=get_args(Profile), default="balanced")
    parser.add_argument("--conversations", type=int, default=12, help="conversations of a file, at most")
    parser.add_argument("--messages", type=int, default=80, help="messages of a conversation, at most")
    chosen = parser.parse_args()
    files = [file for path in chosen.corpus for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    print("| | " + " | ".join(file.stem for file in files) + " |")
    print("|---|" + "---:|" * len(files))
    ways: list[tuple[str, tuple[str, ...]]] = [("all", ())]
    ways += [(f"without {stage}", (stage,)) for stage in STAGES]
    ways += [(f"only {stage}", tuple(other for other in STAGES if other != stage)) for stage in STAGES]
    for name, off in ways:
        print(f"| {name} | " + " | ".join(f"{saved(file, off, chosen):.1f}" for file in files) + " |", flush=True)


if __name__ == "__main__":
    main()
