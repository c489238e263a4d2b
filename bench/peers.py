"""Other ways to make a request smaller, run beside Krunch in one process: JSON minified, TOON, headroom.

What is not installed is installed with pip when it is first needed: nothing of it belongs to Krunch's dependencies. If
that does not work, the reason stands in the table.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from krunch_plugins.compression.legend import map_texts, texts
from krunch_plugins.replay import Meter, Totals
from krunch_plugins.tokens import encoding_for, load
from krunch_plugins.turns import Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from krunch_plugins.conversations import Conversation
    from krunch_plugins.tokens import Tokenizer

Compress = Callable[[list[Message]], list[Message]]

MODEL = "gpt-4o"


class Peer(NamedTuple):
    """Another way.

    Attributes:
        name: what the table calls it.
        package: the distribution that it needs, "" if none.
        make: makes what compresses one request, and what says what a text stands for; imports the package.
    """

    name: str
    package: str
    make: Callable[[], tuple[Compress, Callable[[str], object]]]


class NotRun(NamedTuple):
    """A way that could not be measured."""

    name: str
    why: str


def measure(peer: Peer, conversations: Iterable[Conversation], tokenizer: Tokenizer) -> Totals | NotRun:
    """Play conversations as their clients would, each request through the other way.

    A request counts as restored if each of its texts is what it was, or is JSON, or what the way makes of JSON, for an
    equal value.
    """
    missing = _install(peer.package)
    if missing:
        return NotRun(peer.name, missing)
    try:
        compress, meaning = peer.make()
        compress([{"role": "user", "content": "warm up " * 50}])
    except Exception as error:  # noqa: BLE001 - other people's code: what it raises is a figure like any other
        return NotRun(peer.name, f"{peer.package} failed with {type(error).__name__}")
    totals = Totals()
    for conversation in conversations:
        meter, requests = Meter(tokenizer), []
        for stop in conversation.requests():
            plain = conversation.messages[:stop]
            given: list[Message] = json.loads(json.dumps(plain))
            start = time.perf_counter()
            try:
                sent = compress(given)
            except Exception:  # noqa: BLE001 - as above: the call would have failed, or gone out as it was
                sent = plain
            milliseconds = 1_000 * (time.perf_counter() - start)
            figures = meter.add(plain, sent, milliseconds=milliseconds)
            requests.append(dataclasses.replace(figures, restored=_same(plain, sent, meaning)))
        totals.add(requests)
    return totals


def _same(plain: Sequence[Message], sent: Sequence[Message], meaning: Callable[[str], object]) -> bool:
    """Whether each text is as it was, or stands for the same value."""
    if len(plain) != len(sent):
        return False
    for one, other in zip(plain, sent, strict=True):
        before, after = list(texts(one)), list(texts(other))
        if len(before) != len(after):
            return False
        for text, written in zip(before, after, strict=True):
            if text != written and (not _is_json(text) or json.loads(text) != meaning(written)):
                return False
    return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _value(text: str) -> object:
    """What a text of JSON stands for; of any other text, nothing that JSON could."""
    return json.loads(text) if _is_json(text) else object()


def _install(package: str) -> str:
    """Install a distribution with pip unless it can be imported; why that did not work, or ""."""
    if not package or importlib.util.find_spec(_MODULES[package]):
        return ""
    print(f"installing {package} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - our own list
    importlib.invalidate_caches()
    if done.returncode or not importlib.util.find_spec(_MODULES[package]):
        return f"{package} could not be installed (pip ended with {done.returncode})"
    return ""


def _count() -> Callable[[str], int]:
    return load(encoding_for(MODEL)[0]).count


def _raw() -> tuple[Compress, Callable[[str], object]]:
    return lambda messages: messages, _value


def _each_text(change: Callable[[str], str]) -> Compress:
    return lambda messages: [map_texts(message, change) for message in messages]


def _minify() -> tuple[Compress, Callable[[str], object]]:
    """Texts that are JSON, without their spaces."""

    def change(text: str) -> str:
        if not _is_json(text):
            return text
        return min(text, json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")), key=_count())

    return _each_text(change), _value


def _toon() -> tuple[Compress, Callable[[str], object]]:
    """Texts that are JSON objects or arrays, in TOON where that has fewer tokens."""
    toon: Any = importlib.import_module("toon_format")

    def change(text: str) -> str:
        value = json.loads(text) if _is_json(text) else None
        return min(text, toon.encode(value), key=_count()) if isinstance(value, dict | list) else text

    def meaning(text: str) -> object:
        try:
            found: object = toon.decode(text)
        except ValueError:  # its own errors are kinds of this
            return object()
        return found

    return _each_text(change), meaning


def _headroom(**how: str) -> tuple[Compress, Callable[[str], object]]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # it would look for a model of its own that drops words
    library: Any = importlib.import_module("headroom.compress")

    def compress(messages: list[Message]) -> list[Message]:
        return list(library.compress(messages, model=MODEL, **how).messages)

    return compress, _value


_MODULES = {"toon-format": "toon_format", "headroom-ai": "headroom"}

PEERS = (
    Peer("as it is", "", _raw),
    Peer("JSON minified", "", _minify),
    Peer("TOON where shorter", "toon-format", _toon),
    Peer("headroom, densify", "headroom-ai", partial(_headroom, mode="agent")),
    Peer("headroom, default", "headroom-ai", _headroom),
)


def use_local_tokenizers() -> None:
    """Let tiktoken, wherever it is used in this process, find the files that LiteLLM ships: no network is needed."""
    spec = importlib.util.find_spec("litellm")
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(folder))
