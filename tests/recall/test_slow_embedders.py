"""Embedders that are slow or down: they delay no start, and a search by no more than it was told to wait."""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from krunch_plugins import Krunch, Settings
from krunch_plugins.recall.embedders import SentenceTransformerEmbedder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

SAID = [{"role": "user", "content": "hello world"}]


class Down:
    """A service that cannot be reached, not even to ask how long its vectors are."""

    name = "down"

    def __init__(self) -> None:
        self.up = False
        self.asked = 0

    @property
    def dimension(self) -> int:
        """Length of the vectors, once it is up."""
        self.asked += 1
        if not self.up:
            raise ConnectionError
        return 4

    def embed(self, texts: Sequence[str]) -> Any:
        """Vectors of ones."""
        if not self.up:
            raise ConnectionError
        return np.ones((len(texts), 4), dtype=np.float32)


class Hanging:
    """Embeds turns at once, and queries when it is let."""

    name, dimension = "hanging", 4

    def __init__(self) -> None:
        self.go = threading.Event()
        self.queries: list[str] = []

    def embed(self, texts: Sequence[str]) -> Any:
        """Vectors of ones."""
        return np.ones((len(texts), 4), dtype=np.float32)

    def embed_query(self, text: str) -> Any:
        """The same, after waiting."""
        self.queries.append(text)
        self.go.wait(30)
        return np.ones(4, dtype=np.float32)


def test_a_service_that_is_down_stops_no_start(tmp_path: Path) -> None:
    """Words answer, sessions can be forgotten, and when it is back its vectors are made."""
    service = Down()
    with Krunch(Settings(home=str(tmp_path)), embedder=service) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", SAID)
        krunch.store.append("gone", SAID)
        krunch.forget("gone")
        (before,) = krunch.search("hello")
        assert not krunch.flush(5)
        service.up = True
        assert krunch.flush(30)
        (after,) = krunch.search("hello")

    assert set(before.found_by) == {"words"}
    assert set(after.found_by) == {"words", "vectors"}


def test_making_krunch_asks_no_embedder(tmp_path: Path) -> None:
    """The length of the vectors is asked for when there is something to embed."""
    service = Down()
    with Krunch(Settings(home=str(tmp_path)), embedder=service):
        pass

    assert service.asked == 0


def test_a_missing_library_stops_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without sentence-transformers words answer; it is needed when the first turn is embedded, and the log says so."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with Krunch(Settings(home=str(tmp_path)), embedder=SentenceTransformerEmbedder()) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", SAID)
        (hit,) = krunch.search("hello")

    assert set(hit.found_by) == {"words"}


def test_a_search_does_not_wait_for_a_slow_embedder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What comes late is there for the next search of the same words, which asks for it no second time."""
    service = Hanging()
    with (
        caplog.at_level(logging.WARNING, "krunch"),
        Krunch(Settings(home=str(tmp_path), recall={"embed_seconds": 0.05}), embedder=service) as krunch,
    ):
        assert krunch.store is not None
        krunch.store.append("s", SAID)
        assert krunch.flush(30)
        early = [krunch.search(text)[0] for text in ("hello", "hello", "world")]
        service.go.set()
        while any(thread.name == "krunch-query" for thread in threading.enumerate()):
            threading.Event().wait(0.01)
        late = krunch.search("hello")[0]

    assert [set(hit.found_by) for hit in early] == [{"words"}] * 3
    assert set(late.found_by) == {"words", "vectors"}
    assert service.queries == ["hello", "world"]
    assert caplog.text.count("embed_seconds") == 1


def test_many_searches_do_not_pile_up(tmp_path: Path) -> None:
    """An embedder that hangs gets no more than a few queries at a time; the others go without waiting."""
    service = Hanging()
    with Krunch(Settings(home=str(tmp_path), recall={"embed_seconds": 0.0}), embedder=service) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", SAID)
        assert krunch.flush(30)
        found = [krunch.search(f"hello {number}") for number in range(30)]
        service.go.set()

    assert all(found)
    assert len(service.queries) <= 8
