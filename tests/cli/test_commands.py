from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from krunch_plugins import Krunch as KrunchObject
from krunch_plugins import Settings, __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins.conversations import Conversation

    from .conftest import Krunch

COMMANDS = (
    *("demo", "replay", "show", "restore", "init", "plugins"),
    *("sessions", "history", "check", "export", "import", "forget"),
)


@pytest.mark.smoke
def test_version_is_the_package_version(installed: Krunch) -> None:
    """The command and the package are of one version."""
    assert installed("--version").stdout == f"krunch {__version__}\n"


def test_help_names_every_command(installed: Krunch) -> None:
    """`krunch --help` is where people find out what there is."""
    done = installed("--help")

    assert done.returncode == 0
    assert all(f" {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(krunch: Krunch, command: str) -> None:
    """Every command has a help text of its own."""
    done = krunch(command, "--help")

    assert done.returncode == 0, done.stderr
    assert f"krunch {command}" in done.stdout


def test_the_page_about_the_command_line_is_complete(krunch: Krunch) -> None:
    """Every command has a section, and every option is named in it or in the one it refers to."""
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")

    for command in COMMANDS:
        assert f"## krunch {command}" in page
        for option in set(re.findall(r"--[a-z]+", krunch(command, "--help").stdout)) - {"--help"}:
            assert f"`{option}" in page or f"{command} FILE {option}" in page, option


def test_importing_the_command_imports_nothing_slow() -> None:
    """`krunch --help` stays fast: LiteLLM, LangChain, matplotlib and tiktoken wait for the command that needs them."""
    code = (
        "import sys, krunch_plugins.cli; "
        "print([m for m in ('litellm', 'langchain_core', 'matplotlib', 'hnswlib', 'tiktoken') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_wrong_setting_is_an_error_in_one_line(krunch: Krunch, write_lines: Callable[..., Path]) -> None:
    """Krunch's own errors reach the user as a sentence and exit code 2, not as a traceback."""
    path = write_lines([{"role": "user", "content": "hello"}])

    done = krunch("replay", path, KRUNCH_PROFILE="huge")

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "KRUNCH_PROFILE" in done.stderr
    assert "'huge'" in done.stderr


def test_plugins_lists_krunchs_own_parts(krunch: Krunch) -> None:
    """Krunch's own parts are plugins like any other, and are listed as such."""
    done = krunch("plugins")

    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "compression" in line)
    assert "pre_request" in line
    assert "Krunch" in line


def test_restore_prints_what_the_requests_stand_for(
    installed: Krunch, write_lines: Callable[..., Path], recorded: list[Conversation]
) -> None:
    """Requests as sent become the original messages again, one request a line, from nothing but the file."""
    with KrunchObject(Settings()) as compressor:
        sent = [compressor.prepare(one.messages, model="gpt-4o").messages for one in recorded]
    path = write_lines({"messages": sent[0], "model": "gpt-4o"}, *sent[1:])

    done = installed("restore", path)

    assert sent[2] != recorded[2].messages
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [one.messages for one in recorded]


def test_restore_skips_and_reports_what_is_no_request(krunch: Krunch, write_lines: Callable[..., Path]) -> None:
    """A line that is no request is named by its number, and the others are still restored."""
    path = write_lines("{", [{"role": "user", "content": "hello"}])

    done = krunch("restore", path)

    assert done.returncode == 1
    assert f"{path}:1: not JSON" in done.stderr
    assert json.loads(done.stdout) == [{"role": "user", "content": "hello"}]
