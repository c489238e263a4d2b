"""`restore`: a pure function of the messages sent, for readers that have nothing else."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from typing import Any

import conversations
import laws
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krunch_plugins import Krunch, KrunchError, Settings, restore
from krunch_plugins.errors import RestoreError

REPEATS = "the retry policy of this service waits longer each time it fails\n"


def test_a_process_that_knows_nothing_restores_a_request() -> None:
    """The JSON of the request is enough: no session, no settings, no tokenizer, no network."""
    laws.warm()
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": REPEATS * 3},
        {
            "role": "user",
            "content": [{"type": "text", "text": f"again: {REPEATS}"}, {"type": "image_url", "image_url": {}}],
        },
        {
            "role": "tool",
            "tool_call_id": "c",
            "content": json.dumps([{"id": n, "status": "confirmed"} for n in range(9)]),
        },
    ]
    with Krunch(Settings(cache_floor="nothing", min_tokens=0)) as krunch:
        exchange = krunch.prepare(messages, model="gpt-4o")
    script = "import json, sys, krunch_plugins as k; json.dump(k.restore(json.load(sys.stdin)), sys.stdout)"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TIKTOKEN_CACHE_DIR": os.devnull,
    }
    reader = [sys.executable, "-c", script]
    found = subprocess.run(
        reader, input=json.dumps(exchange.messages).encode(), capture_output=True, check=True, env=environment
    )

    assert exchange.report.tokens_saved > 0
    assert json.loads(found.stdout) == messages


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="¤"), max_size=60), max_size=5))
def test_messages_that_were_never_compressed_come_back_equal(contents: list[str]) -> None:
    """Nothing is read into text that holds no mark."""
    messages = [{"role": "user", "content": content} for content in contents]

    assert restore(messages) == messages


def test_whatever_it_is_given_it_restores_or_says_that_it_cannot() -> None:
    """Requests that were cut, mixed or made up: a result of the same shape, or a KrunchError, and no other error."""
    laws.warm()
    refused = 0
    for seed in range(300):
        rng = random.Random(seed)
        made_up = conversations.conversation(rng, conversations.LEGENDS, 6)
        sent = laws.case_of_seed(seed, longest=6).sent()
        for messages in (made_up, sent[len(sent) // 2 :], conversations.fork(rng, sent), [*sent, *made_up]):
            try:
                restored = restore(messages)
            except KrunchError:
                refused += 1
            else:
                laws.check_shape(messages, restored)

    assert refused, "no request was broken enough to be refused"


@pytest.mark.parametrize("text", ['¤{}{{"a":1}}', "¤{}|a {{}} b\nfoo", "¤[{} lines a … b]", "¤[numbers +{}: a]"])
def test_numbers_of_more_digits_than_python_reads_are_an_error_like_any_other(text: str) -> None:
    """Nobody writes such a request but to see what happens."""
    with pytest.raises(RestoreError):
        restore([{"role": "user", "content": text.format("1" * 5000)}])


def test_a_reference_to_what_was_dropped_is_an_error_that_names_the_message() -> None:
    """A request whose beginning is missing is not restored to something else."""
    laws.warm()
    long = "".join(f"line {number} of the report says something of its own\n" for number in range(12))
    with Krunch(Settings(cache_floor="nothing", min_tokens=0)) as krunch:
        sent = krunch.prepare([{"role": "user", "content": long}] * 2, model="gpt-4o").messages

    assert sent[1] != sent[0]
    with pytest.raises(KrunchError, match="0"):
        restore(sent[1:])


@pytest.mark.parametrize("content", [None, "", [], [{"type": "image_url", "image_url": {"url": "¤1"}}], 17, {"a": 1}])
def test_what_is_no_text_passes(content: Any) -> None:
    """Content of any kind comes back as the same object or an equal one."""
    messages = [{"role": "user", "content": content, "unknown": {"¤1": "¤1=a¤"}}]

    assert restore(messages) == messages
