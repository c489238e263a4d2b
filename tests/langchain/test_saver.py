"""KrunchSaver keeps LangGraph's checkpoints as LangGraph's own savers do, in a small part of the room."""

from __future__ import annotations

import asyncio
import copy
import importlib
import operator
import sqlite3
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from krunch_langchain import KrunchSaver
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from krunch_plugins import ConversationStore
from krunch_plugins.errors import FrameDamaged, RecordsLost, SessionsDamaged, StoreError

channels: Any = importlib.import_module("langgraph.channels")
DeltaChannel = getattr(channels, "DeltaChannel", None)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Saver = BaseCheckpointSaver[Any]
TENANT = "\x1fcheckpoints"
ORDERED = hasattr(InMemorySaver, "_ordered_writes")
"""Older versions of it give writes in the order in which they came, others than LangGraph's savers on disk."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ConversationStore]:
    """A store in a folder of its own."""
    with ConversationStore(tmp_path / "store", upkeep_seconds=0) as opened:
        yield opened


def thread(name: str = "t", **more: Any) -> Any:
    """The config of a thread."""
    return {"configurable": {"thread_id": name, "checkpoint_ns": "", **more}}


def plain(found: CheckpointTuple | None) -> Any:
    """A checkpoint as something that can be compared."""
    if found is None:
        return None
    names = found.config["configurable"]
    parent = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None
    writes = found.pending_writes or []
    return (
        names["thread_id"], names.get("checkpoint_ns", ""), names["checkpoint_id"], parent,
        found.checkpoint, found.metadata, writes if ORDERED else sorted(writes, key=repr),
    )  # fmt: skip


async def test_langgraphs_suite(tmp_path: Path) -> None:
    """All of `langgraph-checkpoint-conformance`, the optional parts too."""

    @checkpointer_test("KrunchSaver")
    async def make() -> Any:
        with ConversationStore(tmp_path / "suite", upkeep_seconds=0) as opened:
            yield KrunchSaver(opened)

    report = await validate(make)
    results = report.results.values()

    assert [failure for result in results for failure in result.failures] == []
    assert all(result.detected and result.passed for result in results)
    assert len(results) == 8
    assert sum(result.tests_passed for result in results) >= 81


# The same as InMemorySaver


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=12) | st.binary(max_size=12)
    | st.builds(HumanMessage, content=st.text(max_size=8), id=st.sampled_from(["1", "2", "3"]))
    | st.builds(ToolMessage, content=st.text(max_size=8), tool_call_id=st.just("c"), artifact=st.binary(max_size=4)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
CHANNELS = st.dictionaries(st.sampled_from(["messages", "a", "b"]), VALUES, max_size=3)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["t", "u"]),
        st.sampled_from(["", "sub:1"]),
        st.integers(0, 4),  # how far back the parent is
        CHANNELS,
        st.lists(st.tuples(st.sampled_from(["a", "b", "__error__", "__interrupt__"]), VALUES), max_size=2),
        st.sampled_from(["task 1", "task 2"]),
        st.sampled_from(["", "~p, 1", "~p, 2"]),
    ),
    max_size=10,
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, keep=st.sampled_from(["kept", ""]))
def test_it_gives_what_in_memory_saver_gives(steps: Any, keep: str, tmp_path_factory: Any) -> None:
    """Checkpoints with forks and namespaces, any values, writes: read one by one and listed, also after a restart."""
    directory = tmp_path_factory.mktemp("store")
    memory = InMemorySaver()
    with ExitStack() as stack:
        ours = KrunchSaver(stack.enter_context(ConversationStore(directory, upkeep_seconds=0)))
        made: dict[tuple[str, str], list[Any]] = {}
        for number, (name, ns, back, values, writes, task, path) in enumerate(steps):
            line = made.setdefault((name, ns), [])
            parent = line[-1 - back % len(line)] if line else None
            checkpoint = empty_checkpoint()
            checkpoint["channel_values"] = values
            checkpoint["channel_versions"] = dict.fromkeys(values, number + 1)
            config = thread(name, checkpoint_ns=ns)
            if parent:
                config["configurable"]["checkpoint_id"] = parent["configurable"]["checkpoint_id"]
            about: Any = {"source": "loop", "step": number, "parents": {}, "odd": number % 2}
            versions = checkpoint["channel_versions"]
            config, other = (saver.put(config, checkpoint, about, versions) for saver in (ours, memory))
            assert config == other
            line.append(config)
            for saver in (ours, memory):
                saver.put_writes(config, writes, task, path)
                saver.put_writes(config, list(reversed(writes)), task, path)
        if not keep:
            ours = KrunchSaver(stack.enter_context(ConversationStore(directory, upkeep_seconds=0)))

        for configs in made.values():
            for config in configs:
                assert plain(ours.get_tuple(config)) == plain(memory.get_tuple(config))
            latest: Any = {
                "configurable": {k: v for k, v in configs[-1]["configurable"].items() if k != "checkpoint_id"}
            }
            assert plain(ours.get_tuple(latest)) == plain(memory.get_tuple(latest))
            for query in ({}, {"limit": 2}, {"filter": {"odd": 1}}, {"before": configs[-1]}):
                theirs, found = ([plain(one) for one in saver.list(latest, **query)] for saver in (memory, ours))
                assert found == theirs
        everything = [plain(one) for one in ours.list(None)]
        assert sorted(one[2] for one in everything) == sorted(one.checkpoint["id"] for one in memory.list(None))
        assert [one[2] for one in everything] == sorted((one[2] for one in everything), reverse=True)


# In graphs


def chat_graph(saver: Saver, answer: Callable[[Sequence[BaseMessage]], str]) -> Any:
    """A chat of one node."""

    def model(state: MessagesState) -> dict[str, Any]:
        messages = state["messages"]
        return {"messages": [AIMessage(answer(messages), id=f"answer-{len(messages)}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_edge(START, "model")
    graph.add_edge("model", END)
    return graph.compile(checkpointer=saver)


PROSE = (
    "The train to {} leaves at {} from platform {}; a seat costs {} euros, and the ticket can be returned until "
    "the day before. Please tell {} that the order of {} parcels was sent on {} and will be there by {}, as promised. "
)


def prose(number: int, size: int) -> str:
    """Text that is different every time."""
    text = ""
    while len(text) < size:
        number += 1
        text += PROSE.format(*(number * prime % 9973 for prime in (7, 11, 13, 17, 19, 23, 29, 31)))
    return text[:size]


def test_forty_turns_of_a_chat_of_forty_kilobytes(tmp_path: Path) -> None:
    """They take at most 120 KB on disk, where LangGraph's for SQLite takes megabytes, and all states are there."""
    sizes = []
    for name in ("ours", "theirs"):
        directory = tmp_path / name
        directory.mkdir()
        with ExitStack() as stack:
            saver: Saver
            if name == "ours":
                saver = KrunchSaver(stack.enter_context(ConversationStore(directory)))
            else:
                saver = stack.enter_context(SqliteSaver.from_conn_string(str(directory / "checkpoints.db")))
            chat = chat_graph(saver, lambda messages: prose(1000 * len(messages), 800))
            for number in range(40):
                chat.invoke({"messages": [HumanMessage(prose(number, 200), id=f"q{number}")]}, thread())
            states = list(chat.get_state_history(thread()))
            assert [len(state.values["messages"]) for state in states][::3] == list(range(80, 0, -2))
            assert states[0].values["messages"][-2].content == prose(39, 200)
        sizes.append(sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()))

    assert sizes[0] <= 120_000
    assert sizes[1] > 3_000_000


