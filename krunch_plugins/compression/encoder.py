"""Messages in, messages and figures out. Runs the stages over each text, gates each text by real tokens.

What is sent for a message is a function of the messages up to it, the tokenizer, the profile, the roles and the
literals that look like symbols in the tool definitions. State is a memo of that function, no more.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from itertools import chain
from string import digits
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression import folds, legend, line_numbers, repeats, templates
from krunch_plugins.compression.decoder import read
from krunch_plugins.compression.dictionary import State, View
from krunch_plugins.compression.efficiency import Evidence
from krunch_plugins.compression.phrase_mining import Candidate, Mining, mine
from krunch_plugins.compression.phrases import DEFINITION_TOKENS, SYMBOL_TOKENS, Phrase, Piece, cut, join
from krunch_plugins.compression.segments import LETTERS, Mark, Symbol, merge, numbered
from krunch_plugins.compression.shapes import Shape
from krunch_plugins.report import MessageReport, Reason
from krunch_plugins.tokens import RecentTokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from krunch_plugins.compression.dictionary import Definition
    from krunch_plugins.compression.segments import Segment
    from krunch_plugins.settings import CacheFloor, EfficiencySettings, Profile
    from krunch_plugins.tokens import Tokenizer
    from krunch_plugins.turns import Message

log = logging.getLogger("krunch")

FEW_DIGITS, MANY_DIGITS = 0.02, 0.1
"""Shares of the characters. Text below the first has no lines of one form that templates would gain on. Of 65 logs the
least had 0.118; nine in ten texts of coding agents have less than 0.092."""

MIN_GAIN = 2
"""Tokens. A text must get smaller by at least this; counts of a text alone and in its place may differ by one."""

CACHE_READ, CACHE_WRITE = 0.1, 1.25
"""Prices of a cached and of a newly cached token, in plain input tokens, for the cache floor: the usual ones of 2026.
Constants, because what is sent must not depend on a price list."""

FOLLOWING = 5
"""Requests that the cache floor expects to follow. Cost of coding_agent, coding_chat and logs_chat together for 5, 10
and 20: 0.5662, 0.5667, 0.5683; without a floor 0.5678."""


class Options(NamedTuple):
    """What the encoding depends on beside the messages."""

    profile: Profile
    roles: frozenset[str]
    min_tokens: int
    efficiency: EfficiencySettings
    cache_floor: CacheFloor = "nothing"
    cache_minimum: int = 0


class EncodedText(NamedTuple):
    """One text as sent. `added` are the entries that its legend defines.

    For the monitor: `reused` is what known entries of the last window save in it, `evidence` what they and new ones
    do; it is `paused` if it would have had new ones, had the monitor allowed it. It is `held_back` where it would be
    smaller, but for the cache floor.
    """

    sent: str
    tokens_before: int
    tokens_after: int
    overhead_tokens: int
    added: list[Definition]
    symbols_used: int
    escaped: bool
    reused: int = 0
    evidence: Evidence = Evidence()
    paused: bool = False
    held_back: bool = False


class EncodedMessage(NamedTuple):
    """One message as sent: its texts (None: none has changed), its figures, and the state after it."""

    sent: tuple[str, ...] | None
    report: MessageReport
    state: State


class Encoder:
    """Encodes the messages of one request, one after the other."""

    __slots__ = ("_letters", "_mining", "_rounds", "brief", "options", "tokenizer")

    def __init__(self, tokenizer: Tokenizer, options: Options) -> None:
        self.tokenizer, self.options = RecentTokens(tokenizer), options
        dense = options.profile == "dense"
        self.brief = dense
        self._rounds = 2 if dense else 1  # phrases within phrases; more rounds gained under 0.3 points
        self._letters = letters(tokenizer) if dense else ""
        self._mining = Mining(multiline=options.profile != "safe", nested=dense, apart=bool(self._letters))

    def encode(self, message: Message, index: int, state: State, *, defines: bool = True) -> EncodedMessage:
        """Encode the message that comes after `state`, which must be the newest state of its dictionary.

        Args:
            message: the message. Not changed.
            index: its position in the request, for the report.
            state: what the messages before it have defined. Its dictionary grows.
            defines: whether it may define something itself.
        """
        role = str(message.get("role", ""))
        originals = list(legend.texts(message))
        literals = state.literals.union(*map(legend.literal_names, [*originals, *legend.arguments(message)]))
        encoded: list[EncodedText] = []
        state = next_request(role, index, state, self.options)
        for text in originals:
            state = state.after(literals)
            done = self._encode_text(text, state, compress=role in self.options.roles, defines=defines)
            state.dictionary.extend(done.added)
            state.monitor = state.monitor.after(done.evidence)
            state.plain_tokens += done.tokens_before
            state.sent_tokens += done.tokens_after
            encoded.append(done)
        report = report_of(index, role, encoded, self.options)
        changed = any(done.sent != text for done, text in zip(encoded, originals, strict=True))
        sent = tuple(done.sent for done in encoded) if changed else None
        return EncodedMessage(sent, report, state.after(literals))

    def _encode_text(self, text: str, state: State, *, compress: bool, defines: bool) -> EncodedText:
        """One text: with new entries, or with known ones only, or as it came; whatever is smallest."""
        before = self.tokenizer.encode(text)
        view = View(state.dictionary, state.known)
        escaped = legend.escape_start(legend.escape(text, view), text)
        count = len(before) if escaped == text else self.tokenizer.count(escaped)
        best = EncodedText(escaped, len(before), count, 0, [], 0, escaped != text)
        if not compress or len(before) < self.options.min_tokens:
            state.dictionary.lines.add_text(text)
            return best
        segments = repeats.refer(text, state.dictionary.lines, self.tokenizer.count, brief=self.brief)
        better: list[tuple[EncodedText, list[Segment] | None]] = [(best, None)]
        known = best.tokens_after
        for sources, draft in self._drafts(text, segments, before, state, defines=defines):
            last, source = better[-1]
            buys = any(isinstance(one, Phrase) for one in draft.added)
            if not buys:
                known = min(known, draft.tokens_after)
            if draft.tokens_after > last.tokens_after - MIN_GAIN:
                continue
            seen = Evidence(draft.reused, len(before) if draft.reused else 0)
            if buys:  # what was bought is on top of the best way without
                seen = Evidence(draft.reused + known - draft.tokens_after, len(before))
                if not state.monitor.allows(seen, self.options.efficiency):
                    better[-1] = last._replace(paused=True, evidence=seen), source
                    continue
            draft = draft._replace(tokens_before=len(before), escaped=best.escaped, evidence=seen)  # noqa: PLW2901 - the same
            better.append((draft, sources))
        while (source := better[-1][1]) is not None and not _is_read(better[-1][0].sent, source, state):
            better.pop()
        if len(better) > 1 and self._is_held_back(better[-1][0], state):
            return best._replace(held_back=True)
        return better[-1][0]

    def _is_held_back(self, done: EncodedText, state: State) -> bool:
        """Whether the conversation, with a text sent so, would be too short to be cached, and the policy minds."""
        floor, minimum = self.options.cache_floor, self.options.cache_minimum
        sent = state.sent_tokens + done.tokens_after
        if floor == "nothing" or sent >= minimum:
            return False
        if floor == "everything":
            return True
        # Plain, the text costs more now and is read for more later; but the next request reads all of it from the cache
        # instead of paying for what is sent. Where that does not make up for it, the text is not held back.
        plain = state.plain_tokens + done.tokens_before
        more = (CACHE_WRITE + FOLLOWING * CACHE_READ) * (done.tokens_before - done.tokens_after)
        return plain >= minimum and CACHE_WRITE * sent - CACHE_READ * plain > more

    def _drafts(
        self, text: str, segments: list[Segment], tokens: list[int], state: State, *, defines: bool
    ) -> Iterable[tuple[list[Segment], EncodedText]]:
        """Ways to send a text, and the segments that each is read as.

        References may cut what folds would write as one: like objects, written over several lines, have lines in
        common. So where there is such JSON, the text without references is a second way. References and folds
        may cut what templates would write as one, so rows in the text as it came are a third way, looked for where
        there are so many digits as only logs and listings have.
        """
        share = sum(map(text.count, digits)) / max(len(text), 1)
        is_whole = True
        for source in [segments, [text]] if len(segments) > 1 and folds.spans_lines(text) else [segments]:
            rows, folded, added = self._rows(source, share, state, defines=defines)
            is_whole = is_whole and len(folded) == 1
            for draft in self._phrases(text, rows, tokens, added, state, defines=defines):
                yield source, draft
        if is_whole or share < MANY_DIGITS:
            return
        numbers = state.numbers() if defines else None
        rows, forms = templates.extract([text], state.dictionary.templates, numbers, self.tokenizer.count)
        if len(rows) > 1:
            for draft in self._phrases(text, rows, tokens, [*forms], state, defines=defines):
                yield [text], draft

    def _rows(
        self, source: list[Segment], share: float, state: State, *, defines: bool
    ) -> tuple[list[Segment], list[Segment], list[Definition]]:
        """The segments of a text with rows in them, the same before lines became rows, and what both define.

        `share` is that of digits among the characters.
        """
        count = self.tokenizer.count
        book = state.dictionary.templates
        numbers = state.numbers() if defines else None
        listed = line_numbers.drop(source, count) if share >= FEW_DIGITS else source
        folded, found = folds.fold(listed, state.dictionary.shapes, numbers, count, ditto=self.brief)
        shapes = [Shape(*shape) for shape in found]
        if (share < FEW_DIGITS or not defines) and not len(book):
            return folded, folded, [*shapes]
        rows, forms = templates.extract(folded, book, numbers, count)
        return rows, folded, [*shapes, *forms]

    def _phrases(  # noqa: PLR0913 - a stage of `_drafts`, which knows all of it
        self,
        text: str,
        segments: list[Segment],
        tokens: list[int],
        added: list[Definition],
        state: State,
        *,
        defines: bool,
    ) -> Iterable[EncodedText]:
        """Ways to send the segments of a text, which define what is `added`: with known phrases, and with new ones."""
        view = View(state.dictionary, state.known)
        atoms: list[str] = []
        for part in segments:
            atoms += [part] if isinstance(part, Mark) else cut(legend.escape(part, view), self.options.profile)
        used = sum(isinstance(part, Mark) for part in segments)
        reused = 0
        for _ in range(self._rounds):
            pieces = state.dictionary.phrases.find(atoms, apart=self._mining.apart)
            reused += self._reused(pieces, state)
            atoms = join(atoms, pieces)
            used += len(pieces)
        body = "".join(atoms)
        # A mark that a stage has put in the place of a literal one is no literal to escape.
        start = "" if segments and isinstance(segments[0], Mark) else text
        if body != text:
            tokens = self.tokenizer.encode(body)
            yield self._draft(start, body, added, used, state, tokens=len(tokens))._replace(reused=reused)
        if not defines:
            return
        last = max([int(one.name[1:]) for one in added], default=0)
        atoms, phrases, symbols = self.add_phrases(atoms, tokens, state, state.numbers(last))
        if phrases:
            body = "".join(atoms)
            yield self._draft(start, body, [*added, *phrases], used + symbols, state)._replace(reused=reused)

    def add_phrases(
        self, atoms: list[str], tokens: list[int], state: State, numbers: Iterator[int]
    ) -> tuple[list[str], list[Definition], int]:
        """Mine for new phrases: the atoms with their symbols, the phrases, and how many symbols refer to them.

        Args:
            atoms: what to mine.
            tokens: the tokens of the same.
            state: what is defined.
            numbers: names for the new ones, if letters are used up or not used at all.
        """
        view = View(state.dictionary, state.known)
        names = chain(state.free(self._letters), map(numbered, numbers))
        phrases: list[Definition] = []
        used = 0
        for again in range(self._rounds):
            text = "".join(atoms)
            if again:
                tokens = self.tokenizer.encode(text)
            candidates = mine(atoms, text, tokens, self.tokenizer, self._mining)
            if not candidates:
                break
            new, atoms, symbols = _define(atoms, candidates, names, view)
            for phrase in new:
                view.add(phrase)
            phrases += new
            used += symbols
        return atoms, phrases, used

    def _reused(self, pieces: list[Piece], state: State) -> int:
        """Tokens that entries of the monitor's window save where they are used again."""
        saved = 0
        for piece in pieces:
            position = state.dictionary.position[piece.name]
            definition = state.dictionary.definitions[position]
            if isinstance(definition, Phrase) and state.monitor.is_recent(position):
                saved += self.tokenizer.count(definition.text) - (1 if definition.name in LETTERS else SYMBOL_TOKENS)
        return saved

    def _draft(  # noqa: PLR0913 - as `_phrases`
        self, start: str, body: str, added: list[Definition], used: int, state: State, *, tokens: int | None = None
    ) -> EncodedText:
        """A way to send a text: its body, which defines what is `added`, and the instruction if that is the first.

        `start` is what the text begins with, and the rest of it, unless it begins with a mark of ours; `tokens` are
        those of the body, if they are known.
        """
        head = legend.head(added, state.told)
        sent = head + legend.escape_start(body, start)
        overhead = self.tokenizer.count(head) if head else 0
        overhead += sum(DEFINITION_TOKENS if isinstance(one, Phrase) else SYMBOL_TOKENS for one in added)
        count = self.tokenizer.count(sent) if tokens is None or sent != body else tokens
        return EncodedText(sent, 0, count, overhead, added, used, escaped=False)


