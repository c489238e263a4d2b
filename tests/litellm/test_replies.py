"""What comes back: everything that LiteLLM puts into a reply or a stream survives, and only text changes."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import threading
from typing import TYPE_CHECKING, Any

import krunch_litellm
import litellm
import pytest
from krunch_litellm.replies import ExpandedStream
from litellm.integrations.custom_logger import CustomLogger
from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices

from krunch_plugins import Krunch, abandoned, hookimpl
from krunch_plugins.upstream import Answer, ToolCall

if TYPE_CHECKING:
    from collections.abc import Callable

    from krunch_plugins import Exchange, Reply
    from krunch_plugins.upstream import Upstream
    from tests.litellm.conftest import Model, Talk

    Messages = list[dict[str, Any]]


class Recorder:
    """A plugin that keeps the replies it is shown."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []

    @hookimpl
    def post_response(self, exchange: Exchange, reply: Reply) -> None:
        self.replies.append(copy.deepcopy(reply))


@pytest.fixture
def recorder(krunch: Krunch) -> Recorder:
    """The recorder, registered; Krunch installed."""
    recorder = Recorder()
    krunch.register(recorder)
    krunch_litellm.install(krunch)
    return recorder


@pytest.fixture
def arguments(upstream: Upstream, messages: Messages) -> dict[str, Any]:
    """What every call here passes."""
    return {"model": "openai/gpt-4o", "api_base": upstream.url, "api_key": "none", "messages": messages}


def without_text(reply: Any) -> Any:
    """All that a reply or a list of chunks says, apart from its text and what differs from call to call."""
    if isinstance(reply, list):
        return [without_text(chunk) for chunk in reply]
    plain = reply.model_dump()
    for key in ("id", "created"):
        plain.pop(key)
    for choice in plain["choices"]:
        (choice.get("message") or choice["delta"]).pop("content")
    return plain


def hidden(reply: Any) -> set[str]:
    """The names of a reply's hidden parameters."""
    return set((reply[-1] if isinstance(reply, list) else reply)._hidden_params)


def test_everything_beside_the_text_is_as_without_krunch(
    talk: Talk, krunch: Krunch, model: Model, serve: Callable[[Any], Upstream]
) -> None:
    """Logprobs, usage, finish reasons, unknown keys, hidden parameters and the number of chunks stay the same."""

    def answer(body: dict[str, Any]) -> Answer:
        symbol = next(iter(model.definitions(body)), "¤1")
        return Answer(f"It is {symbol} again", extra={"reasoning_content": "Hm.", "annotations": []}, pieces=[7])

    upstream = serve(answer)
    extra = {"logprobs": True, **({"stream_options": {"include_usage": True}} if talk.streamed else {})}
    plain = talk(upstream, [{"role": "user", "content": "Hello"}], **extra)
    krunch_litellm.install(krunch)
    expanded = talk(upstream, [{"role": "user", "content": "Hello"}], **extra)
    compressed = talk(upstream, **extra)

    assert without_text(expanded) == without_text(plain)
    assert hidden(compressed) == hidden(plain)
    assert "warehouse" in talk.text(compressed)
    assert (compressed[-1] if talk.streamed else compressed).usage.prompt_tokens > 50


def test_free_form_and_old_style_tool_calls_are_expanded(
    talk: Talk, krunch: Krunch, model: Model, serve: Callable[[Any], Upstream]
) -> None:
    """Input of custom tools is plain text; arguments of a function_call are JSON."""
    meaning: list[str] = []

    def answer(body: dict[str, Any]) -> Answer:
        symbol, text = next(iter(model.definitions(body).items()))
        meaning.append(text)
        if "functions" in body:
            return Answer(None, [ToolCall("look", json.dumps({"at": symbol}))])
        return Answer(None, [ToolCall("run", f"look at {symbol}!", "call_1", "custom")])

    krunch_litellm.install(krunch)
    upstream = serve(answer)
    custom = talk(upstream, tools=[{"type": "custom", "custom": {"name": "run"}}])
    legacy = talk(upstream, functions=[{"name": "look", "parameters": {}}])

    if talk.streamed:
        called = [call for chunk in custom for call in chunk.choices[0].delta.tool_calls or ()]
        given = "".join(call.custom.input or "" for call in called)
        functions = [chunk.choices[0].delta.function_call for chunk in legacy]
        arguments = "".join(function.arguments or "" for function in functions if function)
    else:
        given = custom.choices[0].message.tool_calls[0].custom.input
        arguments = legacy.choices[0].message.function_call.arguments
    assert given == f"look at {meaning[0]}!"
    assert json.loads(arguments) == {"at": meaning[1]}


