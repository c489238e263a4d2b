"""The chat-model wrapper: what works with the model inside works with it; requests are smaller, replies exact."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import KrunchChatModel, krunchify
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tools import tool
from played_model import STORY, PlayedModel
from pydantic import BaseModel, Field

from krunch_plugins import Krunch, RequestRefused, Settings, hookimpl, restore
from krunch_plugins.upstream import Answer, ToolCall

if TYPE_CHECKING:
    from tests.langchain.conftest import Serving

beta = pytest.mark.filterwarnings("ignore:The method `.*_v3` is in beta")


async def _events_v2(model: Any, config: Any) -> str:
    texts = [
        event["data"]["chunk"].text
        async for event in model.astream_events(STORY, config, version="v2")
        if event["event"] == "on_chat_model_stream"
    ]
    return "".join(texts)


async def _events_v3(model: Any, config: Any) -> str:
    stream = await model.astream_events(STORY, config, version="v3")
    text: str = (await stream.output).text
    return text


async def _astream(model: Any, config: Any) -> str:
    return "".join([chunk.text async for chunk in model.astream(STORY, config)])


WAYS: dict[str, Any] = {
    "invoke": lambda model, config: model.invoke(STORY, config).text,
    "ainvoke": lambda model, config: asyncio.run(model.ainvoke(STORY, config)).text,
    "batch": lambda model, config: model.batch([STORY], config)[0].text,
    "abatch": lambda model, config: asyncio.run(model.abatch([STORY], config))[0].text,
    "batch_as_completed": lambda model, config: next(iter(model.batch_as_completed([STORY], config)))[1].text,
    "stream": lambda model, config: "".join(chunk.text for chunk in model.stream(STORY, config)),
    "astream": lambda model, config: asyncio.run(_astream(model, config)),
    "events v2": lambda model, config: asyncio.run(_events_v2(model, config)),
    "events v3": lambda model, config: model.stream_events(STORY, config, version="v3").output.text,
    "async events v3": lambda model, config: asyncio.run(_events_v3(model, config)),
    "transform": lambda model, config: "".join(chunk.text for chunk in model.transform(iter([STORY]), config)),
    "generate": lambda model, config: model.generate([[HumanMessage(STORY)]], metadata=config["configurable"])
    .generations[0][0].text,
    "chain": lambda model, config: (ChatPromptTemplate.from_template("{x}") | model | StrOutputParser())
    .invoke({"x": STORY}, config),
    "ambient": lambda model, config: RunnableLambda(lambda text: model.invoke(text).text).invoke(STORY, config),
}  # fmt: skip


@beta
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_call_it(way: str, serving: Serving) -> None:
    """However it is called, less is sent, the caller reads what the model means, and the session has both turns."""
    if "v3" in way and not hasattr(BaseChatModel, "stream_events"):
        pytest.skip("events v3 came with langchain-core 1.4")
    text = WAYS[way](serving.wrapped(), {"configurable": {"session_id": "s"}})

    assert text == serving.plain
    assert serving.sent() == [{"role": "user", "content": STORY}]
    assert [turn.message["content"] for turn in serving.store.turns("s")] == [STORY, text]


def test_a_stream_streams(serving: Serving) -> None:
    """Chunks come out as they come in, one for one, and a symbol is held back no longer than it takes to read it."""
    chunks = list(serving.wrapped().stream(STORY))

    assert "".join(chunk.text for chunk in chunks) == serving.plain
    assert len(chunks) > 10
    assert sum(bool(chunk.text) for chunk in chunks) > 5
    assert [chunk.chunk_position for chunk in chunks if chunk.chunk_position] == ["last"]
    assert [bool(chunk.usage_metadata) for chunk in chunks].count(True) == 1


@tool
def search(query: str, limit: int) -> str:
    """Search the archive."""
    return f"{limit} hits for {query}"


def test_tool_calls(serving: Serving) -> None:
    """Arguments of tool calls are expanded, whole and in streamed pieces; the shape of the binding is kept."""
    model, bare = serving.wrapped().bind_tools([search]), serving.bare().bind_tools([search])
    whole = model.invoke(STORY)

    async def collect() -> list[Any]:
        return [chunk async for chunk in model.astream(STORY)]

    assert type(model) is type(bare)
    assert isinstance(model.bound, KrunchChatModel)  # type: ignore[attr-defined]
    assert isinstance(whole, AIMessage)
    (call,) = whole.tool_calls
    assert call["name"] == "search"
    assert call["args"]["limit"] == 3
    assert call["args"]["query"].startswith("It ")
    assert call["args"]["query"].removeprefix("It ") in STORY
    streamed: list[Any] = list(model.stream(STORY))
    for chunks in (streamed, asyncio.run(collect())):
        total: Any = None
        for chunk in chunks:
            total = chunk if total is None else total + chunk
        assert sum(bool(chunk.tool_call_chunks) for chunk in chunks) > 3
        assert [one["args"] for one in total.tool_calls] == [call["args"]]


@beta
@pytest.mark.skipif(not hasattr(BaseChatModel, "stream_events"), reason="events v3 came with langchain-core 1.4")
def test_tool_calls_in_events_v3(serving: Serving) -> None:
    """Typed events give pieces of arguments that add up to what the model means, sync and async."""
    model: Any = serving.wrapped().bind_tools([search])
    whole = model.invoke(STORY)
    events = list(model.stream_events(STORY, version="v3"))

    async def collect() -> Any:
        stream = await model.astream_events(STORY, version="v3")
        return [event async for event in stream], (await stream.output).tool_calls

    others, calls = asyncio.run(collect())
    outputs = [model.stream_events(STORY, version="v3").output.tool_calls, calls]

    assert [[call["args"] for call in output] for output in outputs] == [[whole.tool_calls[0]["args"]]] * 2
    for told in (events, others):
        assert "¤" not in str(told)
        assert len(told) > 5


def test_symbols_in_arguments_are_escaped(serving: Serving) -> None:
    """A text with quotes and line breaks, put back into arguments, leaves them valid JSON."""
    quoted = "\n".join(f'He said "the connection to C:\\warehouse\\{name} was refused again"' for name in range(9))
    model = serving.wrapped().bind_tools([search])
    whole = model.invoke(quoted)
    total: Any = None
    for chunk in model.stream(quoted):
        total = chunk if total is None else total + chunk

    for message in (whole, total):
        assert not message.invalid_tool_calls
        assert '"\nHe said "the connection to C:\\warehouse' in message.tool_calls[0]["args"]["query"]


class Finding(BaseModel):
    """What was found."""

    setup: str
    punchline: str


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # ChatOpenAI's `parsed`, with and without Krunch
@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("method", ["function_calling", "json_mode", "json_schema"])
@pytest.mark.parametrize("schema", [Finding, Finding.model_json_schema()], ids=["class", "schema"])
def test_structured_output(schema: Any, method: Any, include_raw: bool, serving: Serving) -> None:  # noqa: FBT001 - a parameter
    """Structured output by every method, as class or dict, with the raw message or without: the values are expanded."""
    model: Any = serving.wrapped().with_structured_output(schema, method=method, include_raw=include_raw)

    async def asynchronously() -> tuple[Any, list[Any]]:
        return await model.ainvoke(STORY), [chunk async for chunk in model.astream(STORY)]

    awaited, collected = asyncio.run(asynchronously())
    results: list[Any] = [model.invoke(STORY), awaited, *model.batch([STORY, STORY])]
    for chunks in (list(model.stream(STORY)), collected):
        streamed: Any = None
        for chunk in chunks:
            streamed = chunk if streamed is None or not include_raw else {**streamed, **chunk}
        results.append(streamed)

    assert type(model) is type(serving.bare().with_structured_output(schema, method=method, include_raw=include_raw))
    for result in results:
        parsed = result["parsed"] if include_raw else result
        found = parsed.model_dump() if isinstance(parsed, Finding) else parsed
        assert set(found) == {"setup", "punchline"}
        for value in found.values():
            assert value.startswith("It ")
            assert value.removeprefix("It ") in STORY
    if include_raw:
        assert "¤" not in str(results[0]["raw"])


class Watching(BaseCallbackHandler):
    """Keeps what callbacks are told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.tags: list[str] | None = None
        self.metadata: dict[str, Any] = {}
        self.tokens: list[str] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.told += [str(serialized["id"]), str(messages), str(kwargs["invocation_params"])]
        self.tags, self.metadata = kwargs["tags"], kwargs["metadata"]

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)
        self.told.append(str(kwargs))

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.told.append(str(response))


