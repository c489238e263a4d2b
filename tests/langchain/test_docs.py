"""The page on models and agents is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import krunch_langchain
import pytest

from krunch_plugins.upstream import Answer, Upstream

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "langchain.md").read_text(encoding="utf-8")


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every snippet of the page runs, one after the other, with a model that is played, and its asserts hold."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    with Upstream(lambda _: Answer("Ann was.")) as upstream:
        monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
        for snippet in snippets:
            exec(compile(snippet, "docs/langchain.md", "exec"), names)
    names["krunch"].close()

    assert len(snippets) == 6
    assert names["state"]["messages"][-1].text == "Ann was."


@pytest.mark.parametrize("name", ["krunchify", "KrunchChatModel", "KrunchMiddleware", "KrunchToolResults", "from_turn"])
def test_the_public_names_are_on_the_page(name: str) -> None:
    """What users need is explained."""
    assert name in krunch_langchain.__all__
    assert re.search(rf"\b{name}\b", PAGE)
