"""Agents with the middleware: small requests, plain state and streams, each turn recorded once."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from itertools import chain
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import KrunchMiddleware, KrunchSaver, KrunchToolResults, from_turn, krunchify
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    wrap_model_call,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command
from openai import InternalServerError
from played_model import STORY
from pydantic import BaseModel

from krunch_plugins import Krunch, restore
from krunch_plugins.upstream import Answer

if TYPE_CHECKING:
    from tests.langchain.conftest import Serving

THREAD = {"configurable": {"thread_id": "t"}}


@tool
def search(query: str) -> str:
    """Search the archive."""
    return f"Found in the archive, for {query}: {STORY}"


def agent_of(serving: Serving, middleware: Any = (), *, model: Any = None, **options: Any) -> Any:
    """An agent with a tool, a system prompt, a checkpointer and, innermost, Krunch."""
    ours = options.pop("ours", None) or KrunchMiddleware(serving.krunch)
    facts: dict[str, Any] = {"tools": [search], "checkpointer": InMemorySaver(), "system_prompt": "Be careful."}
    return create_agent(model or serving.bare(), middleware=[*middleware, ours], **{**facts, **options})


def say(text: str = STORY) -> dict[str, Any]:
    """An agent's input."""
    return {"messages": [("user", text)]}


def roles(serving: Serving, session: str = "t") -> list[str]:
    """The roles of the turns in the store."""
    return [turn.message["role"] for turn in serving.store.turns(session)]


TURN = ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("saver", ["in memory", "Krunch's, async"])
async def test_forty_turns(saver: str, serving: Serving) -> None:
    """Over forty turns with tools and a checkpointer, every request is smaller and restorable; nothing is doubled."""
    ours = saver != "in memory"
    agent = agent_of(serving, checkpointer=KrunchSaver(serving.store) if ours else InMemorySaver())
    state: Any = {}
    for number in range(40):
        given = say(f"{number}: {STORY}")
        state = await agent.ainvoke(given, THREAD) if ours else agent.invoke(given, THREAD)
    turns = serving.store.turns("t")
    before, after = (sum(column) for column in zip(*serving.played.saved, strict=True))

    assert len(serving.upstream.requests) == 80
    assert after < before / 3
    assert roles(serving) == ["system", *TURN * 40]
    assert [from_turn(turn) for turn in turns[1:]] == state["messages"]
    assert "¤" not in str(state)
    last = restore(serving.upstream.requests[-1]["messages"])
    assert [message["content"] for message in last[1:]] == [
        message.content or None for message in state["messages"][:-1]
    ]


@pytest.mark.parametrize("mode", ["messages", "updates", "values"])
def test_streams_are_plain(mode: Any, serving: Serving) -> None:
    """Whatever an agent streams is what the model means, sync and async."""
    agent = agent_of(serving)
    parts = list(agent.stream(say(), THREAD, stream_mode=mode))

    async def collect() -> list[Any]:
        return [part async for part in agent.astream(say(), THREAD, stream_mode=mode)]

    parts += asyncio.run(collect())

    assert "warehouse" in str(parts)
    assert "¤" not in str(parts)
    assert roles(serving) == ["system", *TURN * 2]
    if mode == "messages":
        replies = [message.text for message, facts in parts if facts["langgraph_node"] == "model"]
        assert "".join(replies) == "".join(serving.played.plain)
        assert len(replies) > 10


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol on Pregel is experimental")
@pytest.mark.skipif(not hasattr(CompiledStateGraph, "stream_events"), reason="events v3 came with LangGraph 1.2")
def test_events_v3_are_plain(serving: Serving) -> None:
    """The typed streams of LangGraph's events v3 hold what the model means; each turn is recorded once."""
    agent = agent_of(serving)
    events = list(agent.stream_events(say(), THREAD, version="v3"))

    async def collect() -> list[Any]:
        return [event async for event in await agent.astream_events(say(), THREAD, version="v3")]

    events += asyncio.run(collect())

    assert "content-block-delta" in str(events)
    assert "¤" not in str(events)
    assert roles(serving) == ["system", *TURN * 2]


def test_events_are_plain(serving: Serving) -> None:
    """An agent's events hold what the model means, and its own name."""

    async def collect() -> list[Any]:
        return [event async for event in agent_of(serving).astream_events(say(), THREAD, version="v2")]

    events = asyncio.run(collect())

    assert "¤" not in str(events)
    assert {event["name"] for event in events if event["event"] == "on_chat_model_stream"} == {"ChatOpenAI"}


