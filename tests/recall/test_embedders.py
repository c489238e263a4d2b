"""The embedders that come with Krunch, and how any embedder is called."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krunch_plugins.errors import MissingExtra, WrongDimension
from krunch_plugins.recall.embedders import HashingEmbedder, SentenceTransformerEmbedder, words
from krunch_plugins.recall.embedding import QueryVectors, batches, embed

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXTS = ["The heron stands in the reeds.", "Überraschung: 東京の天気 ist schön", "x", "", "?!", "user_id=42"]


def cosine(one: str, other: str) -> float:
    """How near the built-in embedder sees two texts."""
    first, second = HashingEmbedder().embed([one, other])
    return float(first @ second)


def test_vectors_are_the_same_everywhere() -> None:
    """The vectors of these texts are those they always were: stored ones stay comparable with new ones."""
    found = HashingEmbedder().embed(TEXTS)

    assert found.dtype == np.float32
    projected = found @ np.cos(np.arange(448.0)), found @ np.sin(np.arange(448.0) ** 1.5)
    np.testing.assert_allclose(projected[0], [0.24721, 0.54901, 0.71676, 0, 0, -0.06329], atol=2e-5)
    np.testing.assert_allclose(projected[1], [-0.96427, -1.36973, -0.88396, 0, 0, -0.25786], atol=2e-5)


def test_vectors_do_not_depend_on_the_process() -> None:
    """Another process with another hash seed gives the same bytes."""
    program = (
        "import sys; from krunch_plugins.recall.embedders import HashingEmbedder as H; "
        "sys.stdout.write(H().embed(['the heron in the reeds', '東京']).tobytes().hex())"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    ]

    assert done[0].stdout == done[1].stdout != ""


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=80) | st.text(st.characters(codec=None), max_size=20), max_size=5))
def test_any_text_has_a_vector_of_length_one_or_zero(texts: list[str]) -> None:
    """Whatever a text holds, its vector is finite and has length 1, or 0 if there is no word in it; each by itself."""
    embedder = HashingEmbedder()
    found = embedder.embed(texts)

    assert found.shape == (len(texts), embedder.dimension)
    lengths = np.linalg.norm(found, axis=1)
    for text, vector, length in zip(texts, found, lengths, strict=True):
        assert length == pytest.approx(1.0 if any(words(text)) else 0.0, abs=1e-5)
        np.testing.assert_array_equal(embedder.embed([text])[0], vector)


def test_a_turn_takes_less_than_two_kilobytes() -> None:
    """The vector that a turn has in memory is below 2 KB."""
    assert HashingEmbedder().embed(["a"]).nbytes <= 2048 - 160  # and room for the links of a graph


def test_other_forms_of_a_word_are_near() -> None:
    """Inflected, misspelt and joined words are nearer than others; common words count for little."""
    assert cosine("deployment failed", "deployments fail") > 0.5
    assert cosine("kubernetes", "kuberntes") > 0.3
    assert cosine("kubernetes", "postgres") < 0.25
    assert cosine("the heron is in the reeds", "the invoice is in the folder") < 0.4
    assert cosine("heron reeds", "the heron is in the reeds") > 0.7


def test_scripts_without_spaces_are_compared_by_pairs() -> None:
    """Chinese and Japanese texts that share words are near, others are not."""
    assert cosine("東京の天気はどうですか", "今日の東京の天気") > 0.3
    assert cosine("東京の天気はどうですか", "請求書を送ってください") < 0.2
    assert list(words("東京駅 abc")) == ["東京", "京駅", "abc"]
    assert list(words("x東y")) == ["x", "東", "y"]


def test_long_texts_count_at_both_ends() -> None:
    """Of a text of megabytes the beginning and the end count."""
    text = "alpha " * 20_000 + "middle " * 40_000 + "omega " * 20_000

    assert set(words(text)) >= {"alpha", "omega"}
    assert cosine(text, "omega") > 0.3


def test_a_missing_library_is_named() -> None:
    """Without sentence-transformers its embedder says which extra to install, when it is first used."""
    embedder = SentenceTransformerEmbedder("all-MiniLM-L6-v2")
    assert embedder.name == "sentence-transformers/all-MiniLM-L6-v2"
    with pytest.raises(MissingExtra, match="sentence-transformers"):
        embedder.embed(["a"])


def test_a_sentence_transformer_is_called_as_its_library_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's model is loaded once, at the first use, and given the texts as a list; what it gives is float32."""
    made = []

    class SentenceTransformer:
        def __init__(self, name: str, device: str | None = None) -> None:
            made.append((name, device))

        def get_sentence_embedding_dimension(self) -> int:
            return 3

        def encode(
            self, sentences: list[str], batch_size: int, *, convert_to_numpy: bool, show_progress_bar: bool
        ) -> Any:
            assert (batch_size, convert_to_numpy, show_progress_bar) == (32, True, False)
            return np.array([[len(text), 1, 0] for text in sentences], dtype=np.float64)

    library = types.ModuleType("sentence_transformers")
    library.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    embedder = SentenceTransformerEmbedder("model", device="cpu")
    assert made == []
    found = embedder.embed(("one", "four!"))

    assert found.dtype == np.float32
    assert found.tolist() == [[3, 1, 0], [5, 1, 0]]
    assert embedder.embed([]).shape == (0, 3)
    assert (embedder.dimension, made) == (3, [("model", "cpu")])


