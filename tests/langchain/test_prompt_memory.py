"""KrunchMemory gives a prompt what matters of a conversation, and KrunchRetriever finds old turns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import (
    KrunchChatMessageHistory,
    KrunchMemory,
    KrunchRetriever,
    KrunchStore,
    openai_form,
    turn_metadata,
)
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests

from krunch_plugins import ConversationStore, Krunch, Settings, Turn
from krunch_plugins.tokens import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

FACTS = [
    "The spare key of the archive lies under the blue flower pot.",
    "My sister Annegret plays the bassoon in Ulm.",
    "The invoice of the roofers was 7,310 euros.",
    "We will meet the notary on the second Tuesday of May.",
    "The cat is called Schrödinger and eats nothing but trout.",
]


@pytest.fixture
def krunch(tmp_path: Path) -> Iterator[Krunch]:
    """A Krunch over a store in a folder of its own."""
    with ConversationStore(tmp_path / "store", upkeep_seconds=0) as store, Krunch(Settings(), store=store) as made:
        yield made


def tell(krunch: Krunch, session: str = "s", tenant: str | None = None) -> None:
    """A conversation with five facts at its beginning, and much small talk after it."""
    history = KrunchChatMessageHistory(session, store=krunch.store, tenant=tenant)
    for number, fact in enumerate(FACTS):
        history.add_messages([HumanMessage(fact, id=f"fact-{number}"), AIMessage("I will remember that.")])
    for number in range(30):
        talk = f"Nice weather today, number {number}; nothing of importance happened, and we talked about it at length."
        history.add_messages([HumanMessage(talk), AIMessage(f"Indeed, number {number}.")])
    krunch.flush(20)


def texts(messages: list[BaseMessage]) -> list[str]:
    """What messages say."""
    return [str(message.text) for message in messages]


# Memory


def test_recent_full_and_smart(krunch: Krunch) -> None:
    """Recent gives the last turns that fit, full all of them, smart the last ones and what the question is about."""
    tell(krunch)
    recent, full, smart = (
        KrunchMemory("s", mode=mode, budget=400, krunch=krunch).load("Where is the spare key of the archive?")
        for mode in ("recent", "full", "smart")
    )

    assert len(full) == 70
    assert full[0].id == "fact-0"
    assert texts(recent)[-1] == texts(smart)[-1] == "Indeed, number 29."
    assert 2 <= len(recent) < 30
    assert not any("flower pot" in text for text in texts(recent))
    assert any("flower pot" in text for text in texts(smart))
    count = load("o200k_base").count
    for messages in (recent, smart):
        assert 200 < sum(count(text) for text in texts(messages)) <= 400


def test_messages_that_fit_are_the_originals(krunch: Krunch) -> None:
    """What is loaded whole is LangChain's own message, with all that OpenAI's form does not say."""
    said: list[BaseMessage] = [
        HumanMessage("look", id="h"),
        AIMessage("", id="a", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "c", "type": "tool_call"}]),
        ToolMessage("4", tool_call_id="c", artifact={"raw": b"\x00"}),
        AIMessage("Four.", usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}),
    ]
    memory = KrunchMemory("s", mode="recent", krunch=krunch)
    memory.save(said[:1], said[1:])

    assert memory.load() == said


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch"])
async def test_a_chain_with_a_placeholder(krunch: Krunch, way: str) -> None:
    """In a chain it takes the input and the session from the config, and saves what the chain was asked and gave."""
    seen: list[list[BaseMessage]] = []

    def model(prompt: Any) -> AIMessage:
        seen.append(prompt.messages)
        return AIMessage(f"answer {len(seen)}")

    memory = KrunchMemory(mode="recent", krunch=krunch)
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Be brief."), MessagesPlaceholder("past"), ("human", "{question}")]
    )
    chain = RunnablePassthrough.assign(past=memory) | prompt | RunnableLambda(model)
    for number in range(3):
        asked = {"question": f"question {number}"}
        config: Any = {"configurable": {"session_id": "s"}}
        if way == "invoke":
            answer = chain.invoke(asked, config)
        elif way == "batch":
            answer = chain.batch([asked], config)[0]
        else:
            answer = await chain.ainvoke(asked, config)
        if way == "ainvoke":
            await memory.asave(asked, answer, session="s")
        else:
            memory.save(asked, answer.text, session="s")
    past = ["question 0", "answer 1", "question 1", "answer 2"]

    assert texts(seen[-1]) == ["Be brief.", *past, "question 2"]
    assert [spec.id for spec in memory.config_specs] == ["session_id"]
    assert KrunchMemory("s", krunch=krunch).config_specs == []
    assert await memory.aload(session="other") == []
    await memory.aclear(session="s")
    assert memory.load(session="s") == []


async def test_which_conversation_a_memory_means(krunch: Krunch) -> None:
    """Its own; another that is asked for by name; without its own, the one of the config, also of what runs around."""
    for name in ("ann", "bob"):
        KrunchMemory(name, krunch=krunch).save(f"I am {name}.", "Hello.")
    ann, any_ = (KrunchMemory(name, mode="full", krunch=krunch) for name in ("ann", None))
    bob: Any = {"configurable": {"session_id": "bob"}}

    def inside(text: str) -> list[BaseMessage]:
        return any_.invoke(text)

    async def ainside(text: str) -> list[BaseMessage]:
        return await any_.ainvoke(text)

    said = [
        ann.load(),
        ann.invoke("who?", bob),
        ann.load(session="bob"),
        await ann.aload(session="bob"),
        any_.invoke("who?", bob),
        RunnableLambda(inside).invoke("who?", bob),
        await RunnableLambda(ainside).ainvoke("who?", bob),
    ]
    assert [texts(messages)[0] for messages in said] == [f"I am {name}." for name in ("ann",) * 2 + ("bob",) * 5]
    await ann.asave("And I.", "You, too.", session="bob")
    ann.clear(session="bob")
    assert (len(ann.load()), ann.load(session="bob")) == (2, [])


def test_prompts_are_not_remembered(krunch: Krunch) -> None:
    """Where a wrapped model recorded the chain's prompt and its wording, the memory holds what was said only."""
    memory = KrunchMemory("s", mode="recent", krunch=krunch)
    for number in range(2):
        sent = [SystemMessage("Be brief."), *memory.load(), HumanMessage(f"Answer politely: question {number}")]
        exchange = krunch.prepare(
            [openai_form(message) for message in sent],
            model="gpt-4o",
            session="s",
            turn_metadata=[turn_metadata(message) for message in sent],
        )
        reply = AIMessage(f"answer {number}", id=f"r{number}")
        exchange.finish(openai_form(reply), metadata=turn_metadata(reply))
        memory.save(f"question {number}", reply)

    assert texts(memory.load()) == ["question 0", "answer 0", "question 1", "answer 1"]