def test_hooks_see_the_expanded_reply_once(talk: Talk, recorder: Recorder, upstream: Upstream, model: Model) -> None:
    """`post_response` runs once per choice, on the whole reply in plain words, streamed or not."""
    talk(upstream)

    (reply,) = recorder.replies
    assert reply.message["content"] == model.plain[0]
    assert (reply.streamed, reply.partial, reply.choice) == (talk.streamed, False, 0)


def test_reply_changed_by_a_hook_keeps_its_types(krunch: Krunch, arguments: dict[str, Any]) -> None:
    """What a hook writes into a whole reply reaches the caller as LiteLLM's own objects."""

    class Editor:
        @hookimpl
        def post_response(self, reply: Reply) -> None:
            call = {"id": "call_9", "type": "function", "function": {"name": "stop", "arguments": "{}"}}
            reply.message = {"role": "assistant", "content": None, "tool_calls": [call]}

    krunch.register(Editor())
    krunch_litellm.install(krunch)

    message = litellm.completion(**arguments).choices[0].message

    assert message.content is None
    assert (message.tool_calls[0].id, message.tool_calls[0].function.name) == ("call_9", "stop")


def test_litellm_keeps_its_own_objects(krunch: Krunch, arguments: dict[str, Any], model: Model) -> None:
    """Chunks and replies that LiteLLM logs and caches stay as the model wrote them: the caller's are copies."""

    class Logger(CustomLogger):
        def __init__(self) -> None:
            super().__init__()
            self.logged: list[Any] = []

        def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            self.logged.append(response_obj.choices[0].message.content)

    logger = Logger()
    krunch_litellm.install(krunch)
    litellm.callbacks.append(logger)
    stream = litellm.completion(**arguments, stream=True)
    chunks = list(stream)
    whole = litellm.completion(**arguments)
    for _ in range(500):
        if len(logger.logged) == 2:
            break
        gc.collect()
        asyncio.run(asyncio.sleep(0.01))

    kept = "".join(chunk.choices[0].delta.content or "" for chunk in stream.chunks)
    assert kept == model.replies[0]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == model.plain[0]
    assert whole.choices[0].message.content == model.plain[1]
    assert sorted(logger.logged) == sorted(model.replies)


def test_stream_passes_for_litellms_own(krunch: Krunch, arguments: dict[str, Any]) -> None:
    """The stream answers to the class, the attributes and the assignments that LiteLLM's own stream answers to."""
    krunch_litellm.install(krunch)
    stream = litellm.completion(**arguments, stream=True)

    assert isinstance(stream, litellm.CustomStreamWrapper)
    assert stream.model == "gpt-4o"
    assert "additional_headers" in stream._hidden_params
    stream._hidden_params = {"model_id": "7"}
    assert stream.hidden_params == {"model_id": "7"}
    with pytest.raises(AttributeError):
        _ = stream.no_such_attribute
    ids = {chunk.id for chunk in stream}
    assert ids == {"chatcmpl-1"}
    assert next(stream, "over") == "over"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_broken_stream_gives_all_it_had_and_then_the_error(
    recorder: Recorder, arguments: dict[str, Any], serve: Callable[[Any], Upstream], model: Model, *, asynchronous: bool
) -> None:
    """When the connection dies, the caller gets what has arrived, then LiteLLM's error; hooks see a partial reply."""
    meaning: list[str] = []

    def answer(body: dict[str, Any]) -> Answer:
        symbol, text = next(iter(model.definitions(body).items()))
        meaning.append(text)
        return Answer(f"It is {symbol} and never comes to an end", pieces=[6 + len(symbol), 9], break_after=2)

    arguments.update(api_base=serve(answer).url, stream=True)
    got: list[str] = []

    def listen() -> None:
        for chunk in litellm.completion(**arguments):
            got.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - kept when the stream raises

    async def alisten() -> None:
        async for chunk in await litellm.acompletion(**arguments):
            got.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - as above

    with pytest.raises(litellm.exceptions.MidStreamFallbackError):
        asyncio.run(alisten()) if asynchronous else listen()

    (reply,) = recorder.replies
    assert reply.partial
    assert reply.message["content"] == "".join(got)
    assert "".join(got) == f"It is {meaning[0]}"