def test_callbacks_see_plain_messages(serving: Serving) -> None:
    """Callbacks, with the model's tags and metadata, see messages as the caller has them, and the model's own name."""
    outer, inner = Watching(), Watching()
    model = serving.wrapped(callbacks=[inner], tags=["of the model"], metadata={"team": "red"})
    text = "".join(chunk.text for chunk in model.stream(STORY, {"callbacks": [outer], "tags": ["of the call"]}))

    assert "".join(outer.tokens) == text == "".join(inner.tokens)
    for handler in (outer, inner):
        assert "¤" not in "".join(handler.told)
        assert "ChatOpenAI" in handler.told[0]
        assert "krunch" not in handler.told[2]
        assert set(handler.tags or ()) == {"of the model", "of the call"}
        assert handler.metadata["team"] == "red"
        assert handler.metadata["ls_model_name"] == "gpt-4o"


def test_usage(serving: Serving) -> None:
    """Usage is what the provider counted: of the short request, once; Krunch's statistics have it, too."""
    with get_usage_metadata_callback() as usage:
        reply = serving.wrapped().invoke(STORY, {"configurable": {"session_id": "s"}})
        list(serving.wrapped().stream(STORY, {"configurable": {"session_id": "s"}}))
    stats = serving.krunch.stats("s")

    assert reply.usage_metadata is not None
    sent = [after for _, after in serving.played.saved]
    assert reply.usage_metadata["input_tokens"] == sent[0]
    assert usage.usage_metadata["gpt-4o"]["input_tokens"] == sum(sent)
    assert stats is not None
    assert (stats.billed.requests, stats.billed.input_tokens) == (2, sum(sent))


