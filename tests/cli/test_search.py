"""`krunch search`, run for real."""

from __future__ import annotations

from typing import TYPE_CHECKING

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Krunch = Callable[..., subprocess.CompletedProcess[str]]


def test_turns_are_found_with_who_found_them(krunch: Krunch, tmp_path: Path) -> None:
    """It prints session, number, role, finder and text; `--session`, `--tenant` and `-k` narrow it."""
    with ConversationStore(tmp_path / "home") as store:
        store.append("birds", [{"role": "user", "content": "the grey heron\x1b[31m stands in the reeds"}])
        store.append("trees", [{"role": "assistant", "content": "herons nest in trees " + "x" * 300}])
        store.append("birds", [{"role": "user", "content": "their heron"}], tenant="acme")
    home = {"KRUNCH_HOME": str(tmp_path / "home"), "KRUNCH_RECALL_VOICES": "words"}
    found = krunch("search", "heron", **home)

    assert found.returncode == 0, found.stderr
    for word in ("birds", "trees", "words 1", "words 2", "user", "assistant", "grey heron", "…"):
        assert word in found.stdout
    assert "\x1b" not in found.stdout
    assert "their" not in found.stdout
    assert "trees" not in krunch("search", "heron", "--session", "birds", **home).stdout
    assert "their heron" in krunch("search", "heron", "--tenant", "acme", **home).stdout
    assert ("birds" in (one := krunch("search", "heron", "-k", "1", **home).stdout)) != ("assistant" in one)


def test_nothing_found_is_said(krunch: Krunch, tmp_path: Path) -> None:
    """The exit code is 1, and standard output stays empty."""
    done = krunch("search", "walrus", KRUNCH_HOME=str(tmp_path / "home"))

    assert done.returncode == 1
    assert "nothing was found" in done.stderr
    assert done.stdout == ""
