"""The `Krunch` of everyone who brings none."""

from __future__ import annotations

import threading

from krunch_plugins.krunch import Krunch

_default: Krunch | None = None
_default_lock = threading.Lock()


def default_krunch() -> Krunch:
    """The `Krunch` of everyone who brings none: one a process, made at first use, with settings from `KRUNCH_*`."""
    global _default  # noqa: PLW0603 - one a process is the point
    with _default_lock:
        if _default is None:
            _default = Krunch()
        return _default
