"""LangChain's messages in OpenAI's form and in the store, and back."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krunch_langchain.json_values import from_json_value, to_json_value
from krunch_langchain.messages import (
    METADATA_KEY,
    LazyMetadata,
    from_openai,
    from_turn,
    openai_form,
    reply_metadata,
    turn_metadata,
    with_changes,
)
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    message_chunk_to_message,
    message_to_dict,
)
from pydantic import BaseModel

from krunch_plugins import ConversationStore, Turn
from krunch_plugins.errors import NotStorable

if TYPE_CHECKING:
    from pathlib import Path

CALL = {"name": "search", "args": {"query": "ünï", "k": 2.5, "deep": [{"a": None}]}, "id": "call_1"}
WIDE = {"when": dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC), "raw": b"\x00\xff", "id": uuid.UUID(int=7),
        "pair": (1, (2, "x")), "day": dt.date(2026, 1, 2), "noon": dt.time(12),
        "span": dt.timedelta(days=-1, microseconds=3),
        "price": Decimal("1.10"), "seen": {"b", "a"}, "kept": frozenset({1, 2}), "$bytes": "no tag",
        "odd": {"$tuple": [1]}, "keys": {1: "one", (2, 3): "two"}, "nothing": None}  # fmt: skip

MESSAGES: list[BaseMessage] = [
    HumanMessage("Hello", id="h1", name="ada", additional_kwargs={"source": "web"}),
    HumanMessage(["one", {"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}]),
    HumanMessage(
        [
            {"type": "text", "text": "Look"},
            {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            {"type": "file", "base64": "aGk=", "mime_type": "application/pdf"},
            {"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}},
        ]
    ),
    SystemMessage("You are careful.", additional_kwargs={"__openai_role__": "developer"}),
    AIMessage(
        "Let me see.",
        id="run-1",
        tool_calls=[CALL, {"name": "empty", "args": {}, "id": None}],
        invalid_tool_calls=[
            {"name": "bad", "args": '{"a": ', "id": "call_2", "error": "cut off"},
            {"name": None, "args": None, "id": "call_3", "error": None},
        ],
        usage_metadata={
            "input_tokens": 3,
            "output_tokens": 4,
            "total_tokens": 7,
            "input_token_details": {"cache_read": 1},
        },
        response_metadata={"model_name": "gpt-4o", "finish_reason": "tool_calls", "logprobs": None},
        additional_kwargs={"refusal": "No.", "reasoning_content": "Hm."},
    ),
    AIMessage(
        [
            {"type": "thinking", "thinking": "Secret", "signature": "c2ln"},
            {"type": "text", "text": "Now", "citations": [{"cited_text": "x"}]},
            {"type": "tool_use", "id": "call_1", "name": "search", "input": CALL["args"]},
        ],
        tool_calls=[CALL],
    ),
    AIMessage("", additional_kwargs={"function_call": {"name": "old", "arguments": '{"a":1}'}}),
    AIMessage(
        "",
        additional_kwargs={
            "tool_calls": [{"id": "x", "type": "function", "function": {"name": "old", "arguments": '{"a":1}'}}]
        },
    ),
    AIMessage('{"a": 1}', additional_kwargs={"parsed": {"a": 1}}),
    ToolMessage("42", tool_call_id="call_1", name="search", artifact=WIDE, status="error", id="t1"),
    ToolMessage([{"type": "text", "text": "part"}], tool_call_id="call_1"),
    ChatMessage(content="Hm", role="critic"),
    FunctionMessage(content="4", name="add"),
    RemoveMessage(id="gone"),
    AIMessageChunk(content="Hel", id="run-2", tool_call_chunks=[{"name": "f", "args": '{"a"', "id": "c", "index": 0}]),
    HumanMessageChunk(content="piece"),
]


def stored(directory: Path, messages: list[BaseMessage]) -> list[Turn]:
    """The messages as turns, from a store that was closed and opened again."""
    turns = [Turn(0, openai_form(message), 0.0, metadata=turn_metadata(message)) for message in messages]
    with ConversationStore(directory) as store:
        store.append("s", turns)
    with ConversationStore(directory) as store:
        return store.turns("s")


def test_every_kind_of_message_comes_back_from_the_store(tmp_path: Path) -> None:
    """What was stored of a message, of whatever type and content, gives back an equal one; a chunk, the message."""
    back = [from_turn(turn) for turn in stored(tmp_path, MESSAGES)]

    expected = [message_chunk_to_message(message) for message in MESSAGES]
    assert [message_to_dict(message) for message in back] == [message_to_dict(message) for message in expected]
    assert [type(message) for message in back] == [type(message) for message in expected]


def test_a_turn_is_in_openai_form(tmp_path: Path) -> None:
    """The turn's message is one that programs without LangChain understand."""
    turns = stored(tmp_path, MESSAGES)

    assert turns[0].message == {"role": "user", "content": "Hello", "name": "ada"}
    assert turns[1].message["content"][0] == {"type": "text", "text": "one"}
    assert turns[2].message["content"][1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    assert turns[3].message == {"role": "developer", "content": "You are careful."}
    call = turns[4].message["tool_calls"][0]
    assert (call["id"], call["type"], call["function"]["name"]) == ("call_1", "function", "search")
    assert json.loads(call["function"]["arguments"]) == CALL["args"]
    assert [part["type"] for part in turns[5].message["content"]] == ["text"]
    assert turns[9].message == {"role": "tool", "content": "42", "tool_call_id": "call_1", "name": "search"}


def test_texts_stand_in_a_turn_once(tmp_path: Path) -> None:
    """The metadata does not say again what the turn's message says."""
    messages: list[BaseMessage] = [
        HumanMessage("needle " * 9),
        AIMessage("needle", tool_calls=[{"name": "f", "args": {"a": "needle"}, "id": "1"}]),
        ToolMessage([{"type": "text", "text": "needle"}], tool_call_id="1"),
    ]
    for turn in stored(tmp_path, messages):
        assert "needle" in str(turn.message)
        assert "needle" not in str(turn.metadata)


def test_the_turns_of_others_become_messages() -> None:
    """Turns that no LangChain adapter recorded become messages, with all that they hold."""
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
             {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{"}},
             {"id": "3", "type": "custom", "custom": {"name": "h", "input": "free"}}]  # fmt: skip
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "u"}], "name": "ada"},
        {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "r", "refusal": None},
        {"role": "tool", "content": "t", "tool_call_id": "1"},
        {"role": "function", "content": "f", "name": "f"},
        {"role": "critic", "content": "c"},
    ]
    made = [from_turn(Turn(number, message, 0.0)) for number, message in enumerate(messages)]

    assert [type(message) for message in made] == [SystemMessage, SystemMessage, HumanMessage, AIMessage, ToolMessage,
                                                   FunctionMessage, ChatMessage]  # fmt: skip
    assert [openai_form(message)["role"] for message in made] == [message["role"] for message in messages]
    reply = made[3]
    assert isinstance(reply, AIMessage)
    assert reply.content == ""
    assert [call["args"] for call in reply.tool_calls] == [{"a": 1}, {"__arg1": "free"}]
    assert [(call["name"], call["args"]) for call in reply.invalid_tool_calls] == [("g", "{")]
    assert reply.additional_kwargs == {"reasoning_content": "r"}
    assert made[4] == ToolMessage("t", tool_call_id="1")


