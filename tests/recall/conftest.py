from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def open_krunch(tmp_path: Path) -> Iterator[Callable[..., Krunch]]:
    """Opens Krunches on one home that search by words only, unless it is asked for more, and closes them in the end."""
    opened: list[Krunch] = []

    def make(**recall: Any) -> Krunch:
        recall = {"voices": ["words"], **recall}
        opened.append(Krunch(Settings(home=tmp_path / "home", recall=recall)))
        return opened[-1]

    yield make
    for krunch in opened:
        krunch.close()
