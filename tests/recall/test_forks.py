"""Forked processes: whatever the threads of the parent were at, the child stores, finds and forgets."""

from __future__ import annotations

import faulthandler
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOCKS: dict[str, Callable[[Any, Any], Any]] = {
    "following words": lambda words, _: words._follower._locks[None],
    "waking words": lambda words, _: words._follower._work,
    "index of words": lambda words, _: words._index._lock,
    "scrubbing words": lambda words, _: words._lock,
    "opening words": lambda words, _: words._index.database(None)._lock,
    "writing words": lambda words, _: words._index.database(None)._writing,
    "waking vectors": lambda _, vectors: vectors._model.follower._work,
    "loading vectors": lambda _, vectors: vectors._model.index._spaces._lock,
    "searching vectors": lambda _, vectors: vectors._lock,
    "embedding a query": lambda _, vectors: vectors._model.queries._lock,
    "changing vectors": lambda _, vectors: vectors._model.index.space(None).lock,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("what", LOCKS)
def test_a_forked_process_waits_for_no_thread_of_its_parent(tmp_path: Path, what: str) -> None:
    """A lock that some thread held when the process was forked is free in the child."""
    with Krunch(Settings(home=tmp_path / "home")) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", [{"role": "user", "content": "amber"}])
        krunch.flush()
        assert krunch.search("amber")
        held, forked = threading.Event(), threading.Event()

        def hold() -> None:
            with LOCKS[what](krunch._recall._voices["words"], krunch._recall._voices["vectors"]):
                held.set()
                forked.wait(20)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(20)
        child = os.fork()
        if not child:
            _work(krunch)
        _, status = os.waitpid(child, 0)
        forked.set()
        thread.join()

    assert status == 0


def _work(krunch: Krunch) -> None:
    """What a child does; it ends the process."""
    try:
        faulthandler.dump_traceback_later(30, exit=True)
        assert krunch.store is not None
        krunch.store.append("s", [{"role": "user", "content": "amber again"}])
        assert krunch.flush(20)
        assert [dict(hit.found_by).keys() for hit in krunch.search("amber")] == [{"words", "vectors"}] * 2
        krunch.forget("s")
        assert krunch.search("amber") == []
        krunch.close()
        os._exit(0)
    finally:
        os._exit(1)