def test_a_name_of_the_agent(serving: Serving) -> None:
    """An agent that signs its replies with its name has each of them recorded once."""
    agent = agent_of(serving, name="helper")
    agent.invoke(say(), THREAD)
    state = agent.invoke(say(), THREAD)

    assert {message.name for message in state["messages"] if isinstance(message, AIMessage)} == {"helper"}
    assert roles(serving) == ["system", *TURN * 2]


def test_standard_blocks(serving: Serving) -> None:
    """With `output_version="v1"`, whose blocks LangChain makes after the reply has come, nothing is doubled."""
    agent = agent_of(serving, model=serving.bare(output_version="v1"))
    agent.invoke(say(), THREAD)
    list(agent.stream(say(), THREAD, stream_mode="messages"))
    state = agent.invoke(say(), THREAD)

    assert isinstance(state["messages"][-1].content, list)
    assert roles(serving) == ["system", *TURN * 3]
    assert from_turn(serving.store.turns("t")[-1]) == state["messages"][-1]


def test_a_model_that_cannot_be_wrapped(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """An agent over a runnable that is no chat model goes on uncompressed, and the log says so."""
    serving.played.compressed = False
    hidden: Any = RunnableLambda(serving.bare().invoke)
    state = agent_of(serving, model=hidden, tools=[]).invoke(say(), THREAD)

    assert state["messages"][-1].text == serving.plain
    assert "not compressed: krunchify() takes a chat model" in caplog.text


def test_with_a_wrapped_model(serving: Serving) -> None:
    """Where the agent's model is wrapped already, it is not wrapped again, and each turn is recorded once."""
    agent = agent_of(serving, model=serving.wrapped())
    agent.invoke(say(), THREAD)
    agent.invoke(say(), THREAD)

    assert roles(serving) == ["system", *TURN * 2]
    assert "¤¤" not in str(serving.upstream.requests)  # what is compressed twice has its marks escaped


def test_what_comes_after_the_last_request_is_recorded(serving: Serving) -> None:
    """The result of a tool that ends the agent is in the store, and so is the question of a turn that failed."""

    @tool(return_direct=True)
    def answer(query: str) -> str:
        """Answer for good."""
        return f"The answer to {query}"

    agent = agent_of(serving, tools=[answer])
    agent.invoke(say(), THREAD)

    assert roles(serving) == ["system", "user", "assistant", "tool"]
    serving.upstream.answer = lambda _: Answer("no", status=400)
    with pytest.raises(Exception, match="no"):
        agent.invoke(say("lost?"), THREAD)
    assert serving.store.turns("t")[-1].message == {"role": "user", "content": "lost?"}


class Slow:
    """A model server that lets nobody have an answer until it is told to."""

    def __init__(self, serving: Serving) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        self._played = serving.upstream.answer
        serving.upstream.answer = self

    def __call__(self, body: Any) -> Any:
        self.asked.set()
        self.go.wait(30)
        return self._played(body)


async def _ainvoke(agent: Any, given: Any) -> None:
    await agent.ainvoke(given, THREAD)


async def _astream(agent: Any, given: Any) -> None:
    async for _ in agent.astream(given, THREAD, stream_mode="messages"):
        pass


async def _events(agent: Any, given: Any) -> None:
    async for _ in agent.astream_events(given, THREAD, version="v2"):
        pass


@pytest.mark.parametrize("call", [_ainvoke, _astream, _events])
async def test_a_cancelled_first_call_leaves_the_question(serving: Serving, call: Any) -> None:
    """The question of a first call that is cancelled is in the store, once, also when it is asked or resumed again."""
    slow = Slow(serving)
    agent: Any = None
    for given in (say(), say(), None):
        agent = agent if given is None else agent_of(serving, tools=[])
        slow.asked.clear()
        task = asyncio.create_task(call(agent, given))
        await asyncio.to_thread(slow.asked.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [turn.message["content"] for turn in serving.store.turns("t")] == ["Be careful.", STORY]
    slow.go.set()
    state = await agent.ainvoke(None, THREAD)

    assert roles(serving) == ["system", "user", "assistant"]
    assert serving.store.turns("t")[-1].message["content"] == state["messages"][-1].text


async def test_a_stream_that_is_left_in_the_middle(serving: Serving) -> None:
    """Where a first call is cancelled while it streams, the question is there once, and what was said so far."""
    agent, played, go = agent_of(serving, tools=[]), serving.upstream.answer, threading.Event()
    pieces: Any = chain([6], (go.wait(30) or 9 for _ in range(99)))
    serving.upstream.answer = lambda _: Answer("I saw nothing, that is all.", pieces=pieces)
    async with aclosing(agent.astream(say(), THREAD, stream_mode="messages")) as stream:
        async for message, _ in stream:
            if message.text:
                break
    go.set()
    recorded = serving.store.turns("t")
    assert [turn.message["role"] for turn in recorded] == ["system", "user", "assistant"]
    assert recorded[-1].metadata["partial"] is True
    serving.upstream.answer = played
    await agent.ainvoke(None, THREAD)

    assert [turn.message["content"] for turn in serving.store.turns("t")].count(STORY) == 1
    assert roles(serving) == ["system", "user", "assistant", "assistant"]


class Interrupted(ChatOpenAI):
    """A model whose calls are interrupted from the keyboard."""

    def _generate(self, *_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    def _stream(self, *_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt
        yield


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("how", ["interrupted", "refused"])
def test_a_first_call_that_fails_for_good(serving: Serving, how: str, *, streamed: bool) -> None:
    """The question of a first call that is interrupted or fails, retries and all, is in the store once."""
    model = Interrupted(model="gpt-4o", api_key="none") if how == "interrupted" else serving.bare()  # type: ignore[arg-type]
    played, serving.upstream.answer = serving.upstream.answer, lambda _: Answer("no", status=500)
    agent = agent_of(serving, [ModelRetryMiddleware(max_retries=2, initial_delay=0, on_failure="error")], model=model)
    kind: Any = KeyboardInterrupt if how == "interrupted" else InternalServerError
    with pytest.raises(kind):
        list(agent.stream(say(), THREAD, stream_mode="messages")) if streamed else agent.invoke(say(), THREAD)
    assert [turn.message["content"] for turn in serving.store.turns("t")] == ["Be careful.", STORY]
    serving.upstream.answer = played
    agent_of(serving).invoke(say(), THREAD)

    assert roles(serving) == ["system", *TURN]


def test_summarization(serving: Serving) -> None:
    """With a middleware that sums up the state, the store has what was summed up, and each turn once."""
    summing = SummarizationMiddleware(serving.wrapped(), trigger=("messages", 6), keep=("messages", 3))
    agent = agent_of(serving, [summing])
    state: Any = {}
    for number in range(6):
        state = agent.invoke(say(f"{number}: {STORY}"), THREAD)
    said = [turn.message["content"] for turn in serving.store.turns("t") if turn.message["role"] == "user"]

    assert len(state["messages"]) < 12
    assert "¤" not in str(state)
    for number in range(6):
        assert said.count(f"{number}: {STORY}") == 1
    assert sum("summary of the conversation" in text for text in said) >= 1


def test_context_editing_and_whole_tool_results(serving: Serving) -> None:
    """Results that another middleware clears from requests are whole in the store; the state keeps them, too."""
    editing = ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=1000, keep=1)])
    ours = KrunchMiddleware(serving.krunch, tool_results=KrunchToolResults(min_characters=500))
    agent = agent_of(serving, [editing], ours=ours)
    for number in range(5):
        state = agent.invoke(say(f"{number}: {STORY}"), THREAD)
    results = [turn.message["content"] for turn in serving.store.turns("t") if turn.message["role"] == "tool"]
    cleared = [message for message in serving.sent() if message["role"] == "tool" and "[cleared]" in message["content"]]

    assert cleared
    assert [text for text in results if "archive" in text] == [
        message.content for message in state["messages"] if isinstance(message, ToolMessage)
    ]


def test_a_large_tool_result_is_stored_at_once(serving: Serving) -> None:
    """A large result is in the store, with its artifact, before the model sees it."""
    stored: list[list[str]] = []

    @tool(response_format="content_and_artifact")
    def fetch(query: str) -> Any:
        """Fetch a page."""
        return STORY, {"raw": b"\x00\x01", "pages": (1, 2)}

    @wrap_model_call
    def look(request: Any, handler: Any) -> Any:
        stored.append(roles(serving))
        return handler(request)

    @wrap_model_call
    async def alook(request: Any, handler: Any) -> Any:
        stored.append(roles(serving))
        return await handler(request)

    ours = KrunchMiddleware(serving.krunch, tool_results=KrunchToolResults(min_characters=500))
    agent_of(serving, [look], ours=ours, tools=[fetch]).invoke(say(), THREAD)
    other = {"configurable": {"thread_id": "u"}}
    asyncio.run(agent_of(serving, [alook], ours=ours, tools=[fetch]).ainvoke(say(), other))
    result = from_turn(serving.store.turns("t")[3])

    assert stored[1] == ["system", "user", "assistant", "tool"]
    assert isinstance(result, ToolMessage)
    assert result.artifact == {"raw": b"\x00\x01", "pages": (1, 2)}
    assert roles(serving) == ["system", *TURN]
    assert roles(serving, "u")[-2:] == ["tool", "assistant"]


def returned(*_: Any) -> list[Any]:
    """Updates of commands, in every form that LangGraph takes, and some that it refuses."""
    message = ToolMessage(STORY * 3, tool_call_id="1")
    return [
        [("messages", [message])],
        [("other", 1), ("messages", message)],
        {"messages": [{"role": "tool", "content": STORY * 3, "tool_call_id": "1"}]},
        {"messages": {"k": 1}},
        {"messages": [{"content": "no role"}]},
        [("messages", [{"content": "no role"}])],
        [1, 2],
        None,
    ]


@pytest.mark.parametrize("update", returned(), ids=range(8))
async def test_a_command_of_any_form_passes(update: Any, serving: Serving) -> None:
    """Whatever update a tool's command has, it comes through as it is; large results that it holds are recorded."""
    ours: Any = KrunchMiddleware(serving.krunch, session="t", tool_results=KrunchToolResults(min_characters=500))
    request: Any = SimpleNamespace(state={"messages": []})
    command: Command[Any] = Command(update=update)

    async def answer(_: Any) -> Any:
        return command

    assert ours.wrap_tool_call(request, lambda _: command) is command
    assert await ours.awrap_tool_call(request, answer) is command
    assert roles(serving) == (["tool"] if STORY in str(update) else [])


@pytest.mark.parametrize("decision", ["approve", "edit", "reject"])
def test_a_human_in_the_loop(decision: str, serving: Serving) -> None:
    """An agent that waits for a person goes on where it stopped; what the person decided is recorded once."""
    agent = agent_of(serving, [HumanInTheLoopMiddleware(interrupt_on={"search": True})])
    stopped = agent.invoke(say(), THREAD)
    edited = {"name": "search", "args": {"query": "another"}}
    decisions = {
        "approve": {"type": "approve"},
        "edit": {"type": "edit", "edited_action": edited},
        "reject": {"type": "reject", "message": "Not this."},
    }
    state = agent.invoke(Command(resume={"decisions": [decisions[decision]]}), THREAD)

    request = stopped["__interrupt__"][0].value["action_requests"][0]
    assert "¤" not in str(request)
    assert request["args"]["query"].removeprefix("It ") in STORY
    assert state["messages"][-1].text == serving.plain
    assert "¤" not in str(state)
    recorded = roles(serving)
    assert recorded[0] == "system"
    assert recorded.count("user") == 1
    assert recorded.count("tool") == 1
    # What a person edited stood beside what it was in older versions of LangChain.
    assert recorded.count("assistant") in ((2, 3) if decision == "edit" else (2,))


class Finding(BaseModel):
    """What was found."""

    where: str


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # ChatOpenAI's, with and without Krunch
@pytest.mark.parametrize(
    "strategy", [ToolStrategy, ProviderStrategy, lambda schema: schema], ids=["tool", "provider", "auto"]
)
async def test_structured_output(strategy: Any, serving: Serving) -> None:
    """Structured output by either strategy, or the one the agent chooses by the model's profile, is expanded."""
    agent = agent_of(serving, tools=[], response_format=strategy(Finding))
    states = [agent.invoke(say(), THREAD), await agent.ainvoke(say(), THREAD)]
    states.append([part async for part in agent.astream(say(), THREAD, stream_mode="values")][-1])

    for state in states:
        assert isinstance(state["structured_response"], Finding)
        assert state["structured_response"].where.removeprefix("It ") in STORY
        assert "¤" not in str(state["messages"])
    assert roles(serving).count("user") == 3


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "astream"])
async def test_a_subagent_has_a_session_of_its_own(way: str, serving: Serving) -> None:
    """What an agent in a tool says, and a model that a tool asks, is not mixed with the conversation of the agent."""
    inner: Any = create_agent(serving.bare(), [], middleware=[KrunchMiddleware(serving.krunch)], system_prompt="Inner.")

    @tool
    def ask(query: str) -> str:
        """Ask another agent."""
        serving.wrapped().invoke(f"aside: {STORY}")
        text: str = inner.invoke(say(f"{query}: {STORY}"))["messages"][-1].text
        return text

    @tool("ask")
    async def aask(query: str) -> str:
        """Ask another agent."""
        await serving.wrapped().ainvoke(f"aside: {STORY}")
        text: str = (await inner.ainvoke(say(f"{query}: {STORY}")))["messages"][-1].text
        return text

    agent = agent_of(serving, tools=[ask if way == "invoke" else aask])
    if way == "astream":
        [part async for part in agent.astream(say(), THREAD, stream_mode="messages", subgraphs=True)]
    else:
        _ = agent.invoke(say(), THREAD) if way == "invoke" else await agent.ainvoke(say(), THREAD)
    sessions = serving.store.sessions()

    assert roles(serving) == ["system", *TURN]
    (other,) = set(sessions) - {"t"}
    assert other.startswith("t|tools:")
    assert {"aside", "Inner"} <= {turn.message["content"][:5] for turn in serving.store.turns(other)}


