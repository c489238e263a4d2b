"""KrunchChatMessageHistory keeps every message as it was, once, whoever else records the conversation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krunch_langchain import KrunchChatMessageHistory, KrunchMemory, openai_form, turn_metadata
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    message_to_dict,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import ConfigurableFieldSpec, Runnable, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from pydantic import ConfigDict, Field

from krunch_plugins import ConversationStore, Krunch, Settings, Turn
from krunch_plugins.errors import NotStorable

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")

History = Callable[[str], KrunchChatMessageHistory]

EVERY_KIND: list[BaseMessage] = [
    SystemMessage("Be brief.", id="s1"),
    HumanMessage(
        [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        ],
        name="ann",
    ),
    AIMessage(
        "",
        id="run-1",
        tool_calls=[{"name": "look", "args": {"x": 1, "deep": {"ü": [None]}}, "id": "c1", "type": "tool_call"}],
        invalid_tool_calls=[{"name": "bad", "args": "{", "id": "c2", "error": "no JSON", "type": "invalid_tool_call"}],
        usage_metadata={"input_tokens": 5, "output_tokens": 7, "total_tokens": 12},
        response_metadata={"model_name": "gpt-4o", "logprobs": None, "finish_reason": "tool_calls"},
        additional_kwargs={"refusal": None, "custom": {"a": 1}},
    ),
    ToolMessage(
        "a cat", tool_call_id="c1", status="error", artifact={"raw": b"\x00", "at": datetime(2026, 1, 1, tzinfo=UTC)}
    ),
    ToolMessage("", tool_call_id="c2", artifact=(1, UUID(int=5))),
    AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "A cat.", "annotations": []}]),
    ChatMessage(content="as the critic", role="critic"),
    FunctionMessage(content="4", name="add"),
    HumanMessage("lone \ud800 surrogate, \x00, and 🐈"),
]


def dicts(messages: list[BaseMessage]) -> list[dict[str, Any]]:
    """Messages as LangChain writes them, so that every field counts."""
    return [message_to_dict(message) for message in messages]


def texts(messages: list[BaseMessage]) -> list[str]:
    """What messages say."""
    return [str(message.text) for message in messages]


class Recording(BaseChatModel):
    """A model whose exchanges Krunch records, as the wrapper does it; it answers with the number of the question."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    krunch: Krunch
    session: str
    answer: Callable[[list[BaseMessage]], str] = lambda messages: f"answer to {messages[-1].text}"
    calls: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "recording"

    def _exchange(self, messages: list[BaseMessage], run: Any) -> AIMessage:
        self.calls.append(messages)
        exchange = self.krunch.prepare(
            [openai_form(message) for message in messages],
            model="gpt-4o",
            session=self.session,
            turn_metadata=[turn_metadata(message) for message in messages],
        )
        reply = AIMessage(
            self.answer(messages),
            id=f"lc_run--{run.run_id}" if run else None,
            usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        )
        exchange.finish(openai_form(reply), metadata=turn_metadata(reply))
        return reply

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._exchange(messages, run_manager))])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for word in self._exchange(messages, run_manager).text.split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word + " "))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ConversationStore]:
    """A store in a folder of its own."""
    with ConversationStore(tmp_path / "store", upkeep_seconds=0) as opened:
        yield opened


@pytest.fixture
def krunch(store: ConversationStore) -> Iterator[Krunch]:
    """A Krunch that records in it."""
    with Krunch(Settings(), store=store) as made:
        yield made


def echo(given: Any) -> AIMessage:
    """What the stand-in says: how many messages it saw, and the last one."""
    messages = getattr(given, "messages", given)
    return AIMessage(f"{len(messages)}: {messages[-1].text}")


def test_every_kind_of_message_comes_back_equal(tmp_path: Path) -> None:
    """All types of messages, with all their fields, are the same after a restart."""
    with ConversationStore(tmp_path) as opened:
        KrunchChatMessageHistory("s", store=opened).add_messages(EVERY_KIND)
    with ConversationStore(tmp_path) as opened:
        found = KrunchChatMessageHistory("s", store=opened).messages

        assert dicts(found) == dicts(EVERY_KIND)
        assert [type(message) for message in found] == [type(message) for message in EVERY_KIND]
        assert [turn.message["role"] for turn in opened.turns("s")][:4] == ["system", "user", "assistant", "tool"]


