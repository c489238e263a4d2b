"""Commands on the home of a program that has an embedder of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence
    from pathlib import Path


class Paid:
    """Counts the texts that it is given."""

    name, dimension = "paid", 8

    def __init__(self) -> None:
        self.texts = 0

    def embed(self, texts: Sequence[str]) -> Any:
        """Any vectors will do."""
        self.texts += len(texts)
        return np.array([[len(text), *map(ord, text[-7:].rjust(7))] for text in texts], dtype=np.float32)


def program(home: Path) -> int:
    """Texts that the program embeds when it is started."""
    embedder = Paid()
    with Krunch(Settings(home=home), embedder=embedder) as krunch:
        assert krunch.store is not None
        if krunch.store.info("a") is None:
            krunch.record([{"role": "user", "content": f"text number {n}"} for n in range(600)], session="a")
            krunch.record([{"role": "user", "content": "of no matter"}], session="b")
        assert krunch.flush()
    return embedder.texts


@pytest.mark.parametrize(
    "command",
    [
        ("search", "number 7", "-k", "1"),
        ("context", "a", "--mode", "smart", "--query", "number 7"),
        ("topics", "a"),
        ("forget", "b"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_costs_a_program_none_of_its_vectors(
    krunch: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, command: tuple[str, ...]
) -> None:
    """It works with words, says so where it searches, and embeds nothing; the program embeds nothing again."""
    home = tmp_path / "home"
    assert program(home) == 601
    done = krunch(*command, KRUNCH_HOME=str(home))

    assert done.returncode == 0, done.stderr
    assert ("'paid'" in done.stderr) == (command[0] in {"search", "context"})
    assert program(home) == 0


def test_vectors_of_the_built_in_embedder_are_searched(
    krunch: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Where there is no other embedder, the command finds by vectors too."""
    with Krunch(Settings(home=tmp_path / "home")) as krunched:
        krunched.record([{"role": "user", "content": "the heron stands in the reeds"}], session="a")
        krunched.flush()
    done = krunch("search", "heron", KRUNCH_HOME=str(tmp_path / "home"))

    assert "vectors 1" in done.stdout
    assert done.stderr == ""