class Form(TypedDict):
    """A state with a list that grows and a value that is replaced."""

    notes: Annotated[list[str], operator.add]
    name: str


def form_graph(saver: Saver) -> Any:
    """A form that asks a person."""

    def ask(state: Form) -> dict[str, Any]:
        return {"name": interrupt("what is your name?"), "notes": ["asked"]}

    def greet(state: Form) -> dict[str, Any]:
        return {"notes": [f"hello {state['name']}"]}

    graph = StateGraph(Form)
    graph.add_node("ask", ask)
    graph.add_node("greet", greet)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "greet")
    graph.add_edge("greet", END)
    return graph.compile(checkpointer=saver)


def test_a_human_in_the_loop_after_a_restart(tmp_path: Path) -> None:
    """A graph that waits for a person goes on in another process, and an earlier state can be gone back to."""
    with ConversationStore(tmp_path) as opened:
        waiting = form_graph(KrunchSaver(opened)).invoke({"notes": ["begun"], "name": ""}, thread())
        assert waiting["__interrupt__"][0].value == "what is your name?"
    with ConversationStore(tmp_path) as opened:
        form = form_graph(KrunchSaver(opened))
        done = form.invoke(Command(resume="Ann"), thread())
        before = next(state for state in form.get_state_history(thread()) if state.next == ("greet",))
        changed = form.update_state(before.config, {"name": "Bob"})
        again = form.invoke(None, changed)

    assert done == {"notes": ["begun", "asked", "hello Ann"], "name": "Ann"}
    assert again == {"notes": ["begun", "asked", "hello Bob"], "name": "Bob"}


