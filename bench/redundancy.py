"""How much there is to save: the least tokens of any copying of what stood before, beside what Krunch sends.

    python bench/redundancy.py FILES [--conversations 12] [--messages 80]

Files and folders as for `bench/compression.py`. For each conversation's last request: the cheapest way to write its
tokens if a stretch that stood anywhere before, however it is cut, may be replaced by a copy that costs so many tokens,
and nothing has to be defined or explained. That is the optimal parse of LZ77 with one price for all copies (found by
dynamic programming over the longest earlier match at each token), and no way to write that names what it repeats can
be below it at that price. Ways that know more than copies, such as rows of values, can.
"""

from __future__ import annotations

import argparse
import dataclasses
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from krunch_plugins import Krunch, Settings
from krunch_plugins.compression.legend import texts
from krunch_plugins.conversations import Conversation, read_conversations
from krunch_plugins.settings import Profile
from krunch_plugins.tokens import encoding_for, load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MODEL = "gpt-4o"
DEMO = Path(__file__).resolve().parent.parent / "krunch_plugins" / "data" / "demo.jsonl"
COPY_COSTS = (2, 3, 4, 6, 8)
"""Tokens of a copy. A symbol of Krunch is 1 or 2, and its definition 2 more; a reference to lines is about 12."""


def earlier_matches(tokens: Sequence[int]) -> list[int]:
    """Length of the longest stretch at each position that also begins at an earlier one; the two may overlap.

    A suffix array by prefix doubling, its longest common prefixes (Kasai et al. 2001), and from these the longest
    previous factors (Crochemore and Ilie 2008): positions leave a list in the array's order, the last one first.
    """
    size = len(tokens)
    order, rank = _suffix_array(np.asarray(tokens, dtype=np.int64))
    common = [0] * (size + 1)  # at place r: what the suffixes of places r - 1 and r have in common
    height = 0
    for position in range(size):
        if not rank[position]:
            height = 0
            continue
        other = order[rank[position] - 1]
        while max(position, other) + height < size and tokens[position + height] == tokens[other + height]:
            height += 1
        common[rank[position]] = height
        height = max(height - 1, 0)
    before, after = list(range(-1, size - 1)), list(range(1, size + 1))
    longest = [0] * size
    for position in reversed(range(size)):
        place = rank[position]
        low, high = before[place], after[place]
        longest[position] = max(common[place] if low >= 0 else 0, common[high] if high < size else 0)
        if high < size:
            before[high], common[high] = low, min(common[place], common[high])
        if low >= 0:
            after[low] = high
    return longest


def _suffix_array(tokens: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Positions in the order of their suffixes, and the place of each position in that order."""
    size, width = len(tokens), 1
    rank = np.unique(tokens, return_inverse=True)[1].astype(np.int64)
    while True:
        following = np.zeros(size, dtype=np.int64)
        following[: size - width] = rank[width:] + 1
        pairs = rank * (size + 1) + following
        order = np.argsort(pairs, kind="stable")
        rank = np.empty(size, dtype=np.int64)
        rank[order] = np.concatenate([[0], np.cumsum(np.diff(pairs[order]) != 0)])
        if rank[order[-1]] == size - 1:
            return order.tolist(), rank.tolist()
        width *= 2


def least_tokens(matches: Sequence[int], cost: int) -> int:
    """Tokens of the cheapest parse, where a copy of any length up to the match at its place costs `cost`."""
    least = [0] * (len(matches) + 1)
    for position in reversed(range(len(matches))):
        least[position] = 1 + least[position + 1]
        if matches[position] > cost:  # what remains never grows with a longer copy, so the longest is best
            least[position] = min(least[position], cost + least[position + matches[position]])
    return least[0]


def counts(conversation: Conversation) -> list[int]:
    """Tokens of the last request's texts: plain, the least with copies at each cost, and as each profile sends them."""
    tokenizer = load(encoding_for(MODEL)[0], wait=True)
    messages = conversation.messages[: conversation.requests()[-1]]
    each = [tokenizer.encode(text) for message in messages for text in texts(message)]
    # A number of its own behind each text: no copy goes over its end.
    joined = [token for number, tokens in enumerate(each) for token in (*tokens, -1 - number)]
    matches = earlier_matches(joined)
    found = [sum(map(len, each)), *(least_tokens(matches, cost) - len(each) for cost in COPY_COSTS)]
    for profile in get_args(Profile):
        with Krunch(Settings(profile=profile)) as krunch:
            found.append(krunch.prepare(messages, model=MODEL, tools=conversation.tools).report.tokens_after)
    return found


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description="How much copies of earlier text could save, as a Markdown table.")
    parser.add_argument("corpus", nargs="*", type=Path, default=[DEMO], help="files, or folders of *.jsonl")
    parser.add_argument("--conversations", type=int, default=12, help="conversations of a file, at most")
    parser.add_argument("--messages", type=int, default=80, help="messages of a conversation, at most")
    chosen = parser.parse_args()
    files = [file for path in chosen.corpus for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    columns = [f"copies for {cost}" for cost in COPY_COSTS] + [f"`{profile}`" for profile in get_args(Profile)]
    print("| conversations | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for file in files:
        sums = np.zeros(1 + len(columns), dtype=np.int64)
        for found, _ in islice(read_conversations(file), chosen.conversations):
            if isinstance(found, Conversation):
                sums += counts(dataclasses.replace(found, messages=found.messages[: chosen.messages]))
        cells = (f"{saved:.1f}" for saved in 100 * (1 - sums[1:] / sums[0]))
        print(f"| {file.stem} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
