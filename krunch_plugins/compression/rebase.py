"""A rebase: the whole history encoded at once, better than message by message, where that costs no cached prefix.

It is the one exception to causality: what is sent for a message then depends on the messages up to the rebase. So the
point is recorded, in a store that all workers share, and every later request of the session is encoded from the same
point: what was sent since the rebase does not change either, whoever sends it, also after a restart.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression import folds, legend, line_numbers, repeats, templates
from krunch_plugins.compression.decoder import restore
from krunch_plugins.compression.dictionary import State, View
from krunch_plugins.compression.encoder import EncodedMessage, EncodedText, next_request, report_of
from krunch_plugins.compression.phrases import DEFINITION_TOKENS, SYMBOL_TOKENS, Phrase, cut
from krunch_plugins.compression.segments import MARK, Mark, Symbol, opening
from krunch_plugins.compression.shapes import Shape
from krunch_plugins.errors import RestoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from krunch_plugins.compression.dictionary import Definition
    from krunch_plugins.compression.encoder import Encoder
    from krunch_plugins.compression.memo import Key
    from krunch_plugins.turns import MemoStore, Message

log = logging.getLogger("krunch")

STATE_NAME = "compression"
"""Under which name a session's record lies in the memo store."""


class Record(NamedTuple):
    """What workers have to know of a session to send the same bytes.

    Attributes:
        last_request: when its last request was prepared, seconds since the epoch.
        messages: how many messages the last rebase encoded at once; 0 if there was none.
        key: the memo's key of the last of these, so that an edited history is noticed.
    """

    last_request: float
    messages: int = 0
    key: str = ""

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def of(cls, data: bytes | None) -> Record | None:
        """The inverse of `to_bytes`; None for anything else."""
        try:
            found = json.loads(data or b"")
            return cls(float(found["last_request"]), int(found["messages"]), str(found["key"]))
        except (ValueError, TypeError, KeyError):
            return None


