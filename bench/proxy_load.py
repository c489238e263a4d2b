"""Load on LiteLLM's proxy with and without Krunch, in one run: exact replies, throughput, added latency, memory.

Both proxies run at once, each with its own workers, and take turns under load, so that whatever else the machine does
hits both. Conversations grow turn by turn, from 1,000 tokens to 3,000; sessions are interleaved, and no session of a
measurement was seen before it; half of the replies are streamed. Each client has a connection of its own; they are
spread evenly over the workers, because else chance decides which proxy is the faster one. The model is a local server
that answers in the symbols it was told. Loopback only, Linux; it stops by itself.

Throughput is measured with many clients and a model that answers at once, so that all cores are busy. Latency is
measured with few clients and a model that takes its time, so that they are not: what is added there is what Krunch
does, and not the queue for a core. The queue is measured too (`busy`), for what it is worth, and has no bound.

    .venv/bin/python bench/proxy_load.py                      5,000 requests through each, 64 clients, two workers
    .venv/bin/python bench/proxy_load.py --requests 600       a quick look
    .venv/bin/python bench/proxy_load.py --piece 4            streams of single tokens
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import count, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
from proxy_load_model import MODEL, PIECE, PONDERING, TURNS, Turn, conversations, serve
from proxy_load_proxies import MASTER, PROGRAMS, Proxy, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    Session = tuple[int, list[Turn]]

BLOCKS, FEW = 10, 4
THROUGHPUT, P50, P99, FIRST, GROWTH = 0.9, 2.0, 15.0, 1.0, 0.02
"""The bounds: of the throughput without Krunch; ms of latency added; ms to the first byte added; share of memory."""


@dataclass(slots=True)
class Figures:
    """What was measured of one proxy under one kind of load.

    Attributes:
        seconds: wall time of each block.
        cpu: seconds of CPU of all its processes, of each block.
        done: requests of each block.
        wrong: replies that were not, to the character, what they had to be, and failed requests.
        latencies: seconds of each request, by whether it was streamed.
        first: seconds to the first byte of each stream.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    wrong: int = 0
    latencies: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    first: list[float] = field(default_factory=list)

    def quantile(self, percent: int, *, streamed: bool) -> float:
        """Milliseconds that so many percent of the requests took at most."""
        return 1e3 * statistics.quantiles(self.latencies[streamed], n=100)[percent - 1]


@dataclass(slots=True)
class Measured:
    """All that was measured of one proxy.

    Attributes:
        full: with many clients and a model that answers at once.
        few: with few clients and a model that takes its time.
        busy: with few clients and a model that answers at once.
        resident: MB of all its processes, after the warm-up and after `full`.
        wrong: replies of the warm-up that were wrong.
    """

    full: Figures = field(default_factory=Figures)
    few: Figures = field(default_factory=Figures)
    busy: Figures = field(default_factory=Figures)
    resident: list[float] = field(default_factory=list)
    wrong: int = 0


class Result(NamedTuple):
    """One figure that has a bound."""

    name: str
    value: float
    relation: str
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the bound is kept."""
        return self.value >= self.bound if self.relation == ">=" else self.value <= self.bound


async def ask(
    client: httpx.AsyncClient, model: str, session: int, turn: Turn, *, streamed: bool
) -> tuple[str, float, float]:
    """The reply's text, seconds to its first byte and to its end; the text is what went wrong if anything did."""
    body = {"model": model, "messages": turn.messages, "stream": streamed}
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


async def load(
    proxy: Proxy, sessions: Sequence[Session], clients: Sequence[httpx.AsyncClient], figures: Figures, model: str
) -> None:
    """Play sessions through a proxy: each client has some of them and goes round, one turn of each at a time."""

    async def play(client: httpx.AsyncClient, own: Sequence[Session]) -> None:
        for number in range(TURNS):
            for session, turns in own:
                turn, streamed = turns[number], (number + session) % 2 == 0
                text, first, seconds = await ask(client, model, session, turn, streamed=streamed)
                figures.wrong += text != (turn.expanded if proxy.name == "krunch" else turn.plain)
                figures.latencies[streamed].append(seconds)
                if streamed:
                    figures.first.append(first)

    start, cpu = time.perf_counter(), proxy.cpu()
    await asyncio.gather(*(play(client, sessions[at :: len(clients)]) for at, client in enumerate(clients)))
    figures.seconds.append(time.perf_counter() - start)
    figures.cpu.append(proxy.cpu() - cpu)
    figures.done.append(len(sessions) * TURNS)


