"""LiteLLM's proxy as `krunch proxy` starts it, in processes of its own; real HTTP on both sides."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from krunch_litellm.entries import Prepared
from ports import free_port
from redis_server import redis_server

from krunch_plugins import Krunch, Settings, restore
from krunch_plugins.upstream import Answer, Upstream
from tests.litellm.proxy.conftest import restored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MASTER = "sk-0123456789abcdef-master"
AUTH = f"""
from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth


async def check(request, api_key):
    if api_key == {MASTER!r}:
        return UserAPIKeyAuth(api_key=api_key, user_id="admin", user_role=LitellmUserRoles.PROXY_ADMIN)
    if api_key and api_key.startswith("sk-user-"):
        # All keys are one user's, in one team: what is told apart is the key.
        return UserAPIKeyAuth(api_key=api_key, user_id="ann", team_id="ops", user_role=LitellmUserRoles.INTERNAL_USER)
    raise ProxyException(message="unknown key", type="auth_error", param="api_key", code=401)
"""
"""Keys for everybody who asks: LiteLLM's own need a database. Its route checks run all the same."""

PATHS = ("/srv/warehouse/inventory/reservations/handler.py", "/srv/warehouse/billing/invoices/writer.py")


def story(name: str, count: int = 12) -> str:
    """A text that compresses well, and differently for each name."""
    return "; ".join(
        f"{name}{number} says the connection to the {name} database was refused by {PATHS[number % 2]}"
        for number in range(count)
    )


def definitions(body: dict[str, Any]) -> dict[str, str]:
    """What a request defines: what it restores to, compressed anew, is the request."""
    with Krunch(Settings()) as reader:
        exchange = reader.prepare(restore(body["messages"]), model="gpt-4o", tools=body.get("tools"))
    return dict(exchange.symbols) if exchange.messages == body["messages"] else {}


class Proxy:
    """A running proxy.

    Attributes:
        url: where it listens.
        process: the process that was started.
        log: what it prints.
    """

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KRUNCH_", "OPENAI_"))}
        self._output = self.log.open("wb")
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("krunch"), "proxy", *arguments, "--port", str(port)],
            env={**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "TMPDIR": str(folder), **environment},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def client(self, key: str | None = MASTER, **headers: str | bytes) -> httpx.Client:
        """A client with a key; headers are named with underscores."""
        named: dict[str, Any] = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            named["authorization"] = f"Bearer {key}"
        return httpx.Client(base_url=self.url, headers=named, timeout=30)

    def chat(self, key: str = MASTER, *, session: str | None = None, **body: Any) -> httpx.Response:
        """A chat completion, on a connection of its own, so that any worker may get it."""
        headers = {} if session is None else {"x_session_id": session.encode()}
        with self.client(key, **headers) as client:
            return client.post("/v1/chat/completions", json={"model": "gpt-4o", **body})

    def text(self, key: str = MASTER, **request: Any) -> str:
        """The text of the reply to a chat completion, whole or streamed."""
        answer = self.chat(key, **request)
        assert answer.status_code == 200, answer.text
        if not request.get("stream"):
            return str(answer.json()["choices"][0]["message"]["content"])
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)

    def stats(self, key: str = MASTER) -> dict[str, Any]:
        """The statistics that a key sees."""
        with self.client(key) as client:
            found: dict[str, Any] = client.get("/v1/compression/stats").raise_for_status().json()
        return found

    def eventually(self, told: Callable[[], Any], expected: Any, seconds: float = 60) -> None:
        """Wait until the workers have told each other: a fraction of a second, on a busy machine longer."""
        deadline = time.monotonic() + seconds
        while (found := told()) != expected and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found == expected

    def children(self) -> list[int]:
        """The workers' process ids, if there are several workers."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        workers = []
        for child in map(int, found.split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    workers.append(child)
        return workers

    def stop(self) -> int:
        """Stop it, the way a service manager does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._output.close()
        return self.process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health/liveliness", timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        raise TimeoutError(self.log.read_text()[-3000:])


def prepared(tenant: str = "t", session: str | None = "s", at: float = 0.0) -> Prepared:
    """A request."""
    name = f"{tenant}/{session}".encode()
    return Prepared(name, tenant, session, "m", at or time.time(), 100, 60, 10, 0.2, 0.1, 3, {"compressed": 1})


@pytest.fixture(scope="session")
def answers() -> dict[str, Any]:
    """What the model does, by the last message's text: an Answer, or a function of the request."""
    return {}


@pytest.fixture(scope="session")
def model_server(answers: dict[str, Any]) -> Iterator[Upstream]:
    """The model: what `answers` says, else a reply in every symbol that the request defines."""

    def answer(body: dict[str, Any]) -> Answer:
        scripted = answers.get(restored(body)[-1])
        if scripted is not None:
            made: Answer = scripted(body) if callable(scripted) else scripted
            return made
        symbols = definitions(body) if "messages" in body else {}
        return Answer(f"({time.time_ns()}) " + " ".join(f"I saw {symbol}," for symbol in symbols))

    with Upstream(answer) as upstream:
        yield upstream


