"""Which threads of Krunch's own have begun."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

LASTING = "krunch-abandoned"
"""One for each process, which lasts as long as the process does."""


def begun_since(before: Collection[threading.Thread]) -> list[threading.Thread]:
    """Krunch's threads that run now and were not among those before, but for the one that lasts."""
    begun = [thread for thread in threading.enumerate() if thread not in before]
    return [thread for thread in begun if thread.name.startswith("krunch-") and thread.name != LASTING]
