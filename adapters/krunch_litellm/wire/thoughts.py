"""Reasoning beside a chat message's texts: LiteLLM repeats it in the forms of several providers.

`reasoning_content` is a text like any other. What stands here says the same again, for clients that hand it back to
the provider: what is signed or encrypted must stay byte for byte, the rest is told in plain words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunch_plugins.exchange import TextExpander
    from krunch_plugins.turns import Message

CARRIERS = ("thinking_blocks", "reasoning_details", "reasoning_items")
COPIES = "provider_specific_fields"
_SEALS = ("signature", "encrypted_content", "data")
TEXTS = frozenset({"thinking", "text", "summary", "content", "reasoning", "reasoning_content"})


def with_thoughts_expanded(message: Message, texts: TextExpander) -> Message:
    """A message whose reasoning is expanded wherever nobody has signed it; itself if there is none."""
    changed = {name: expanded_unless_sealed(message[name], texts) for name in CARRIERS if message.get(name)}
    copies = message.get(COPIES)
    if isinstance(copies, dict) and copies:
        changed[COPIES] = with_copies_expanded(copies, texts)
    return {**message, **changed} if changed else message


def with_copies_expanded(copies: Mapping[str, Any], texts: TextExpander) -> dict[str, Any]:
    """What LiteLLM hands on in `provider_specific_fields`, with its reasoning expanded likewise."""
    told = dict(copies)
    for name, value in copies.items():
        if name in CARRIERS:
            told[name] = expanded_unless_sealed(value, texts)
        elif name in TEXTS and isinstance(value, str):
            told[name] = in_plain_words(value, texts)
    return told


def in_plain_words(value: Any, texts: TextExpander) -> Any:  # noqa: ANN401 - whatever JSON holds
    """A value with all of its texts expanded."""
    if isinstance(value, str):
        window = texts.open()
        return window.feed(value) + window.end()
    if isinstance(value, list):
        return [in_plain_words(item, texts) for item in value]
    return {key: in_plain_words(item, texts) for key, item in value.items()} if isinstance(value, dict) else value


def expanded_unless_sealed(value: Any, texts: TextExpander) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Reasoning with the texts expanded that are neither signed nor encrypted, nor within what is."""
    if isinstance(value, list):
        return [expanded_unless_sealed(item, texts) for item in value]
    if not isinstance(value, dict) or is_sealed(value):
        return value
    told = dict(value)
    for key in TEXTS & value.keys():
        told[key] = (
            in_plain_words(value[key], texts)
            if isinstance(value[key], str)
            else expanded_unless_sealed(value[key], texts)
        )
    return told


def is_sealed(value: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    """Whether a block of reasoning is signed or encrypted."""
    return isinstance(value, dict) and any(value.get(seal) for seal in _SEALS)
