"""What LangChain has around a model acts on the wrapper as on the model alone, in whatever way it is called."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import krunchify
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField
from played_model import STORY, PlayedModel

from krunch_plugins.upstream import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.langchain.conftest import Serving

pytestmark = pytest.mark.filterwarnings("ignore:The method `.*_v3` is in beta")


class Counting(BaseRateLimiter):
    """A rate limiter that lets everybody pass, and counts them."""

    def __init__(self) -> None:
        self.passed = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.passed += blocking
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        self.passed += blocking
        return True


class Told(BaseCallbackHandler):
    """Notes which callbacks were called, what of the run, and what the model was said to have answered."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.said: list[str] = []
        self.runs: list[Any] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **more: Any) -> None:
        self.names.append("start")
        # Older versions of langchain-core tell of a stream all that the model's own method is called with.
        options = {name: value for name, value in more["options"].items() if name != "krunch_owner"}
        facts = [*(more[name] for name in ("name", "tags", "metadata", "invocation_params")), options]
        self.runs.append([serialized, [message.text for message in messages[0]], *facts])

    def on_llm_new_token(self, token: Any, **more: Any) -> None:
        if not self.names or self.names[-1] != "tokens":
            self.names.append("tokens")

    def on_llm_end(self, response: Any, **more: Any) -> None:
        self.names.append("end")
        self.said.append(response.generations[0][0].text)

    def on_llm_error(self, error: BaseException, **more: Any) -> None:
        self.names.append(f"error {type(error).__name__}")


async def _astream(model: Any, config: Any) -> str:
    return "".join([chunk.text async for chunk in model.astream(STORY, config)])