WORDS = st.text(st.characters(exclude_categories=()), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.one_of(
    st.builds(HumanMessage, content=WORDS | st.lists(st.builds(lambda text: {"type": "text", "text": text}, WORDS))),
    st.builds(
        AIMessage,
        content=WORDS,
        id=st.none() | WORDS,
        additional_kwargs=st.dictionaries(WORDS, JSON, max_size=2),
        response_metadata=st.dictionaries(WORDS, JSON, max_size=2),
        tool_calls=st.lists(
            st.builds(
                lambda name, args, number: {"name": name, "args": args, "id": number, "type": "tool_call"},
                WORDS,
                st.dictionaries(WORDS, JSON, max_size=2),
                st.none() | WORDS,
            ),
            max_size=2,
        ),
    ),
    st.builds(ToolMessage, content=WORDS, tool_call_id=WORDS, artifact=JSON),
    st.builds(SystemMessage, content=WORDS),
)


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(MESSAGES, max_size=4), max_size=4))
def test_whatever_is_added_comes_back(batches: list[list[BaseMessage]], tmp_path_factory: Any) -> None:
    """Any messages, in any batches, are the history, in order, each of them once however often it was said."""
    with ConversationStore(tmp_path_factory.mktemp("store"), upkeep_seconds=0) as opened:
        for batch in batches:
            KrunchChatMessageHistory("s", store=opened).add_messages(batch)

        added = [message for batch in batches for message in batch]
        assert dicts(KrunchChatMessageHistory("s", store=opened).messages) == dicts(added)


def test_chunks_are_stored_as_messages(store: ConversationStore) -> None:
    """What a stream adds up to is stored as the message that it is."""
    history = KrunchChatMessageHistory("s", store=store)
    chunk = AIMessageChunk(content="Hel", id="r") + AIMessageChunk(content="lo", id="r", chunk_position="last")
    history.add_message(chunk)

    assert history.messages == [AIMessage("Hello", id="r")]
    assert type(history.messages[0]) is AIMessage


def test_what_cannot_be_stored_is_refused(store: ConversationStore) -> None:
    """An artifact without a form in JSON raises and says so; nothing of the batch is stored."""
    history = KrunchChatMessageHistory("s", store=store)
    with pytest.raises(NotStorable, match="artifact"):
        history.add_messages([HumanMessage("hi"), ToolMessage("x", tool_call_id="c", artifact=object())])
    with pytest.raises(TypeError, match="session_id"):
        KrunchChatMessageHistory(7, store=store)  # type: ignore[arg-type]

    assert history.messages == []


def test_convenience_methods_and_clear(store: ConversationStore) -> None:
    """LangChain's short forms work; the list is the caller's own; clearing leaves nothing on disk."""
    history = KrunchChatMessageHistory("s", store=store)
    history.add_user_message("hi")
    history.add_ai_message("hello")
    history.messages.clear()

    assert str(history) == "Human: hi\nAI: hello"
    history.clear()
    assert history.messages == []
    assert store.info("s") is None


async def test_async_methods(store: ConversationStore) -> None:
    """The async methods do what the others do."""
    history = KrunchChatMessageHistory("s", store=store)
    await history.aadd_messages([HumanMessage("hi"), AIMessage("hello")])
    assert texts(await history.aget_messages()) == ["hi", "hello"]
    await history.aclear()

    assert await history.aget_messages() == []


def test_the_default_store_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a store, all histories of a process use the one of KRUNCH_HOME, and it is on disk."""
    monkeypatch.setenv("KRUNCH_HOME", str(tmp_path / "home"))
    one, two = KrunchChatMessageHistory("s"), KrunchChatMessageHistory("s")
    one.add_user_message("hi")

    assert one.store is two.store
    assert texts(two.messages) == ["hi"]
    assert (tmp_path / "home" / "cache.db").exists()
    assert KrunchChatMessageHistory("s", tenant="other").messages == []


def test_turns_of_others_are_part_of_it(store: ConversationStore) -> None:
    """What LiteLLM's adapter or a program stored comes as LangChain's messages."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    store.append(
        "s",
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "4"},
        ],
    )
    history = KrunchChatMessageHistory("s", store=store)
    history.add_ai_message("Four.")

    assert [message.type for message in history.messages] == ["system", "human", "ai", "tool", "ai"]
    assert history.messages[2].tool_calls[0]["args"] == {"x": 1}  # type: ignore[attr-defined]


