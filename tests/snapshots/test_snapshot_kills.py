"""Killed at any moment, a program loses nothing that it was told is saved."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from krunch_plugins.snapshots import Checkpoints, load

KILLS = int(os.environ.get("KRUNCH_TEST_KILLS", "4"))
"""How often each writer is killed. A long run: `KRUNCH_TEST_KILLS=200 pytest tests/snapshots -k kill`, some minutes."""


def current(kind: str, folder: Path) -> Any:
    """What is loaded after the kill."""
    if kind != "checkpoints":
        return load(folder / "state")
    latest = Checkpoints(folder / "checkpoints").load_latest()
    assert latest is not None
    assert latest.skipped == ()
    return latest.state


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("kind", ["save", "deltas", "checkpoints"])
def test_a_kill_loses_nothing_that_was_saved(tmp_path: Path, kind: str) -> None:
    """After SIGKILL at a random moment, the last acknowledged state or the one being saved is there, whole."""
    moments = random.Random(kind)
    last = 0
    for kill in itertools.count():
        if kill >= KILLS and (last or kill >= 10 * KILLS):  # on a slow disk nothing may have been saved so soon
            break
        writer = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kill_writer.py"), kind, tmp_path],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.005, 0.1) * (1 + kill // KILLS))
        writer.kill()
        output = writer.communicate()[0]
        last = max([last, *map(int, output.splitlines()[: output.count("\n")])])
        if last:
            state = current(kind, tmp_path)

            assert state["n"] in (last, last + 1)
            assert max(state["grid"]) == state["n"]
            last = state["n"]
    assert last > 0