def test_a_reply_is_stored_with_the_text_it_is_expanded_to() -> None:
    """What is kept of a reply before it is expanded holds nothing of what the model wrote, and takes the final text."""
    wire = AIMessage(
        [{"type": "text", "text": "¤1 said"}, {"type": "tool_use", "id": "c", "name": "f", "input": {"q": "¤1"}}],
        tool_calls=[{"name": "f", "args": {"q": "¤1"}, "id": "c"}],
        additional_kwargs={"reasoning_content": "¤1?"},
        response_metadata={"model_name": "m"},
        id="r",
    )
    metadata = reply_metadata(wire)
    final = json.loads(json.dumps(openai_form(wire)).replace("\\u00a41", "Ada"))

    assert "¤" not in str(metadata)
    assert from_turn(Turn(0, final, 0.0, metadata=metadata)) == AIMessage(
        [{"type": "text", "text": "Ada said"}, {"type": "tool_use", "id": "c", "name": "f", "input": {"q": "Ada"}}],
        tool_calls=[{"name": "f", "args": {"q": "Ada"}, "id": "c"}],
        additional_kwargs={"reasoning_content": "Ada?"},
        response_metadata={"model_name": "m"},
        id="r",
    )


class Weather(BaseModel):
    """A schema for structured output."""

    city: str