# RunnableWithMessageHistory


def with_history(runnable: Runnable[Any, Any], histories: History, **keys: Any) -> Runnable[Any, Any]:
    """A chain with a history."""
    return RunnableWithMessageHistory(runnable, histories, **keys)


def of(session: str = "s", **more: Any) -> Any:
    """The config of a call."""
    return {"configurable": {"session_id": session, **more}}


PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Be brief."), MessagesPlaceholder("past"), ("human", "Please: {question}")]
)


@pytest.fixture(params=["made for each call", "kept"])
def histories(request: pytest.FixtureRequest, store: ConversationStore) -> History:
    """How programs get a history: a new one for each call, or one for each session."""
    kept: dict[str, KrunchChatMessageHistory] = {}

    def make(session_id: str) -> KrunchChatMessageHistory:
        if request.param == "kept":
            return kept.setdefault(session_id, KrunchChatMessageHistory(session_id, store=store))
        return KrunchChatMessageHistory(session_id, store=store)

    return make


def shapes(model: Runnable[Any, Any], histories: History) -> dict[str, tuple[Runnable[Any, Any], Callable[[str], Any]]]:
    """A chain of each shape that RunnableWithMessageHistory takes, and what to call it with."""
    by_key = RunnableLambda(lambda given: given["question"]) | model
    return {
        "list in, message out": (with_history(model, histories), lambda text: [HumanMessage(text)]),
        "text in": (with_history(model, histories), lambda text: text),
        "all messages under a key": (
            with_history(by_key, histories, input_messages_key="question"),
            lambda text: {"question": [HumanMessage(text)]},
        ),
        "history under a key of its own": (
            with_history(PROMPT | model, histories, input_messages_key="question", history_messages_key="past"),
            lambda text: {"question": text},
        ),
        "text out": (
            with_history(
                PROMPT | model | StrOutputParser(),
                histories,
                input_messages_key="question",
                history_messages_key="past",
            ),
            lambda text: {"question": text},
        ),
        "dict out": (
            with_history(
                PROMPT | model | RunnableLambda(lambda message: {"answer": message, "more": 1}),
                histories,
                input_messages_key="question",
                history_messages_key="past",
                output_messages_key="answer",
            ),
            lambda text: {"question": text},
        ),
    }  # fmt: skip