async def test_async_graphs_side_by_side(store: ConversationStore) -> None:
    """Many threads of one graph at a time, async, each with its own states; subgraphs have theirs."""
    saver = KrunchSaver(store)
    inner = chat_graph(None, lambda messages: f"answer to {messages[-1].text}")  # type: ignore[arg-type]
    outer = StateGraph(MessagesState)
    outer.add_node("inner", inner)
    outer.add_edge(START, "inner")
    graph = outer.compile(checkpointer=saver)
    for turn in range(3):
        await asyncio.gather(
            *(graph.ainvoke({"messages": [HumanMessage(f"{name} {turn}")]}, thread(str(name))) for name in range(8))
        )
    states = [await graph.aget_state(thread(str(name))) for name in range(8)]
    await saver.adelete_thread("3")

    for name, state in enumerate(states):
        said = [message.text for message in state.values["messages"]]
        assert said == [text for turn in range(3) for text in (f"{name} {turn}", f"answer to {name} {turn}")]
    assert (await graph.aget_state(thread("3"))).values == {}
    assert sorted(store.sessions(TENANT)) == list("0124567")


def add_all(state: list[int], writes: list[list[int]]) -> list[int]:
    """A reducer that puts lists one behind the other."""
    return [*state, *(item for write in writes for item in write)]


class Counting(TypedDict):
    """A state whose list LangGraph rebuilds from what was written."""

    items: Annotated[list[int], DeltaChannel(add_all, snapshot_frequency=4)]
    last: int


@pytest.mark.skipif(DeltaChannel is None, reason="this langgraph has no delta channels")
def test_delta_channels_outlive_pruning(store: ConversationStore) -> None:
    """Pruning keeps what LangGraph rebuilds a delta channel from, and what it does not need goes."""
    graph = StateGraph(Counting)
    graph.add_node("count", lambda state: {"items": [len(state["items"])], "last": len(state["items"])})
    graph.add_edge(START, "count")
    saver = KrunchSaver(store)
    counting = graph.compile(checkpointer=saver)
    for number in range(7):
        expected = counting.invoke({"items": [-number], "last": 0}, thread())
    before = len(list(saver.list(thread())))
    saver.prune(["t"])

    assert 1 <= len(list(saver.list(thread()))) < before
    assert counting.get_state(thread()).values == expected
    assert counting.invoke({"items": [99], "last": 0}, thread())["items"][:-1] == [*expected["items"], 99]


@dataclass
class Custom:
    """A type of the program's own."""

    name: str


def test_nothing_is_unpickled_or_built_unasked(store: ConversationStore, caplog: pytest.LogCaptureFixture) -> None:
    """Types that were not allowed come back as plain data; those that were, as they are; pickles are refused."""
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {"custom": Custom("x"), "messages": [HumanMessage("hi")]}
    checkpoint["channel_versions"] = {"custom": 1, "messages": 1}
    KrunchSaver(store).put(thread(), checkpoint, {}, checkpoint["channel_versions"])
    strict, allowing = (
        saver.get_tuple(thread()) for saver in (KrunchSaver(store), KrunchSaver(store, allowed_types=[Custom]))
    )
    with pytest.raises(ValueError, match="never unpickles"):
        KrunchSaver(store, serde=JsonPlusSerializer(pickle_fallback=True))

    assert strict is not None
    assert allowing is not None
    assert strict.checkpoint["channel_values"] == {"custom": {"name": "x"}, "messages": [HumanMessage("hi")]}
    assert allowing.checkpoint["channel_values"]["custom"] == Custom("x")
    assert "Blocked deserialization" in caplog.text


