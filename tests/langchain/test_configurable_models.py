"""`init_chat_model(..., configurable_fields=...)`, whose model a call's config chooses: wrapped, it works as bare."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import KrunchMiddleware, krunchify
from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_classic.chat_models import init_chat_model as classic
from langchain_core.output_parsers import StrOutputParser
from langchain_core.tools import tool
from played_model import STORY
from pydantic import BaseModel

if TYPE_CHECKING:
    from tests.langchain.conftest import Serving

HEAT: Any = {"configurable": {"temperature": 0.9, "session_id": "s"}}


@tool
def search(query: str, limit: int = 3) -> str:
    """Search for something."""
    return f"{query} {limit}"


class Found(BaseModel):
    """What was found."""

    query: str


def bare(serving: Serving, make: Any = init_chat_model, **options: Any) -> Any:
    """A model whose fields a call's config may set."""
    facts = {"base_url": serving.upstream.url, "api_key": "none", "max_retries": 0, "stream_usage": True}
    return make("openai:gpt-4o", **{"configurable_fields": "any", **facts, **options})


async def _astream(model: Any, config: Any) -> str:
    return "".join([chunk.text async for chunk in model.astream(STORY, config)])


async def _events(model: Any, config: Any) -> str:
    events = [event async for event in model.astream_events(STORY, config, version="v2")]
    return "".join(event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream")


WAYS: dict[str, Any] = {
    "invoke": lambda model, config: model.invoke(STORY, config).text,
    "ainvoke": lambda model, config: asyncio.run(model.ainvoke(STORY, config)).text,
    "batch": lambda model, config: model.batch([STORY], config)[0].text,
    "batch of two": lambda model, config: model.batch([STORY, STORY], [config, config])[1].text,
    "abatch": lambda model, config: asyncio.run(model.abatch([STORY], config))[0].text,
    "batch_as_completed": lambda model, config: next(iter(model.batch_as_completed([STORY], config)))[1].text,
    "stream": lambda model, config: "".join(chunk.text for chunk in model.stream(STORY, config)),
    "astream": lambda model, config: asyncio.run(_astream(model, config)),
    "events": lambda model, config: asyncio.run(_events(model, config)),
    "transform": lambda model, config: "".join(chunk.text for chunk in model.transform(iter([STORY]), config)),
    "chain": lambda model, config: (model | StrOutputParser()).invoke(STORY, config),
    "retry": lambda model, config: model.with_retry().invoke(STORY, config).text,
    "bound": lambda model, config: model.bind(top_p=0.5).invoke(STORY, config).text,
    "with_config": lambda model, config: model.with_config(config).invoke(STORY).text,
}


@pytest.mark.parametrize("fields", ["any", ("temperature", "model")])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_call_it(way: str, fields: Any, serving: Serving) -> None:
    """However it is called: the config's field reaches the model, the request is smaller, the reply exact, recorded."""
    text = WAYS[way](krunchify(bare(serving, configurable_fields=fields), serving.krunch), HEAT)

    assert text in serving.played.plain
    assert {request["temperature"] for request in serving.upstream.requests} == {0.9}
    assert serving.sent()[0]["content"] == STORY
    assert serving.store.turns("s")[0].message["content"] == STORY


@pytest.mark.filterwarnings("ignore:The function `init_chat_model` was deprecated")
@pytest.mark.parametrize("make", [init_chat_model, classic])
def test_a_prefix_and_another_model(serving: Serving, make: Any) -> None:
    """With a prefix, another model by config; the session comes from the argument, and the krunch too if given anew."""
    model = bare(serving, make, config_prefix="foo", configurable_fields=("model", "temperature"))
    served = krunchify(krunchify(model, serving.krunch), session="again")
    served.invoke(STORY, {"configurable": {"foo_model": "gpt-4.1", "foo_temperature": 0.3}})
    served.invoke(STORY)

    assert [request["model"] for request in serving.upstream.requests] == ["gpt-4.1", "gpt-4o"]
    assert isinstance(served, type(model))
    assert serving.store.sessions() == ["again"]
    assert served.temperature is None  # what the default model has
    with pytest.raises(AttributeError, match="nonsense"):
        _ = served.nonsense


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fields", ["any", ("temperature", "model")])
def test_tools_and_structured_output(serving: Serving, when: str, fields: Any) -> None:
    """Tools and structured output, declared before or after it was wrapped, come back with expanded arguments."""
    model = bare(serving, configurable_fields=fields)

    def declared(declare: Any) -> Any:
        if when == "before":
            return krunchify(declare(model), serving.krunch)
        return declare(krunchify(model, serving.krunch))

    for config in (HEAT, {"configurable": {"temperature": 0.9}, "metadata": {"session_id": "s"}}):
        tooled = declared(lambda made: made.bind_tools([search, Found]).with_config(tags=["x"]))
        reply = tooled.invoke(STORY, config)
        assert reply.tool_calls[0]["name"] == "search"
        assert "/srv/warehouse" in reply.tool_calls[0]["args"]["query"]
        streamed = declared(lambda made: made.bind_tools([search])).stream(STORY, config)
        pieces = [call["args"] or "" for chunk in streamed for call in chunk.tool_call_chunks]
        assert "/srv/warehouse" in json.loads("".join(pieces))["query"]
        found = declared(
            lambda made: made.with_structured_output(Found, method="function_calling", include_raw=True)
        ).invoke(STORY, config)
        assert "/srv/warehouse" in found["parsed"].query
        document = declared(lambda made: made.with_structured_output(Found, method="json_schema"))
        assert "/srv/warehouse" in document.invoke(STORY, config).query
    assert {request["temperature"] for request in serving.upstream.requests} == {0.9}
    assert len(serving.upstream.requests) == 8


def test_in_an_agent(serving: Serving) -> None:
    """An agent whose model its config chooses has it wrapped by the middleware, tools bound, and its turns recorded."""
    model = bare(serving, configurable_fields=("model", "temperature"))
    agent: Any = create_agent(model, [search], middleware=[KrunchMiddleware(serving.krunch)])
    state = agent.invoke({"messages": [("user", STORY)]}, {"configurable": {"thread_id": "t", "temperature": 0.4}})

    assert state["messages"][-1].text == serving.plain
    assert serving.upstream.requests[-1]["temperature"] == 0.4
    assert [turn.message["role"] for turn in serving.store.turns("t")] == ["user", "assistant", "tool", "assistant"]
