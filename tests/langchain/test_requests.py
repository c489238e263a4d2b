"""What the model inside is given: the same messages, with texts that restore to what the caller said."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from krunch_langchain import krunchify, openai_form
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from played_model import SETTINGS, STORY
from pydantic import Field

from krunch_plugins import Krunch, hookimpl, restore

TEXTS = st.sampled_from([STORY, f"again, {STORY}", "¤1 literally", "short", "", '{"a": [1, 2], "b": "¤"}'])
BLOCKS = st.one_of(
    TEXTS,
    st.builds(lambda text: {"type": "text", "text": text}, TEXTS),
    st.builds(lambda text: {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}, TEXTS),
    st.just({"type": "image", "base64": "aGk=", "mime_type": "image/png"}),
    st.just({"type": "image_url", "image_url": {"url": "https://example.com/¤1.png"}}),
    st.just({"type": "document", "source": {"type": "text", "data": STORY}}),
)
CONTENT = st.one_of(TEXTS, st.lists(BLOCKS, max_size=3))
CALLS = st.lists(
    st.builds(lambda query: {"name": "f", "args": {"q": query}, "id": "c", "type": "tool_call"}, TEXTS), max_size=2
)
THOUGHT = {"type": "thinking", "thinking": STORY, "signature": "c2ln"}
MESSAGES = st.lists(
    st.one_of(
        st.builds(SystemMessage, TEXTS),
        st.builds(lambda content, name: HumanMessage(content, name=name), CONTENT, st.none() | st.just("ada")),
        st.builds(lambda text, calls: AIMessage(text, tool_calls=calls, id="r", name="bot"), TEXTS, CALLS),
        st.builds(
            lambda text, calls: AIMessage([THOUGHT, {"type": "text", "text": text}], tool_calls=calls), TEXTS, CALLS
        ),
        st.builds(lambda content: ToolMessage(content, tool_call_id="c", artifact=[1], status="error"), CONTENT),
    ),
    min_size=1,
    max_size=6,
)


class Listening(BaseChatModel):
    """A model that keeps what it is given."""

    got: list[Any] = Field(default=[])

    @property
    def _llm_type(self) -> str:
        return "listening"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.got[:] = messages
        return ChatResult(generations=[ChatGeneration(message=AIMessage("ok"))])


def without_text(message: Any) -> Any:
    """All that a message holds beside its texts."""
    fields = dict(message)
    if isinstance(message.content, str):
        return {**fields, "content": ""}
    # A mere string among blocks may become a block of text, which says the same.
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in message.content]
    return {**fields, "content": [{**block, "text": ""} if block.get("type") == "text" else block for block in blocks]}


@given(MESSAGES)
@settings(max_examples=100, deadline=None)
def test_the_model_gets_the_same_messages(messages: Any) -> None:
    """Whatever a conversation holds, texts restore to what they were, and everything else is as it was."""
    before = [message.model_copy(deep=True) for message in messages]
    inside = Listening()
    with Krunch(SETTINGS) as krunch:
        krunchify(inside, krunch).invoke(messages)
    given = [openai_form(message) for message in inside.got]

    assert restore(given) == [openai_form(message) for message in messages]
    assert [without_text(message) for message in inside.got] == [without_text(message) for message in messages]
    assert [type(message) for message in inside.got] == [type(message) for message in messages]
    assert messages == before


def test_calls_keep_what_only_langchain_knows() -> None:
    """Where plugins put messages in and change texts too, tool calls and their results stay the caller's messages."""

    class Editor:
        @hookimpl
        def pre_request(self, exchange: Any) -> None:
            exchange.messages[:1] = [{"role": "system", "content": "new"}, *exchange.messages[:1]]
            for message in exchange.messages[2:]:
                message["content"] = "changed"

    calls: Any = [{"name": "f", "args": {"q": STORY}, "id": number, "type": "tool_call"} for number in ("c1", "c2")]
    blocks: Any = [THOUGHT, {"type": "text", "text": "Let me see."}]
    messages = [
        HumanMessage(STORY, id="h"),
        AIMessage(blocks, tool_calls=calls, id="a"),
        ToolMessage("one", tool_call_id="c1", id="t1", status="error"),
        ToolMessage("two", tool_call_id="c2", id="t2"),
        AIMessage("done", id="gone"),
    ]
    inside = Listening()
    with Krunch(SETTINGS, plugins=[Editor()]) as krunch:
        krunchify(inside, krunch).invoke(messages)

    assert [message.id for message in inside.got] == [None, "h", "a", "t1", "t2", None]
    assert inside.got[2].tool_calls == calls
    assert inside.got[3].status == "error"
    assert [message.content for message in inside.got[3:]] == ["changed"] * 3