def test_versions_go_on(store: ConversationStore) -> None:
    """Versions are whole numbers; those of a thread that another saver began grow in its own form."""
    saver = KrunchSaver(store)
    begun = InMemorySaver().get_next_version(None, None)

    assert saver.get_next_version(saver.get_next_version(None, None), None) == 2
    assert saver.get_next_version(begun, None) > begun


def test_tenants_never_see_each_other(store: ConversationStore) -> None:
    """Threads of one id of two tenants are two threads, and none of them is a conversation of the tenant's."""
    chats = [chat_graph(KrunchSaver(store, tenant=tenant), lambda _: "ok") for tenant in (None, "acme")]
    chats[0].invoke({"messages": [HumanMessage("secret")]}, thread())

    assert chats[1].get_state(thread()).values == {}
    assert store.sessions() == store.sessions("acme") == []
    with pytest.raises(ValueError, match="keep_latest"):
        KrunchSaver(store).prune(["t"], strategy="some")


def test_deleting_a_thread_leaves_no_byte(tmp_path: Path) -> None:
    """After `delete_thread`, no file holds the thread's text or its id."""
    with ConversationStore(tmp_path, codec="none") as opened:
        saver = KrunchSaver(opened)
        chat = chat_graph(saver, lambda _: "ok")
        chat.invoke({"messages": [HumanMessage("hello")]}, thread("Xylophone-4711"))
        chat.invoke({"messages": [HumanMessage("hello")]}, thread("other"))
        saver.delete_thread("Xylophone-4711")

        assert not any(b"Xylophone-4711" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert len(chat.get_state(thread("other")).values["messages"]) == 2


def test_a_copied_thread_goes_its_own_way(store: ConversationStore) -> None:
    """A copy holds all states and writes; copying into a thread that has some adds them; both then go on apart."""
    saver = KrunchSaver(store)
    chat = chat_graph(saver, lambda messages: f"{len(messages)}")
    for name in ("one", "two"):
        chat.invoke({"messages": [HumanMessage(name, id=name)]}, thread(name))
    saver.copy_thread("one", "copy")
    saver.copy_thread("one", "two")
    saver.copy_thread("one", "one")
    saver.copy_thread("nobody", "one")
    one, copy = ([plain(each)[2:] for each in saver.list(thread(name))] for name in ("one", "copy"))
    chat.invoke({"messages": [HumanMessage("more")]}, thread("copy"))

    assert one == copy
    assert len(list(saver.list(thread("two")))) == 2 * len(one)
    assert len(chat.get_state(thread("one")).values["messages"]) == 2
    assert len(chat.get_state(thread("copy")).values["messages"]) == 4


class Meddled(JsonPlusSerializer):
    """Lets something happen between two looks at a thread, as another process would."""

    def __init__(self) -> None:
        super().__init__()
        self.then: Callable[[], object] | None = None

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        then, self.then = self.then, None
        if then is not None:
            then()
        return super().loads_typed(data)


@pytest.mark.parametrize("strategy", ["runs", "keep_latest"])
def test_what_others_write_while_something_is_given_up_stays(store: ConversationStore, strategy: str) -> None:
    """A checkpoint that another process writes while runs are deleted, or a thread is pruned, is not lost."""
    writer = KrunchSaver(store)
    for run in ("x", "y"):
        writer.put(thread(), empty_checkpoint(), {"source": "loop", "step": 0, "run_id": run}, {})
    serde = Meddled()
    about: Any = {"source": "loop", "step": 1, "run_id": "z"}
    serde.then = lambda: writer.put(thread(), empty_checkpoint(), about, {})
    saver = KrunchSaver(store, serde=serde)
    if strategy == "runs":
        saver.delete_for_runs(["x"])
    else:
        saver.prune(["t"])

    runs = [dict(found.metadata)["run_id"] for found in KrunchSaver(store).list(thread())]
    assert "x" not in runs
    assert "z" in runs


def test_many_threads_are_not_all_held(store: ConversationStore) -> None:
    """What is held of threads in memory has a bound, by number and by bytes, and all of them are there all the same."""
    saver = KrunchSaver(store)
    other = copy.copy(saver)  # as LangGraph makes one for a graph that names its types
    for number in range(1100):
        saver.get_tuple(thread(f"none {number}"))
    assert len(saver._threads) <= 1024

    for number in range(80):
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"a": bytes([number]) * 1_000_000}
        checkpoint["channel_versions"] = {"a": 1}
        (saver, other)[number > 39].put(thread(f"t{number}"), checkpoint, {}, {"a": 1})
    assert 55_000_000 < sum(log.bytes for log in saver._threads.values()) < 70_000_000
    found = [saver.get_tuple(thread(f"t{number}")) for number in range(80)]

    assert sum(log.bytes for log in saver._threads.values()) < 70_000_000
    assert [one and one.checkpoint["channel_values"]["a"][0] for one in found] == list(range(80))