def test_inputs_of_all_kinds(krunch: Krunch) -> None:
    """Texts, messages, lists and dicts are understood; what is none of them, or could be two things, is refused."""
    memory = KrunchMemory("s", mode="full", krunch=krunch)
    memory.save("a", "b")
    memory.save({"input": [HumanMessage("c")]}, {"output": AIMessage("d"), "more": 1})
    memory.save({"anything": HumanMessage("e")}, {"x": "f"})
    KrunchMemory("s", input_key="q", krunch=krunch).save(
        {"q": "g", "also": "text"}, ChatPromptTemplate.from_messages([("ai", "h")]).invoke({})
    )
    with pytest.raises(ValueError, match="input_key"):
        memory.save({"x": "1", "y": "2"}, "z")
    with pytest.raises(TypeError, match="int"):
        memory.save(7, "z")
    with pytest.raises(ValueError, match="session_id"):
        KrunchMemory(krunch=krunch).load()
    with pytest.raises(ValueError, match="smart"):
        KrunchMemory("s", mode="clever", krunch=krunch)  # type: ignore[arg-type]

    assert texts(memory.load()) == list("abcdefgh")
    assert [message.type for message in memory.load()] == ["human", "ai"] * 4


def test_krunch_and_store_belong_together(krunch: Krunch, tmp_path: Path) -> None:
    """A Krunch without a store, or with another than the one given, is refused; a store alone is enough."""
    makers: list[Callable[..., object]] = [KrunchMemory, KrunchRetriever, KrunchStore]
    with ConversationStore(tmp_path / "other") as other, Krunch(Settings()) as without:
        for make in makers:
            with pytest.raises(ValueError, match="another store"):
                make(krunch=krunch, store=other)
        for make in makers[:2]:
            with pytest.raises(ValueError, match="no store"):
                make(krunch=without)
        memory = KrunchMemory("s", mode="recent", store=other)
        memory.save("a", "b")

        assert texts(memory.load()) == ["a", "b"]


# Retriever


def test_what_a_document_says(krunch: Krunch) -> None:
    """A document holds the turn's text, and where and when it was said, by whom, and how it was found."""
    tell(krunch)
    found = KrunchRetriever(krunch=krunch, k=3).invoke("Where is the spare key of the archive?")[0]

    assert found.page_content == FACTS[0]
    assert found.id == '["s", 0]'
    assert {name: found.metadata[name] for name in ("session", "turn", "role")} == {
        "session": "s",
        "turn": 0,
        "role": "user",
    }
    assert datetime.fromisoformat(found.metadata["time"]).tzinfo == UTC
    assert found.metadata["score"] > 0
    assert found.metadata["found_by"]