class Picky:
    """An embedder that refuses some texts, or all."""

    name, dimension = "picky", 4

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.down = False
        self.length = 4

    def embed(self, texts: Sequence[str]) -> Any:
        self.calls.append(list(texts))
        if self.down or any("poison" in text for text in texts):
            raise ConnectionError("no")
        vectors = np.ones((len(texts), self.length), dtype=np.float32)
        vectors[[index for index, text in enumerate(texts) if "nan" in text]] = np.nan
        return vectors


def test_a_text_that_cannot_be_embedded_does_not_stop_the_others() -> None:
    """A text that a model refuses, or answers with NaN, has no vector; all others of the batch have theirs."""
    found = embed(Picky(), ["a", "b", "poison", "c", "nan", "d"])

    assert [vector is not None for vector in found] == [True, True, False, True, False, True]
    assert found[0] is not None
    np.testing.assert_allclose(found[0], 0.5)


def test_an_embedder_that_is_down_raises_what_it_raised() -> None:
    """If nothing goes through, not even a plain text, it is the embedder, and its error is told."""
    picky = Picky()
    picky.down = True
    with pytest.raises(ConnectionError):
        embed(picky, ["a", "b", "c"])

    assert len(picky.calls) < 6


@pytest.mark.parametrize("status", [401, 429, 503])
def test_a_service_that_is_busy_is_not_the_fault_of_a_text(status: int) -> None:
    """Too many requests, a failure of its own or a wrong key: the error is told at once, and no text is given up."""

    class Busy(Picky):
        def embed(self, texts: Sequence[str]) -> Any:
            self.calls.append(list(texts))
            error = RuntimeError("not now")
            error.status_code = status  # type: ignore[attr-defined]
            raise error

    busy = Busy()
    with pytest.raises(RuntimeError, match="not now"):
        embed(busy, ["a", "b", "c"])

    assert len(busy.calls) == 1


def test_a_text_that_fails_once_is_tried_again() -> None:
    """A failure that does not come back costs no text its vector."""

    class Flaky(Picky):
        def embed(self, texts: Sequence[str]) -> Any:
            self.calls.append(list(texts))
            if len(self.calls) == 1:
                raise ConnectionError("once")
            return np.ones((len(texts), 4), dtype=np.float32)

    assert embed(Flaky(), ["a"])[0] is not None


def test_texts_too_long_for_a_model_lose_their_middle() -> None:
    """An embedder with `max_characters` never gets more; the beginning and the end are kept."""
    picky = Picky()
    picky.max_characters = 10  # type: ignore[attr-defined]
    embed(picky, ["short", "beginning and the end"])

    assert picky.calls == [["short", "begin\ne end"]]


def test_an_embedder_that_gives_other_lengths_is_refused() -> None:
    """A model that does not give what it says is an error that names both lengths, and is not asked again and again."""
    picky = Picky()
    picky.length = 7
    with pytest.raises(WrongDimension, match=r"7 dimensions.* has 4"):
        embed(picky, ["a", "b", "c"])

    assert len(picky.calls) == 1


def test_batches_keep_the_order_and_the_limits() -> None:
    """Texts go out in order, no more at a time than asked for, and a very long one alone."""
    texts = ["a", "b", "c", "x" * 300_000, "d"]

    assert [len(batch) for batch in batches(texts, 2)] == [2, 1, 1, 1]
    assert [text for batch in batches(texts, 2) for text in batch] == texts
    assert list(batches([], 2)) == []


def test_queries_are_remembered_and_a_dead_embedder_is_let_be() -> None:
    """The same query is embedded once; after a failure the embedder is not asked for a while, then longer."""
    picky, now = Picky(), 0.0
    queries = QueryVectors(picky, clock=lambda: now)
    assert queries.vector("a") is not None
    assert queries.vector("a") is not None
    assert len(picky.calls) == 1
    picky.down = True
    assert queries.vector("b") is None
    assert queries.vector("c") is None
    assert queries.vector("a") is not None
    assert len(picky.calls) == 2
    now = 1.5
    assert queries.vector("c") is None
    assert len(picky.calls) == 3
    now = 2.9
    assert queries.vector("c") is None
    assert len(picky.calls) == 3
    now, picky.down = 10.0, False

    assert queries.vector("c") is not None


def test_queries_have_a_method_of_their_own_where_a_model_wants_it() -> None:
    """An embedder with `embed_query` is asked by that for queries."""

    class Asymmetric(Picky):
        def embed_query(self, text: str) -> Any:
            return [len(text), 0, 0, 0]

    found = QueryVectors(Asymmetric()).vector("abc")

    assert found is not None
    assert found.tolist() == [1, 0, 0, 0]
