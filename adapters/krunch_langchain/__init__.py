"""Krunch for LangChain: smaller requests, exact replies, in models, chains and agents.

    from krunch_langchain import krunchify
    model = krunchify(ChatOpenAI(model="gpt-4o"))                     # everything that works with the model works

    from krunch_langchain import KrunchMiddleware
    agent = create_agent(model, tools, middleware=[..., KrunchMiddleware()])    # last in the list

    from krunch_langchain import KrunchChatMessageHistory, KrunchMemory, KrunchRetriever    # a conversation's memory
    from krunch_langchain import KrunchSaver, KrunchStore    # LangGraph's checkpoints and long-term memory

    from krunch_langchain import LangChainEmbedder
    Krunch(settings, embedder=LangChainEmbedder(OpenAIEmbeddings()))    # for the search of old turns

LangChain itself is imported when one of these names is first used. `KrunchMiddleware` needs the extra `agents`,
`KrunchSaver` and `KrunchStore` need `langgraph`, the rest `langchain`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from krunch_plugins.errors import MissingExtra

if TYPE_CHECKING:
    from krunch_langchain.agents import KrunchMiddleware, KrunchToolResults
    from krunch_langchain.byte_store import KrunchByteStore
    from krunch_langchain.embeddings import LangChainEmbedder
    from krunch_langchain.history import KrunchChatMessageHistory
    from krunch_langchain.item_store import KrunchStore
    from krunch_langchain.memory import KrunchMemory
    from krunch_langchain.messages import from_openai, from_turn, openai_form, turn_metadata
    from krunch_langchain.model import KrunchChatModel, krunchify
    from krunch_langchain.retriever import KrunchRetriever
    from krunch_langchain.saver import KrunchSaver

__all__ = [
    "KrunchByteStore",
    "KrunchChatMessageHistory",
    "KrunchChatModel",
    "KrunchMemory",
    "KrunchMiddleware",
    "KrunchRetriever",
    "KrunchSaver",
    "KrunchStore",
    "KrunchToolResults",
    "LangChainEmbedder",
    "from_openai",
    "from_turn",
    "krunchify",
    "openai_form",
    "turn_metadata",
]

_HOME = {
    "KrunchByteStore": "byte_store",
    "KrunchChatMessageHistory": "history",
    "KrunchChatModel": "model",
    "KrunchMemory": "memory",
    "KrunchMiddleware": "agents",
    "KrunchRetriever": "retriever",
    "KrunchSaver": "saver",
    "KrunchStore": "item_store",
    "KrunchToolResults": "agents",
    "LangChainEmbedder": "embeddings",
    "from_openai": "messages",
    "from_turn": "messages",
    "krunchify": "model",
    "openai_form": "messages",
    "turn_metadata": "messages",
}

_EXTRA_OF = {"langchain_core": "langchain", "langgraph": "langgraph", "langchain": "agents"}
"""Which extra brings a package that is missing."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the public names
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA_OF:
            raise
        raise MissingExtra(_EXTRA_OF[missing], f"krunch_langchain.{name}") from error
