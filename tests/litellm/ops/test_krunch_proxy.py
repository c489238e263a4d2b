"""`krunch proxy` from the environment alone, and with a Krunch of the operator's own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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


OWN = """
from krunch_litellm.proxy import KrunchProxy

from krunch_plugins import Krunch, Settings

krunch = KrunchProxy(Krunch(Settings(home={home!r}, min_tokens=7)))
"""


def test_a_krunch_of_ones_own_serves_alone(
    tmp_path: Path, start_proxy: Callable[..., Proxy], model_server: Upstream
) -> None:
    """Requests are compressed and counted once, and the routes tell of, reset and forget what it has."""
    home = tmp_path / "own home"
    (tmp_path / "mine.py").write_text(OWN.format(home=str(home)), encoding="utf-8")
    running = start_proxy(tmp_path, {}, litellm_settings={"callbacks": ["mine.krunch"]})
    try:
        for number, stream in enumerate((False, True), 1):
            asked = [*QUESTION, {"role": "user", "content": f"Once more, {number}: {STORY}"}]
            reply = running.text(session="s", messages=asked, stream=stream)
            assert "\u00a4" not in reply
            sent = model_server.requests[-1]["messages"]
            assert restore(sent) == asked != sent
        running.eventually(lambda: running.stats()["krunch"]["totals"]["replies"], 2)
        totals = running.stats()["krunch"]["totals"]
        with running.client() as client:
            shown = client.get("/v1/compression/sessions/s").raise_for_status().json()
            client.post("/v1/compression/reset").raise_for_status()
            with ConversationStore(home) as store:
                recorded = [store.info("s", tenant) for tenant in store.tenants()]
            forgotten = client.delete("/v1/compression/sessions/s").raise_for_status().json()
    finally:
        running.stop()

    assert (totals["requests"], totals["replies"]) == (2, 2)
    assert (shown["recorded"], shown["turns"]) == (True, recorded[0].turns if recorded[0] else 0)
    assert forgotten["history_removed"]
    with ConversationStore(home) as store:
        assert [store.info("s", tenant) for tenant in store.tenants()] in ([], [None])
