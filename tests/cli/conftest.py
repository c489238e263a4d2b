"""Fixtures of the command line's tests."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from warm_command import WarmCommand

from krunch_plugins.conversations import Conversation, demo_conversations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Krunch = Callable[..., subprocess.CompletedProcess[str]]


def _environment(variables: dict[str, str]) -> dict[str, str]:
    """The variables of a command: none of the settings outside, a width, and the test's own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KRUNCH_")}
    return {**environment, "COLUMNS": "160", "PYTHONIOENCODING": "utf-8", **variables}


@pytest.fixture(scope="session")
def _warm() -> Iterator[WarmCommand]:
    with WarmCommand() as command:
        yield command


@pytest.fixture
def krunch(tmp_path: Path, _warm: WarmCommand) -> Krunch:
    """Runs a command line of `krunch` in an empty folder, without settings from outside."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return _warm.run([*map(str, arguments)], _environment(variables), tmp_path)

    return run


@pytest.fixture
def installed(tmp_path: Path) -> Krunch:
    """The same with the command as it is installed, which takes seconds to start."""
    command = Path(sysconfig.get_path("scripts")) / "krunch"

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=tmp_path,
            env=_environment(variables),
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def recorded() -> list[Conversation]:
    """The conversations that come with Krunch."""
    return demo_conversations()


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes a JSON Lines file: strings as they are, everything else as JSON."""

    def write(*lines: Any, name: str = "chats.jsonl") -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return path

    return write
