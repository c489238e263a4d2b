"""The endpoints that carry no conversation: completions and embeddings."""

from __future__ import annotations

import hashlib
from itertools import cycle
from typing import TYPE_CHECKING, Any

from krunch_plugins.upstream.answers import count_tokens, split

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from krunch_plugins.upstream.answers import Answer


def completion(body: Mapping[str, Any], answers: Sequence[Answer], number: int) -> dict[str, Any]:
    """A plain reply to /v1/completions."""
    choices = [
        {"index": index, "text": answer.text or "", "finish_reason": "stop", "logprobs": None}
        for index, answer in enumerate(answers)
    ]
    prompt, reply = count_tokens(body, _texts(body.get("prompt")), answers)
    usage = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
    return {**_envelope(body, number), "choices": choices, "usage": usage}


def completion_events(body: Mapping[str, Any], answers: Sequence[Answer], number: int) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed one, of its first choice."""
    for piece in split(answers[0].text or "", cycle(answers[0].pieces)):
        yield {**_envelope(body, number), "choices": [{"index": 0, "text": piece, "finish_reason": None}]}
    yield {**_envelope(body, number), "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}


def embeddings(body: Mapping[str, Any], answers: Sequence[Answer], number: int) -> dict[str, Any]:  # noqa: ARG001 - as all
    """A vector for each text: eight numbers that depend on nothing but the text."""
    texts = _texts(body.get("input"))
    vectors = [
        [byte / 255 for byte in hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()]
        for text in texts
    ]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    tokens = count_tokens(body, texts, ())[0]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": body.get("model", ""), "data": data, "usage": usage}


def _envelope(body: Mapping[str, Any], number: int) -> dict[str, Any]:
    model = body.get("model", "")
    return {"id": f"cmpl-{number}", "object": "text_completion", "created": 1_700_000_000 + number, "model": model}


def _texts(given: object) -> list[str]:
    return [given] if isinstance(given, str) else [str(item) for item in given] if isinstance(given, list) else []
