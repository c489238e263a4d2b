"""Load on LiteLLM's proxy with and without Krunch, in one run: exact replies, throughput, added latency, memory.

Both proxies run at once, each with its own workers, and take turns under load, so that whatever else the machine does
hits both. Conversations grow turn by turn, sessions are interleaved, half of the replies are streamed. The model is a
local server that answers in the symbols it was told. Loopback only; it stops by itself.

    .venv/bin/python bench/proxy_load.py                      5,000 requests through each, 64 clients, two workers
    .venv/bin/python bench/proxy_load.py --requests 400       a quick look
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MASTER = "sk-0123456789abcdef-load"
MODEL = "gpt-4o"
PROGRAMS = {
    "plain": "from litellm.proxy.proxy_cli import run_server; run_server()",
    "krunch": "from krunch_plugins.cli import main; main()",
}
"""The two proxies that are compared: as LiteLLM starts it, and as `krunch proxy` does."""
BLOCKS, FEW = 10, 4
TURNS = 10
SYMBOL = re.compile(r"¤[0-9]+")
QUESTION = re.compile(r"Question ([0-9]+-[0-9]+)\.")
FILLER = "All workers have been told and will report again within the hour, unless somebody stops them. "


@dataclass(slots=True)
class Turn:
    """One request of a session, and the reply that its client must get."""

    messages: list[dict[str, Any]]
    plain: str
    expanded: str


@dataclass(slots=True)
class Figures:
    """What was measured of one proxy.

    Attributes:
        seconds: wall time under full load.
        done: requests in that time.
        wrong: replies that were not, to the character, what they had to be, and failed requests.
        latencies: seconds of each request at few clients.
        first: seconds to the first byte of each stream at few clients.
        resident: MB of all its processes, after the warm-up and at the end.
        cpu: seconds of CPU of all its processes under full load.
    """

    seconds: float = 0.0
    done: int = 0
    wrong: int = 0
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    cpu: float = 0.0

    def add(self, other: Figures) -> None:
        """Add what was measured in another block."""
        self.seconds += other.seconds
        self.cpu += other.cpu
        self.done += other.done
        self.wrong += other.wrong


def reply(text: str) -> str:
    """What the model says to a request: every symbol in it, and some more; never twice the same."""
    asked = str(QUESTION.findall(text)[-1])
    symbols = ", ".join(dict.fromkeys(SYMBOL.findall(text)))
    return f"To {asked}: {symbols}. " + FILLER * 3 + asked


def conversations(count: int, seed: int) -> Iterator[list[Turn]]:
    """Sessions of requests that begin at about 1,500 tokens and grow to about 2,500."""
    rng = random.Random(seed)
    words = [
        f"{a}{b}" for a in ("ware", "bill", "pay", "stock", "ship") for b in ("house", "ing", "ment", "room", "ping")
    ]
    with Krunch(Settings()) as krunch:
        for number in range(count):
            paths = [f"/srv/{'/'.join(rng.sample(words, 4))}/{rng.randrange(1000)}.py" for _ in range(6)]
            lines = [
                f"{rng.randrange(24):02}:{rng.randrange(60):02} {rng.choice(words)} could not reach {rng.choice(paths)}"
                for _ in range(66)
            ]
            messages = [{"role": "system", "content": "You are a careful operator.\n" + "\n".join(lines)}]
            turns = []
            for turn in range(TURNS):
                asked = f"Question {number}-{turn}. What about {rng.choice(paths)} and {rng.choice(words)}?"
                messages = [*messages, {"role": "user", "content": asked}]
                exchange = krunch.prepare(messages, model=MODEL, session=str(number))
                said = reply("\n".join(message["content"] for message in exchange.messages))
                expanded = exchange.finish({"role": "assistant", "content": said})["content"]
                plain = reply("\n".join(message["content"] for message in messages))
                turns.append(Turn(messages, plain, expanded))
                messages = [*messages, {"role": "assistant", "content": expanded}]
            yield turns


async def serve_model(port: int) -> None:
    """The model, OpenAI's protocol, plain and streamed; as little work as possible."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"content-length: (\d+)", head)
                if length is None:  # LiteLLM asks which models there are
                    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                    continue
                body = json.loads(await reader.readexactly(int(length[1])))
                said = reply("\n".join(message["content"] for message in body["messages"]))
                number += 1
                writer.write(_events(said, number) if body.get("stream") else _whole(said, number))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