SHAPES = [
    "list in, message out",
    "text in",
    "all messages under a key",
    "history under a key of its own",
    "text out",
    "dict out",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("recorded", ["", "recorded"], ids=["plain model", "recording model"])
@pytest.mark.parametrize("how", ["invoke", "stream", "ainvoke", "astream"])
async def test_conversations_in_every_shape(
    shape: str, recorded: str, how: str, histories: History, krunch: Krunch
) -> None:
    """Called, streamed, sync and async: each question and answer stands in the history once, in order.

    So it does where a wrapped model records the same session.
    """
    model: Any = Recording(krunch=krunch, session="s") if recorded else RunnableLambda(echo)
    chain, ask = shapes(model, histories)[shape]
    for question in ("two", "two", "one", "two"):
        if how == "invoke":
            chain.invoke(ask(question), of())
        elif how == "stream":
            list(chain.stream(ask(question), of()))
        elif how == "ainvoke":
            await chain.ainvoke(ask(question), of())
        else:
            [chunk async for chunk in chain.astream(ask(question), of())]
    found = histories("s").messages

    assert [message.type for message in found] == ["human", "ai"] * 4
    assert texts(found[::2]) == ["two", "two", "one", "two"]
    assert all(
        message.text.strip().endswith(str(found[index - 1].text)) for index, message in list(enumerate(found))[1::2]
    )
    assert not any(isinstance(message, AIMessageChunk) for message in found)
    if recorded:
        answers = [turn for turn in krunch.store.turns("s") if turn.message["role"] == "assistant"]  # type: ignore[union-attr]
        assert len(answers) == 4
        assert [message.type for message in model.calls[-1]].count("system") <= 1
        assert len(model.calls[-1]) - [message.type for message in model.calls[-1]].count("system") == 7


def test_the_recorded_turns_are_the_history(krunch: Krunch, store: ConversationStore) -> None:
    """A wrapper's turns are claimed, not stored again; the message is the one that LangChain handed over."""
    model = Recording(krunch=krunch, session="s")
    chain = with_history(model, lambda session: KrunchChatMessageHistory(session, store=store))
    reply = chain.invoke([HumanMessage("hi", id="h1")], of())
    history = KrunchChatMessageHistory("s", store=store)

    assert len(store.turns("s")) == 2
    assert dicts(history.messages) == dicts([HumanMessage("hi", id="h1"), reply])
    assert reply.id is not None  # LangChain gives it one after the wrapper has recorded it
    assert history.messages[1].usage_metadata == {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}  # type: ignore[attr-defined]


def test_what_a_wrapper_recorded_alone(krunch: Krunch, store: ConversationStore) -> None:
    """A conversation of a wrapped model without a history is there when a history is opened, with its originals."""
    model = Recording(krunch=krunch, session="s")
    asked: list[BaseMessage] = [SystemMessage("Be brief."), HumanMessage("yes", name="ann")]
    asked.append(model.invoke(asked))
    history = KrunchChatMessageHistory("s", store=store)

    assert texts(history.messages) == ["Be brief.", "yes", "answer to yes"]
    assert history.messages[1].name == "ann"
    history.add_user_message("yes")  # says it again; the wrapper has nothing to do with this one
    assert [message.type for message in history.messages] == ["human", "ai", "human"]
    assert texts(history.messages) == ["yes", "answer to yes", "yes"]


def test_a_wrapper_goes_on_with_what_others_stored(krunch: Krunch, store: ConversationStore) -> None:
    """Turns that a program stored stay part of the history when chains with a wrapped model go on with the session."""
    store.append("s", [{"role": "user", "content": "zero"}, {"role": "assistant", "content": "nought"}])
    model = Recording(krunch=krunch, session="s")
    chain, ask = shapes(model, lambda session: KrunchChatMessageHistory(session, store=store))[SHAPES[3]]
    for question in ("one", "two"):
        chain.invoke(ask(question), of())

    said = ["zero", "nought", "one", "answer to Please: one", "two", "answer to Please: two"]
    assert texts(KrunchChatMessageHistory("s", store=store).messages) == said
    assert texts(model.calls[-1]) == ["Be brief.", *said[:4], "Please: two"]


def test_added_by_hand_around_a_wrapper(krunch: Krunch, store: ConversationStore) -> None:
    """A program that stores the question before it asks, and the answer after, has both once."""
    model = Recording(krunch=krunch, session="s")
    for question in ("yes", "yes"):
        history = KrunchChatMessageHistory("s", store=store)
        history.add_user_message(question)
        history.add_message(model.invoke(history.messages))
    reply = model.invoke([*history.messages, HumanMessage("bye")])
    KrunchChatMessageHistory("s", store=store).add_messages([HumanMessage("bye"), reply])
    answer = model.invoke([*history.messages, HumanMessage("bye")]).text
    KrunchChatMessageHistory("s", store=store).add_messages([HumanMessage("bye"), AIMessage(answer)])

    assert texts(history.messages) == ["yes", "answer to yes"] * 2 + ["bye", "answer to bye"] * 2
    assert len(store.turns("s")) == 8


def test_what_a_template_made_of_it_is_not_history(krunch: Krunch, store: ConversationStore) -> None:
    """System prompt and worded question are recorded as sent; the history holds what the user said, in its place."""
    model = Recording(krunch=krunch, session="s")
    chain, ask = shapes(model, lambda session: KrunchChatMessageHistory(session, store=store))[SHAPES[3]]
    for question in ("one", "two"):
        chain.invoke(ask(question), of())
    sent = [(message.type, message.text) for message in model.calls[-1]]

    assert sent == [
        ("system", "Be brief."),
        ("human", "one"),
        ("ai", "answer to Please: one"),
        ("human", "Please: two"),
    ]
    assert [turn.message["content"] for turn in store.turns("s")].count("Be brief.") == 1
    assert texts(KrunchChatMessageHistory("s", store=store).messages) == [
        "one", "answer to Please: one", "two", "answer to Please: two"
    ]  # fmt: skip


def test_a_chain_that_breaks_after_its_model(krunch: Krunch, store: ConversationStore) -> None:
    """If the chain fails after the model has answered, the exchange is history, because it was; the next goes on."""
    model = Recording(krunch=krunch, session="s")
    fails = iter([True, False])

    def parse(message: BaseMessage) -> BaseMessage:
        if next(fails):
            raise ValueError("not what was asked for")
        return message

    def make(session: str) -> KrunchChatMessageHistory:
        return KrunchChatMessageHistory(session, store=store)

    chain = with_history(model | parse, make)
    with pytest.raises(ValueError, match="not what"):
        chain.invoke([HumanMessage("one")], of())
    chain.invoke([HumanMessage("one")], of())

    assert texts(make("s").messages) == ["one", "answer to one", "one", "answer to one"]


def test_a_chain_with_a_template_that_breaks_after_its_model(krunch: Krunch, store: ConversationStore) -> None:
    """What such an exchange brought along of the history is not said again; what was said again is there again."""
    fails = iter([False, False, True, True, False, False])
    seen: list[list[str]] = []

    def make(session: str) -> KrunchChatMessageHistory:
        return KrunchChatMessageHistory(session, store=store)

    def parse(message: BaseMessage) -> BaseMessage:
        seen.append(texts(make("s").messages))  # as a call that overlaps reads it: recorded, and not claimed yet
        if next(fails):
            raise ValueError("not what was asked for")
        return AIMessage(message.text.upper())

    chain = with_history(
        PROMPT | Recording(krunch=krunch, session="s") | parse,
        make,
        input_messages_key="question",
        history_messages_key="past",
    )
    said: list[str] = []
    for question, breaks in (
        ("one", ""),
        ("one", ""),
        ("two", "breaks"),
        ("three", "breaks"),
        ("one", ""),
        ("two", ""),
    ):
        worded = [f"Please: {question}", f"answer to Please: {question}"]
        if breaks:
            with pytest.raises(ValueError, match="not what"):
                chain.invoke({"question": question}, of())
        else:
            chain.invoke({"question": question}, of())
        assert [text for text in seen[-1] if text != "Be brief."][: len(said)] == said
        assert len(seen[-1]) <= len(said) + 2 + ("Be brief." in seen[-1])
        said += worded if breaks else [question, worded[1].upper()]
        assert texts(make("s").messages) == said
        assert texts(KrunchMemory("s", mode="recent", krunch=krunch).load()) == said


def test_several_configurable_fields(store: ConversationStore) -> None:
    """A history can be chosen by more than one field, a tenant among them."""

    def make(user: str, thread: str) -> KrunchChatMessageHistory:
        return KrunchChatMessageHistory(thread, tenant=user, store=store)

    fields = [ConfigurableFieldSpec(id=name, annotation=str) for name in ("user", "thread")]
    chain: Any = RunnableWithMessageHistory(RunnableLambda(echo), make, history_factory_config=fields)
    for user, thread in (("ann", "1"), ("bob", "1"), ("ann", "2"), ("ann", "1")):
        chain.invoke(f"{user} {thread}", {"configurable": {"user": user, "thread": thread}})

    assert texts(make("ann", "1").messages) == ["ann 1", "1: ann 1", "ann 1", "3: ann 1"]
    assert len(make("bob", "1").messages) == len(make("ann", "2").messages) == 2


def check_all_there(messages: list[BaseMessage], questions: list[str]) -> None:
    """Every question is there once, and its answer right behind it."""
    assert sorted(texts(messages[::2])) == sorted(questions)
    for human, ai in zip(messages[::2], messages[1::2], strict=True):
        assert (human.type, ai.type) == ("human", "ai")
        assert ai.text.strip().endswith(human.text)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[4]])