def write_config(folder: Path, upstream: Upstream, **sections: Any) -> Path:
    """A config of LiteLLM's, with `auth.py` beside it."""
    deployments = {
        "gpt-4o": {"model": "openai/gpt-4o", "api_base": upstream.url},
        "quick": {"model": "openai/gpt-4", "api_base": upstream.url},  # another name than its tokenizer is known by
        "claude": {"model": "anthropic/claude-sonnet-4-5", "api_base": upstream.root},
    }
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": {**parameters, "api_key": "none"}}
            for name, parameters in deployments.items()
        ],
        "router_settings": {"disable_cooldowns": True},  # a deployment that failed is asked again
        "general_settings": {"custom_auth": "auth.check", "custom_auth_run_common_checks": True},
        **sections,
    }
    (folder / "auth.py").write_text(AUTH, encoding="utf-8")
    path = folder / "config.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return path


@pytest.fixture(scope="session")
def proxy(tmp_path_factory: pytest.TempPathFactory, model_server: Upstream) -> Iterator[Proxy]:
    """Two workers without a store, LiteLLM's Prometheus and its response cache on."""
    folder = tmp_path_factory.mktemp("proxy")
    settings = {"callbacks": ["prometheus"], "cache": True, "cache_params": {"type": "local"}}
    config = write_config(folder, model_server, litellm_settings=settings)
    running = Proxy(
        ["--config", str(config), "--workers", "2", "--host", "127.0.0.1"], folder, {"LITELLM_MASTER_KEY": MASTER}
    )
    yield running
    running.stop()


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int | None]:
    """The port of a Redis server; None where there is none."""
    with redis_server(tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture(scope="session")
def start_proxy(model_server: Upstream) -> Callable[..., Proxy]:
    """Starts a proxy of one worker in a folder, with more variables and more sections of its config."""

    def start(folder: Path, environment: dict[str, str], *options: str, **sections: Any) -> Proxy:
        config = write_config(folder, model_server, **sections)
        arguments = ["--config", str(config), "--host", "127.0.0.1", *options]
        return Proxy(arguments, folder, {"LITELLM_MASTER_KEY": MASTER, **environment})

    return start


@pytest.fixture(scope="session")
def run_proxy() -> type[Proxy]:
    """Runs `krunch proxy` with arguments, a folder for what it leaves, and variables."""
    return Proxy


WATCHER = """
import json
from pathlib import Path

from litellm.integrations.custom_guardrail import CustomGuardrail

SEEN = Path(__file__).with_name("seen")


def note(kind, value):
    with SEEN.open("a", encoding="utf-8") as file:
        file.write(json.dumps([kind, value]) + "\\n")


class Watcher(CustomGuardrail):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        note("request", data["messages"])
        return data

    async def async_post_call_success_hook(self, data, user_api_key_dict, response):
        note("reply", response.choices[0].message.content)
        return response

    async def async_post_call_streaming_iterator_hook(self, user_api_key_dict, response, request_data):
        text = ""
        async for chunk in response:
            text += chunk.choices[0].delta.content or ""
            yield chunk
        note("reply", text)
"""
KRUNCH = "krunch_litellm.guardrail.KrunchGuardrail"


@pytest.fixture(scope="session")
def guarded(
    tmp_path_factory: pytest.TempPathFactory,
    model_server: Upstream,
    redis: int | None,
    start_proxy: Callable[..., Proxy],
) -> Iterator[Proxy]:
    """One worker with a store: Krunch as two guardrails around one that watches, cache in Redis, spans are printed."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "watcher.py").write_text(WATCHER, encoding="utf-8")

    def guardrail(name: str, kind: str, mode: list[str]) -> dict[str, Any]:
        return {"guardrail_name": name, "litellm_params": {"guardrail": kind, "mode": mode}}

    cache: dict[str, Any] = (
        {"type": "local"} if redis is None else {"type": "redis", "host": "127.0.0.1", "port": redis}
    )
    running = start_proxy(
        folder,
        {
            "OTEL_EXPORTER": "console",
            "KRUNCH_HOME": str(folder / "home"),
            "KRUNCH_CONTEXT_WINDOW": "2000",
            "KRUNCH_CONTEXT_RECALL": "0.5",
        },
        guardrails=[
            guardrail("krunch-expand", KRUNCH, ["post_call"]),
            guardrail("watcher", "watcher.Watcher", ["pre_call", "post_call"]),
            guardrail("krunch-compress", KRUNCH, ["pre_call"]),
        ],
        litellm_settings={"callbacks": ["otel"], "cache": True, "cache_params": cache},
    )
    yield running
    running.stop()