async def test_asynchronous_agents(serving: Serving) -> None:
    """An agent that is awaited does the same, many at once, each on its own thread."""
    agent = agent_of(serving)
    threads = [{"configurable": {"thread_id": f"t{number}"}} for number in range(5)]
    for _ in range(2):
        await asyncio.gather(*(agent.ainvoke(say(), thread) for thread in threads))

    for number in range(5):
        assert roles(serving, f"t{number}") == ["system", *TURN * 2]


def test_without_a_thread_or_a_store(serving: Serving) -> None:
    """Without a thread's id, or a store, nothing is recorded; requests are compressed all the same."""
    agent_of(serving, checkpointer=None).invoke(say())
    with Krunch(serving.krunch.settings) as storeless:
        agent_of(serving, ours=KrunchMiddleware(storeless)).invoke(say(), THREAD)

    assert serving.store.sessions() == []
    assert len(serving.upstream.requests) == 4


def test_an_agent_goes_on_if_recording_fails(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """A store that cannot be written to costs the agent nothing; it is logged, without text, and counted."""
    serving.store.close()
    state = agent_of(serving).invoke(say(), THREAD)

    assert state["messages"][-1].text == serving.plain
    assert "StoreClosed" in caplog.text
    assert "warehouse" not in caplog.text


def test_models_that_change(serving: Serving) -> None:
    """A middleware that chooses the model for each request has every one of them served."""
    models = [serving.bare(temperature=number / 10) for number in range(20)]

    @wrap_model_call
    def choose(request: Any, handler: Any) -> Any:
        return handler(request.override(model=models[len(serving.upstream.requests) % 20]))

    agent = agent_of(serving, [choose], tools=[])
    for _ in range(21):
        agent.invoke(say(), THREAD)

    heat = [request["temperature"] for request in serving.upstream.requests]
    assert heat == [number / 10 for number in (*range(20), 0)]
    assert krunchify(models[0], serving.krunch).bound is models[0]


async def test_a_first_question_is_kept_when_the_model_fails(serving: Serving) -> None:
    """A new conversation whose first call fails keeps its question, after the system prompt, once."""
    failing = [True] * 4

    class Failing(type(serving.bare())):  # type: ignore[misc]
        def _generate(self, *args: Any, **options: Any) -> Any:
            if failing and failing.pop():
                raise OSError("down")
            return super()._generate(*args, **options)

        async def _agenerate(self, *args: Any, **options: Any) -> Any:
            if failing and failing.pop():
                raise OSError("down")
            return await super()._agenerate(*args, **options)

    bare = serving.bare()
    model = Failing(**{name: getattr(bare, name) for name in bare.model_fields_set})
    agent = agent_of(serving, model=model, tools=[], checkpointer=None)
    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            agent.invoke(say(), THREAD)
        with pytest.raises(OSError, match="down"):
            await agent.ainvoke(say(), THREAD)
        assert roles(serving) == ["system", "user"]
    agent.invoke(say(), THREAD)

    assert roles(serving) == ["system", "user", "assistant"]


def test_a_prompt_of_blocks(serving: Serving) -> None:
    """A system prompt of content blocks is recorded once, as it is, also where the first call fails."""
    blocks: Any = [{"type": "text", "text": "Be careful.", "cache_control": {"type": "ephemeral"}}]
    agent = agent_of(serving, tools=[], system_prompt=SystemMessage(blocks, name="house"))
    played, serving.upstream.answer = serving.upstream.answer, lambda _: Answer("no", status=400)
    with pytest.raises(Exception, match="no"):
        agent.invoke(say(), THREAD)
    serving.upstream.answer = played
    agent.invoke(None, THREAD)

    assert roles(serving) == ["system", "user", "assistant"]
    assert from_turn(serving.store.turns("t")[0]) == SystemMessage(blocks, name="house")