async def measure(proxies: Mapping[str, Proxy], arguments: argparse.Namespace) -> dict[str, Measured]:
    """Load both proxies in turns."""
    result = {name: Measured() for name in proxies}
    new = _sessions()
    clients = {name: await _connect(proxy, arguments.clients, arguments.workers) for name, proxy in proxies.items()}
    warm = list(islice(new, max(arguments.requests // TURNS, 2 * arguments.clients)))
    for name, proxy in proxies.items():  # not measured: connections, tokenizers and caches come to be
        await load(proxy, warm, clients[name], warming := Figures(), MODEL)
        await load(proxy, warm[:FEW], clients[name][:FEW], warming, PONDERING)
        result[name].wrong = warming.wrong
        result[name].resident.append(proxy.resident())
        print(f"warmed up: {name}", flush=True)

    async def take_turns(kind: str, model: str, requests: int, many: int) -> None:
        for block in range(BLOCKS):
            part = list(islice(new, max(requests // TURNS // BLOCKS, many if many == FEW else 1)))
            for name in sorted(proxies, reverse=block % 2 == 0):
                await load(proxies[name], part, clients[name][:many], getattr(result[name], kind), model)

    await take_turns("full", MODEL, arguments.requests, arguments.clients)
    for name, proxy in proxies.items():
        result[name].resident.append(proxy.resident())
    await take_turns("few", PONDERING, arguments.timed, FEW)
    await take_turns("busy", MODEL, arguments.timed, FEW)
    for own in clients.values():
        for client in own:
            await client.aclose()
    return result


def _sessions() -> Iterator[Session]:
    """Sessions without end, each another one."""
    for seed in count():
        yield from enumerate(conversations(100, seed), 100 * seed)


async def _connect(proxy: Proxy, many: int, workers: int) -> list[httpx.AsyncClient]:
    """Clients, each with a connection that stays open: to the workers in turns."""
    by_worker: dict[int, list[httpx.AsyncClient]] = {}
    while sum(map(len, by_worker.values())) < many:
        before = proxy.connections()
        client = _client(proxy)
        await client.get("/health/liveliness")
        found = [process for process, count in proxy.connections().items() if count > before.get(process, 0)]
        own = by_worker.setdefault(found[0], []) if found else None
        if own is not None and len(own) < -(-many // workers):
            own.append(client)
        else:
            await client.aclose()
            await asyncio.sleep(0.05)
    return [client for row in zip_longest(*by_worker.values()) for client in row if client is not None]


def _client(proxy: Proxy) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=600)
    headers = {"authorization": f"Bearer {MASTER}"}
    return httpx.AsyncClient(base_url=proxy.url, headers=headers, limits=limits, timeout=120, verify=False)  # noqa: S501 - loopback, without TLS


def results(plain: Measured, ours: Measured) -> list[Result]:
    """What has a bound. Ratios are medians over the blocks, of which each pair ran one right after the other."""
    before, after = plain.few, ours.few
    growth = [one.resident[-1] / one.resident[0] - 1 for one in (plain, ours)]
    return [
        Result("wrong replies",
               sum(one.wrong + one.full.wrong + one.few.wrong + one.busy.wrong for one in (plain, ours)), "<=", 0),
        Result("throughput, of that without Krunch",
               statistics.median(_ratios(plain.full.seconds, ours.full.seconds)), ">=", THROUGHPUT),
        *(Result(f"p{percent} added, {'streamed' if streamed else 'whole'}, ms",
                 after.quantile(percent, streamed=streamed) - before.quantile(percent, streamed=streamed), "<=", bound)
          for percent, bound in ((50, P50), (99, P99)) for streamed in (False, True)),
        Result("first byte added, p50, ms", 1e3 * (statistics.median(after.first) - statistics.median(before.first)),
               "<=", FIRST),
        Result("memory grown more than without Krunch", growth[1] - growth[0], "<=", GROWTH),
    ]  # fmt: skip


def _ratios(plain: Sequence[float], ours: Sequence[float]) -> list[float]:
    return [before / after for before, after in zip(plain, ours, strict=True)]


def report(measured: Mapping[str, Measured], loads: Sequence[float]) -> bool:
    """Print the figures; say whether all bounds are kept."""
    titles = ("requests/s", "CPU ms each", "whole p50", "p99", "streamed p50", "p99", "first p50", "MB before", "after")
    for kind in ("full", "few", "busy"):
        print(f"\n{kind:8}" + "".join(f"{title:>13}" for title in titles))
        for name, one in measured.items():
            of: Figures = getattr(one, kind)
            figures = [sum(of.done) / sum(of.seconds), 1e3 * sum(of.cpu) / sum(of.done)]
            figures += [of.quantile(percent, streamed=streamed) for streamed in (False, True) for percent in (50, 99)]
            figures += [1e3 * statistics.median(of.first), *(one.resident if kind == "full" else ())]
            print(f"{name:8}" + "".join(f"{figure:13.1f}" for figure in figures))
    plain, ours = measured["plain"], measured["krunch"]
    by_cpu = statistics.median(_ratios(plain.full.cpu, ours.full.cpu))
    print(f"\nthroughput by the proxies' CPU alone: {by_cpu:.2f}; load of the machine: {loads[0]:.1f} before, "
          f"{loads[1]:.1f} after\n")  # fmt: skip
    found = results(plain, ours)
    for result in found:
        kept = "kept" if result.holds else "MISSED"
        print(f"{result.name:38}{result.value:8.2f}  {result.relation} {result.bound:<6g}{kept}")
    return all(result.holds for result in found)


def main() -> None:
    """Run the benchmark; exit code 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=5_000, help="through each proxy, twice: to warm up, measured")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timed", type=int, default=1_200, help="requests at 4 clients, for the latency")
    parser.add_argument("--piece", type=int, default=PIECE, help="characters of a chunk; one token has about 4")
    parser.add_argument("--serve-model", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_model:
        asyncio.run(serve(arguments.serve_model, arguments.piece))
    loads = [os.getloadavg()[0]]
    port = free_port()
    model = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, __file__, "--serve-model", str(port), "--piece", str(arguments.piece)]
    )
    proxies: dict[str, Proxy] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in PROGRAMS:
                proxies[name] = Proxy(name, Path(folder) / name, port, arguments.workers)
            for proxy in proxies.values():
                proxy.wait()
            measured = asyncio.run(measure(proxies, arguments))
        finally:
            for proxy in proxies.values():
                proxy.stop()
            model.kill()
    sys.exit(not report(measured, [*loads, os.getloadavg()[0]]))


if __name__ == "__main__":
    main()
