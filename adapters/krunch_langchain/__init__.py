"""Krunch for LangChain.

    from krunch_langchain import LangChainEmbedder
    Krunch(settings, embedder=LangChainEmbedder(OpenAIEmbeddings()))                # for the search of old turns

LangChain itself is imported when one of these names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from krunch_plugins.errors import MissingExtra

if TYPE_CHECKING:
    from krunch_langchain.embeddings import LangChainEmbedder

__all__ = ["LangChainEmbedder"]

_HOME = {
    "LangChainEmbedder": "embeddings",
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