@pytest.mark.parametrize("recorded", ["", "recorded"], ids=["plain model", "recording model"])
async def test_calls_that_overlap(shape: str, recorded: str, histories: History, krunch: Krunch) -> None:
    """Concurrent calls of one session lose nothing and double nothing, threads and tasks, kept history or not."""
    barrier = threading.Barrier(4, timeout=20)

    def answer(messages: list[BaseMessage]) -> str:
        if not messages[-1].text.endswith("late"):
            barrier.wait()  # all of them have read the history before the first adds to it
        return f"answer to {messages[-1].text}"

    def plain(given: Any) -> AIMessage:
        return AIMessage(answer(getattr(given, "messages", given)))

    model: Any = Recording(krunch=krunch, session="s", answer=answer) if recorded else RunnableLambda(plain)
    chain, ask = shapes(model, histories)[shape]
    chain.invoke(ask("first late"), of())
    workers = [threading.Thread(target=chain.invoke, args=(ask(f"thread {n}"), of())) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    await asyncio.gather(*(asyncio.to_thread(chain.invoke, ask(f"task {n}"), of()) for n in range(4)))
    streams = [threading.Thread(target=lambda n=n: list(chain.stream(ask(f"stream {n}"), of()))) for n in range(4)]
    for worker in streams:
        worker.start()
    for worker in streams:
        worker.join()

    async def read(text: str) -> None:
        async for _ in chain.astream(ask(text), of()):
            await asyncio.sleep(0)

    chain.batch([ask(f"batch {n} late") for n in range(3)], of())
    await chain.abatch([ask(f"abatch {n} late") for n in range(3)], of())
    await asyncio.gather(*(chain.ainvoke(ask(f"async {n} late"), of()) for n in range(4)))
    await asyncio.gather(*(read(f"astream {n} late") for n in range(4)))
    questions = [f"{kind} {n}" for kind in ("thread", "task", "stream") for n in range(4)]
    questions += ["first late", *(f"{kind} {n} late" for kind in ("batch", "abatch") for n in range(3))]
    questions += [f"{kind} {n} late" for kind in ("async", "astream") for n in range(4)]

    check_all_there(histories("s").messages, questions)


def test_saying_the_same_at_the_same_time(histories: History, krunch: Krunch) -> None:
    """Two calls that overlap, with the same words in and out, are two exchanges in the history."""
    barrier = threading.Barrier(2, timeout=20)

    def answer(messages: list[BaseMessage]) -> str:
        barrier.wait()
        return "ok"

    chain, ask = shapes(Recording(krunch=krunch, session="s", answer=answer), histories)[SHAPES[4]]
    workers = [threading.Thread(target=chain.invoke, args=(ask("yes"), of())) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert texts(histories("s").messages) in (["yes", "ok"] * 2, ["yes", "yes", "ok", "ok"])


def test_long_sessions(store: ConversationStore) -> None:
    """Adding to a long session reads its end only; the whole of it stays in order, claims on all pages included."""
    numbers = count()
    with Krunch(Settings(mode="off"), store=store) as recorder:
        model = Recording(krunch=recorder, session="s", answer=lambda _: f"answer {next(numbers)}")
        for index in range(150):
            history = KrunchChatMessageHistory("s", store=store)
            question = HumanMessage(f"question {index}")
            past = history.messages[-6:]
            history.add_messages([question, model.invoke([*past, question])])

    found = KrunchChatMessageHistory("s", store=store).messages
    expected = [text for index in range(150) for text in (f"question {index}", f"answer {index}")]
    assert texts(found) == expected
    assert len(store.turns("s")) == 300


class Watched(ConversationStore):
    """Counts the turns, and the bytes of states, that this thread reads of it and writes to it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, upkeep_seconds=0)
        self.read = self.written = 0
        self.thread = threading.get_ident()  # indexes are brought up to date in others

    def count(self, *, read: int = 0, written: int = 0) -> None:
        if threading.get_ident() == self.thread:
            self.read, self.written = self.read + read, self.written + written

    def turns(self, *args: Any, **options: Any) -> list[Turn]:
        found = super().turns(*args, **options)
        self.count(read=len(found))
        return found

    def append(self, session: str, messages: Any, **options: Any) -> range:
        self.count(written=len(messages))
        return super().append(session, messages, **options)

    def get_state(self, *args: Any, **options: Any) -> bytes | None:
        data = super().get_state(*args, **options)
        self.count(read=len(data or b""))
        return data

    def update_state(self, session: str, name: str, change: Any, **options: Any) -> Any:
        def counted(data: bytes | None) -> Any:
            changed = change(data)
            self.count(written=len(changed or b""))
            return changed

        return super().update_state(session, name, counted, **options)


@pytest.mark.parametrize("recorded", ["", "recorded"])
def test_adding_costs_what_is_new(tmp_path: Path, recorded: str) -> None:
    """Adding to a session of 600 turns reads and writes no more than to one of 70, with a wrapper's turns or not."""
    costs = []
    numbers = count()
    for exchanges in (35, 300):
        with Watched(tmp_path / str(exchanges)) as opened, Krunch(Settings(mode="off"), store=opened) as recorder:
            model = Recording(krunch=recorder, session="s", answer=lambda _: f"answer {next(numbers)}")
            for index in range(exchanges):
                question = HumanMessage(f"question {index}")
                reply = model.invoke([question]) if recorded else AIMessage("plain")
                opened.read = opened.written = 0
                KrunchChatMessageHistory("s", store=opened).add_messages([question, reply])
            costs.append((opened.read, opened.written))
            assert len(opened.turns("s")) == 2 * exchanges

    assert costs[1][0] <= costs[0][0] + 16
    assert costs[1][1] <= costs[0][1] + 512  # the last page of what is claimed, however full it is


def answered(reply: str, given: Any) -> AIMessage:
    """A model that always says the same."""
    return AIMessage(reply)


def worded(reply: str, messages: list[BaseMessage]) -> str:
    """What a recorded model always says."""
    return reply


def the_same(history: KrunchChatMessageHistory, session: str) -> KrunchChatMessageHistory:
    """One history for all calls."""
    return history


CALLS = st.lists(
    st.tuples(
        st.sampled_from(SHAPES),
        st.sampled_from(["recorded", ""]),
        st.sampled_from(["invoke", "stream"]),
        st.sampled_from(["kept", ""]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["ok", "fine"]),
    ),
    max_size=7,
)


@settings(max_examples=8, deadline=None)
@given(calls=CALLS)
def test_any_sequence_of_calls(calls: Any, tmp_path_factory: Any) -> None:
    """Chains of all shapes, wrapped or not, one after another in one session, words that repeat: all is there once."""
    with (
        ConversationStore(tmp_path_factory.mktemp("store"), upkeep_seconds=0) as opened,
        Krunch(Settings(mode="off"), store=opened) as recorder,
    ):
        kept = KrunchChatMessageHistory("s", store=opened)
        said: list[str] = []
        for shape, recorded, how, keeps, question, reply in calls:
            plain: Any = RunnableLambda(partial(answered, reply))
            model = Recording(krunch=recorder, session="s", answer=partial(worded, reply)) if recorded else plain
            own = kept if keeps else KrunchChatMessageHistory("s", store=opened)
            chain, ask = shapes(model, partial(the_same, own))[shape]
            if how == "stream":
                list(chain.stream(ask(question), of()))
            else:
                chain.invoke(ask(question), of())
            said += [question, reply]
            found = KrunchChatMessageHistory("s", store=opened).messages

            assert [message.text.strip() for message in found] == said
            assert [message.type for message in found] == ["human", "ai"] * (len(said) // 2)


def test_the_words_of_a_claimed_turn_leave_with_it(krunch: Krunch, store: ConversationStore) -> None:
    """Where LangChain's words differ from those that were recorded, they go with their turn; those of others stay."""
    history = KrunchChatMessageHistory("s", store=store)
    model = Recording(krunch=krunch, session="s")
    for number in range(2):
        _ = history.messages
        reply = model.invoke([HumanMessage(f"as a template puts it: {number}")])
        history.add_messages([HumanMessage(f"private words {number}"), reply])
    assert texts(history.messages)[::2] == ["private words 0", "private words 1"]
    store.trim("s", 2)
    names = ["langchain.history.0", *(f"langchain.history.changes.{number}" for number in range(4))]
    left = b"".join(store.get_state("s", name) or b"" for name in names)

    assert b"private words 0" not in left
    assert b"private words 1" in left
    assert texts(history.messages)[0] == "private words 1"
