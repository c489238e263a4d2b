"""`krunch topics`, run for real."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Krunch = Callable[..., subprocess.CompletedProcess[str]]

PAIRS = ["heron reeds river", "invoice ledger payment", "kubernetes cluster restart"]


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A store with a session about three things, and one of a tenant."""
    directory = tmp_path / "home"
    with ConversationStore(directory) as store:
        for n in range(60):
            store.append("talk", [{"role": "user", "content": f"{PAIRS[n // 20]} \x1b[31m {n}"}])
        store.append("theirs", [{"role": "user", "content": "violin"}], tenant="acme")
    return str(directory)


def test_the_map_names_what_a_session_is_about(krunch: Krunch, home: str) -> None:
    """The command draws a shaded map and lists the topics, the warmest first, with their turns; nothing steers."""
    done = krunch("topics", "talk", KRUNCH_HOME=home)

    assert done.returncode == 0, done.stderr
    assert re.search(r"A │ .*(kubernetes|cluster|restart)", done.stdout)
    assert "█" in done.stdout
    assert "59" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_map_is_drawn_as_a_picture(krunch: Krunch, home: str, tmp_path: Path) -> None:
    """With --plot a picture is written, in the format of its suffix; other suffixes are refused before the work."""
    done = krunch("topics", "theirs", "--tenant", "acme", "--plot", tmp_path / "map.png", KRUNCH_HOME=home)
    refused = krunch("topics", "theirs", "--tenant", "acme", "--plot", tmp_path / "map.txt", KRUNCH_HOME=home)

    assert (done.returncode, refused.returncode) == (0, 2), done.stderr
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_session_is_an_error(krunch: Krunch, home: str) -> None:
    """A session that is not there, or another tenant's, is named; the exit code is 2."""
    for arguments in (["theirs"], ["talk", "--tenant", "acme"]):
        done = krunch("topics", *arguments, KRUNCH_HOME=home)
        assert done.returncode == 2
        assert "there is no session" in done.stderr
