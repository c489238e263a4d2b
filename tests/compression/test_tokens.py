"""Tokenizers: which one counts for a model, and what happens when none can be had."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import conversations
import laws
import pytest
import tiktoken

from krunch_plugins import Krunch, Settings
from krunch_plugins.tokens import Tokenizer, encoding_for, load

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT_TOKENIZER = """
import json, sys
sys.modules["litellm"] = None  # as if it were not installed
from krunch_plugins import Krunch, Settings
texts = ("the retry policy waits longer. " * 20, "\\u00a41=a")
messages = [{"role": "user", "content": text} for text in texts]
with Krunch(Settings()) as krunch:
    models = ("gpt-4o", "gpt-4", "claude-x", "gpt-4o")
    exchanges = [krunch.prepare(messages, model=model, tools=[{}]) for model in models]
    reply = exchanges[0].finish({"role": "assistant", "content": "\\u00a41 stays"})
print(json.dumps({
    "same": all(exchange.messages == messages for exchange in exchanges),
    "reasons": sorted({row.reason for exchange in exchanges for row in exchange.report.messages}),
    "rows": [len(exchange.report.messages) for exchange in exchanges],
    "problems": [problem.error for exchange in exchanges for problem in exchange.report.problems],
    "tokens": sum(exchange.report.tokens_before + exchange.report.tokens_after for exchange in exchanges),
    "reply": reply["content"],
}), flush=True)
import os; os._exit(0)
"""


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-4o", ("o200k_base", False)),
        ("openai/gpt-4o-mini-2024-07-18", ("o200k_base", False)),
        ("azure/eu/gpt-4", ("cl100k_base", False)),
        ("claude-sonnet-4", ("o200k_base", True)),
        ("", ("o200k_base", True)),
    ],
)
def test_the_encoding_is_chosen_by_the_models_name(model: str, expected: tuple[str, bool]) -> None:
    """Provider prefixes are looked through; a model whose tokenizer is not public is an estimate."""
    assert encoding_for(model) == expected


def test_figures_of_models_without_a_public_tokenizer_are_marked() -> None:
    """The report says that another encoding stood in, and which."""
    laws.warm()
    with Krunch(Settings(default_encoding="cl100k_base")) as krunch:
        report = krunch.prepare([{"role": "user", "content": "hello"}], model="claude-sonnet-4").report

    assert (report.encoding, report.estimated, report.tokens_before) == ("cl100k_base", True, 1)


@pytest.mark.parametrize("encoding", list(laws.MODELS))
def test_tokens_are_what_tiktoken_counts(encoding: str) -> None:
    """Special tokens count as text, lone surrogates do not raise, and the lengths add up to the bytes."""
    tokenizer, reference = load(encoding, wait=True), tiktoken.get_encoding(encoding)
    texts = [
        text
        for seed in range(40)
        for message in conversations.conversation(random.Random(seed))
        for text in laws.texts(message)
    ]
    for text in [*texts, "<|endoftext|>", "\ud800", "\ud83d\ude00", ""]:
        tokens = reference.encode(text, disallowed_special=())

        assert tokenizer.encode(text) == tokens
        assert tokenizer.count(text) == len(tokens)
        assert sum(tokenizer.token_lengths(tokens)) == len(reference.decode_bytes(tokens))


@pytest.mark.parametrize("encoding", list(laws.MODELS))
@pytest.mark.parametrize("hidden", [False, True])
def test_the_length_of_each_token_is_known(encoding: str, *, hidden: bool) -> None:
    """Special tokens too, and also where tiktoken would no longer have its table where it has it now."""
    load(encoding, wait=True)
    reference = tiktoken.get_encoding(encoding)
    given: Any = reference
    if hidden:
        given = SimpleNamespace(
            **{name: getattr(reference, name) for name in ("name", "n_vocab", "decode_single_token_bytes")}
        )
    tokens = [*range(0, reference.eot_token - 1, 97), reference.eot_token]

    lengths = Tokenizer(given).token_lengths(tokens)

    assert lengths.tolist() == [len(reference.decode_single_token_bytes(token)) for token in tokens]


@pytest.mark.parametrize("network", ["refuses", "never answers"])
def test_without_a_tokenizer_requests_pass_through(network: str, tmp_path: Path) -> None:
    """No file and no network: nothing blocks, nothing raises, nothing is changed, and the report says why."""
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        if network == "never answers":
            proxy.listen()
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TIKTOKEN_CACHE_DIR": str(tmp_path),
            "TMPDIR": str(tmp_path),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), address),
        }
        child = [sys.executable, "-c", WITHOUT_TOKENIZER]
        # The proxy is open until the process has ended: had a request waited for the network, it would wait for ever.
        found = subprocess.run(child, env=environment, capture_output=True, check=False, timeout=120)

    assert found.returncode == 0, found.stderr.decode()
    assert json.loads(found.stdout) == {
        "same": True,
        "reasons": ["tokenizer_unavailable"],
        "rows": [2] * 4,
        "problems": [],
        "tokens": 0,
        "reply": "¤1 stays",
    }