def test_the_rate_limiter_counts_each_call_once(serving: Serving) -> None:
    """The model's own rate limiter is asked once a call."""
    limiter = InMemoryRateLimiter(requests_per_second=0.001, max_bucket_size=2)
    limiter.available_tokens = 2
    model = serving.wrapped(rate_limiter=limiter)
    model.invoke(STORY)
    list(model.stream(STORY))

    assert limiter.available_tokens < 1


def test_the_cache_holds_plain_messages(serving: Serving) -> None:
    """A cached reply is found again by the wrapper and by the model inside, and is the expanded one."""
    cache = InMemoryCache()
    first = serving.wrapped(cache=cache).invoke(STORY)
    second = serving.wrapped(cache=cache).invoke(STORY, {"configurable": {"session_id": "other"}})
    bare = serving.bare(cache=cache).invoke(STORY)

    assert len(serving.upstream.requests) == 1
    assert first.text == second.text == bare.text == serving.plain


def test_the_cache_keeps_sessions_apart_where_plugins_may_tell_them_apart(serving: Serving) -> None:
    """With an outside plugin, what is cached for one session is not given to another."""

    class Stranger:
        @hookimpl
        def post_response(self, reply: Any) -> None:
            reply.message["content"] += " (seen)"

    serving.krunch.register(Stranger())
    model = serving.wrapped(cache=InMemoryCache())
    for session in ("a", "b", "a"):
        assert model.invoke(STORY, {"configurable": {"session_id": session}}).text.endswith("(seen)")

    assert len(serving.upstream.requests) == 2


