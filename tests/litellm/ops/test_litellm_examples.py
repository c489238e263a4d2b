"""The examples for LiteLLM: each runs as it stands, against a model server on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from krunch_plugins import restore
from krunch_plugins.upstream import Answer, Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tests.litellm.ops.conftest import Proxy

EXAMPLES = Path(__file__).parents[3] / "examples" / "litellm"
MASTER = "sk-0123456789abcdef-master"
SAID = "the billing service was refused"


@pytest.fixture(scope="module")
def model() -> Iterator[Upstream]:
    """A model that answers in the first symbol that it was told, in whichever protocol."""

    def answer(body: dict[str, Any]) -> Answer:
        symbols = re.findall("¤[0-9]+", str(body.get("messages") or body.get("input")))
        return Answer(f"It is that {symbols[0] if symbols else 'nothing'} again.")

    with Upstream(answer) as upstream:
        yield upstream


def run(name: str, **variables: str) -> str:
    """What an example prints."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KRUNCH_", "LITELLM_"))}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        env={**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["sdk.py", "router.py"])
def test_the_sdk_examples_save_tokens(model: Upstream, name: str) -> None:
    """The SDK and the Router send less, and print the reply in plain words."""
    printed = run(name, OPENAI_API_KEY="none", OPENAI_BASE_URL=model.url)

    assert SAID in printed
    assert re.search(r"[1-9][0-9]* tokens.* saved", printed)
    assert SAID in restore(model.requests[-1]["messages"])[0]["content"]


@pytest.fixture(scope="module")
def example_proxy(tmp_path_factory: pytest.TempPathFactory, model: Upstream, run_proxy: type[Proxy]) -> Iterator[Proxy]:
    """The proxy with the example's config."""
    keys = {"OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none", "LITELLM_MASTER_KEY": MASTER}
    bases = {"OPENAI_BASE_URL": model.url, "ANTHROPIC_BASE_URL": model.url.removesuffix("/v1")}
    arguments = ["--config", str(EXAMPLES / "config.yaml"), "--host", "127.0.0.1"]
    running = run_proxy(arguments, tmp_path_factory.mktemp("example"), {**keys, **bases})
    yield running
    running.stop()


@pytest.mark.parametrize("name", ["anthropic_client.py", "responses_client.py"])
def test_the_clients_of_the_proxy_save_tokens(model: Upstream, example_proxy: Proxy, name: str) -> None:
    """Anthropic's SDK and OpenAI's Responses get plain words, and headers that say what was saved."""
    printed = run(name, LITELLM_PROXY=example_proxy.url, LITELLM_MASTER_KEY=MASTER)

    assert SAID in printed
    figures = re.search("([0-9]+) tokens, ([0-9]+) sent", printed)
    assert figures is not None
    assert int(figures[2]) < int(figures[1])
    body = model.requests[-1]
    sent = body.get("messages") or body["input"]
    assert str(sent).count(SAID) < 40


def test_litellms_own_keys_guard_the_routes(example_proxy: Proxy) -> None:
    """With LiteLLM's own authentication: 401 without a key or with a wrong one, everything with the master key."""
    statuses = []
    for key in (None, "sk-somebody-else", MASTER):
        with example_proxy.client(key) as client:
            statuses.append(client.get("/v1/compression/stats").status_code)

    assert statuses == [401, 401, 200]
