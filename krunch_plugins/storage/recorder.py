"""Which of the messages that a client sends are new: clients resend, drop and edit what they sent before."""

from __future__ import annotations

import hashlib
import json
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_plugins.turns import Message

Digest = bytes

REPLY = b"a"
"""First byte of an assistant message's digest."""

_OF_CACHING = frozenset({"cache_control"})


def digest(message: Message) -> Digest:
    """What makes two messages the same to a person: role, text, other content, tool calls, names.

    Text as a string equals the same text as parts, and empty fields equal missing ones, because clients and providers
    rewrite these on the way. White space around the text does not count either. 12 bytes.
    """
    content = message.get("content")
    others: list[Any] = []
    if isinstance(content, (list, tuple)):
        texts = []
        for part in content:
            if isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text", None):
                texts.append(str(part.get("text", "")))
            else:
                others.append(_without(part))
        content = "".join(texts)
    text = content.strip() if isinstance(content, str) else content
    calls = [_call(call) for call in message.get("tool_calls") or ()]
    function = _without(message.get("function_call") or None)
    what = (message.get("role"), text or None, others, calls, function, message.get("tool_call_id") or None,
            message.get("name") or None)  # fmt: skip
    data = json.dumps(what, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
    return (REPLY if message.get("role") == "assistant" else b" ") + hashlib.blake2b(data, digest_size=11).digest()


def _call(call: object) -> object:
    if not isinstance(call, dict):
        return str(call)
    return [call.get("id"), _without(call.get("function"))]


def _without(value: object) -> object:
    """A content part without what only steers a provider's cache."""
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in _OF_CACHING and item is not None}
    return value


def answered(recorded: Sequence[Digest], after: int, answer: Digest) -> bool:
    """Whether this answer stands among those that were recorded from position `after` on, one for each attempt."""
    while after < len(recorded) and _is_reply(recorded[after]):
        if recorded[after] == answer:
            return True
        after += 1
    return False


def _is_reply(one: Digest) -> bool:
    return one.startswith(REPLY)


def compare(
    references: Sequence[Sequence[Digest]], sent: Sequence[Digest], answer: Digest | None
) -> tuple[list[int], bool]:
    """What of an exchange is new, by the reference that explains most of it.

    Args:
        references: what is known of the conversation: what the client sent last, and all that was recorded. They differ
            once it has edited or dropped something.
        sent: the request's messages.
        answer: the reply, or None.

    Returns:
        Positions of the new messages in `sent`, and whether the reply is new.
    """
    found = [unrecorded(reference, sent) for reference in references]
    new = min((positions for positions, _ in found), key=len)
    if answer is None or new:
        return new, answer is not None
    pairs = zip(references, found, strict=True)
    return new, not any(answered(reference, after, answer) for reference, (_, after) in pairs)


def _laid_over(recorded: Sequence[Digest], sent: Sequence[Digest], common: int) -> dict[int, int]:
    """Which positions of a request fit which of what was recorded; the first `common` of both are equal.

    Where the two end alike, too, only what lies between is searched: that takes time that grows with its square where
    texts repeat, and most edits are small.
    """
    most = min(len(recorded), len(sent)) - common
    alike = next((size for size in range(most) if recorded[-1 - size] != sent[-1 - size]), most)
    ends = len(sent) - alike, len(recorded) - alike
    fits = {index: index for index in range(common)}
    blocks = SequenceMatcher(None, sent[common : ends[0]], recorded[common : ends[1]], autojunk=False)
    for start, at, size in blocks.get_matching_blocks():
        fits.update((common + start + offset, common + at + offset) for offset in range(size))
    fits.update((ends[0] + offset, ends[1] + offset) for offset in range(alike))
    return fits


def unrecorded(recorded: Sequence[Digest], sent: Sequence[Digest]) -> tuple[list[int], int]:
    """Which messages of a request have not been recorded.

    The request is laid over what was recorded, longest common runs first. What fits was sent before. What does not is
    new, unless it was recorded elsewhere and is a reply, or stands before a reply or something that fits: then the
    client moved it.

    Args:
        recorded: the session's turns.
        sent: the request's messages.

    Returns:
        Positions in `sent`, in order; and the position in `recorded` after the last message that fits (if nothing is
        new, the reply to this very request is recorded there, if it was).
    """
    common = 0
    for ours, theirs in zip(recorded, sent, strict=False):
        if ours != theirs:
            break
        common += 1
    if common in (len(recorded), len(sent)):
        return list(range(common, len(sent))), common
    fits = _laid_over(recorded, sent, common)
    spare: dict[Digest, int] = {}
    fitting = set(fits.values())
    for at, ours in enumerate(recorded):
        if at not in fitting:
            spare[ours] = spare.get(ours, 0) + 1
    # A client whose calls overlap may have the exchanges in another order than they were recorded in. A reply that it
    # sends came from the model, and was recorded then; what stands before it was sent before.
    old = [index for index, one in enumerate(sent) if index in fits or (_is_reply(one) and one in spare)]
    last = max(old, default=-1)
    new = []
    for index, theirs in enumerate(sent):
        if index in fits:
            continue
        if index <= last and spare.get(theirs, 0):
            spare[theirs] -= 1
            continue
        new.append(index)
    return new, fits[max(fits)] + 1 if fits else len(recorded)
