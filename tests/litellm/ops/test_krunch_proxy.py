"""`krunch proxy` from the environment alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from krunch_plugins import restore

if TYPE_CHECKING:
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
