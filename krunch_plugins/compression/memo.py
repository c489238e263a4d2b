"""What was sent before, so that an unchanged history costs hashing only. Losing it costs one re-encoding.

Each message of a request has a key: a hash of the key before it and of all that its encoding depends on. A key that is
known gives the message as it was sent. Keys start from a root that holds the settings, the tokenizer, the tenant and
the session, so that two sessions share nothing, not even time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from hashlib import blake2b
from sys import getsizeof
from typing import TYPE_CHECKING, NamedTuple

from krunch_plugins.compression import legend

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from krunch_plugins.compression.encoder import EncodedMessage
    from krunch_plugins.turns import Message

Key = bytes

Owner = tuple[str | None, str | None]
"""Whose messages: tenant and session."""

_NODE_BYTES = 600
"""Bytes of memory for a message's key, figures and places in the tables; an estimate, rounded up."""

_ENTRY_BYTES = 400
"""The same for a definition, its text included."""

_LINE_BYTES = 220
"""The same for a line that later texts may refer to, beside the line itself: its quote, its places by that and by what
stands behind its number. 190 for lines without a number, 450 for those with one."""


def root(facts: Iterable[str | None]) -> Key:
    """The key before the first message."""
    digest = blake2b(digest_size=16)
    for fact in facts:
        data = b"-" if fact is None else b"+" + fact.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data) + data)
    return digest.digest()


def keys(messages: Iterable[Message], before: Key, no_definitions: Container[int] = ()) -> list[Key]:
    """The key of each message, in order; `no_definitions` are the positions of those that define nothing."""
    out: list[Key] = []
    for index, message in enumerate(messages):
        before = _key(message, before, b"-" if index in no_definitions else b";")
        out.append(before)
    return out


def _key(message: Message, before: Key, how: bytes) -> Key:
    role, content = message.get("role"), message.get("content")
    if type(content) is str and type(role) is str and not message.get("tool_calls"):  # as most are
        first, second = role.encode("utf-8", "surrogatepass"), content.encode("utf-8", "surrogatepass")
        data = b"%b2:%d,%d%b%b%b" % (before, len(first), len(second), how, first, second)
    else:
        data = b"".join((before, *_facts(message, how)))
    return blake2b(data, digest_size=16).digest()


def _facts(message: Message, how: bytes) -> list[bytes]:
    """What a message's encoding depends on, with the lengths of its parts in front."""
    parts = [str(message.get("role", "")), *legend.texts(message)]
    data = [part.encode("utf-8", "surrogatepass") for part in parts]
    # Names in arguments are not told from texts by how they read, only by how many texts there are before them.
    names = {name for text in legend.arguments(message) for name in legend.literal_names(text)}
    data += (name.encode() for name in sorted(names))
    return [b"%d:" % len(parts), b",".join(b"%d" % len(part) for part in data), how, *data]


_ONE_LINE = 2
"""Lines of a text without a newline, its end included. Such a line is the text itself and takes no memory more."""


class _Line:
    """Messages that were encoded one after the other; they are forgotten together."""

    __slots__ = ("bytes", "definitions", "keys", "lines", "owner")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.keys: list[Key] = []
        self.bytes = self.definitions = self.lines = 0

    def add(self, key: Key, encoded: EncodedMessage) -> int:
        """Take in the next message; the bytes that it adds.

        What its dictionary holds counts from where this line's last message left it. So a line that leaves another one
        pays for what came before, too: it has a dictionary of its own.
        """
        state = encoded.state
        size = _NODE_BYTES + sum(map(getsizeof, encoded.sent or ()))
        size += _ENTRY_BYTES * max(state.known - self.definitions, 0)
        lines = state.dictionary.lines.lines[self.lines : state.lines]
        size += _LINE_BYTES * len(lines)
        if len(lines) > _ONE_LINE:
            size += sum(map(getsizeof, lines))
        self.keys.append(key)
        self.definitions, self.lines = state.known, state.lines
        self.bytes += size
        return size


class _Following(NamedTuple):
    """The message that came after another one: all that its encoding depends on, and its key."""

    role: str
    texts: tuple[str, ...]
    arguments: tuple[str, ...]
    key: Key
    only: str | None
    """Its one text, if there is nothing else to it, as with most."""

    def is_of(self, message: Message) -> bool:
        """Whether the message is the same one, as far as its encoding can tell."""
        if message.get("role") != self.role:
            return False
        content = message.get("content")
        if type(content) is str:  # as most are
            if len(self.texts) != 1 or self.texts[0] != content:
                return False
        elif self.texts != tuple(legend.texts(message)):
            return False
        if not self.arguments and not message.get("tool_calls"):
            return True
        return self.arguments == tuple(legend.arguments(message))

    @property
    def bytes(self) -> int:
        """Bytes of memory for the texts."""
        return sum(map(getsizeof, self.texts)) + sum(map(getsizeof, self.arguments))


