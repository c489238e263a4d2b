"""Several workers over one store, all of them killed in the middle of a stream, and those that come next."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from krunch_plugins import ConversationStore
from krunch_plugins.upstream import Answer
from tests.litellm.ops.conftest import MASTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from krunch_plugins.upstream import Upstream
    from tests.litellm.ops.conftest import Proxy

KEY = "sk-user-killed"
STORY = "; ".join(f"Ed{n} says the lighthouse of the northern harbour was closed by the storm" for n in range(12))
ONCE = " says the lighthouse of the northern harbour was closed by the storm"
"""What of the story becomes a symbol."""
TEXT = "The lighthouse is closed until the storm is over, as far as anybody knows by now."
LONG = TEXT * 3_000
LATER: list[dict[str, Any]] = [
    {"role": "user", "content": STORY},
    {"role": "assistant", "content": "It is closed."},
    {"role": "user", "content": f"Once more, please: {STORY}"},
]

NOTE = {"name": "note", "description": "Puts \u00a41 or \u00a42 in front of a note.", "parameters": {"type": "object"}}
"""A tool whose description holds what would be the first symbols: so others are taken."""


class Killed(NamedTuple):
    """What there was before the workers were killed.

    Attributes:
        proxy: it starts new ones by itself.
        home: where its store is.
        workers: the processes that were killed.
        sent: what the model got of `LATER`.
        heard: the text of the stream, up to where its connection broke.
    """

    proxy: Proxy
    home: Path
    workers: set[int]
    sent: list[dict[str, Any]]
    heard: str


@pytest.fixture(scope="module")
def killed(
    tmp_path_factory: pytest.TempPathFactory,
    start_proxy: Callable[..., Proxy],
    answers: dict[str, Any],
    model_server: Upstream,
) -> Iterator[Killed]:
    """Both workers of a proxy were killed while one of them sent a stream."""
    answers["Slowly?"], answers["And now?"] = Answer(LONG), Answer(TEXT)
    folder = tmp_path_factory.mktemp("killed")
    own = {"models": {"claude": {"profile": "dense"}}, "teams": {"ops": {"profile": "dense"}}}
    settings = {"krunch": own}
    home = {"KRUNCH_HOME": str(folder / "home")}
    running = start_proxy(folder, home, "--workers", "2", litellm_settings=settings)
    try:
        running.text(session="model", model="claude", messages=LATER)
        running.text(session="alias", model="quick", messages=LATER)
        running.text(KEY, session="team", messages=LATER)
        running.text(session="tools", tools=[{"type": "function", "function": NOTE}], messages=LATER)
        running.text(session="same", messages=LATER)
        sent = model_server.requests[-1]["messages"]
        running.eventually(lambda: running.stats()["krunch"]["totals"]["requests"], 5)
        body = {"model": "gpt-4o", "messages": _asking("Slowly?"), "stream": True}
        heard, workers = "", set(running.children())
        with running.client(KEY, x_session_id="killed") as client:
            for said in _until_it_breaks(client, body):
                if said and not heard:  # what comes before the first text says nothing about it
                    for worker in workers:
                        os.kill(worker, signal.SIGKILL)
                heard += said
        yield Killed(running, folder / "home", workers, sent, heard)
    finally:
        running.stop()


def _asking(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": STORY}, {"role": "user", "content": question}]


def _until_it_breaks(client: httpx.Client, body: dict[str, Any]) -> Iterator[str]:
    """The text of a stream, up to where its connection breaks; that it does is asserted."""
    lines = 0
    with pytest.raises(httpx.TransportError), client.stream("POST", "/v1/chat/completions", json=body) as response:  # noqa: PT012 - which line breaks is chance
        for lines, line in enumerate(response.iter_lines()):  # noqa: B007 - as far as it got
            yield _said(line)
    assert lines


def _said(line: str) -> str:
    """The text that a line of a stream brings."""
    try:
        data = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
    except ValueError:  # the line that the connection broke in
        return ""
    return str(data["choices"][0]["delta"].get("content") or "") if data.get("choices") else ""


def _served(proxy: Proxy, *key: str, **request: Any) -> str:
    """The reply of a proxy whose workers have to be started again first; on a busy machine that takes minutes."""
    deadline = time.monotonic() + 240
    while True:
        try:
            return proxy.text(*key, **request)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_the_client_sees_its_connection_break_and_new_workers_serve_the_session(killed: Killed) -> None:
    """What came of the stream is exact, as without Krunch, and so is all that the workers say that come next."""
    assert killed.heard
    assert LONG.startswith(killed.heard)
    for streamed in (True, False):
        assert _served(killed.proxy, KEY, session="killed", messages=_asking("And now?"), stream=streamed) == TEXT
    with killed.proxy.client(KEY) as client:
        shown = client.get("/v1/compression/sessions/killed").raise_for_status().json()
    assert shown["recorded"]


def _symbols(killed: Killed, session: str, key: str = MASTER) -> tuple[int, dict[str, str] | None]:
    """How many definitions a session's page counts, and the legend that it shows."""
    _served(killed.proxy, KEY, session="other", messages=_asking("And now?"))
    with killed.proxy.client(key) as client:
        page = client.get(f"/v1/compression/sessions/{session}").raise_for_status().json()
    return page["symbols"], page["legend"]


def test_a_legend_is_told_from_the_history_by_the_settings_of_then(killed: Killed) -> None:
    """Workers that come next find in the store what symbols meant, whoever has settings or a tokenizer of its own."""
    told = {name: _symbols(killed, name) for name in ("same", "alias", "model")}
    told["team"] = _symbols(killed, "team", KEY)

    assert told == {
        "same": (1, {"\u00a41": f"{ONCE};"}),
        "alias": (1, {"\u00a41": ONCE}),
        "model": (2, {"\u10d0": f"{ONCE};", "\u10d1": ONCE.removeprefix(" says")}),
        "team": (2, {"\u10d0": f"{ONCE};", "\u10d1": ONCE.removeprefix(" says")}),
    }
    assert "\u00a41" in str(killed.sent)


def test_no_legend_is_told_that_the_model_did_not_see(killed: Killed, model_server: Upstream) -> None:
    """A literal in a tool shifts all symbols, to the same figures: the history alone gives others than were sent."""
    sent = next(body["messages"] for body in model_server.requests if body.get("tools"))

    assert "\u00a43" in str(sent)
    assert _symbols(killed, "tools") == (1, None)


def test_workers_that_know_nothing_send_the_same_bytes_and_forget_for_all(
    killed: Killed, model_server: Upstream
) -> None:
    """What was sent once is sent again by workers that were not there; who forgets a session forgets its history."""
    killed.proxy.eventually(lambda: bool(killed.workers & set(killed.proxy.children())), expected=False)
    _served(killed.proxy, session="same", messages=LATER)
    again = model_server.requests[-1]["messages"]
    with killed.proxy.client() as client:
        forgotten = client.delete("/v1/compression/sessions/same").raise_for_status().json()
        missing = client.get("/v1/compression/sessions/same").status_code

    assert len(killed.workers) == 2
    assert killed.sent == again != LATER
    assert (forgotten["message"], forgotten["history_removed"], missing) == ("Session forgotten", True, 404)
    with ConversationStore(killed.home) as store:
        assert [store.info("same", tenant) for tenant in store.tenants()] == [None] * len(list(store.tenants()))
