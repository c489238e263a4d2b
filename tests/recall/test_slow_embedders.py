"""Embedders that are slow or down: they delay no start, and a search by no more than it was told to wait."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from own_threads import begun_since

from krunch_plugins import Krunch, Settings
from krunch_plugins.recall.embedders import SentenceTransformerEmbedder
from krunch_plugins.recall.embedding_calls import until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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


def test_a_missing_library_stops_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without sentence-transformers words answer; it is needed when the first turn is embedded, and the log says so."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with Krunch(Settings(home=str(tmp_path)), embedder=SentenceTransformerEmbedder()) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", SAID)
        (hit,) = krunch.search("hello")
        assert not krunch.flush(10)

    assert set(hit.found_by) == {"words"}
    assert "pip install 'krunch-plugins[sentence-transformers]'" in caplog.text


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


class Hung:
    """Gives nothing until it is let go, neither vectors nor, if so asked, their length."""

    name = "hung"

    def __init__(self, *, dimension: bool) -> None:
        self.called, self.go, self.left = threading.Event(), threading.Event(), threading.Event()
        self._dimension = dimension
        self.texts: list[str] = []

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        if self._dimension:
            self._wait()
        return 4

    def embed(self, texts: Sequence[str]) -> Any:
        """Vectors of ones."""
        self._wait()
        self.texts += texts
        self.left.set()
        return np.ones((len(texts), 4), dtype=np.float32)

    def _wait(self) -> None:
        self.called.set()
        self.go.wait(60)


@pytest.mark.parametrize("dimension", [False, True])
def test_no_append_and_no_exchange_waits_for_an_embedder(tmp_path: Path, *, dimension: bool) -> None:
    """What was said is stored, and found by its words, before its embedding was made."""
    hung = Hung(dimension=dimension)
    settings = Settings(home=tmp_path, recall={"embed_seconds": 0.0})
    with Krunch(settings, embedder=hung) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", SAID)
        assert hung.called.wait(60)
        krunch.store.append("s", SAID)
        exchange = krunch.prepare([{"role": "user", "content": "hello again"}], model="gpt-4o", session="t")
        exchange.finish({"role": "assistant", "content": "hello"})
        found = krunch.search("hello")
        assert not hung.left.is_set()
        hung.go.set()
        assert krunch.flush(30)

    assert [set(hit.found_by) for hit in found] == [{"words"}] * 4
    assert set(hung.texts) == {"hello", "hello again", "hello world"}


@pytest.mark.parametrize("dimension", [False, True])
def test_closing_does_not_wait_for_an_embedder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, dimension: bool
) -> None:
    """It returns soon, nobody touches what is closed when the embedder answers after all, the next start goes on."""
    failed: list[threading.ExceptHookArgs] = []
    before, threading.excepthook = threading.excepthook, failed.append
    caplog.set_level(logging.WARNING, "krunch")
    hung = Hung(dimension=dimension)
    others = set(threading.enumerate())  # of other tests in this process
    try:
        krunch = Krunch(Settings(home=tmp_path), embedder=hung)
        krunch.record(SAID, session="s")
        assert hung.called.wait(60)
        began = time.monotonic()
        krunch.close()
        took = time.monotonic() - began
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        hung.go.set()
        assert dimension or hung.left.wait(60)
        ours = begun_since(others)
        for thread in ours:
            thread.join(30)
        left = [thread.name for thread in ours if thread.is_alive()]
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    finally:
        threading.excepthook = before

    assert took < 30  # it would hang for a minute
    assert (failed, left, caplog.messages) == ([], [], [])
    assert after == files
    again = Hung(dimension=False)
    again.go.set()
    with Krunch(Settings(home=tmp_path), embedder=again) as krunch:
        assert krunch.flush(10)
    assert again.texts == ["hello world"]


def test_closing_keeps_the_batch_that_is_nearly_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes soon after closing was paid, and is not embedded again."""
    monkeypatch.setattr(until, "__defaults__", (60.0,))  # a second, which a busy machine may take

    class Slow(Hung):
        def _wait(self) -> None:
            self.called.set()
            time.sleep(0.3)

    first, second = Slow(dimension=False), Slow(dimension=False)
    krunch = Krunch(Settings(home=tmp_path), embedder=first)
    krunch.record(SAID, session="s")
    assert first.called.wait(60)
    krunch.close()
    with Krunch(Settings(home=tmp_path), embedder=second) as krunch:
        assert krunch.flush(10)

    assert (first.texts, second.texts) == (["hello world"], [])