class MemoryStore:
    """A memo store in memory, for one process and for tests. Thread-safe.

    Args:
        limit: entries, over all sessions; the least recently used goes first.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._data: OrderedDict[tuple[str | None, str, str], bytes] = OrderedDict()

    def get_state(self, session: str, name: str, *, tenant: str | None = None) -> bytes | None:
        """What was last put under this name, or None."""
        with self._lock:
            if (key := (tenant, session, name)) in self._data:
                self._data.move_to_end(key)
            return self._data.get(key)

    def put_state(self, session: str, name: str, data: bytes, *, tenant: str | None = None) -> None:
        """Keep `data` under this name."""
        with self._lock:
            self._data[tenant, session, name] = data
            self._data.move_to_end((tenant, session, name))
            while len(self._data) > self._limit:
                self._data.popitem(last=False)


class ColdRebase:
    """Decides where a session is rebased when the provider's cache has gone cold, and records it.

    Args:
        store: shared by all workers; each request writes to it.
        clock: seconds since the epoch.
    """

    def __init__(self, store: MemoStore, clock: Callable[[], float]) -> None:
        self._store, self._clock = store, clock

    def point(self, keys: Sequence[Key], session: str, tenant: str | None, lifetime: float) -> tuple[int, bool]:
        """How many messages of a request are encoded at once (0: none), and whether the cache is cold now.

        An unknown last request does not count as cold. A store that fails costs the rebase, never the request.

        Args:
            keys: the memo's keys of the request's messages.
            session: the session.
            tenant: whose session.
            lifetime: seconds after the last request until the cache is cold.
        """
        now = self._clock()
        try:
            record = Record.of(self._store.get_state(session, STATE_NAME, tenant=tenant))
            known = 0
            if record and 0 < record.messages <= len(keys) and keys[record.messages - 1].hex() == record.key:
                known = record.messages
            cold = record is not None and now - record.last_request > lifetime
            messages = len(keys) if cold else known
            key = keys[messages - 1].hex() if messages else ""
            self._store.put_state(session, STATE_NAME, Record(now, messages, key).to_bytes(), tenant=tenant)
        except Exception as error:  # noqa: BLE001 - the store is somebody else's, and only saves money here
            log.warning("the memo store failed with %s; this request is not rebased", type(error).__name__)
            return 0, False
        return messages, cold


WALL = f"{MARK}\n"
"""Stands between two texts that are mined together. No atom of a text is like it, and no phrase goes across it."""


class _Text(NamedTuple):
    """One text on its way: its atoms after the other stages, or None if it is not compressed; what these define."""

    text: str
    tokens: int
    atoms: list[str] | None
    added: list[Definition]


def encode_whole(
    messages: Sequence[Message], literals: frozenset[str], encoder: Encoder
) -> list[EncodedMessage] | None:
    """Encode a conversation at once: phrases are mined in all of its texts together and defined where they stand first.

    Args:
        messages: all messages. Not changed.
        literals: names that stand literally in the tool definitions.
        encoder: the encoder whose tokenizer and options count.

    Returns:
        The messages as sent, all with the state after the last one; None where that would not be smaller than the
        messages as they came, or would not be restored exactly. A message that defines what later ones use may be
        larger than it came; all together they are smaller.
    """
    names = (legend.literal_names(text) for one in messages for text in chain(legend.texts(one), legend.arguments(one)))
    state = State.empty(literals.union(*names))
    numbers = state.numbers()
    prepared = [[_prepare(text, one, state, numbers, encoder) for text in legend.texts(one)] for one in messages]
    pieces, phrases = _mine(prepared, state, numbers, encoder)
    state.dictionary.extend(phrases.values())
    state.known = len(state.dictionary.definitions)
    encoded: list[list[EncodedText]] = []
    for index, (message, texts) in enumerate(zip(messages, prepared, strict=True)):
        state = next_request(str(message.get("role", "")), index, state, encoder.options)
        encoded.append([])
        for text in texts:
            done = _write(text, next(pieces) if text.atoms is not None else None, phrases, state, encoder)
            encoded[-1].append(done)
            state.told |= {one.kind for one in done.added}
            state.plain_tokens += done.tokens_before
            state.sent_tokens += done.tokens_after
    state = state.after(state.literals)
    out: list[EncodedMessage] = []
    for index, message in enumerate(messages):
        report = report_of(index, str(message.get("role", "")), encoded[index], encoder.options)
        if report.tokens_after > report.tokens_before and report.entries_added:
            report = replace(report, reason="rebased")
        sent = tuple(one.sent for one in encoded[index])
        changed = sent != tuple(text.text for text in prepared[index])
        out.append(EncodedMessage(sent if changed else None, report, state))
    if state.sent_tokens >= state.plain_tokens or not _is_restored(out, messages):
        return None
    return out


def _prepare(text: str, message: Message, state: State, numbers: Iterator[int], encoder: Encoder) -> _Text:
    """All stages but phrases, with what the texts before have defined."""
    dictionary, count = state.dictionary, encoder.tokenizer.count
    tokens = count(text)
    if message.get("role", "") not in encoder.options.roles or tokens < encoder.options.min_tokens:
        dictionary.lines.add_text(text)
        return _Text(text, tokens, None, [])
    segments = repeats.refer(text, dictionary.lines, count, brief=encoder.brief)
    segments = line_numbers.drop(segments, count)
    segments, shapes = folds.fold(segments, dictionary.shapes, numbers, count)
    segments, forms = templates.extract(segments, dictionary.templates, numbers, count)
    added: list[Definition] = [*(Shape(*shape) for shape in shapes), *forms]
    dictionary.extend(added)
    # No literal anywhere is a name here, so nothing but structure has to be escaped.
    view, atoms = View(dictionary, 0), list[str]()
    for part in segments:
        atoms += [part] if isinstance(part, Mark) else cut(legend.escape(part, view), encoder.options.profile)
    return _Text(text, tokens, atoms, added)


def _mine(
    prepared: list[list[_Text]], state: State, numbers: Iterator[int], encoder: Encoder
) -> tuple[Iterator[list[str]], dict[str, Definition]]:
    """Mine all texts together: the atoms of each with symbols, in order, and the new phrases by what opens them."""
    atoms: list[str] = []
    for text in chain.from_iterable(prepared):
        if text.atoms is not None:
            atoms += [*text.atoms, WALL]
    tokens = encoder.tokenizer.encode("".join(atoms))
    atoms, phrases, _ = encoder.add_phrases(atoms, tokens, state, numbers)
    return _split(atoms), {opening(one.name): one for one in phrases}


def _split(atoms: list[str]) -> Iterator[list[str]]:
    start = 0
    for index, atom in enumerate(atoms):
        if atom == WALL:
            yield atoms[start:index]
            start = index + 1


def _write(
    text: _Text, atoms: list[str] | None, phrases: dict[str, Definition], state: State, encoder: Encoder
) -> EncodedText:
    """A text as it is sent; `state.told` says which instructions stand before it."""
    count = encoder.tokenizer.count
    if atoms is None:
        sent = legend.escape_start(legend.escape(text.text, View(state.dictionary, 0)), text.text)
        return EncodedText(sent, text.tokens, count(sent), 0, [], 0, escaped=sent != text.text)
    added = [*text.added, *(phrases[atom] for atom in atoms if isinstance(atom, Mark) and atom in phrases)]
    head = legend.head(added, state.told)
    sent = head + legend.escape_start("".join(atoms), text.text)
    overhead = count(head) + sum(DEFINITION_TOKENS if isinstance(one, Phrase) else SYMBOL_TOKENS for one in added)
    used = sum(isinstance(atom, Symbol) for atom in atoms)
    return EncodedText(sent, text.tokens, count(sent), overhead, added, used, escaped=False)


def _is_restored(encoded: list[EncodedMessage], messages: Sequence[Message]) -> bool:
    """Whether a reader gets back what was meant: the last gate."""
    sent = [
        message if one.sent is None else legend.replace_texts(message, one.sent)
        for one, message in zip(encoded, messages, strict=True)
    ]
    try:
        exact = restore(sent) == list(messages)
    except RestoreError:
        exact = False
    if not exact:
        log.error("a history of %d messages would not have been restored exactly; it is not rebased", len(messages))
    return exact