def test_parsed_output_follows_the_text() -> None:
    """What ChatOpenAI keeps as `parsed` is parsed again when the text it came from is expanded."""
    message = AIMessage('{"city": "¤1"}', additional_kwargs={"parsed": Weather(city="¤1")})
    before = openai_form(message)
    after = with_changes(message, before, {**before, "content": '{"city": "Rome"}'})

    assert after.additional_kwargs["parsed"] == Weather(city="Rome")
    assert message.additional_kwargs["parsed"] == Weather(city="¤1")


def test_nothing_changed_gives_the_message_itself() -> None:
    """A message whose OpenAI form stays the same is handed on, not copied."""
    for message in MESSAGES:
        assert with_changes(message, openai_form(message), openai_form(message)) is message


def test_what_cannot_be_stored_is_named() -> None:
    """An artifact that JSON cannot express raises, and says where it stands; in a request the turn loses only that."""
    message = ToolMessage("ok", tool_call_id="1", artifact={"handle": [object()]})

    with pytest.raises(NotStorable, match=r"message\.artifact\.handle\[0\] is of type object"):
        turn_metadata(message)
    assert list(LazyMetadata([message, HumanMessage("x")])) == [None, turn_metadata(HumanMessage("x"))]
    assert len(LazyMetadata([message])[:1]) == 1


def test_foreign_metadata_is_refused() -> None:
    """Metadata that this version cannot read raises; nothing is guessed."""
    with pytest.raises(ValueError, match="no LangChain message"):
        from_turn(Turn(3, {"role": "user", "content": "x"}, 0.0, metadata={METADATA_KEY: "?"}))
    with pytest.raises(ValueError, match="newer version"):
        from_json_value({"$class": "os.system"})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.datetimes()
    | st.dates() | st.times() | st.timedeltas() | st.uuids() | st.decimals(allow_nan=False)
    | st.frozensets(st.text() | st.integers()) | st.sets(st.binary()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["$bytes", "$x"]), inner)
    | st.dictionaries(st.integers() | st.tuples(st.text()), inner) | st.tuples(inner, inner),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_values_come_back_equal(value: Any) -> None:
    """Whatever is put into JSON's types comes back equal, of the same types, through JSON itself."""
    assert repr_of(from_json_value(json.loads(json.dumps(to_json_value(value))))) == repr_of(value)


def repr_of(value: Any) -> Any:
    """A value in a form in which 1 and True, or a list and a tuple, are not equal, and the order of sets is none."""
    if isinstance(value, dict):
        return ["dict", [[repr_of(key), repr_of(item)] for key, item in value.items()]]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [repr_of(item) for item in value]]
    if isinstance(value, (set, frozenset)):
        return [type(value).__name__, sorted(map(repr, value))]
    return repr(value)


TEXTS = st.text(max_size=20)
BLOCKS = (
    TEXTS
    | st.builds(lambda text: {"type": "text", "text": text}, TEXTS)
    | st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "s"}, TEXTS)
    | st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, TEXTS)
)
CONTENT = TEXTS | st.lists(BLOCKS, max_size=4)
ARGS = st.dictionaries(TEXTS, st.integers() | TEXTS | st.lists(st.floats(allow_nan=False)), max_size=3)
CALLS = st.lists(
    st.builds(lambda name, args, number: {"name": name, "args": args, "id": number}, TEXTS, ARGS, st.none() | TEXTS),
    max_size=3,
)


@given(CONTENT, CALLS, st.dictionaries(TEXTS, VALUES, max_size=2), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_message_comes_back(content: Any, calls: Any, extra: dict[str, Any], own: bool) -> None:  # noqa: FBT001 - drawn
    """Any content, tool calls and extras survive the way into a turn and back."""
    messages = [
        AIMessage(content, tool_calls=calls, response_metadata=extra),
        HumanMessage(content, additional_kwargs=extra if own else {}),
        ToolMessage(content, tool_call_id="1", artifact=extra),
    ]
    for message in messages:
        metadata = json.loads(json.dumps(turn_metadata(message)))
        form = json.loads(json.dumps(openai_form(message)))
        back = from_turn(Turn(0, form, 0.0, metadata=metadata))
        assert repr_of(message_to_dict(back)) == repr_of(message_to_dict(message))
        assert openai_form(from_openai(form))["role"] == form["role"]