async def test_filters(krunch: Krunch) -> None:
    """Sessions, roles, times and metadata narrow a search, when it is made or when it is called, sync and async."""
    tell(krunch)
    assert krunch.store is not None
    call = AIMessage(
        "", tool_calls=[{"name": "find_key", "args": {"where": "archive"}, "id": "c", "type": "tool_call"}]
    )
    KrunchChatMessageHistory("other", store=krunch.store).add_message(call)
    middle = krunch.store.turns("s")[40].timestamp
    krunch.flush(20)
    retriever = KrunchRetriever(krunch=krunch, k=50)

    async def found(query: str, **filters: Any) -> list[Document]:
        called, made = (
            retriever.invoke(query, **filters),
            await KrunchRetriever(krunch=krunch, **{"k": 50, **filters}).ainvoke(query),
        )
        assert called == made == await retriever.ainvoke(query, **filters)
        return called

    everywhere = await found("key archive")
    assert {"s", "other"} <= {document.metadata["session"] for document in everywhere}
    assert 'find_key({"where": "archive"})' in {document.page_content for document in everywhere}
    assert {document.metadata["session"] for document in await found("key archive", session="other")} == {"other"}
    assert {document.metadata["role"] for document in await found("remember weather", roles="assistant")} == {
        "assistant"
    }
    assert all(document.metadata["turn"] >= 40 for document in await found("weather", after=middle, session="s"))
    before = datetime.fromtimestamp(middle, UTC)
    assert all(document.metadata["turn"] < 40 for document in await found("weather key", before=before, session="s"))
    assert await found("key", turn_metadata={"no": "such"}) == []
    recorded = krunch.store.append("s", [Turn(0, {"role": "user", "content": "key"}, 1.0, None, {"topic": "locks"})])
    krunch.flush(20)
    topic = await found("key archive", turn_metadata={"topic": "locks"})
    assert [document.metadata["turn"] for document in topic] == [recorded.start]
    assert len(await found("weather", k=2)) == 2
    with pytest.raises(TypeError, match="not colour"):
        retriever.invoke("key", colour="blue")


def test_tags_and_metadata_are_langchains(krunch: Krunch) -> None:
    """A retriever's tags and metadata are told to callbacks, as every retriever's, and leave out nothing."""
    told: dict[str, Any] = {}

    class Watching(BaseCallbackHandler):
        def on_retriever_start(self, serialized: Any, query: Any, **facts: Any) -> None:
            told.update(facts)

    tell(krunch)
    retriever = KrunchRetriever(krunch=krunch, k=1, tags=["old"], metadata={"team": "red"})
    (found,) = retriever.invoke("spare key", {"callbacks": [Watching()], "run_name": "look"})

    assert found.page_content == FACTS[0]
    assert (told["name"], told["tags"], told["metadata"]["team"]) == ("look", ["old"], "red")


def test_tenants_never_see_each_other(krunch: Krunch) -> None:
    """A search finds nothing of another tenant's, and nothing that LangGraph keeps beside the conversations."""
    tell(krunch, tenant="ann")
    items = KrunchStore(krunch=krunch, tenant="bob")
    items.put(("facts",), "key", {"text": "The spare key of the archive lies in the drawer."})
    krunch.flush(20)
    found = {
        tenant: [
            document.page_content
            for document in KrunchRetriever(krunch=krunch, tenant=tenant).invoke("spare key archive")
        ]
        for tenant in ("ann", "bob", None)
    }

    assert FACTS[0] in found["ann"]
    assert found["bob"] == found[None] == []
    assert items.search(("facts",), query="spare key")[0].key == "key"


def test_the_long_term_store_searches_with_ours(krunch: Krunch) -> None:
    """Without an index of its own, the store ranks by Krunch's search, and what was replaced is not found."""
    items = KrunchStore(krunch=krunch, index={"fields": ["text"]})
    for number, fact in enumerate(FACTS):
        items.put(("facts", "old"), f"f{number}", {"text": "The spare key of the archive is lost."})
        items.put(("facts", "old"), f"f{number}", {"text": fact, "n": number})
    items.put(("facts", "new"), "hidden", {"text": "The spare key of the archive is a secret."}, index=False)
    krunch.flush(20)
    found = items.search(("facts",), query="spare key of the archive", limit=10)
    odd = items.search(("facts",), query="bassoon sister", filter={"n": {"$gte": 1}}, limit=2, offset=0)

    assert found[0].key == "f0"
    assert found[0].score is not None
    assert len(found) == 6
    assert {item.key: item.score for item in found}["hidden"] is None
    assert odd[0].key == "f1"
    assert len(odd) == 2


class TestRetrieverSuite(RetrieversIntegrationTests):
    """LangChain's own suite."""

    @pytest.fixture(autouse=True)
    def _conversation(self, krunch: Krunch) -> None:
        tell(krunch)
        self.krunch = krunch

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return KrunchRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"krunch": self.krunch}

    @property
    def retriever_query_example(self) -> str:
        return "weather"
