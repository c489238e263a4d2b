"""The way over from LangChain's old memory classes, with both sides run as the page shows them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.embeddings import Embeddings

from krunch_plugins import ConversationStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("langchain_classic", reason="langchain-classic is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecat:Warning")


class Letters(Embeddings):
    """Embeddings that say how often words occur."""

    words = ("food", "pizza", "sport", "fencing", "watch")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(text.lower().count(word)) + 0.01 for word in self.words] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ConversationStore]:
    """A store in a folder of its own."""
    with ConversationStore(tmp_path, upkeep_seconds=0) as opened:
        yield opened


def snippets(root: Path, heading: str) -> list[str]:
    """The code under one heading of the page."""
    page = (root / "docs" / "langchain-memory.md").read_text(encoding="utf-8")
    section = page.split(f"### {heading}\n")[1].split("\n### ")[0]
    return re.findall(r"```py\n(.*?)```", section, re.DOTALL)


def run(root: Path, heading: str, **names: Any) -> dict[str, Any]:
    """The names that the code leaves."""
    for snippet in snippets(root, heading):
        exec(compile(snippet, heading, "exec"), names)  # the page's own code
    return names


def test_from_a_window(store: ConversationStore, pytestconfig: pytest.Config) -> None:
    """The old class gives the last two exchanges; the new one has those and all before them, and goes on."""
    names = run(pytestconfig.rootpath, "From ConversationBufferWindowMemory", store=store)

    assert [message.text for message in names["window"]] == [
        "I live in Ulm.", "Nice.", "I play the bassoon.", "Nice, too."
    ]  # fmt: skip
    assert [message.text for message in names["messages"]] == [
        "My name is Ann.", "Hello, Ann.", *(message.text for message in names["window"]), "And you?", "I read."
    ]  # fmt: skip


def test_from_a_vector_store(store: ConversationStore, pytestconfig: pytest.Config) -> None:
    """The old class finds the sport; so does the new one, as messages."""
    names = run(pytestconfig.rootpath, "From VectorStoreRetrieverMemory", store=store, embeddings=Letters())

    assert "fencing" in names["text"]
    assert any("fencing" in message.text for message in names["messages"])
