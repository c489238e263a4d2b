"""The order of the suite, and which files share a process where it runs in several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

# A run says whether a change is good, and says the same again, on a busy machine too. bench/fuzz.py looks for what
# nobody has thought of.
settings.register_profile("krunch", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("krunch")

FIRST = (
    "tests/litellm/ops/",
    "tests/litellm/proxy/",
    "tests/test_examples",
    "tests/test_house",
    "tests/storage/test_faults",
    "tests/langchain/test_agents",
    "tests/compression/test_templates",
    "tests/compression/test_laws",
    "tests/cli/",
    "tests/langchain/",
)
"""What starts proxies and other processes, and other files that take long, the slowest in front."""

TOGETHER = {
    "a proxy for each protocol": [
        f"tests/litellm/proxy/test_{name}.py" for name in ("chat", "matrix", "messages", "proxy", "responses")
    ],
    "a proxy with two workers, and one with a store": [
        f"tests/litellm/ops/test_{name}.py"
        for name in ("faults", "guardrail", "mission", "operations", "tenants", "tools_elsewhere")
    ],
}
"""Files that need the same proxies, which take a while to start: the process that runs one of them runs all."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files that take long begin first: the short ones then fill the workers up to the end of the run.

    Workers get whole files, in this order; left to itself pytest-xdist gives out those with many tests first.
    """

    def place(item: pytest.Item) -> int:
        return next((at for at, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist need not be installed
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling | None:
    """Give out files, or those of `TOGETHER` in one piece, with `--dist loadfile`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    together = {file: name for name, files in TOGETHER.items() for file in files}

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return together.get(file, file)

    return Scheduling(config, log)