def test_it_says_of_itself_what_the_model_inside_says(serving: Serving) -> None:
    """Name, profile, parameters, token counts and attributes are those of the model inside."""
    bare, model = serving.bare(temperature=0.3), serving.wrapped(temperature=0.3)

    assert model.profile == bare.profile
    assert model.profile
    assert (model.model_name, model.temperature) == ("gpt-4o", 0.3)
    assert model._llm_type == bare._llm_type
    assert model._get_ls_params() == bare._get_ls_params()
    assert model._get_invocation_params() == bare._get_invocation_params()
    assert model.get_num_tokens(STORY) == bare.get_num_tokens(STORY)
    assert model.get_num_tokens_from_messages([HumanMessage(STORY)]) == bare.get_num_tokens_from_messages(
        [HumanMessage(STORY)]
    )
    assert "store" not in repr(model).lower().replace("base_url", "")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = model.nonsense


def test_bindings_fallbacks_and_sequences_keep_their_shape(serving: Serving) -> None:
    """What LangChain built around a model before it was wrapped is rebuilt around the wrapper."""
    broken = serving.bare(base_url="http://127.0.0.1:9/v1")
    for runnable in (
        serving.bare().bind_tools([search]),
        serving.bare().bind(temperature=0.5),
        broken.with_fallbacks([serving.bare()]),
        serving.bare().with_retry(),
        serving.bare().with_config(tags=["x"]),
        serving.bare().bind(temperature=0.1).with_retry() | StrOutputParser(),
        broken.configurable_alternatives(ConfigurableField(id="which"), default_key="a", b=serving.bare())
        .with_config(configurable={"which": "b"}),
    ):  # fmt: skip
        served = krunchify(runnable, serving.krunch)
        served.invoke(STORY)

        assert type(served) is type(runnable)
        assert serving.upstream.requests
        assert serving.sent()[0]["content"] == STORY
        serving.upstream.received.clear()


def test_retries_and_fallbacks_around_the_wrapper(serving: Serving) -> None:
    """A call that fails goes to the next attempt or model, compressed as the first."""
    answers = iter([Answer("no", status=500), Answer("no", status=500)])
    played = serving.upstream.answer
    serving.upstream.answer = lambda body: next(answers, None) or played(body)
    retried = serving.wrapped().with_retry(wait_exponential_jitter=False).invoke(STORY)
    fallback = serving.wrapped(base_url="http://127.0.0.1:9/v1").with_fallbacks([serving.wrapped()]).invoke(STORY)

    bodies = [request["messages"] for request in serving.upstream.requests]
    assert len(bodies) == 4
    assert bodies[0] == bodies[1] == bodies[2] == bodies[3]
    assert retried.text == serving.played.plain[0]
    assert fallback.text == serving.played.plain[1]


def test_configurable_fields(serving: Serving) -> None:
    """Fields of the model inside, and the wrapper's own, can be set in a call's config; others are refused."""
    model = serving.wrapped().configurable_fields(
        temperature=ConfigurableField(id="heat"), session=ConfigurableField(id="talk")
    )
    model.invoke(STORY, {"configurable": {"heat": 0.9, "talk": "t"}})
    model.invoke(STORY)
    before = krunchify(serving.bare().configurable_fields(temperature=ConfigurableField(id="heat")), serving.krunch)
    before.invoke(STORY, {"configurable": {"heat": 0.1}})

    assert [request.get("temperature") for request in serving.upstream.requests] == [0.9, None, 0.1]
    assert serving.store.sessions() == ["t"]
    assert {spec.id for spec in model.config_specs} == {"heat", "talk"}
    with pytest.raises(ValueError, match="colour"):
        serving.wrapped().configurable_fields(colour=ConfigurableField(id="c"))


