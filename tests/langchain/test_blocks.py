"""Replies made of content blocks, as Anthropic's and other models send them, whole and in pieces of any size."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from krunch_langchain import from_turn, krunchify
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from played_model import SETTINGS, STORY
from pydantic import Field

from krunch_plugins import ConversationStore, Krunch, restore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEANING = " says the connection to the warehouse database was refused by "
MEANING += "/srv/warehouse/inventory/service/reservations/handler.py"
"""What ¤1 stands for in a request with the story."""


class BlockModel(BaseChatModel):
    """Plays a provider whose replies are blocks. Scripted: the blocks, and how they are cut."""

    blocks: list[dict[str, Any]]
    cuts: list[int] = Field(default=[5])
    indexed: bool = True
    got: list[Any] = Field(default=[])

    @property
    def _llm_type(self) -> str:
        return "blocks"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.got.append(messages)
        calls = [
            {"name": block["name"], "args": block["input"], "id": block["id"]}
            for block in self.blocks
            if block["type"] == "tool_use"
        ]
        content: list[Any] = self.blocks
        message = AIMessage(content, tool_calls=calls, response_metadata={"stop_reason": "end_turn"})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        self.got.append(messages)
        for index, block in enumerate(self.blocks):
            for piece in self._pieces(index, block):
                yield ChatGenerationChunk(message=piece)
        yield ChatGenerationChunk(message=AIMessageChunk(content=[], response_metadata={"stop_reason": "end_turn"}))

    def _pieces(self, index: int, block: dict[str, Any]) -> Iterator[AIMessageChunk]:
        at = {"index": index} if self.indexed else {}
        if block["type"] == "text":
            for text in cut(block["text"], self.cuts):
                yield AIMessageChunk(content=[{"type": "text", "text": text, **at}])
        elif block["type"] == "thinking":
            for text in cut(block["thinking"], self.cuts):
                yield AIMessageChunk(content=[{"type": "thinking", "thinking": text, **at}])
            yield AIMessageChunk(content=[{"type": "thinking", "signature": block["signature"], **at}])
        else:
            opening = tool_call_chunk(name=block["name"], args="", id=block["id"], index=index)
            yield AIMessageChunk(content=[{**block, "input": {}, "index": index}], tool_call_chunks=[opening])
            for text in cut(json.dumps(block["input"], ensure_ascii=False), self.cuts):
                piece = {"type": "input_json_delta", "partial_json": text, "index": index}
                more = tool_call_chunk(args=text, index=index)
                yield AIMessageChunk(content=[piece], tool_call_chunks=[more])


def cut(text: str, sizes: list[int]) -> Iterator[str]:
    """The text in pieces of these sizes, over and over."""
    start = number = 0
    while start < len(text):
        size = sizes[number % len(sizes)]
        yield text[start : start + size]
        start, number = start + size, number + 1


def added(chunks: list[Any]) -> Any:
    """The chunks put together, as LangChain does it."""
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    return total


BLOCKS: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "Is ¤1 true?", "signature": "c2ln"},
    {"type": "text", "text": "I saw ¤1, and ¤1"},
    {"type": "text", "text": "¤1 again ¤"},
    {"type": "tool_use", "id": "a", "name": "look", "input": {"at": 'x "¤1"', "n": 1}},
    {"type": "tool_use", "id": "b", "name": "look", "input": {"at": ["¤1"]}},
]


@pytest.fixture
def krunch(tmp_path: Path) -> Iterator[Krunch]:
    """A Krunch with a store."""
    with ConversationStore(tmp_path) as store, Krunch(SETTINGS, store=store) as krunch:
        yield krunch


def test_a_whole_reply_of_blocks(krunch: Krunch) -> None:
    """Text and tool calls are expanded, in the blocks that repeat the calls, too; a signed thought is left alone."""
    model = krunchify(BlockModel(blocks=BLOCKS), krunch, session="s")
    reply = model.invoke([HumanMessage(STORY)])
    content: Any = reply.content

    assert content[0] == BLOCKS[0]
    assert [block["text"] for block in content[1:3]] == [f"I saw {MEANING}, and {MEANING}", f"{MEANING} again ¤"]
    assert [block["input"] for block in content[3:]] == [{"at": f'x "{MEANING}"', "n": 1}, {"at": [MEANING]}]
    assert [call["args"] for call in reply.tool_calls] == [block["input"] for block in content[3:]]
    assert krunch.store is not None
    assert from_turn(krunch.store.turns("s")[-1]) == reply


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_streamed_reply_of_blocks(asynchronous: bool, krunch: Krunch) -> None:  # noqa: FBT001 - a parameter
    """Each block keeps its place and gets its own rest; the store has what the caller put together."""
    model = krunchify(BlockModel(blocks=BLOCKS), krunch, session="s")

    async def collect() -> list[Any]:
        return [chunk async for chunk in model.astream([HumanMessage(STORY)])]

    chunks = asyncio.run(collect()) if asynchronous else list(model.stream([HumanMessage(STORY)]))
    total = added(chunks)

    assert [block["type"] for block in total.content] == ["thinking", "text", "text", "tool_use", "tool_use"]
    assert total.content[0]["thinking"] == "Is ¤1 true?"
    assert total.content[0]["signature"] == "c2ln"
    assert [block["text"] for block in total.content[1:3]] == [f"I saw {MEANING}, and {MEANING}", f"{MEANING} again ¤"]
    assert [call["args"] for call in total.tool_calls] == [{"at": f'x "{MEANING}"', "n": 1}, {"at": [MEANING]}]
    assert [json.loads(block["partial_json"]) for block in total.content[3:]] == [
        call["args"] for call in total.tool_calls
    ]
    assert krunch.store is not None
    stored: Any = from_turn(krunch.store.turns("s")[-1])
    assert stored.tool_calls == total.tool_calls
    assert stored.content == total.content
    assert stored.id == total.id


def test_what_goes_back_to_the_model_is_recorded_once(krunch: Krunch) -> None:
    """A conversation in blocks, streamed, then resent as LangChain has it: each turn is recorded once."""
    inside = BlockModel(blocks=BLOCKS[:3])
    model = krunchify(inside, krunch, session="s")
    messages: list[Any] = [HumanMessage(STORY)]
    for number in range(3):
        total = added(list(model.stream(messages)))
        messages += [total, HumanMessage(f"{number}: {STORY}")]
    model.invoke(messages)
    assert krunch.store is not None
    turns = krunch.store.turns("s")

    assert [turn.message["role"] for turn in turns] == ["user", "assistant"] * 4
    sent = inside.got[-1]
    assert restore([{"role": "user", "content": sent[0].content}])[0]["content"] == STORY
    assert sent[1].content[0]["signature"] == "c2ln"


def texts(message: Any) -> list[str]:
    """The text of each text block."""
    return [block["text"] for block in message.content if block["type"] == "text"]


SAID = ["¤1", "a ¤1 b", "¤", "¤¤1", "x", "¤12"]
PLANS = st.lists(
    st.one_of(
        st.builds(lambda text: {"type": "text", "text": text}, st.sampled_from(SAID)),
        st.just({"type": "thinking", "thinking": "¤1", "signature": "s"}),
        st.builds(
            lambda number, value: {"type": "tool_use", "id": f"c{number}", "name": "f", "input": {"v": value}},
            st.integers(0, 99),
            st.sampled_from(["¤1", 'q"¤1', "é¤1\n", "¤", [1, "¤1"]]),
        ),
    ),
    min_size=1,
    max_size=5,
)


@given(PLANS, st.lists(st.integers(1, 7), min_size=1, max_size=3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_stream_adds_up_to_the_whole_reply(plan: Any, cuts: Any, indexed: bool) -> None:  # noqa: FBT001 - drawn
    """However a reply is cut, its pieces add up to what the whole reply is expanded to."""
    # Without an index, two texts side by side are one.
    assume(indexed or not any(one["type"] == other["type"] == "text" for one, other in pairwise(plan)))
    with Krunch(SETTINGS) as krunch:
        model = krunchify(BlockModel(blocks=plan, cuts=cuts, indexed=indexed), krunch)
        whole = model.invoke([HumanMessage(STORY)])
        total = added(list(model.stream([HumanMessage(STORY)])))

    assert total.text == whole.text
    assert [call["args"] for call in total.tool_calls] == [call["args"] for call in whole.tool_calls]
    if indexed:
        assert texts(total) == texts(whole)


class Unstreamed(BlockModel):
    """A provider whose tool calls come whole, without an index, and whose text is a string."""

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        for text in ("I saw ¤", "1 and ¤", "1"):
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))  # the last one is held back
        calls = [tool_call_chunk(name="f", args='{"a": "¤1"}', id=name, index=None) for name in ("x", "y")]
        yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=calls))
        yield ChatGenerationChunk(message=AIMessageChunk(content="", additional_kwargs={"reasoning_content": "¤"}))
        yield ChatGenerationChunk(message=AIMessageChunk(content="", additional_kwargs={"reasoning_content": "1!"}))


@pytest.mark.filterwarnings("ignore:The method `.*_v3` is in beta")
@pytest.mark.skipif(not hasattr(BaseChatModel, "stream_events"), reason="events v3 came with langchain-core 1.4")
def test_a_text_ends_before_what_comes_after_it(krunch: Krunch) -> None:
    """What is held back of a text comes before the tool call that follows, so that typed events keep their order."""
    model = krunchify(Unstreamed(blocks=[]), krunch)
    chunks = list(model.stream(STORY))
    said = [chunk.text for chunk in chunks[: [bool(chunk.tool_call_chunks) for chunk in chunks].index(True) + 1]]
    output = model.stream_events(STORY, version="v3").output

    assert "".join(said) == f"I saw {MEANING} and {MEANING}"
    assert output.text == f"I saw {MEANING} and {MEANING}"
    assert [call["args"] for call in output.tool_calls] == [{"a": MEANING}] * 2


def test_a_stream_without_indices_and_without_an_end(krunch: Krunch) -> None:
    """Calls that come whole, and reasoning beside the text, are expanded; what is held back comes at the end."""
    total = added(list(krunchify(Unstreamed(blocks=[]), krunch).stream(STORY)))

    assert total.content == f"I saw {MEANING} and {MEANING}"
    assert [(call["id"], call["args"]) for call in total.tool_calls] == [("x", {"a": MEANING}), ("y", {"a": MEANING})]
    assert total.additional_kwargs["reasoning_content"] == f"{MEANING}!"
