"""LiteLLM's embeddings in the search of old turns: the real library, a real server, only the model is played."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # before litellm is imported: no look at the network for prices

import hashlib

import krunch_litellm
import numpy as np
import pytest
from krunch_litellm import LiteLLMEmbedder

from krunch_plugins import Krunch, Settings
from krunch_plugins.upstream import Answer, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def vector(text: str) -> list[float]:
    """What the server answers for a text."""
    return [byte / 255 for byte in hashlib.blake2b(text.encode(), digest_size=8).digest()]


def embedder(upstream: Upstream, **options: Any) -> LiteLLMEmbedder:
    """An embedder whose model is the server."""
    options = {"api_base": upstream.url, "api_key": "none", "max_retries": 0, **options}
    return LiteLLMEmbedder("openai/some-embedding-model", **options)


def test_texts_go_out_in_one_call_and_come_back_in_order() -> None:
    """A batch is one request with all its texts; the vectors are float32, in the order of the texts."""
    with Upstream() as upstream:
        found = embedder(upstream).embed(["one", "two", "three", "one"])
        sent = upstream.received

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [vector(text) for text in ("one", "two", "three", "one")], atol=1e-6)
    assert [(one.path, one.body["input"], one.body["model"]) for one in sent] == [
        ("/v1/embeddings", ["one", "two", "three", "one"], "some-embedding-model")
    ]


def test_the_dimension_is_given_listed_or_asked_for() -> None:
    """The length of the vectors is what was said, else what LiteLLM lists, else what one call shows."""
    with Upstream() as upstream:
        assert embedder(upstream, dimension=99).dimension == 99
        assert embedder(upstream, dimensions=55).dimension == 55
        assert LiteLLMEmbedder("text-embedding-3-small").dimension == 1536
        assert not upstream.received
        asking = embedder(upstream)
        assert asking.dimension == asking.dimension == 8
        assert asking.embed([]).shape == (0, 8)
        assert len(upstream.received) == 1


def test_the_name_tells_models_and_lengths_apart() -> None:
    """Vectors of another model, or of another length of the same one, have another name."""
    names = [LiteLLMEmbedder("a").name, LiteLLMEmbedder("b").name, LiteLLMEmbedder("a", dimensions=5).name]

    assert names == ["litellm/a", "litellm/b", "litellm/a/5"]


def test_old_turns_are_found_by_it(tmp_path: Path) -> None:
    """Krunch embeds turns by it in batches, each text once, and finds the turn whose vector is the query's."""
    texts = [f"turn {number}" for number in range(150)]
    with (
        Upstream() as upstream,
        Krunch(Settings(home=tmp_path / "home"), embedder=embedder(upstream, batch_size=50)) as krunch,
    ):
        assert krunch.store is not None
        krunch.store.append("s", [{"role": "user", "content": text} for text in [*texts, texts[0]]])
        assert krunch.flush()
        sent = [body["input"] for body in upstream.requests if len(body["input"]) > 1]
        hits = krunch.search("turn 77", k=1)

    assert [len(batch) for batch in sent] == [50, 50, 50]
    assert [text for batch in sent for text in batch] == texts
    assert hits[0].found_by["vectors"] == 1
    assert hits[0].turn.number == 77


def test_a_server_that_is_down_costs_no_turn(tmp_path: Path, serve: Callable[[Any], Upstream]) -> None:
    """While the server answers with errors, words find the turns; when it is back the vectors are there, too."""
    broken = [True]
    upstream = serve(lambda _: Answer("overloaded", status=503) if broken else Answer("fine"))
    with Krunch(Settings(home=tmp_path / "home"), embedder=embedder(upstream, dimension=8)) as krunch:
        assert krunch.store is not None
        krunch.store.append("s", [{"role": "user", "content": "the heron"}])
        assert not krunch.flush()
        assert [dict(hit.found_by) for hit in krunch.search("heron")] == [{"words": 1}]
        broken.clear()
        assert krunch.flush()
        hits = krunch.search("the heron", k=1)

    assert hits[0].turn.message["content"] == "the heron"


def test_it_is_a_public_name() -> None:
    """`krunch_litellm.LiteLLMEmbedder` is loaded when it is asked for."""
    assert krunch_litellm.LiteLLMEmbedder is LiteLLMEmbedder
    with pytest.raises(AttributeError, match="LiteLLMEmbedder"):
        _ = krunch_litellm.Embedder