@pytest.mark.parametrize("pruned", [False, True])
def test_a_lost_record_is_said(tmp_path: Path, *, pruned: bool) -> None:
    """Where a record of a thread is lost, a clear error says so; once it is deleted, the thread begins anew."""
    with ConversationStore(tmp_path, upkeep_seconds=0) as opened:
        saver, config = KrunchSaver(opened), thread()
        for number in range(5):
            checkpoint = empty_checkpoint()
            checkpoint["channel_values"] = {"m": [f"text {item}" for item in range(number)]}
            config = saver.put(config, checkpoint, {"step": number}, {"m": number})
            if pruned and number == 1:
                saver.prune(["t"])
        with closing(sqlite3.connect(tmp_path / "cache.db")) as database, database:
            logs = database.execute("select key, value from Cache where key like 'l/%' order by rowid").fetchall()
            key, data = logs[-2]
            database.execute("update Cache set value = ? where key = ?", (bytes([*data[:-1], data[-1] ^ 255]), key))
        opened._tiers.reset()
        opened.check(repair=True)
        saver = KrunchSaver(opened)
        with pytest.raises(StoreError, match="1 records"):
            saver.get_tuple(thread())
        with pytest.raises(StoreError, match="delete_thread"):
            saver.put(config, empty_checkpoint(), {}, {})
        saver.delete_thread("t")
        saver.put(thread(), empty_checkpoint(), {}, {})

        assert saver.get_tuple(thread()) is not None


@pytest.mark.parametrize("how", ["damaged", "lost", "unknown"])
async def test_one_damaged_thread_stops_no_other(tmp_path: Path, how: str) -> None:
    """What is done to all threads is done to all that can be read; then an error names those that could not."""
    with ConversationStore(tmp_path, upkeep_seconds=0) as opened:
        saver = KrunchSaver(opened)
        for name in ("a", "b", "c"):
            config = thread(name)
            for step, run in enumerate(("x", "y")):
                config = saver.put(config, empty_checkpoint(), {"step": step, "run_id": run}, {})
        if how == "unknown":
            opened.append("b", [{"role": "checkpoint", "data": "of a newer version"}], tenant=TENANT)
        else:
            key = opened.info("b", TENANT).key  # type: ignore[union-attr]
            with closing(sqlite3.connect(tmp_path / "cache.db")) as database, database:
                database.execute("update Cache set value = x'00' where key = ?", (f"l/{key}/1",))
            opened._tiers.reset()
            if how == "lost":
                opened.check(repair=True)
        saver = KrunchSaver(opened)

        def given(found: Iterator[CheckpointTuple]) -> list[str]:
            names: list[str] = []
            with pytest.raises(SessionsDamaged, match="not among those") as raised:
                names.extend(f"{one.config['configurable']['thread_id']}{one.metadata.get('step')}" for one in found)
            assert raised.value.sessions == ("b",)
            return names

        assert given(saver.list(None)) == ["c1", "c0", "a1", "a0"]
        assert given(saver.list(None, limit=1)) == ["c1"]
        assert given(saver.list(None, filter={"run_id": "x"})) == ["c0", "a0"]
        with pytest.raises(SessionsDamaged):
            [one async for one in saver.alist(None)]
        kind: Any = {"damaged": FrameDamaged, "lost": RecordsLost, "unknown": ValueError}[how]
        with pytest.raises(kind):
            list(saver.list(thread("b")))
        for delete in (lambda: saver.delete_for_runs(["x"]), lambda: asyncio.run(saver.adelete_for_runs(["x"]))):
            with pytest.raises(SessionsDamaged, match="still there") as raised:
                await asyncio.to_thread(delete)
            assert raised.value.sessions == ("b",)
        assert given(saver.list(None)) == ["c1", "a1"]
        saver.delete_thread("b")
        assert len(list(saver.list(None))) == 2
