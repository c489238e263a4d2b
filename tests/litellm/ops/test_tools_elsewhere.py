"""Tools that are run before a client could see what the model wrote."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import krunch_litellm
import pytest

from krunch_plugins import Krunch, Settings
from krunch_plugins.upstream import Answer, ToolCall

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from krunch_plugins.upstream import Upstream
    from tests.litellm.ops.conftest import Proxy

STORY = "; ".join(f"Di{n} says the lighthouse of the northern harbour was closed by the storm" for n in range(12))
SERVER = """
import json, sys
from mcp.server import MCPServer

server = MCPServer("notes")

@server.tool()
def write(text: str) -> str:
    open(sys.argv[1], "a").write(json.dumps(text) + "\\n")
    return "It is written."

server.run()
"""
GATEWAY = {"type": "mcp", "server_label": "litellm", "server_url": "litellm_proxy", "require_approval": "never"}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_that_litellm_runs_gets_plain_words(
    tmp_path: Path,
    start_proxy: Callable[..., Proxy],
    answers: dict[str, Any],
    model_server: Upstream,
    *,
    streamed: bool,
) -> None:
    """LiteLLM runs tools of the MCP servers that it is connected to itself, so such a request goes out as it came."""
    (tmp_path / "server.py").write_text(SERVER, encoding="utf-8")
    written = tmp_path / "written"
    arguments = [str(tmp_path / "server.py"), str(written)]
    notes = {"command": sys.executable, "args": arguments, "transport": "stdio", "allow_all_keys": True}
    question = f"Write that down. ({streamed})"

    def answer(body: dict[str, Any]) -> Answer:
        (tool,) = body["tools"]
        said = "It was ¤1" if "¤" in body["messages"][0]["content"] else "It was the lighthouse."
        return Answer(None, [ToolCall(tool["function"]["name"], json.dumps({"text": said}), "c1")])

    answers[question] = answer
    asked = [{"role": "user", "content": STORY}, {"role": "user", "content": question}]
    environment = {"KRUNCH_HOME": str(tmp_path / "home"), "LITELLM_ENABLE_MCP_STDIO": "true"}
    running = start_proxy(tmp_path, environment, mcp_servers={"notes": notes})
    try:
        reply = running.chat(session="s", messages=asked, tools=[GATEWAY], stream=streamed)
        with running.client() as client:
            shown = client.get("/v1/compression/sessions/s").raise_for_status().json()
    finally:
        running.stop()

    assert reply.status_code == 200
    assert json.loads(written.read_text(encoding="utf-8")) == "It was the lighthouse."
    assert reply.headers["x-krunch-reason"] == "hosted_tools"
    assert model_server.requests[-1]["messages"][0]["content"] == STORY
    assert shown["recorded"]


@pytest.mark.parametrize(
    ("path", "offered"),
    [
        ("/v1/responses", {"tools": [{"type": "mcp", "server_label": "s", "server_url": "https://example.com/mcp"}]}),
        ("/v1/responses", {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}),
        ("/v1/responses", {"tools": [{"type": "image_generation"}]}),
        ("/v1/responses", {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}),
        ("/v1/messages", {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}),
        ("/v1/messages", {"mcp_servers": [{"type": "url", "url": "https://example.com/mcp", "name": "s"}]}),
    ],
)
def test_a_request_with_a_tool_that_the_provider_runs_goes_out_as_it_came(
    path: str, offered: dict[str, Any], proxy: Proxy, model_server: Upstream
) -> None:
    """Whatever such a tool is called with is what the model wrote: it is told no symbols."""
    model, texts = ("gpt-4o", "input") if path.endswith("responses") else ("claude", "messages")
    body = {"model": model, texts: [{"role": "user", "content": STORY}], "max_tokens": 99, **offered}
    if texts == "input":
        del body["max_tokens"]
    with proxy.client() as client:
        answer = client.post(path, json=body)

    assert (answer.status_code, answer.headers["x-krunch-reason"]) == (200, "hosted_tools")
    assert STORY in json.dumps(model_server.requests[-1])


def test_tools_that_clients_run_or_that_only_look_leave_compression_on(proxy: Proxy, model_server: Upstream) -> None:
    """Clients get plain words for their tools, and a search with a symbol finds less, no more."""
    tools = [
        {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}},
        {"type": "shell", "environment": {"type": "local"}},
        {"type": "apply_patch"},
        {"type": "web_search"},
    ]
    with proxy.client() as client:
        answer = client.post("/v1/responses", json={"model": "gpt-4o", "input": STORY, "tools": tools})

    assert answer.headers["x-krunch-reason"] == "compressed"
    assert len(model_server.requests[-1]["input"]) < 0.6 * len(STORY)


async def test_the_sdk_leaves_such_a_call_alone(model_server: Upstream) -> None:
    """The same holds for calls without a proxy."""
    tool = {"type": "mcp", "server_label": "s", "server_url": "https://example.com/mcp"}
    with Krunch(Settings(min_tokens=0)) as krunch:
        await krunch_litellm.acompletion(
            krunch=krunch,
            model="openai/gpt-4o",
            api_base=model_server.url,
            api_key="none",
            messages=[{"role": "user", "content": STORY}],
            tools=[tool],
        )

    assert model_server.requests[-1]["messages"][0]["content"] == STORY