def test_only_text_is_compressed(serving: Serving) -> None:
    """Images, names, cache marks and tool calls go out as they came; the texts around them are compressed."""
    blocks: list[Any] = [
        {"type": "text", "text": STORY, "cache_control": {"type": "ephemeral"}},
        {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
        f"again: {STORY}",
    ]
    call = {"name": "search", "args": {"query": STORY, "limit": 1}, "id": "c1", "type": "tool_call"}
    messages: list[Any] = [
        SystemMessage("You are careful."),
        HumanMessage(blocks, name="ada"),
        AIMessage("", tool_calls=[call]),
        {"role": "tool", "tool_call_id": "c1", "content": STORY},
    ]
    before = copy.deepcopy(messages)
    serving.wrapped().invoke(messages)
    wrapped = serving.upstream.requests[-1]["messages"]
    serving.played.compressed = False
    serving.bare().invoke(messages)
    bare = serving.upstream.requests[-1]["messages"]

    bare[1]["content"][2] = {"type": "text", "text": f"again: {STORY}"}  # as a block, restore() can read it
    assert restore(wrapped) == bare
    assert wrapped != bare
    assert wrapped[1]["content"][1] == bare[1]["content"][1]
    assert wrapped[1]["name"] == "ada"
    assert wrapped[2] == bare[2]
    assert messages == before


def test_content_blocks_v1(serving: Serving) -> None:
    """With `output_version="v1"` replies hold standard blocks, expanded, whole and streamed."""
    model = serving.wrapped(output_version="v1")
    reply = model.invoke(STORY, {"configurable": {"session_id": "s"}})
    plain = serving.plain
    total: Any = None
    for chunk in model.stream(STORY):
        total = chunk if total is None else total + chunk

    assert reply.content == [{"type": "text", "text": plain}]
    assert total.content_blocks[0]["text"] == serving.plain
    assert reply.content_blocks == reply.content


def test_serialization_is_refused(serving: Serving) -> None:
    """What would not compress after loading is not dumped, alone or in a chain; the error says what to do instead."""
    model = serving.wrapped()

    assert not model.is_lc_serializable()
    for dump in (dumps, pickle.dumps, lambda chain: dumps(chain | StrOutputParser())):
        with pytest.raises(TypeError, match=r"call krunchify\(\) on it after loading"):
            dump(model)
    fake = krunchify(GenericFakeChatModel(messages=iter([])), serving.krunch)
    assert copy.deepcopy(fake).krunch is fake.krunch
    assert copy.deepcopy(fake).bound is not fake.bound
    assert copy.copy(model).invoke(STORY).text == serving.plain


def test_whose_a_call_is(serving: Serving) -> None:
    """The session comes from the config, its metadata, or the argument; the tenant from the argument or the config."""
    model = krunchify(serving.bare(), serving.krunch, session="argument")
    model.invoke(STORY, {"configurable": {"session_id": "config", "thread_id": "thread"}})
    model.invoke(STORY, {"metadata": {"session_id": "metadata"}})
    model.invoke(STORY, {"configurable": {"thread_id": "thread"}})
    serving.wrapped().invoke(STORY, {"configurable": {"thread_id": 7}})
    serving.wrapped().invoke(STORY, {"metadata": {"conversation_id": "talk"}})
    serving.wrapped().invoke(STORY)
    krunchify(model, tenant="blue").invoke(STORY, {"configurable": {"tenant": "red"}})
    serving.wrapped().invoke(STORY, {"configurable": {"tenant": "red", "session_id": "r"}})

    assert set(serving.store.sessions()) == {"config", "metadata", "argument", "7", "talk"}
    assert serving.store.sessions("blue") == ["argument"]
    assert serving.store.sessions("red") == ["r"]


def test_a_wrapper_is_not_wrapped_again(serving: Serving) -> None:
    """Wrapping twice compresses once; new arguments are taken."""
    model = serving.wrapped()

    assert krunchify(model) is model
    assert krunchify(model, session="s").session == "s"
    assert krunchify(model, session="s").bound is model.bound
    with pytest.raises(TypeError, match="found none in RunnableLambda"):
        krunchify(RunnableLambda(len))


def test_requests_fail_open(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """If Krunch itself breaks, the call goes out as it came, and the log says so without any text."""
    serving.played.compressed = False

    class Broken(Krunch):
        def prepare(self, *args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError(STORY)

        async def aprepare(self, *args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError(STORY)

    with Broken(Settings()) as krunch:
        model = krunchify(serving.bare(), krunch)
        replies = [model.invoke(STORY).text, "".join(chunk.text for chunk in model.stream(STORY))]

        async def ask() -> list[str]:
            return [(await model.ainvoke(STORY)).text, await _astream(model, None)]

        replies += asyncio.run(ask())

    assert replies == serving.played.plain
    assert all(request["messages"][0]["content"] == STORY for request in serving.upstream.requests)
    assert "ZeroDivisionError" in caplog.text
    assert "warehouse" not in caplog.text


class Plain(BaseChatModel):
    """A model of somebody's own whose methods take what the caller gives, and nothing of LangChain's."""

    given: list[dict[str, Any]] = Field(default=[])

    @property
    def _llm_type(self) -> str:
        return "plain"

    def _generate(self, messages: Any, stop: Any = None, **options: Any) -> ChatResult:  # type: ignore[override]
        self.given.append(options)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("hi"))])

    async def _agenerate(self, messages: Any, stop: Any = None, **options: Any) -> ChatResult:  # type: ignore[override]
        return self._generate(messages, stop, **options)

    def _stream(self, messages: Any, stop: Any = None, **options: Any) -> Any:  # type: ignore[override]
        self.given.append(options)
        yield ChatGenerationChunk(message=AIMessageChunk(content="hi"))

    async def _astream(self, messages: Any, stop: Any = None, **options: Any) -> Any:  # type: ignore[override]
        self.given.append(options)
        yield ChatGenerationChunk(message=AIMessageChunk(content="hi"))


@pytest.mark.parametrize("works", ["works", ""])
async def test_a_model_that_knows_no_callbacks(works: str, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is called with the caller's options alone, whether Krunch works or fails; callbacks have each token."""
    if not works:
        monkeypatch.setattr("krunch_langchain.requests.openai_form", None)
    model = krunchify(Plain(), serving.krunch)
    watching = Watching()
    config: Any = {"callbacks": [watching]}
    said = [
        model.invoke(STORY, config, heat=1).text,
        (await model.ainvoke(STORY, config, heat=1)).text,
        "".join(chunk.text for chunk in model.stream(STORY, config, heat=1)),
        "".join([chunk.text async for chunk in model.astream(STORY, config, heat=1)]),
    ]

    assert said == ["hi"] * 4
    assert model.given == [{"heat": 1}] * 4
    assert [token for token in watching.tokens if token] == ["hi"] * 2


def test_a_refusal_stops_the_call(serving: Serving) -> None:
    """A plugin that refuses a request stops it, in every way of calling; nothing is sent."""

    class Guard:
        @hookimpl
        def pre_request(self, exchange: Any) -> None:
            raise RequestRefused("not today")

    serving.krunch.register(Guard())
    model = serving.wrapped()
    with pytest.raises(RequestRefused, match="not today"):
        model.invoke(STORY)
    with pytest.raises(RequestRefused):
        list(model.stream(STORY))
    with pytest.raises(RequestRefused):
        asyncio.run(model.ainvoke(STORY))

    assert serving.upstream.requests == []


def test_plugins_may_add_and_take_out_messages(serving: Serving) -> None:
    """Messages that a plugin puts in are sent; those that stay keep all that LangChain knows of them."""

    class Editor:
        @hookimpl
        def pre_request(self, exchange: Any) -> None:
            exchange.messages[1:2] = [{"role": "system", "content": f"Remember: {STORY}"}]

    serving.krunch.register(Editor())
    serving.wrapped().invoke([HumanMessage(STORY), AIMessage("gone"), HumanMessage(STORY, name="ada")])

    assert serving.sent() == [
        {"role": "user", "content": STORY},
        {"role": "system", "content": f"Remember: {STORY}"},
        {"role": "user", "content": STORY, "name": "ada"},
    ]


def test_several_choices(serving: Serving) -> None:
    """Each choice of a reply is expanded."""
    model = serving.wrapped(n=2)
    result = model.generate([[HumanMessage(STORY)]])

    assert [generation.text for generation in result.generations[0]] == [serving.plain] * 2
    assert result.llm_output is not None
    assert result.llm_output["model_name"] == "gpt-4o"


def test_a_broken_stream_is_recorded_as_partial(serving: Serving) -> None:
    """A caller that stops reading, or a connection that is cut, leaves what was said so far in the store, marked."""
    model = serving.wrapped()
    stream = model.stream(STORY, {"configurable": {"session_id": "left"}})
    said = ""
    for chunk in stream:
        said += chunk.text
        if len(said) > 8:
            break
    stream.close()  # type: ignore[attr-defined]
    played = PlayedModel()

    def cut(body: dict[str, Any]) -> Answer:
        answer = played(body)
        return Answer(answer.text, break_after=8)

    serving.upstream.answer = cut
    with pytest.raises(Exception, match=r"incomplete|peer closed|Connection"):
        list(model.stream(STORY, {"configurable": {"session_id": "cut"}}))

    for session in ("left", "cut"):
        turn = serving.store.turns(session)[-1]
        assert turn.message["role"] == "assistant"
        assert turn.metadata["partial"] is True
        assert "(0) I saw and much more".startswith(turn.message["content"][:9])
    assert serving.store.turns("left")[-1].message["content"].startswith(said)


async def test_a_cancelled_stream(serving: Serving) -> None:
    """A call that is cancelled, or closed, in the middle lets go of its connection and leaves what was said."""
    model, heard = serving.wrapped(), asyncio.Event()

    async def read(session: str) -> None:
        async for chunk in model.astream(STORY, {"configurable": {"session_id": session}}):
            if chunk.text:
                heard.set()
                await asyncio.sleep(300)

    task = asyncio.create_task(read("cancelled"))
    await asyncio.wait_for(heard.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stream: Any = model.astream(STORY, {"configurable": {"session_id": "closed"}})
    async for chunk in stream:
        if chunk.text:
            break
    await stream.aclose()

    for session in ("cancelled", "closed"):
        turn = serving.store.turns(session)[-1]
        assert (turn.message["role"], turn.metadata["partial"]) == ("assistant", True)


async def test_concurrent_calls_keep_their_sessions(serving: Serving) -> None:
    """Calls that run at the same time are recorded where they belong."""
    model = serving.wrapped()

    async def talk(name: str) -> None:
        async for _ in model.astream(f"{name}: {STORY}", {"configurable": {"session_id": name}}):
            await asyncio.sleep(0)

    await asyncio.gather(*(talk(f"s{number}") for number in range(8)))

    for number in range(8):
        first, second = serving.store.turns(f"s{number}")
        assert first.message["content"] == f"s{number}: {STORY}"
        assert second.message["role"] == "assistant"


def test_old_function_calls(serving: Serving) -> None:
    """A model that still answers with `function_call` has its arguments expanded, whole and streamed."""
    serving.upstream.answer = lambda body: Answer(None, [ToolCall("f", '{"x": "¤1"}')])
    functions = [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}]
    model = serving.wrapped().bind(functions=functions)
    whole = model.invoke(STORY)
    total: Any = None
    for chunk in model.stream(STORY):
        total = chunk if total is None else total + chunk

    for message in (whole, total):
        arguments = message.additional_kwargs["function_call"]["arguments"]
        assert arguments.startswith('{"x": "')
        assert arguments.removeprefix('{"x": "').removesuffix('"}') in STORY
