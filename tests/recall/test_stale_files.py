"""Index files that do not belong to the store beside them: from before, from after, or from where more is installed."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from krunch_plugins import ConversationStore, Krunch, SearchQuery, Settings
from krunch_plugins.recall import embedding_space
from krunch_plugins.recall.embedders import HashingEmbedder
from krunch_plugins.recall.files import IndexFiles
from krunch_plugins.recall.vector_search import Vectors

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "bench"))
import kill_recall

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = ["teal", "amber", "harbour", "violin", "ledger", "comet", "garden", "ferry", "saffron"]


def says(count: int, seed: int) -> list[dict[str, Any]]:
    """Messages of a few words each."""
    chance = np.random.default_rng(seed)
    return [{"role": "user", "content": " ".join([*chance.choice(WORDS, 4), f"n{number}"])} for number in range(count)]


def answers(krunch: Krunch) -> list[Any]:
    """What is found in all ways, with the ranks, after everything was taken in."""
    assert krunch.flush()
    found = [krunch.search(word, session=session, k=20) for word in WORDS for session in (None, "a", "b")]
    return [[(hit.session, hit.turn, dict(hit.found_by)) for hit in hits] for hits in found]


def rebuilt(home: Path) -> list[Any]:
    """What is found in indexes that are made of the store alone."""
    with kill_recall.Elsewhere(home) as store, Krunch(Settings(), store=store) as krunch:
        return answers(krunch)


def filled(home: Path) -> None:
    """A home with three sessions, all of it indexed and in files."""
    with Krunch(Settings(home=home)) as krunch:
        assert krunch.store is not None
        for seed, session in enumerate("abc"):
            krunch.store.append(session, says(40, seed))
        assert krunch.flush()


@pytest.fixture(autouse=True)
def _files_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors are written to files though they are few."""
    monkeypatch.setattr(embedding_space, "SAVE_FROM", 16)


def changed(home: Path) -> None:
    """Turns come, sessions go, and one comes again under its id; all is indexed."""
    with Krunch(Settings(home=home)) as krunch:
        assert krunch.store is not None
        krunch.store.append("a", says(30, 7))
        krunch.store.trim("b", 25)
        krunch.forget("c")
        krunch.store.append("c", says(20, 8))
        assert krunch.flush()


def test_index_files_of_before_are_brought_up_to_date(tmp_path: Path) -> None:
    """Old ones that somebody put back: what came is found, what was trimmed or forgotten is not."""
    home = tmp_path / "home"
    filled(home)
    assert list((home / "recall").rglob("vectors-*.krunch"))
    shutil.copytree(home / "recall", tmp_path / "old")
    changed(home)
    shutil.rmtree(home / "recall")
    shutil.copytree(tmp_path / "old", home / "recall")
    right = rebuilt(home)

    with Krunch(Settings(home=home)) as krunch:
        assert answers(krunch) == right


def test_a_store_of_before_is_not_searched_with_the_index_of_after(tmp_path: Path) -> None:
    """A store that was put back from a backup has what it has; what its indexes know beyond that is not found."""
    home = tmp_path / "home"
    filled(home)
    shutil.copytree(home, tmp_path / "old", ignore=shutil.ignore_patterns("recall"))
    changed(home)
    for path in home.iterdir():
        if path.name != "recall":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(tmp_path / "old", home, dirs_exist_ok=True)
    right = rebuilt(home)

    with Krunch(Settings(home=home)) as krunch:
        assert answers(krunch) == right
        assert krunch.store is not None
        krunch.store.append("a", [{"role": "user", "content": "a walrus"}])
        assert answers(krunch) == rebuilt(home)
        assert krunch.search("walrus", k=1)[0].turn.number == 40


@pytest.mark.skipif(find_spec("hnswlib") is None, reason="hnswlib is not installed")
def test_a_graph_is_left_alone_where_hnswlib_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home whose vectors are a graph opens without the extra: all is found, exactly; nothing is embedded again."""

    class Noting(HashingEmbedder):
        texts = 0

        def embed(self, texts: Sequence[str]) -> Any:
            type(self).texts += len(texts)
            return super().embed(texts)

    def asked(vectors: Vectors) -> list[Any]:
        assert vectors.flush()
        return [list(vectors.search(SearchQuery(word, k=10, session=name))) for word in WORDS for name in (None, "a")]

    with ConversationStore(tmp_path, upkeep_seconds=0) as store:
        store.append("a", says(150, 1))
        store.append("b", says(150, 2))
        vectors = Vectors(store, IndexFiles(store.directory), Noting(), exact_up_to=100)
        right = asked(vectors)
        assert vectors.stats().kind == "graph"
        vectors.close()
        made = Noting.texts
        monkeypatch.setitem(sys.modules, "hnswlib", None)  # an import raises ImportError
        monkeypatch.delitem(sys.modules, "krunch_plugins.recall.hnsw", raising=False)
        monkeypatch.delattr("krunch_plugins.recall.hnsw", raising=False)
        vectors = Vectors(store, IndexFiles(store.directory), Noting(), exact_up_to=100)
        assert asked(vectors) == right
        assert vectors.stats().kind == "exact"
        vectors.close()

    assert Noting.texts == made + len(WORDS)  # the words that are searched for
