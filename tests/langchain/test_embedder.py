"""LangChain's embeddings in the search of old turns: the real library, a real server, only the model is played."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import krunch_langchain
import numpy as np
import pytest
from krunch_langchain import LangChainEmbedder
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_openai import OpenAIEmbeddings

from krunch_plugins import Krunch, Settings
from krunch_plugins.upstream import Upstream

if TYPE_CHECKING:
    from pathlib import Path


def openai_embeddings(upstream: Upstream, **options: Any) -> OpenAIEmbeddings:
    """LangChain's embeddings of OpenAI, whose model is the server."""
    options = {"base_url": upstream.url, "api_key": "none", "check_embedding_ctx_length": False, **options}
    return OpenAIEmbeddings(model="some-model", **options)


class Asymmetric(Embeddings):
    """Embeds queries in another way than documents."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0, float(len(text)), 0.0] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [0.0, float(len(text)), 1.0]


def test_old_turns_are_found_by_openais_embeddings(tmp_path: Path) -> None:
    """Turns are embedded through LangChain's own client, in one request, and found by the nearness of their vectors."""
    texts = [f"turn {number}" for number in range(40)]
    with (
        Upstream() as upstream,
        Krunch(
            Settings(home=tmp_path / "home"), embedder=LangChainEmbedder(openai_embeddings(upstream), dimension=8)
        ) as krunch,
    ):
        assert krunch.store is not None
        krunch.store.append("s", [{"role": "user", "content": text} for text in texts])
        assert krunch.flush()
        assert [body["input"] for body in upstream.requests] == [texts]
        hits = krunch.search("turn 17", k=1)
        assert upstream.requests[-1]["input"] == ["turn 17"]

    assert (hits[0].turn.number, hits[0].found_by["vectors"]) == (17, 1)


def test_queries_and_documents_go_their_own_ways() -> None:
    """`embed` is LangChain's `embed_documents`, `embed_query` its `embed_query`; both are float32."""
    embedder = LangChainEmbedder(Asymmetric())

    assert embedder.embed(("ab", "c")).tolist() == [[1, 2, 0], [1, 1, 0]]
    assert embedder.embed_query("abc").tolist() == [0, 3, 1]
    assert embedder.embed(["a"]).dtype == embedder.embed_query("a").dtype == np.float32
    assert (embedder.dimension, embedder.embed([]).shape) == (3, (0, 3))


def test_any_embeddings_will_do() -> None:
    """LangChain's stand-in for tests works like any other."""
    embedder = LangChainEmbedder(DeterministicFakeEmbedding(size=12))

    assert embedder.embed(["a", "b"]).shape == (2, 12)
    assert embedder.dimension == 12


def test_the_name_tells_models_apart() -> None:
    """The name has the class, the model and the length that was asked for, or what the caller says."""
    with Upstream() as upstream:
        plain, short = openai_embeddings(upstream), openai_embeddings(upstream, dimensions=4)

        assert LangChainEmbedder(plain).name == "langchain/OpenAIEmbeddings/some-model"
        assert LangChainEmbedder(short).name == "langchain/OpenAIEmbeddings/some-model/4"
        assert LangChainEmbedder(short).dimension == 4
        assert not upstream.received
    assert LangChainEmbedder(Asymmetric()).name == "langchain/Asymmetric"
    assert LangChainEmbedder(Asymmetric(), name="mine").name == "langchain/mine"


def test_what_is_no_embeddings_is_refused() -> None:
    """Anything but LangChain's Embeddings is a TypeError that says so."""
    with pytest.raises(TypeError, match="Embeddings, not str"):
        LangChainEmbedder("text-embedding-3-small")  # type: ignore[arg-type]


def test_it_is_a_public_name() -> None:
    """`krunch_langchain.LangChainEmbedder` is loaded when it is asked for."""
    assert krunch_langchain.LangChainEmbedder is LangChainEmbedder
    with pytest.raises(AttributeError, match="LangChainEmbedder"):
        _ = krunch_langchain.Embedder
