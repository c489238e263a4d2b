"""Expansion that fails in the middle of a stream loses nothing and moves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import krunchify
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from tests.failing_streams import FAILING, STORY, expected, faulty, pieces_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class Speaking(BaseChatModel):
    """A model that streams these texts."""

    texts: list[str]

    @property
    def _llm_type(self) -> str:
        return "speaking"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("".join(self.texts)))])

    def _stream(
        self,
        messages: Any,
        stop: Any = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for text in self.texts:
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))


@pytest.mark.parametrize("piece", FAILING)
@pytest.mark.parametrize("kind", ["expander", "window"])
def test_what_is_held_back_goes_out_before_the_chunk_that_fails(
    kind: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is whole and in order, and the hooks see what the caller got."""
    with faulty(kind, piece, monkeypatch) as krunch:
        exchange = krunch.asked()
        model = krunchify(Speaking(texts=pieces_of(exchange)), krunch)
        told = "".join(chunk.text for chunk in model.stream(STORY))
        assert told == expected(exchange, piece)
        assert [reply.message["content"] for reply in krunch.shown] == [told]
        assert not krunch.shown[0].partial


def test_ending_that_fails() -> None:
    """If what is held back at the end cannot be ended, it goes out all the same."""
    with faulty("expander", 2, pytest.MonkeyPatch()) as krunch:
        exchange = krunch.asked()
        symbol, meaning = next(iter(exchange.symbols.items()))
        model = krunchify(Speaking(texts=[f"It says {symbol}"]), krunch)
        assert "".join(chunk.text for chunk in model.stream(STORY)) == f"It says {meaning}"