def plain(message: Message, index: int, state: State, options: Options) -> EncodedMessage:
    """A message whose compression failed: as it came, but for the escapes that keep it readable; nothing counted."""
    originals = list(legend.texts(message))
    view = View(state.dictionary, state.known)
    sent = tuple(legend.escape_start(legend.escape(text, view), text) for text in originals)
    for text in originals:
        state.dictionary.lines.add_text(text)
    role = str(message.get("role", ""))
    state = next_request(role, index, state, options)
    report = MessageReport(index, role, 0, 0, 0, 0, 0, "error")
    return EncodedMessage(sent if list(sent) != originals else None, report, state.after(state.literals))


def next_request(role: str, index: int, state: State, options: Options) -> State:
    """The state with its monitor told that a request is complete, if this message is the reply to one."""
    if not index or role != "assistant":
        return state
    return state.with_monitor(state.monitor.next_request(state.known, options.efficiency))


def _define(
    atoms: list[str], candidates: list[Candidate], names: Iterator[str], view: View
) -> tuple[list[Definition], list[str], int]:
    """Give each candidate a name; the new entries, the atoms with their symbols, and how many symbols that are."""
    added: list[Definition] = []
    pieces: list[Piece] = []
    for (starts, length), name in zip(candidates, names, strict=False):
        phrase = tuple(atoms[starts[0] : starts[0] + length])
        added.append(Phrase(name, "".join(_meaning(atom, view) for atom in phrase), phrase))
        pieces += (Piece(start, start + length, name, start == starts[0]) for start in starts)
    pieces.sort()
    return added, join(atoms, pieces), len(pieces) - len(added)