async def _events_v2(model: Any, config: Any) -> str:
    events = [event async for event in model.astream_events(STORY, config, version="v2")]
    return "".join(event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream")


async def _aevents_v3(model: Any, config: Any) -> str:
    stream = await model.astream_events(STORY, config, version="v3")
    text: str = (await stream.output).text
    return text


TOLD: Any = {"tags": ["of the call"], "metadata": {"user": "ann"}, "run_name": "look"}
"""What a call's config says of its run."""

WAYS: dict[str, Any] = {
    "invoke": lambda model, config, run: model.invoke(STORY, config).text,
    "ainvoke": lambda model, config, run: run(model.ainvoke(STORY, config)).text,
    "batch": lambda model, config, run: model.batch([STORY, STORY], {**config, "max_concurrency": 1})[1].text,
    "abatch": lambda model, config, run: run(model.abatch([STORY, STORY], {**config, "max_concurrency": 1}))[1].text,
    "stream": lambda model, config, run: "".join(chunk.text for chunk in model.stream(STORY, config)),
    "astream": lambda model, config, run: run(_astream(model, config)),
    "events v2": lambda model, config, run: run(_events_v2(model, config)),
    "events v3": lambda model, config, run: model.stream_events(STORY, config, version="v3").output.text,
    "async events v3": lambda model, config, run: run(_aevents_v3(model, config)),
    "generate": lambda model, config, run: model.generate([[HumanMessage(STORY)]], **config).generations[0][0].text,
    "agenerate": lambda model, config, run: run(model.agenerate([[HumanMessage(STORY)]], **config))
    .generations[0][0].text,
}  # fmt: skip


@pytest.fixture
def run() -> Iterator[Any]:
    """Runs coroutines in one event loop: OpenAI's client belongs to the first that it is used in."""
    with asyncio.Runner() as runner:
        yield runner.run


def seen(serving: Serving, way: str, run: Any, *, wrapped: bool, **options: Any) -> dict[str, Any]:
    """Call a model twice in one way: what LangChain's own parts saw of it, and what the server did."""
    if "v3" in way and not hasattr(BaseChatModel, "stream_events"):
        pytest.skip("events v3 came with langchain-core 1.4")
    played = serving.upstream.answer = PlayedModel(compressed=wrapped)
    serving.upstream.received.clear()
    limiter, told = Counting(), Told()
    model = serving.bare(rate_limiter=limiter, tags=["of the model"], metadata={"team": "red"}, **options)
    served: Any = krunchify(model, serving.krunch) if wrapped else model
    usage = UsageMetadataCallbackHandler()
    texts = [WAYS[way](served, {"callbacks": [told, usage], **TOLD}, run) for _ in range(2)]
    while len(told.said) < len(texts):  # what is told of a stream's end is told in a task of its own
        run(asyncio.sleep(0.01))
    counted: Any = usage.usage_metadata.get("gpt-4o")
    assert told.said[-1] == texts[-1]
    assert all(text in played.plain for text in texts)
    return {
        "requests": len(serving.upstream.requests),
        "streamed": [bool(request.get("stream")) for request in serving.upstream.requests],
        "limited": limiter.passed,
        "callbacks": told.names,
        "runs": told.runs,
        "same": texts[0] == texts[1],
        "counted": bool(counted)
        and counted["input_tokens"] / sum(after for _, after in played.saved[: len(serving.upstream.requests)]),
    }


@pytest.mark.parametrize("way", WAYS)
def test_limits_callbacks_and_usage(way: str, serving: Serving, run: Any) -> None:
    """Rate limiter, callbacks and what they are told of the run, streaming and counted usage are as with the model."""
    bare, wrapped = (seen(serving, way, run, wrapped=one) for one in (False, True))

    assert wrapped == bare
    assert wrapped["counted"] == 1
    assert (wrapped["runs"][0][2], wrapped["runs"][0][4]["user"]) == ("look", "ann")


@pytest.mark.parametrize("way", WAYS)
def test_caches(way: str, serving: Serving, run: Any) -> None:
    """With a cache, the same calls are answered from it as with the model alone, and with the same text."""
    bare, wrapped = (seen(serving, way, run, wrapped=one, cache=InMemoryCache()) for one in (False, True))

    assert wrapped == bare


RUNNABLE = [way for way in WAYS if way not in ("generate", "agenerate", "events v3", "async events v3")]
"""Ways that all of LangChain's runnables have."""


@pytest.mark.parametrize("way", RUNNABLE)
def test_configurable_fields_and_alternatives(way: str, serving: Serving, run: Any) -> None:
    """What a call's config sets is set, made configurable before or after wrapping; other calls have it as it was."""
    heat, which = ConfigurableField(id="heat"), ConfigurableField(id="which")
    cold = serving.bare(temperature=0.1)

    def asked(model: Any) -> list[Any]:
        serving.upstream.answer = PlayedModel(compressed=model not in bare)
        serving.upstream.received.clear()
        for configurable in ({"heat": 0.9, "which": "cold"}, {}):
            WAYS[way](model, {"callbacks": [], "configurable": configurable}, run)
        return [request.get("temperature") for request in serving.upstream.requests]

    bare: list[Any] = [
        serving.bare().configurable_fields(temperature=heat),
        serving.bare().configurable_alternatives(which, default_key="warm", cold=cold),
    ]
    before = [krunchify(model, serving.krunch) for model in bare]
    after = [
        serving.wrapped().configurable_fields(temperature=heat),
        serving.wrapped().configurable_alternatives(which, default_key="warm", cold=krunchify(cold, serving.krunch)),
    ]
    expected = [asked(model) for model in bare]

    assert [heats[0] for heats in expected] == [0.9, 0.1]
    assert [asked(model) for model in before] == [asked(model) for model in after] == expected


@pytest.mark.parametrize("way", RUNNABLE)
def test_retries_and_fallbacks(way: str, serving: Serving, run: Any) -> None:
    """Retries and fallbacks, around the wrapper or within it, ask again as often as around the model alone."""

    def asked(build: Any) -> tuple[int, str, bool]:
        played, failures = PlayedModel(), iter([Answer("no", status=500)])
        serving.upstream.answer = lambda body: next(failures, None) or played(body)
        serving.upstream.received.clear()
        text = WAYS[way](build(), {"callbacks": []}, run)
        return len(serving.upstream.requests), text[:9], text in played.plain

    def retried(model: Any) -> Any:
        return model.with_retry(wait_exponential_jitter=False)

    bare, wrapped = serving.bare, serving.wrapped
    for around, inside, alone in (
        (
            lambda: wrapped().with_fallbacks([wrapped()]),
            lambda: krunchify(bare().with_fallbacks([bare()]), serving.krunch),
            lambda: bare().with_fallbacks([bare()]),
        ),
        (lambda: retried(wrapped()), lambda: krunchify(retried(bare()), serving.krunch), lambda: retried(bare())),
    ):
        try:
            expected: Any = asked(alone)
        except Exception as error:  # noqa: BLE001 - a stream is not retried by LangChain: so be it with the wrapper
            expected = type(error)
        for build in (around, inside):
            if isinstance(expected, type):
                with pytest.raises(expected):
                    asked(build)
            else:
                assert asked(build) == expected
                assert expected[2]
