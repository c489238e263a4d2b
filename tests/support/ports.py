"""Ports for servers that are told where to listen."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, below those that the system gives to whoever asks for any."""
    while True:
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port := random.randrange(20_000, 32_000)))
            return port
