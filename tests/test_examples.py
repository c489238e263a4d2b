"""The examples: each runs, and does what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunch_plugins import Exchange, Krunch, RequestRefused, Settings, hookimpl, restore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from krunch_plugins.turns import Message

EXAMPLES = Path(__file__).parent.parent / "examples"
MODEL = "gpt-4o"
KEY = "sk-proj-Zm9vYmFyMTIzNDU2Nzg5MA"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"


def load(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def krunch() -> Iterator[Krunch]:
    """A Krunch with the redactor."""
    with Krunch(Settings(), plugins=[load("custom_plugin").Redactor()]) as made:
        yield made


def sent(krunch: Krunch, messages: list[Message]) -> list[Message]:
    """What the model is told, after its legend."""
    return restore(krunch.prepare(messages, model=MODEL).messages)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_each_example_runs(path: Path, tmp_path: Path) -> None:
    """An example runs as a script, in any folder, and prints something."""
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_redactor_hides_what_is_secret_everywhere(krunch: Krunch) -> None:
    """No secret and no address leaves: not in text, parts, reasoning or the arguments of earlier tool calls."""
    arguments = json.dumps({"to": "ann@example.org", "body": f"first line\nann@example.org {KEY}", "n": 1})
    messages: list[Message] = [
        {"role": "system", "content": f"The key is {KEY}, of ann@example.org.", "name": "ops@example.org"},
        {
            "role": "user",
            "content": [{"type": "text", "text": PEM}, {"type": "image_url", "image_url": {"url": "a@b.cd"}}],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "mail ann@example.org",
            "tool_calls": [{"id": "t@x.yz", "type": "function", "function": {"name": "f", "arguments": arguments}}],
        },
        {
            "role": "tool",
            "tool_call_id": "t@x.yz",
            "content": f"ghp_{'a1' * 18} AKIAIOSFODNN7EXAMPLE xoxb-1234567890-abc",
        },
    ]

    system, user, assistant, tool = sent(krunch, messages)

    assert system == {"role": "system", "content": "The key is <SECRET_1>, of <EMAIL_2>.", "name": "ops@example.org"}
    assert user["content"] == [{"type": "text", "text": "<SECRET_3>"}, messages[1]["content"][1]]
    assert assistant["reasoning_content"] == "mail <EMAIL_2>"
    call = assistant["tool_calls"][0]
    assert (call["id"], call["function"]["name"]) == ("t@x.yz", "f")
    assert json.loads(call["function"]["arguments"]) == {
        "to": "<EMAIL_2>",
        "body": "first line\n<EMAIL_2> <SECRET_1>",
        "n": 1,
    }
    assert tool == {"role": "tool", "tool_call_id": "t@x.yz", "content": "<SECRET_4> <SECRET_5> <SECRET_6>"}


def test_what_holds_nothing_secret_stays(krunch: Krunch) -> None:
    """Requests without secrets are sent byte for byte, odd spellings of JSON included."""
    function = {"name": "f", "arguments": '{ "a":1e2,  "b": "\\u0041" }'}
    broken = {"name": "g", "arguments": '{"a": '}
    calls = [
        {"id": str(number), "type": "function", "function": each} for number, each in enumerate((function, broken))
    ]
    messages: list[Message] = [
        {"role": "user", "content": "ask-me-anything at example dot org, @handle, sk-short"},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]

    assert sent(krunch, messages) == messages


def test_a_longer_conversation_begins_like_the_shorter(krunch: Krunch) -> None:
    """What was sent stays what it was when the conversation goes on, so that provider caches keep hitting."""
    texts = ["Mail ann@example.org", "and bob@example.org", f"with {KEY}", "not ann@example.org", "<EMAIL_1> is typed"]
    messages = [{"role": "user", "content": text} for text in texts]

    for shorter, longer in pairwise(sent(krunch, messages[:size]) for size in range(1, len(messages) + 1)):
        assert longer[: len(shorter)] == shorter


secretive = st.lists(
    st.sampled_from(
        ["ann@example.org", "bob@example.org", KEY, PEM, "<EMAIL_1>", "<SECRET_2>", "<LITERAL_3>", "<EMAIL_"]
    )
    | st.text(max_size=4),
    max_size=8,
).map(" ".join)


@given(secretive, st.lists(st.integers(0, 300), max_size=8))
def test_what_the_model_repeats_comes_back_as_it_was(text: str, places: list[int]) -> None:
    """A model that repeats the request gives the caller the caller's own words: whole, streamed, and in arguments."""
    with Krunch(Settings(mode="off"), plugins=[load("custom_plugin").Redactor()]) as krunch:
        exchange = krunch.prepare([{"role": "user", "content": text}], model=MODEL)
    read = exchange.messages[0]["content"]
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": read})}}
    edges = sorted({0, len(read), *(place % (len(read) + 1) for place in places)})
    stream = exchange.stream()

    reply = exchange.finish({"role": "assistant", "content": read, "tool_calls": [call]})
    pieces = [
        stream.feed({"choices": [{"index": 0, "delta": {"content": read[start:end]}}]})
        for start, end in pairwise(edges)
    ]
    streamed = [chunk["choices"][0]["delta"]["content"] for piece in [*pieces, stream.flush()] for chunk in piece]

    assert "example.org" not in read
    assert KEY not in read
    assert reply["content"] == "".join(streamed) == text
    assert json.loads(reply["tool_calls"][0]["function"]["arguments"]) == json.loads(json.dumps({"a": text}))


def test_a_redactor_that_fails_stops_the_call() -> None:
    """If redaction cannot be done, the request does not go out, and the error holds nothing secret."""

    class InTheWay:
        @hookimpl(tryfirst=True)
        def pre_request(self, exchange: Exchange) -> None:
            exchange.substitute("<EMAIL_1>", "something else")

    with (
        Krunch(Settings(), plugins=[load("custom_plugin").Redactor(), InTheWay()]) as krunch,
        pytest.raises(RequestRefused) as caught,
    ):
        krunch.prepare([{"role": "user", "content": "ann@example.org"}], model=MODEL)

    assert caught.value.reason == "redaction failed (ValueError), so nothing was sent"


PROGRAM = """
import json
from krunch_plugins import Krunch
with Krunch() as krunch:
    exchange = krunch.prepare([{"role": "user", "content": "Mail ann@example.org"}], model="gpt-4o")
    reply = exchange.finish({"role": "assistant", "content": "Mailed <EMAIL_1>"})
    print(json.dumps([
        [[info.name, info.hooks, info.distribution] for info in krunch.plugins() if not info.builtin],
        exchange.messages[0]["content"],
        reply["content"],
    ]))
"""


def test_the_example_package_installs_and_is_found(tmp_path: Path) -> None:
    """Installed with pip into an environment of its own, the package's plugin is in every Krunch, unless kept out."""
    venv.create(tmp_path / "env", with_pip=False)
    python = str(tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    # This environment's packages, the build backend among them, are lent to the new one, so nothing is downloaded.
    lent = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (site / "lent.pth").write_text(lent, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *offline, str(EXAMPLES / "redactor_package")], check=True, capture_output=True)

    loaded = [
        json.loads(
            subprocess.run(
                [python, "-c", PROGRAM],
                env={**os.environ, "KRUNCH_DISABLE_PLUGINS": disabled, "KRUNCH_MODE": "off"},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for disabled in ("", "redactor")
    ]

    assert loaded == [
        [[["redactor", ["pre_request"], "krunch-redactor"]], "Mail <EMAIL_1>", "Mailed ann@example.org"],
        [[], "Mail ann@example.org", "Mailed <EMAIL_1>"],
    ]
