"""The order of the suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

FIRST = ("tests/test_examples", "tests/litellm/ops/", "tests/litellm/proxy/", "tests/litellm/", "tests/cli/")
"""What starts proxies and other processes, the slowest in front."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files that take long begin first: the short ones then fill the workers up to the end of the run.

    Workers get whole files, in this order; left to itself pytest-xdist gives out those with many tests first.
    """

    def place(item: pytest.Item) -> int:
        return next((at for at, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST))

    items.sort(key=place)
