"""Every protocol against every backend, plain and streamed, with text, tools, structured output and images."""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins.upstream import Answer, ToolCall
from tests.litellm.proxy.conftest import expanded, flat, restored, said, story, texts

if TYPE_CHECKING:
    from tests.litellm.proxy.conftest import Model, Proxy, Upstream

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {
    "type": "object",
    "properties": {"seen": {"type": "string"}},
    "required": ["seen"],
    "additionalProperties": False,
}

Heard = tuple[str, list[tuple[str, Any]]]
"""What a client got: the text, and its tool calls with their arguments parsed."""


def chat(proxy: Proxy, model: str, question: str, kind: str, *, stream: bool) -> Heard:
    """OpenAI's client, chat completions."""
    parts: Any = [{"type": "text", "text": question}]
    if kind == "multimodal":
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}})
    extra: dict[str, Any] = {}
    if kind == "tools":
        extra["tools"] = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    if kind == "structured":
        schema = {"name": "answer", "schema": SCHEMA, "strict": True}
        extra["response_format"] = {"type": "json_schema", "json_schema": schema}
    messages: Any = [
        {"role": "system", "content": "You are a careful operator."},
        {"role": "user", "content": parts if kind == "multimodal" else question},
    ]
    with proxy.openai() as client:
        if not stream:
            message = client.chat.completions.create(model=model, messages=messages, **extra).choices[0].message
            found: Any = message.tool_calls or ()
            return message.content or "", [(c.function.name, json.loads(c.function.arguments)) for c in found]
        text = ""
        calls: dict[int, list[str]] = {}
        for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, **extra):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                for call in choice.delta.tool_calls or ():
                    begun = calls.setdefault(call.index, ["", ""])
                    begun[0] += call.function.name or ""
                    begun[1] += call.function.arguments or ""
    return text, [(name, json.loads(arguments)) for name, arguments in calls.values()]


def messages(proxy: Proxy, model: str, question: str, kind: str, *, stream: bool) -> Heard:
    """Anthropic's client."""
    parts: Any = [{"type": "text", "text": question}]
    if kind == "multimodal":
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        parts.insert(0, {"type": "image", "source": source})
    extra: dict[str, Any] = {}
    if kind == "tools":
        extra["tools"] = [{"name": "look", "input_schema": SCHEMA}]
    if kind == "structured":
        extra["extra_body"] = {"output_format": {"type": "json_schema", "schema": SCHEMA}}
    request: Any = {
        "model": model,
        "max_tokens": 500,
        "system": [{"type": "text", "text": "You are a careful operator.", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": parts}],
        **extra,
    }
    with proxy.anthropic() as client:
        if stream:
            with client.messages.stream(**request) as events:
                reply = events.get_final_message()
        else:
            reply = client.messages.create(**request)
    text = "".join(block.text for block in reply.content if block.type == "text")
    return text, [(block.name, block.input) for block in reply.content if block.type == "tool_use"]


def responses(proxy: Proxy, model: str, question: str, kind: str, *, stream: bool) -> Heard:
    """OpenAI's client, responses."""
    parts: Any = [{"type": "input_text", "text": question}]
    if kind == "multimodal":
        parts.append({"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"})
    extra: dict[str, Any] = {}
    if kind == "tools":
        extra["tools"] = [{"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}]
    if kind == "structured":
        extra["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    request: Any = {
        "model": model,
        "instructions": "You are a careful operator.",
        "input": [{"role": "user", "content": parts}],
        **extra,
    }
    with proxy.openai() as client:
        if stream:
            with client.responses.stream(**request) as events:
                deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
                reply: Any = events.get_final_response()
            assert deltas == reply.output_text
        else:
            reply = client.responses.create(**request)
    calls = [(item.name, json.loads(item.arguments)) for item in reply.output if item.type == "function_call"]
    return reply.output_text, calls


CLIENTS = {"chat": chat, "messages": messages, "responses": responses}


@pytest.mark.parametrize("kind", ["text", "tools", "structured", "multimodal"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("protocol", "backend"), [*product(CLIENTS, ("gpt", "claude", "bridge"))])
def test_requests_are_smaller_and_replies_exact(
    proxy: Proxy, upstream: Upstream, model: Model, protocol: str, backend: str, kind: str, *, stream: bool
) -> None:
    """Whatever client and backend speak: the request is smaller and says the same, the reply is what was meant."""

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        if kind == "tools":
            return Answer("Let me see.", [ToolCall("look", json.dumps({"seen": said(symbols)}))])
        if kind == "structured":
            # A backend without structured output is asked through a tool, or in words: the model answers as asked.
            forced = (body.get("tool_choice") or {}).get("name") if isinstance(body.get("tool_choice"), dict) else None
            told = json.dumps({"seen": said(symbols)}, ensure_ascii=False)
            return Answer(None, [ToolCall(forced, told)]) if forced else Answer(told)
        return Answer(said(symbols))

    model.answer = answer
    question = story()
    text, calls = CLIENTS[protocol](proxy, backend, question, kind, stream=stream)

    (body,) = upstream.requests
    assert backend != "bridge" or upstream.received[0].path == "/v1/responses"
    assert {"cache", "metadata", "litellm_metadata", "krunch"}.isdisjoint(body)
    meant = expanded(said(model.symbols), model.symbols)
    assert question in restored(body)
    assert sum(map(len, texts(flat(body)))) < 0.7 * len(question)
    assert len(model.symbols) > 0
    if kind == "tools":
        assert (text, calls) == ("Let me see.", [("look", {"seen": meant})])
    elif kind == "structured":
        assert json.loads(text) == {"seen": meant}
    else:
        assert text == meant
    if kind == "multimodal":
        assert PIXEL in json.dumps(body)
