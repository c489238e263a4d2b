"""KrunchByteStore is a key-value store as LangChain wants one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from krunch_langchain import KrunchByteStore
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import BaseStoreAsyncTests, BaseStoreSyncTests

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from langchain_core.stores import BaseStore

THREE = (b"foo", b"\x00\xff", b"")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ConversationStore]:
    """A store in a folder of its own."""
    with ConversationStore(tmp_path, upkeep_seconds=0) as opened:
        yield opened


class TestSync(BaseStoreSyncTests[bytes]):
    """LangChain's own suite."""

    @pytest.fixture
    def kv_store(self, store: ConversationStore) -> BaseStore[str, bytes]:
        return KrunchByteStore(store=store)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return THREE


class TestAsync(BaseStoreAsyncTests[bytes]):
    """LangChain's own suite, async."""

    @pytest.fixture
    async def kv_store(self, store: ConversationStore) -> BaseStore[str, bytes]:
        return KrunchByteStore(store=store)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return THREE


def test_names_and_tenants_are_apart(store: ConversationStore) -> None:
    """Stores of another name or tenant share nothing; values are there after a restart, and only bytes are taken."""
    one = KrunchByteStore("cache", store=store)
    one.mset([("k", b"1")])
    with pytest.raises(TypeError, match="str"):
        one.mset([("k", b"2"), ("j", "text")])  # type: ignore[list-item]

    assert KrunchByteStore("cache", store=store).mget(["k", "j"]) == [b"1", None]
    assert KrunchByteStore("other", store=store).mget(["k"]) == [None]
    assert KrunchByteStore("cache", store=store, tenant="t").mget(["k"]) == [None]


def test_as_a_cache_of_embeddings(store: ConversationStore) -> None:
    """It serves where LangChain asks for a byte store: each text is embedded once, also by another process."""
    classic = pytest.importorskip("langchain_classic.embeddings", reason="langchain-classic is not installed")
    asked: list[list[str]] = []

    class Counting(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            asked.append(texts)
            return [[float(len(text))] for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    for _ in range(2):
        cached = classic.CacheBackedEmbeddings.from_bytes_store(
            Counting(), KrunchByteStore("embeddings", store=store), namespace="m", key_encoder="sha256"
        )
        assert cached.embed_documents(["a", "bb"]) == [[1.0], [2.0]]

    assert asked == [["a", "bb"]]