async def test_closed_stream_is_a_partial_reply(recorder: Recorder, arguments: dict[str, Any]) -> None:
    """`aclose` and `close` end a stream; hooks see what was there so far, once."""
    stream = await litellm.acompletion(**arguments, stream=True)
    first = [await anext(stream), await anext(stream)]
    await stream.aclose()
    await stream.aclose()
    assert [chunk async for chunk in stream] == []

    assert "".join(chunk.choices[0].delta.content or "" for chunk in first) == "("
    assert [(reply.partial, reply.message["content"]) for reply in recorder.replies] == [(True, "(")]


def test_stream_that_nobody_finishes_is_a_partial_reply(recorder: Recorder, arguments: dict[str, Any]) -> None:
    """A caller that breaks out of its loop and forgets the stream has ended it, too."""
    for number, _ in enumerate(litellm.completion(**arguments, stream=True)):
        if number == 1:
            break
    gc.collect()
    assert abandoned.settle(10.0)
    stream = litellm.completion(**arguments, stream=True)
    next(stream)
    stream.close()

    assert [reply.partial for reply in recorder.replies] == [True, True]


def test_an_abandoned_stream_runs_no_hook_in_the_collector(recorder: Recorder, arguments: dict[str, Any]) -> None:
    """The collector may run while a lock of ours is held, so hooks run in a thread of their own, and soon."""
    threads: list[str] = []

    class Watcher:
        @hookimpl
        def post_response(self, exchange: Exchange, reply: Reply) -> None:
            threads.append(threading.current_thread().name)

    krunch_litellm.install(Krunch(plugins=[Watcher()]))
    stream = litellm.completion(**arguments, stream=True)
    next(stream)
    del stream
    gc.collect()

    assert abandoned.settle(10.0)
    assert threads == ["krunch-abandoned"]


async def test_cancelled_stream_is_a_partial_reply(
    recorder: Recorder, arguments: dict[str, Any], serve: Callable[[Any], Upstream]
) -> None:
    """A task that is cancelled while it waits for a chunk leaves a partial reply behind, and stays cancelled."""
    upstream = serve(lambda body: Answer("word " * 4000, pieces=[5]))
    stream = await litellm.acompletion(**{**arguments, "api_base": upstream.url}, stream=True)
    await anext(stream)

    async def listen() -> None:
        async for _ in stream:
            await asyncio.sleep(0)

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stream.aclose()

    assert [reply.partial for reply in recorder.replies] == [True]


@pytest.mark.parametrize("size", [1, 3, 24])
def test_chunks_that_need_no_expansion_are_litellms_own(krunch: Krunch, size: int) -> None:
    """Of a stream cut anywhere, chunks of plain words pass as they are, others are copies; beside text all is kept."""
    story = "; ".join(f"the launch of project Bluebird {n} was moved to the harbour of Trieste" for n in range(12))
    exchange = krunch.prepare([{"role": "user", "content": story}], model="gpt-4o")
    said = f"It says {', '.join(exchange.symbols)}, and that is all. " + "Nothing else was said about it. " * 3
    pieces = [said[start : start + size] for start in range(0, len(said), size)]
    chunks = [
        ModelResponseStream(
            id="of-the-stream",
            system_fingerprint="fp",
            choices=[StreamingChoices(index=0, delta=Delta(content=piece, role=None if at else "assistant"))],
        )
        for at, piece in enumerate(pieces)
    ]
    last = Delta(content="Bye.", tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}])
    chunks.append(ModelResponseStream(id="of-the-stream", choices=[StreamingChoices(index=0, delta=last)]))
    before = [chunk.model_dump_json() for chunk in chunks]
    out = list(ExpandedStream(iter(chunks), exchange))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in out)
    assert text == exchange.finish({"role": "assistant", "content": f"{said}Bye."})["content"]
    assert [chunk.model_dump_json() for chunk in chunks] == before
    assert sum(mine is its for mine, its in zip(out, chunks, strict=True)) > len(chunks) / 2
    assert {chunk.id for chunk in out} == {"of-the-stream"}
    assert out[0].choices[0].delta.role == "assistant"
    assert [chunk.system_fingerprint for chunk in out] == [chunk.system_fingerprint for chunk in chunks]
    assert out[-1].choices[0].delta.tool_calls[0].function.arguments == "{}"