def _meaning(atom: str, view: View) -> str:
    """The text that an atom of a phrase stands for."""
    definition = view.get(atom) if isinstance(atom, Symbol) else None
    return definition.text if isinstance(definition, Phrase) else atom


@lru_cache(maxsize=16)
def letters(tokenizer: Tokenizer) -> str:
    """The letters that are one token each; only these are worth being names. Signs written on letters are none."""
    return "".join(letter for letter in LETTERS if letter.isalpha() and tokenizer.count(letter) == 1)


def _is_read(sent: str, segments: list[Segment], state: State) -> bool:
    """Whether `sent` is read as it was meant: the last gate. References were resolved when they were written."""
    if read(sent, state.dictionary, state.known)[0] == merge(segments):
        return True
    log.error("a text of %d characters would not have been restored exactly; it is sent as it came", len(sent))
    return False


def report_of(index: int, role: str, encoded: list[EncodedText], options: Options) -> MessageReport:
    """What became of a message, from what became of its texts."""
    before = sum(done.tokens_before for done in encoded)
    after = sum(done.tokens_after for done in encoded)
    reason: Reason = "no_gain"
    if not encoded:
        reason = "not_text"
    elif after < before:
        reason = "compressed"
    elif any(done.escaped for done in encoded):
        reason = "escaped"
    elif role not in options.roles:
        reason = "excluded_role"
    elif all(done.tokens_before < options.min_tokens for done in encoded):
        reason = "too_short"
    elif any(done.held_back for done in encoded):
        reason = "cache_floor"
    elif any(done.paused for done in encoded):
        reason = "paused"
    return MessageReport(
        index=index,
        role=role,
        tokens_before=before,
        tokens_after=after,
        overhead_tokens=sum(done.overhead_tokens for done in encoded),
        entries_added=sum(len(done.added) for done in encoded),
        symbols_used=sum(done.symbols_used for done in encoded),
        reason=reason,
    )
