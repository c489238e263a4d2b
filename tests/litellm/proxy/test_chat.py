"""OpenAI's chat completions through the proxy: what only they have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins.upstream import Answer
from tests.litellm.proxy.conftest import flat, restored, said, story, texts

if TYPE_CHECKING:
    from tests.litellm.proxy.conftest import Model, Proxy, Upstream

LINK = {"url": "https://example.com/", "title": "Example"}


def ask(proxy: Proxy, *, stream: bool, **request: Any) -> list[dict[str, Any]]:
    """The choices of a reply, whole, or put together from chunks."""
    body = {"model": "gpt", "messages": [{"role": "user", "content": story()}], "stream": stream, **request}
    with proxy.http() as client:
        answer = client.post("/v1/chat/completions", json=body).raise_for_status()
    if not stream:
        return [{**choice["message"], "logprobs": choice.get("logprobs")} for choice in answer.json()["choices"]]
    found: dict[int, dict[str, Any]] = {}
    for line in answer.text.split("\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                whole = found.setdefault(choice["index"], {})
                for key, value in choice["delta"].items():
                    whole[key] = whole.get(key, "") + value if isinstance(value, str) else value or whole.get(key)
                entries = (choice.get("logprobs") or {}).get("content") or []
                whole.setdefault("logprobs", {"content": []})["content"] += entries
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("stream", [False, True])
def test_every_choice_is_expanded_and_logprobs_stay(proxy: Proxy, model: Model, *, stream: bool) -> None:
    """With n, each choice is expanded by itself; logprobs are those of the tokens that the model wrote."""
    model.answer = lambda body, symbols: Answer(said(symbols), pieces=[7, 1])
    choices = ask(proxy, stream=stream, n=3, logprobs=True)

    raw = said(model.symbols)
    assert [choice["content"] for choice in choices] == [model.plain(raw)] * 3
    tokens = "".join(entry["token"] for entry in choices[0]["logprobs"]["content"])
    assert tokens == "".join(raw.split())


def test_several_models_may_be_asked_at_once(proxy: Proxy, upstream: Upstream, model: Model) -> None:
    """Of a request to several models each reply is expanded; what the config says of one of them counts for it."""
    model.answer = lambda body, symbols: Answer(said(symbols))
    with proxy.http(x_session_id="several") as client:
        for models in ("gpt, claude", "gpt,plain"):
            asked = {"model": models, "messages": [{"role": "user", "content": (text := story())}]}
            replies = client.post("/v1/chat/completions", json=asked).raise_for_status().json()
            texts_of = [reply["choices"][0]["message"]["content"] for reply in replies]
            assert texts_of == [model.plain(said(model.symbols))] * 2
        sizes = [len(json.dumps(body["messages"])) for body in upstream.requests]
        history = client.get("/v1/compression/sessions/several").raise_for_status().json()

    assert max(sizes[:2]) < 0.6 * len(text) < min(sizes[2:])
    assert history["turns"] == 4  # each question and the first of its replies


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_and_reasoning_are_expanded(proxy: Proxy, model: Model, *, stream: bool) -> None:
    """Text that is no content: reasoning, and the words of a refusal."""
    model.answer = lambda body, symbols: Answer(
        "Done.", extra={"reasoning_content": said(symbols)}, refusal=said(symbols), pieces=[3]
    )
    (choice,) = ask(proxy, stream=stream)

    assert choice["content"] == "Done."
    assert choice["reasoning_content"] == model.plain(said(model.symbols))
    refusal = choice.get("refusal") or choice.get("provider_specific_fields", {}).get("refusal")
    assert stream or refusal == model.plain(said(model.symbols))  # LiteLLM's streams have no refusals


@pytest.mark.parametrize("stream", [False, True])
def test_annotations_stay_on_their_words(proxy: Proxy, model: Model, *, stream: bool) -> None:
    """The offsets of an annotation are those of the same words in the expanded text."""

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        text = said(symbols) + " See HERE."
        start = text.index("HERE")
        note = {"type": "url_citation", "url_citation": {**LINK, "start_index": start, "end_index": start + 4}}
        return Answer(text, annotations=[note], pieces=[2])

    model.answer = answer
    (choice,) = ask(proxy, stream=stream)

    (note,) = choice["annotations"]
    place = note["url_citation"]
    assert choice["content"][place["start_index"] : place["end_index"]] == "HERE"


def test_only_text_changes(proxy: Proxy, upstream: Upstream, model: Model) -> None:
    """Roles, parts, images, cache marks, names, calls and their results are in their places, with less text."""
    first, second = story(), story()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": json.dumps({"at": first})}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": [{"type": "text", "text": first, "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": [{"type": "text", "text": first}, image], "name": "ada"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": second},
        {"role": "assistant", "content": second},
        {"role": "user", "content": "And now?"},
    ]
    ask(proxy, stream=False, messages=messages)

    (body,) = upstream.requests
    assert restored(body) == texts(flat({"messages": messages}))
    for sent, given in zip(body["messages"], messages, strict=True):
        assert sent.keys() >= {key for key, value in given.items() if value is not None}  # LiteLLM drops the rest
        assert [sent.get(key) for key in ("role", "name", "tool_calls", "tool_call_id")] == [
            given.get(key) for key in ("role", "name", "tool_calls", "tool_call_id")
        ]
    assert body["messages"][1]["content"][1] == image
    assert len(json.dumps(body["messages"])) < 0.6 * len(json.dumps(messages))
