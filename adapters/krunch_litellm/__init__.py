"""Krunch for LiteLLM's SDK: smaller requests, exact replies.

    import krunch_litellm
    krunch_litellm.install()                        # every litellm.completion/acompletion and Router, streams too

    litellm.callbacks = [krunch_litellm.KrunchCallback()]           # patches nothing: acompletion without streams
    krunch_litellm.completion(model=..., messages=...)              # patches nothing: a drop-in

    Krunch(settings, embedder=krunch_litellm.LiteLLMEmbedder("text-embedding-3-small"))     # to search old turns

The conversation's id comes from `metadata={"session_id": ...}` or `litellm_session_id=...`. LiteLLM itself is imported
when one of these names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from krunch_plugins.errors import MissingExtra

if TYPE_CHECKING:
    from krunch_litellm.callback import KrunchCallback
    from krunch_litellm.calls import acompletion, completion
    from krunch_litellm.embeddings import LiteLLMEmbedder
    from krunch_litellm.patch import install, uninstall

__all__ = ["KrunchCallback", "LiteLLMEmbedder", "acompletion", "completion", "install", "uninstall"]

_HOME = {
    "KrunchCallback": "callback",
    "LiteLLMEmbedder": "embeddings",
    "acompletion": "calls",
    "completion": "calls",
    "install": "patch",
    "uninstall": "patch",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the public names
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "litellm":
            raise
        raise MissingExtra("litellm", "krunch_litellm") from error
