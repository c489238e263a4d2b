"""`krunch proxy`: from the environment alone, and with several workers over one store."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Any

import httpx

from krunch_plugins import ConversationStore, restore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from krunch_plugins.upstream import Upstream
    from tests.litellm.ops.conftest import Proxy

STORY = "; ".join(f"Ed{n} says the lighthouse of the northern harbour was closed by the storm" for n in range(12))
QUESTION = [{"role": "user", "content": STORY}]


def test_keys_in_the_environment_are_config_enough(
    tmp_path: Path, run_proxy: type[Proxy], model_server: Upstream
) -> None:
    """Without a config and a master key: a key is made and printed, and the provider's models are served, smaller."""
    running = run_proxy([], tmp_path, {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": model_server.url})
    try:
        found = re.search("the key of this run is (sk-[0-9a-f]+)", running.log.read_text(encoding="utf-8"))
        assert found is not None
        served = running.chat(found[1], messages=QUESTION)
        refused = running.chat("sk-another", messages=QUESTION)
    finally:
        running.stop()

    assert (served.status_code, served.headers["x-krunch-reason"]) == (200, "compressed")
    assert restore(model_server.requests[-1]["messages"]) == QUESTION
    assert refused.status_code in {400, 401}


def test_workers_that_know_nothing_send_the_same_bytes_and_forget_for_all(
    tmp_path: Path, start_proxy: Callable[..., Proxy], model_server: Upstream
) -> None:
    """What was sent once is sent again by workers that were not there; who forgets a session forgets its history."""
    home = tmp_path / "home"
    later: list[dict[str, Any]] = [
        *QUESTION,
        {"role": "assistant", "content": "It is closed."},
        {"role": "user", "content": f"Once more, please: {STORY}"},
    ]
    running = start_proxy(tmp_path, {"KRUNCH_HOME": str(home)}, "--workers", "2")
    try:
        running.text(session="same", messages=later)
        first = model_server.requests[-1]["messages"]
        old = set(running.children())
        for worker in old:
            os.kill(worker, signal.SIGKILL)
        running.eventually(lambda: bool(old & set(running.children())), expected=False)
        again = _asked_again(running, later, model_server)
        with running.client() as client:
            forgotten = client.delete("/v1/compression/sessions/same").raise_for_status().json()
            missing = client.get("/v1/compression/sessions/same").status_code
    finally:
        running.stop()

    assert first == again != later
    assert (forgotten["message"], forgotten["history_removed"], missing) == ("Session forgotten", True, 404)
    with ConversationStore(home) as store:
        assert [store.info("same", tenant) for tenant in store.tenants()] == [None] * len(list(store.tenants()))


def _asked_again(running: Proxy, messages: list[dict[str, Any]], model_server: Upstream) -> Any:
    """What the model is sent by the workers that come next, however long they take to start."""
    for _ in range(60):
        try:
            running.text(session="same", messages=messages)
            return model_server.requests[-1]["messages"]
        except httpx.TransportError:
            pass
    raise TimeoutError("no new workers came")
