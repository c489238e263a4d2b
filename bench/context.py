"""What a smart context holds of the evidence that a search finds, and what a window costs; for docs/context.md.

    python bench/context.py smart CORPUS     evidence held, by budget
    python bench/context.py window CORPUS    agents' conversations through windows: cuts, tokens, cost

CORPUS is a folder with pairs of files NAME.jsonl and NAME_qa.jsonl for the first, with coding_agent.jsonl for the
second. Times are CPU time of this process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import recall_sets

from krunch_plugins import Krunch, Settings, Turn, is_recalled, tokens
from krunch_plugins.conversations import Conversation, read_conversations
from krunch_plugins.recall.messages import Lengths
from krunch_plugins.recall.quoting import LEFT_OUT, unquote
from krunch_plugins.recall.texts import text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recall_sets import QuestionSet

BUDGETS = (1_000, 2_000, 4_000)
WINDOWS = (8_000, 16_000, 32_000)
READ, WRITE = 0.1, 1.25
"""Price of a token that is read from the cache or written to it, in plain input tokens."""
MINUTE = 60.0


class Held(NamedTuple):
    """What a context holds of the evidence that the search found for one question; shares.

    Attributes:
        touched: turns of which something is there.
        whole: turns that are there whole.
        text: characters of their text.
        tokens: what the context takes.
        seconds: what it cost to make.
    """

    touched: float
    whole: float
    text: float
    tokens: int
    seconds: float


def smart(corpus: Path) -> None:
    """Print a table for each set of questions."""
    for found in recall_sets.read(corpus):
        with tempfile.TemporaryDirectory() as home, Krunch(Settings(home=home)) as krunch:
            assert krunch.store is not None
            for session, messages in found.conversations.items():
                turns = [Turn(0, message, 1.7e9 + at * MINUTE) for at, message in enumerate(messages)]
                krunch.store.append(session, turns)
            krunch.flush()
            _table(krunch, found)


def _table(krunch: Krunch, found: QuestionSet) -> None:
    questions = [one for one in found.questions if one.before is None]
    if not questions:
        return
    hits = {at: [hit.turn.number for hit in krunch.search(one.text, session=one.session, k=10)]
            for at, one in enumerate(questions)}  # fmt: skip
    shares = [len(one.evidence & set(hits[at])) / len(one.evidence) for at, one in enumerate(questions)]
    print(f"\n{found.name}: {len(questions)} questions, search@10 finds {statistics.fmean(shares):.3f} of the evidence")
    print(f"{'budget':>8}{'touched':>10}{'whole':>10}{'text':>10}{'tokens':>10}{'largest':>10}{'ms':>8}")
    for budget in BUDGETS:
        results = []
        for at, one in enumerate(questions):
            evidence = sorted(one.evidence & set(hits[at]))
            if evidence:
                texts = [text_of(found.conversations[one.session][number]) for number in evidence]
                results.append(_held(krunch, one.session, one.text, texts, budget))
        means = [statistics.fmean(column) for column in zip(*results, strict=True)]
        print(f"{budget:8}{means[0]:10.3f}{means[1]:10.3f}{means[2]:10.3f}{means[3]:10.0f}"
              f"{max(one.tokens for one in results):10}{1e3 * means[4]:8.1f}")  # fmt: skip


def _held(krunch: Krunch, session: str, query: str, evidence: Sequence[str], budget: int) -> Held:
    started = time.process_time()
    context = krunch.context(session, "smart", query=query, budget=budget)
    seconds = time.process_time() - started
    there = {text_of(message) for message in context}
    quotes = [text for message in context if is_recalled(message) for text in unquote(message)]
    shares = [1.0 if text in there else max((_share(one, text) for one in quotes), default=0.0) for text in evidence]
    return Held(
        statistics.fmean(share > 0 for share in shares),
        statistics.fmean(share == 1 for share in shares),
        sum(share * len(text) for share, text in zip(shares, evidence, strict=True)) / sum(map(len, evidence)),
        _length(context),
        seconds,
    )


def _share(quote: str, text: str) -> float:
    """How much of a text a quote holds; 0 if it quotes another one."""
    if quote == text:
        return 1.0
    pieces = [piece.strip() for piece in quote.split(LEFT_OUT)]
    if not all(piece in text for piece in pieces) or not any(pieces):
        return 0.0
    return min(sum(map(len, pieces)) / len(text), 0.999)


_lengths = Lengths()


def _length(messages: Sequence[dict[str, Any]]) -> int:
    tokenizer = tokens.load("o200k_base")
    return sum(_lengths.of(message, tokenizer) for message in messages)


def window(corpus: Path) -> None:
    """Print what windows make of agents' conversations, each message sent as often as its client sends it."""
    read = (found for found, _ in read_conversations(corpus / "coding_agent.jsonl"))
    talks = [found for found in read if isinstance(found, Conversation)]
    talks = [talk for talk in talks if _length(talk.messages) > WINDOWS[0]]
    print(f"{len(talks)} conversations above {WINDOWS[0]} tokens; tokens and cost of all requests, compression off")
    print(f"{'window':>8}{'requests':>10}{'cuts':>6}{'breaks':>8}{'largest':>9}{'sent':>13}{'of plain':>10}"
          f"{'cost':>13}{'of plain':>10}{'recalled':>10}{'ms':>7}")  # fmt: skip
    for size in (None, *WINDOWS):
        with tempfile.TemporaryDirectory() as home:
            # A profile that compresses nothing: no role is to be compressed.
            settings = Settings(home=home, context_window=size, roles=[])
            with Krunch(settings) as krunch:
                totals = [_play(krunch, talk) for talk in talks]
        figures = [sum(column) for column in zip(*totals, strict=True)]
        requests, cuts, breaks, sent, cost, recalled, milliseconds, _ = figures
        largest = max(total[-1] for total in totals)
        if size is None:
            plain_sent, plain_cost = sent, cost
        print(f"{size or 'none':>8}{requests:10}{cuts:6}{breaks:8}{largest:9}{sent:13,}{sent / plain_sent:10.2f}"
              f"{cost:13,.0f}{cost / plain_cost:10.2f}{recalled:10}{milliseconds / requests:7.1f}")  # fmt: skip


def _play(krunch: Krunch, talk: Conversation) -> tuple[int, int, int, int, float, int, float, int]:
    """Requests, cuts, broken prefixes, tokens, cost, how often turns were recalled, milliseconds, largest request."""
    before: list[dict[str, Any]] = []
    cuts = breaks = sent = recalled = largest = 0
    cost = spent = 0.0
    for stop in talk.requests():
        started = time.process_time()
        exchange = krunch.prepare(talk.messages[:stop], model="gpt-4o", session=talk.id)
        spent += time.process_time() - started
        messages = exchange.messages
        same = next((at for at, one in enumerate(before) if at >= len(messages) or messages[at] != one), len(before))
        breaks += same < len(before)
        cached, new = _length(messages[:same]), _length(messages[same:])
        sent, cost, largest = sent + cached + new, cost + READ * cached + WRITE * new, max(largest, cached + new)
        if exchange.report.context is not None:
            cuts = exchange.report.context.cuts or cuts
            recalled += exchange.report.context.recall == "recalled"
        if stop < len(talk.messages):
            exchange.finish(talk.messages[stop])
        before = messages
    return len(talk.requests()), cuts, breaks, sent, cost, recalled, 1e3 * spent, largest


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("smart", "window"))
    parser.add_argument("corpus", type=Path)
    chosen = parser.parse_args()
    (smart if chosen.what == "smart" else window)(chosen.corpus)


if __name__ == "__main__":
    main()