def _whole(said: str, number: int) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 2000, "completion_tokens": 100, "total_tokens": 2100}
    data = json.dumps({**_envelope(number, "chat.completion"), "choices": [choice], "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


def _events(said: str, number: int) -> bytes:
    envelope = _envelope(number, "chat.completion.chunk")
    pieces = [said[start : start + 24] for start in range(0, len(said), 24)]
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in pieces]
    deltas.append(({}, "stop"))
    events = [
        json.dumps({**envelope, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        for delta, reason in deltas
    ]
    data = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


def _envelope(number: int, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": kind, "created": 1_700_000_000, "model": MODEL}


class Proxy:
    """A proxy in processes of its own."""

    def __init__(self, name: str, folder: Path, model_port: int, workers: str) -> None:
        self.name = name
        command = [sys.executable, "-c", PROGRAMS[name], *(["proxy"] if name == "krunch" else [])]
        port = free_port()
        config = {
            "model_list": [
                {
                    "model_name": MODEL,
                    "litellm_params": {
                        "model": f"openai/{MODEL}",
                        "api_base": f"http://127.0.0.1:{model_port}/v1",
                        "api_key": "none",
                    },
                }
            ],
            "litellm_settings": {"num_retries": 0},
        }
        folder.mkdir()
        (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        self.url = f"http://127.0.0.1:{port}"
        arguments = [
            "--config",
            str(folder / "config.yaml"),
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
            "--num_workers",
        ]
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            [*command, *arguments, workers],
            env={
                **os.environ,
                "LITELLM_MASTER_KEY": MASTER,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_LOG": "ERROR",
            },
            stdout=(folder / "log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health/liveliness", timeout=5).status_code == 200:  # noqa: PLR2004 - HTTP's OK
                    return
            time.sleep(0.3)
        raise SystemExit("a proxy did not start")

    def stop(self) -> None:
        """End it and its workers."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def resident(self) -> float:
        """MB of RAM of all its processes."""
        pages = [int(Path(f"/proc/{one}/statm").read_text(encoding="ascii").split()[1]) for one in self._processes()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu(self) -> float:
        """Seconds of CPU of all its processes."""
        ticks = 0
        for one in self._processes():
            values = Path(f"/proc/{one}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(values[11]) + int(values[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _processes(self) -> list[int]:
        found, todo = [], [self.process.pid]
        while todo:
            one = todo.pop()
            found.append(one)
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{one}/task/{one}/children").read_text(encoding="ascii")
                todo += map(int, children.split())
        return found


async def ask(client: httpx.AsyncClient, session: int, turn: Turn, *, streamed: bool) -> tuple[str, float, float]:
    """The reply's text, seconds to its first byte and to its end; the text is what went wrong if anything did."""
    body = {"model": MODEL, "messages": turn.messages, "stream": streamed}
    start = time.perf_counter()
    try:
        async with client.stream(
            "POST", "/v1/chat/completions", json=body, headers={"x-session-id": f"session-{session}"}
        ) as response:
            first, text = 0.0, []
            async for line in response.aiter_lines() if streamed else _one(response):
                first = first or time.perf_counter() - start
                text.append(_text(line, streamed=streamed))
            return "".join(text), first, time.perf_counter() - start
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return f"failed: {error!r}", 0.0, time.perf_counter() - start


async def _one(response: httpx.Response) -> AsyncIterator[str]:
    yield (await response.aread()).decode()


def _text(line: str, *, streamed: bool) -> str:
    if not streamed:
        return str(json.loads(line)["choices"][0]["message"]["content"])
    if not line.startswith("data: {"):
        return ""
    choices = json.loads(line[6:])["choices"]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def load(proxy: Proxy, sessions: list[tuple[int, list[Turn]]], clients: int) -> Figures:
    """Play sessions through a proxy: each client has some of them and goes round, one turn of each at a time."""
    figures = Figures()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    headers = {"authorization": f"Bearer {MASTER}"}
    async with httpx.AsyncClient(base_url=proxy.url, headers=headers, limits=limits, timeout=120) as client:

        async def play(own: list[tuple[int, list[Turn]]]) -> None:
            for number in range(TURNS):
                for session, turns in own:
                    turn, streamed = turns[number], (number + session) % 2 == 0
                    text, first, seconds = await ask(client, session, turn, streamed=streamed)
                    figures.wrong += text != (turn.expanded if proxy.name == "krunch" else turn.plain)
                    figures.done += 1
                    figures.latencies.append(seconds)
                    if streamed:
                        figures.first.append(first)

        start, cpu = time.perf_counter(), proxy.cpu()
        await asyncio.gather(*(play(sessions[client::clients]) for client in range(clients)))
        figures.seconds, figures.cpu = time.perf_counter() - start, proxy.cpu() - cpu
    return figures


async def measure(proxies: dict[str, Proxy], arguments: argparse.Namespace) -> dict[str, Figures]:
    """Load both proxies in turns."""
    result = {name: Figures() for name in proxies}
    sessions = list(enumerate(conversations(max(arguments.requests // TURNS, 1), seed=7)))
    few = [(10_000_000 + number, turns) for number, turns in enumerate(conversations(arguments.timed // TURNS, seed=8))]
    for name, proxy in proxies.items():  # not measured: connections, tokenizers and caches come to be
        await load(proxy, sessions, arguments.clients)
        result[name].resident.append(proxy.resident())
        print(f"warmed up: {name}", flush=True)
    for part in _parts(sessions):
        for name in sorted(proxies, reverse=part[0][0] % 2 == 0):
            result[name].add(await load(proxies[name], part, arguments.clients))
    for name, proxy in proxies.items():
        result[name].resident.append(proxy.resident())
        result[name].latencies, result[name].first = [], []  # those of many clients are their own queue
    for part in _parts(few):
        for name in sorted(proxies, reverse=part[0][0] % 2 == 0):
            measured = await load(proxies[name], part, FEW)
            result[name].latencies += measured.latencies
            result[name].first += measured.first
            result[name].wrong += measured.wrong
    return result


def _parts(sessions: list[tuple[int, list[Turn]]]) -> Iterator[list[tuple[int, list[Turn]]]]:
    step = -(-len(sessions) // BLOCKS)
    yield from (sessions[start : start + step] for start in range(0, len(sessions), step))


def report(result: dict[str, Figures]) -> None:
    """Print the figures."""
    titles = ("wrong", "requests/s", "CPU ms each", "p50 ms", "p99 ms", "first p50", "MB before", "after")
    print(f"{'':8}" + "".join(f"{title:>13}" for title in titles))
    for name, one in result.items():
        quantiles = statistics.quantiles(one.latencies, n=100)
        figures = (
            f"{one.wrong}",
            f"{one.done / one.seconds:.1f}",
            f"{1e3 * one.cpu / one.done:.2f}",
            f"{1e3 * quantiles[49]:.1f}",
            f"{1e3 * quantiles[98]:.1f}",
            f"{1e3 * statistics.median(one.first):.1f}",
            *(f"{one:.0f}" for one in one.resident),
        )
        print(f"{name:8}" + "".join(f"{figure:>13}" for figure in figures))
    plain, ours = result["plain"], result["krunch"]
    before, after = (statistics.quantiles(one.latencies, n=100) for one in (plain, ours))
    print(
        f"throughput with Krunch: {plain.seconds / plain.done / (ours.seconds / ours.done):.2f} of without; "
        f"by CPU {plain.cpu / plain.done / (ours.cpu / ours.done):.2f}"
    )
    added = [1e3 * (after[at] - before[at]) for at in (49, 98)]
    print(f"added latency at {FEW} clients: p50 {added[0]:.1f} ms, p99 {added[1]:.1f} ms")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main() -> None:
    """Run the benchmark; exit code 1 if a reply was not exact."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=5_000, help="through each proxy, twice: to warm up, measured")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timed", type=int, default=600, help="requests at 4 clients, for the latency")
    parser.add_argument("--serve-model", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_model:
        asyncio.run(serve_model(arguments.serve_model))
    port = free_port()
    model = subprocess.Popen([sys.executable, __file__, "--serve-model", str(port)])  # noqa: S603 - as above
    proxies: dict[str, Proxy] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in PROGRAMS:
                proxies[name] = Proxy(name, Path(folder) / name, port, str(arguments.workers))
            for proxy in proxies.values():
                proxy.wait()
            result = asyncio.run(measure(proxies, arguments))
        finally:
            for proxy in proxies.values():
                proxy.stop()
            model.kill()
    report(result)
    sys.exit(any(one.wrong for one in result.values()))


if __name__ == "__main__":
    main()
