"""`krunch context`, run for real."""

from __future__ import annotations

from typing import TYPE_CHECKING

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Krunch = Callable[..., subprocess.CompletedProcess[str]]


def test_a_context_is_printed(krunch: Krunch, tmp_path: Path) -> None:
    """Recent is the end of a session, smart quotes the old turn that matters; another tenant's session is unknown."""
    with ConversationStore(tmp_path / "home") as store:
        store.append("s", [{"role": "user", "content": "My violin teacher is Oskar Lindqvist."}], tenant="acme")
        for number in range(30):
            words = " ".join(f"thing{number}n{index}" for index in range(15))
            call = [{"id": "c", "type": "function", "function": {"name": f"sort{number}", "arguments": "{}"}}]
            turns = [{"role": "assistant", "content": None, "tool_calls": call}]
            turns += [{"role": "tool", "tool_call_id": "c", "content": f"Sorted {words}"}]
            store.append("s", [{"role": "user", "content": f"Sort {words}"}, *turns], tenant="acme")
    asked = ("context", "s", "--budget", "500", "--tenant", "acme")
    home = str(tmp_path / "home")
    recent = krunch(*asked, KRUNCH_HOME=home)
    smart = krunch(*asked, "--mode", "smart", "--query", "Who is my violin teacher?", KRUNCH_HOME=home)
    unknown = krunch("context", "s", KRUNCH_HOME=home)

    assert recent.returncode == smart.returncode == 0
    assert "Oskar" not in recent.stdout
    assert '"name": "sort29"' in recent.stdout
    assert "My violin teacher is Oskar Lindqvist." in smart.stdout
    assert unknown.returncode == 2
    assert "krunch sessions" in unknown.stderr
