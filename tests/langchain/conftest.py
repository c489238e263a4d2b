"""Real LangChain and its real OpenAI client against a real HTTP server; only the model behind it is played."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

os.environ.setdefault("LANGSMITH_TRACING", "false")

import pytest
from krunch_langchain import KrunchChatModel, krunchify
from langchain_openai import ChatOpenAI
from played_model import SETTINGS, PlayedModel

from krunch_plugins import ConversationStore, Krunch, restore
from krunch_plugins.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class Serving:
    """A model server, a Krunch with a store, and models that use them."""

    upstream: Upstream
    played: PlayedModel
    krunch: Krunch
    store: ConversationStore

    def bare(self, **options: Any) -> ChatOpenAI:
        """A model without Krunch."""
        facts: dict[str, Any] = {"model": "gpt-4o", "base_url": self.upstream.url, "api_key": "none", "max_retries": 0}
        return ChatOpenAI(**{**facts, "stream_usage": True, **options})

    def wrapped(self, **options: Any) -> KrunchChatModel:
        """The same with Krunch."""
        return krunchify(self.bare(**options), self.krunch)

    @property
    def plain(self) -> str:
        """What the last text of the model means."""
        return self.played.plain[-1]

    def sent(self) -> list[dict[str, Any]]:
        """What the last request restores to."""
        return restore(self.upstream.requests[-1]["messages"])


@pytest.fixture(autouse=True)
def own_clients() -> None:
    """Let no test get a client that another left behind.

    langchain_openai keeps one HTTP client per URL for the whole process. When a server gets the port that an earlier
    test's server had, that client would close its connections in an event loop that is gone.
    """
    for kept in vars(sys.modules.get("langchain_openai.chat_models._client_utils", sys)).values():
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """A model that refuses requests which are not compressed."""
    played = PlayedModel(compressed=True)
    with (
        Upstream(played) as upstream,
        ConversationStore(tmp_path / "store") as store,
        Krunch(SETTINGS, store=store) as krunch,
    ):
        yield Serving(upstream, played, krunch, store)
