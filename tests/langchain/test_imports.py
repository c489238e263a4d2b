"""The package imports LangChain when it has to, and says which extra is missing."""

from __future__ import annotations

import subprocess
import sys

import krunch_langchain
import pytest


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_it_imports_no_framework() -> None:
    """The package itself costs nothing; its names are listed, and others are refused."""
    loaded = run("import sys, krunch_langchain; print([name for name in sys.modules if name.startswith('lang')])")

    assert loaded == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'KrunchAgent'; it has Krunch"):
        _ = krunch_langchain.KrunchAgent
    for name in krunch_langchain.__all__:
        assert getattr(krunch_langchain, name).__name__ == name


def test_the_base_extra_needs_the_core_only() -> None:
    """The wrapper, history, memory, retriever and byte store import neither LangGraph nor the package for agents."""
    loaded = run(
        "import sys; from krunch_langchain import krunchify, KrunchChatMessageHistory, KrunchMemory, KrunchRetriever, "
        "KrunchByteStore, LangChainEmbedder; "
        "print(sorted(name for name in sys.modules if name in ('langchain', 'langgraph', 'langchain_openai')))"
    )

    assert loaded == "[]"


@pytest.mark.parametrize(
    ("missing", "name", "extra"),
    [
        ("langchain_core", "krunchify", "langchain"),
        ("langgraph.checkpoint", "KrunchSaver", "langgraph"),
        ("langgraph", "KrunchStore", "langgraph"),
        ("langchain", "KrunchMiddleware", "agents"),
    ],
)
def test_a_missing_package_is_named_by_its_extra(missing: str, name: str, extra: str) -> None:
    """Without the package that a name needs, the error says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None\ntry:\n    from krunch_langchain import {name}\n"
    said = run(code + "except Exception as error:\n    print(type(error).__name__, error)")

    assert said.startswith("MissingExtra")
    assert f"pip install 'krunch-plugins[{extra}]'" in said