class _Node:
    """A message as sent, and what came after it the last time."""

    __slots__ = ("encoded", "following", "line")

    def __init__(self, encoded: EncodedMessage, line: _Line) -> None:
        self.encoded, self.line = encoded, line
        self.following: _Following | None = None


class Memo:
    """Encoded messages by key, bounded; what was least recently used goes first. Thread-safe.

    Args:
        limit: bytes. 0: nothing is kept.
        conversations: how many of them.
    """

    def __init__(self, limit: int, conversations: int) -> None:
        self._limit, self._conversations = limit, conversations
        self._lock = threading.Lock()
        self._nodes: dict[Key, _Node] = {}
        self._lines: OrderedDict[int, _Line] = OrderedDict()
        self.bytes = 0

    def keys(self, messages: Sequence[Message], before: Key, no_definitions: Container[int] = ()) -> list[Key]:
        """As the function `keys`; a message that came after the same ones the last time is compared, not hashed.

        That takes a tenth of the time, and next to none where the text is the same object.
        """
        out: list[Key] = []
        node_of = self._nodes.get
        for index, message in enumerate(messages):  # an unchanged history takes most of its time here
            node = node_of(before)
            known = node.following if node is not None else None
            if known is None or index in no_definitions:
                before = _key(message, before, b"-" if index in no_definitions else b";")
            elif (  # what most messages are; `is_of` tells the same of all, and slower
                known.only is not None
                and message.get("content") == known.only
                and message.get("role") == known.role
                and not message.get("tool_calls")
            ) or known.is_of(message):
                before = known.key
            else:
                before = _key(message, before, b";")
            out.append(before)
        return out

    def longest(self, wanted: Sequence[Key]) -> list[EncodedMessage]:
        """The encoded messages of the longest beginning of `wanted` that is known."""
        with self._lock:
            nodes = list(map(self._nodes.get, wanted))
            known = nodes.index(None) if None in nodes else len(nodes)
            found = [node for node in nodes[:known] if node is not None]
            for line in dict.fromkeys([node.line for node in found]):
                self._lines.move_to_end(id(line))
        return [node.encoded for node in found]

    def add(
        self,
        after: Key | None,
        new: Sequence[tuple[Key, EncodedMessage]],
        owner: Owner,
        messages: Sequence[Message] = (),
    ) -> None:
        """Keep encoded messages that came after the one with the key `after` (None: the first of a conversation).

        `messages` are the same as they came, if they are to be known again by their texts.
        """
        if not new or not self._limit:
            return
        with self._lock:
            before = self._nodes.get(after) if after is not None else None
            line = before.line if before is not None and before.line.keys[-1] == after else _Line(owner)
            self._lines[id(line)] = line
            self._lines.move_to_end(id(line))
            for key, encoded in new:
                if key in self._nodes:  # another thread was faster, with the same bytes
                    continue
                self._nodes[key] = _Node(encoded, line)
                self.bytes += line.add(key, encoded)
            for message, (key, _), (before_key, _) in zip(messages, new, [(after, None), *new], strict=False):
                self._follow(before_key, message, key)
            if not line.keys:
                del self._lines[id(line)]
            while self._lines and (self.bytes > self._limit or len(self._lines) > self._conversations):
                self._forget_oldest()

    def forget(self, tenant: str | None, session: str | None) -> None:
        """Forget one session; without one all of a tenant."""
        with self._lock:
            for number, line in list(self._lines.items()):
                if line.owner[0] == tenant and session in (None, line.owner[1]):
                    del self._lines[number]
                    self._drop(line)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._nodes.clear()
            self._lines.clear()
            self.bytes = 0

    def _follow(self, before: Key | None, message: Message, key: Key) -> None:
        """Note which message came after another one. Its texts are held, and counted."""
        node = self._nodes.get(before) if before is not None else None
        role = message.get("role")
        if node is None or type(role) is not str:
            return
        if key != _key(message, before or b"", b";"):  # it defines nothing, and has another key for that
            return
        texts, arguments = tuple(legend.texts(message)), tuple(legend.arguments(message))
        only = texts[0] if len(texts) == 1 and not arguments else None
        following = _Following(role, texts, arguments, key, only)
        size = following.bytes - (node.following.bytes if node.following is not None else 0)
        node.following = following
        node.line.bytes += size
        self.bytes += size

    def _forget_oldest(self) -> None:
        self._drop(self._lines.popitem(last=False)[1])

    def _drop(self, line: _Line) -> None:
        for key in line.keys:
            del self._nodes[key]
        self.bytes -= line.bytes
