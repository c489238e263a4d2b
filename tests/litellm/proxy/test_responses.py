"""OpenAI's responses through the proxy: what only they have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import restore
from krunch_plugins.upstream import Answer, ToolCall
from tests.litellm.proxy.conftest import expanded, flat, restored, said, story, texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.litellm.proxy.conftest import Model, Proxy, Upstream

LINK = {"type": "url_citation", "url": "https://example.com/", "title": "Example"}


def events(proxy: Proxy, **request: Any) -> list[Any]:
    """The events of a streamed response."""
    with proxy.openai() as client:
        return list(client.responses.create(stream=True, **request))


def agreeing(told: list[Any], field: str, done: str) -> str:
    """The text that the deltas make up, after a check that every other event says the same of it."""
    text = "".join(event.delta for event in told if event.type == f"response.{done}.delta")
    assert [getattr(event, field) for event in told if event.type == f"response.{done}.done"] == [text]
    return text


def test_every_event_of_a_stream_agrees(proxy: Proxy, model: Model) -> None:
    """Deltas, all done events and the reply at the end carry the expanded text, and the events' numbers have no gap."""
    model.answer = lambda body, symbols: Answer(
        said(symbols), [ToolCall("look", json.dumps({"at": said(symbols)}))], pieces=[1]
    )
    told = events(proxy, model="gpt", input=story())

    meant = model.plain(said(model.symbols))
    assert agreeing(told, "text", "output_text") == meant
    assert json.loads(agreeing(told, "arguments", "function_call_arguments")) == {"at": meant}
    (part,) = [event.part for event in told if event.type == "response.content_part.done"]
    message, call = [event.item for event in told if event.type == "response.output_item.done"]
    assert part.text == message.content[0].text == meant
    assert json.loads(call.arguments) == {"at": meant}
    assert told[-1].type == "response.completed"
    assert told[-1].response.output_text == meant
    assert [event.sequence_number for event in told] == list(range(len(told)))


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_tokens_that_the_model_wrote(proxy: Proxy, model: Model, *, stream: bool) -> None:
    """They stay as they came, in a whole reply and in each event of a stream, while the text is expanded."""
    model.answer = lambda body, symbols: Answer(said(symbols), pieces=[7, 1])
    asked: dict[str, Any] = {"model": "gpt", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    if stream:
        told = events(proxy, input=story(), **asked)
        reply = told[-1].response
        raw = said(model.symbols)
        deltas = [event for event in told if event.type == "response.output_text.delta"]
        assert "".join(one.token for event in deltas for one in event.logprobs) == "".join(raw.split())
        (done,) = [event for event in told if event.type == "response.output_text.done"]
        (part,) = [event.part for event in told if event.type == "response.content_part.done"]
        assert [one.token for one in done.logprobs] == [one.token for one in part.logprobs] == raw.split()
    else:
        with proxy.openai() as client:
            reply = client.responses.create(input=story(), **asked)

    raw = said(model.symbols)
    assert "¤" in raw
    assert [one.token for one in reply.output[0].content[0].logprobs] == raw.split()
    assert reply.output_text == model.plain(raw)


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_expanded(proxy: Proxy, model: Model, *, stream: bool) -> None:
    """What the model says when it refuses is told in plain words."""
    model.answer = lambda body, symbols: Answer(None, refusal=said(symbols), pieces=[2])
    if stream:
        told = events(proxy, model="gpt", input=story())
        reply = told[-1].response
        assert agreeing(told, "refusal", "refusal") == reply.output[0].content[0].refusal
    else:
        with proxy.openai() as client:
            reply = client.responses.create(model="gpt", input=story())

    assert reply.output[0].content[0].refusal == model.plain(said(model.symbols))


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_encrypted_reasoning_passes_as_it_came_and_other_reasoning_is_expanded(
    proxy: Proxy, model: Model, *, stream: bool, encrypted: bool
) -> None:
    """Encrypted reasoning and its summary pass byte for byte; other reasoning is expanded in all events alike."""
    secret = {"encrypted_content": "gAAAA¤1=="} if encrypted else {}

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        summary = [{"type": "summary_text", "text": said(symbols)}, {"type": "summary_text", "text": "And so on."}]
        return Answer("Done.", before=[{"type": "reasoning", "id": "rs_1", "summary": summary, **secret}], pieces=[3])

    model.answer = answer
    if stream:
        told = events(proxy, model="gpt", input=story())
        reply = told[-1].response
        name = "response.reasoning_summary_text"
        for index, summary in enumerate(reply.output[0].summary):
            mine = [event for event in told if event.type.startswith(name) and event.summary_index == index]
            assert "".join(event.delta for event in mine[:-1]) == mine[-1].text == summary.text
        assert [event.sequence_number for event in told] == list(range(len(told)))
    else:
        with proxy.openai() as client:
            reply = client.responses.create(model="gpt", input=story())

    raw = said(model.symbols)
    assert [part.text for part in reply.output[0].summary] == [raw if encrypted else model.plain(raw), "And so on."]
    assert getattr(reply.output[0], "encrypted_content", None) == secret.get("encrypted_content")
    assert reply.output_text == "Done."


@pytest.mark.parametrize("stream", [False, True])
def test_annotations_stay_on_their_words(proxy: Proxy, model: Model, *, stream: bool) -> None:
    """The offsets of an annotation are those of the same words in the expanded text."""

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        text = said(symbols) + " See HERE."
        start = text.index("HERE")
        first = next(iter(symbols))
        at = text.index(first)
        notes = [
            {**LINK, "start_index": start, "end_index": start + 4},
            {**LINK, "start_index": at, "end_index": at + len(first)},
        ]
        return Answer(text, annotations=notes, pieces=[2])

    model.answer = answer
    if stream:
        told = events(proxy, model="gpt", input=story())
        reply = told[-1].response
        added = [event.annotation for event in told if event.type == "response.output_text.annotation.added"]
        places = [(note["start_index"], note["end_index"]) for note in map(dict, added)]
        (part,) = [event.part for event in told if event.type == "response.content_part.done"]
        assert places == [(note.start_index, note.end_index) for note in part.annotations]
    else:
        with proxy.openai() as client:
            reply = client.responses.create(model="gpt", input=story())

    text = reply.output_text
    words = [text[note.start_index : note.end_index] for note in reply.output[0].content[0].annotations]
    assert words == ["HERE", next(iter(model.symbols.values()))]


def calls_of_tools(text: str) -> list[dict[str, Any]]:
    """A call of each tool of the provider's own, and of those that it has clients run, with a text of the model's."""
    arguments = json.dumps({"at": text})
    return [
        {"type": "apply_patch_call", "operation": {"type": "update_file", "path": "a.py", "diff": f"+{text}\n"}},
        {"type": "shell_call", "action": {"commands": ["ls", f"echo '{text}'"], "timeout_ms": 5}},
        {"type": "local_shell_call", "action": {"type": "exec", "command": ["echo", text], "env": {}}},
        {"type": "computer_call", "action": {"type": "type", "text": text}, "pending_safety_checks": []},
        {"type": "mcp_approval_request", "server_label": "s", "name": "look", "arguments": arguments},
        {"type": "mcp_call", "server_label": "s", "name": "look", "arguments": arguments, "output": "as it ¤1 came"},
        {"type": "code_interpreter_call", "code": f"print('{text}')", "outputs": []},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_all_kinds_of_tools_are_expanded(proxy: Proxy, model: Model, *, stream: bool) -> None:
    """What clients run for the model (patches, commands, clicks) and see of the provider's own tools is plain."""

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        calls = calls_of_tools(said(symbols))
        items = [{"id": f"i{at}", "call_id": f"c{at}", "status": "completed", **one} for at, one in enumerate(calls)]
        return Answer("Done.", before=items, pieces=[3])

    model.answer = answer
    if stream:
        told = events(proxy, model="gpt", input=story())
        reply = told[-1].response
        done = [event.item for event in told if event.type == "response.output_item.done"]
        assert [item.model_dump() for item in done] == [item.model_dump() for item in reply.output]
        assert agreeing(told, "arguments", "mcp_call_arguments") == reply.output[5].arguments
        assert agreeing(told, "code", "code_interpreter_call_code") == reply.output[6].code
    else:
        with proxy.openai() as client:
            reply = client.responses.create(model="gpt", input=story())

    expected = calls_of_tools(model.plain(said(model.symbols)))
    for item, call in zip(reply.output[:-1], expected, strict=True):
        got = item.model_dump()
        assert {key: got[key] for key in call if key != "action"} == {k: call[k] for k in call if k != "action"}
        assert {key: got["action"][key] for key in call.get("action", ())} == call.get("action", {})


def test_history_as_items(proxy: Proxy, upstream: Upstream, model: Model) -> None:
    """Calls, their results as strings and as parts, and reasoning are in their places, and only text changes."""
    first, second = story(), story()
    items: Any = [
        {"role": "user", "content": first},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA¤1=="},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": json.dumps({"at": first})},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": first},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": second}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": second}]},
        {"type": "item_reference", "id": "msg_0"},
        {"type": "local_shell_call", "call_id": "c3", "action": {"type": "exec", "command": ["cat", first]}},
        {"type": "local_shell_call_output", "id": "c3", "output": first},
        {"type": "apply_patch_call", "call_id": "c4", "operation": {"type": "delete_file", "path": "a.py"}},
        {"type": "apply_patch_call_output", "call_id": "c4", "status": "failed", "output": second},
        {"role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
    ]
    with proxy.openai() as client:
        client.responses.create(model="gpt", input=items, store=False)

    sent = upstream.requests[0]["input"]
    assert restored(upstream.requests[0]) == texts(flat({"input": items}))
    assert [sent[index] for index in (1, 2, 3, 7, 8, 10)] == [items[index] for index in (1, 2, 3, 7, 8, 10)]
    assert len(json.dumps(sent)) < 0.6 * len(json.dumps(items))
    assert [item.keys() for item in sent] == [item.keys() for item in items]


@pytest.mark.parametrize("stream", [False, True])
def test_instructions_are_repeated_as_they_were_given(
    proxy: Proxy, upstream: Upstream, model: Model, *, stream: bool
) -> None:
    """With store off instructions are compressed too; where the reply repeats them they are the client's own."""
    instructions = story()
    request: Any = {"model": "gpt", "instructions": instructions, "input": "Hello", "store": False}
    if stream:
        replies = [event.response for event in events(proxy, **request) if hasattr(event, "response")]
    else:
        with proxy.openai() as client:
            replies = [client.responses.create(**request)]

    sent = upstream.requests[0]["instructions"]
    assert len(sent) < 0.6 * len(instructions)
    assert restore([{"role": "system", "content": sent}])[0]["content"] == instructions
    assert {reply.instructions for reply in replies} <= {instructions, None}


def test_what_may_be_gone_on_from_leans_on_no_instructions(proxy: Proxy, upstream: Upstream, model: Model) -> None:
    """Instructions are not carried over to the next response, so nothing that is stored refers to them."""
    with proxy.openai() as client:
        client.responses.create(model="gpt", instructions=(text := story()), input=text)

    (body,) = upstream.requests
    assert body["instructions"] == text
    assert restore([{"role": "user", "content": body["input"]}])[0]["content"] == text
    assert len(body["input"]) < 0.6 * len(text)


@pytest.fixture
def conversation(proxy: Proxy) -> Callable[..., Any]:
    """Asks one thing after another, each going on from the response before."""

    def ask(session: str | None, *questions: str, stream: bool = False) -> list[Any]:
        replies: list[Any] = []
        headers = {} if session is None else {"x_session_id": session}
        with proxy.openai(**headers) as client:
            for question in questions:
                extra = {"previous_response_id": replies[-1].id} if replies else {}
                if stream:
                    told: Any = client.responses.create(model="gpt", input=question, stream=True, **extra)
                    replies.append(list(told)[-1].response)
                else:
                    replies.append(client.responses.create(model="gpt", input=question, **extra))
        return replies

    return ask


@pytest.mark.parametrize("stream", [False, True])
def test_a_chained_request_uses_what_the_provider_was_told(
    upstream: Upstream, model: Model, conversation: Callable[..., Any], *, stream: bool
) -> None:
    """With a store and a session, a request that goes on from a response uses its definitions and is exact."""
    seen: dict[str, str] = {}

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        seen.update(symbols)
        return Answer(said(seen))

    model.answer = answer
    question = story()
    replies = conversation(f"chain-{stream}", question, f"Again: {question}", f"Once more: {question}", stream=stream)

    first, second, third = (body["input"] for body in upstream.requests)
    assert all(body["previous_response_id"].startswith("resp_") for body in upstream.requests[1:])
    assert max(len(second), len(third)) < 0.3 * len(question)
    sent = [first, ".", second, ".", third]
    again = restore([{"role": "user", "content": text} for text in sent])
    assert [again[2]["content"], again[4]["content"]] == [f"Again: {question}", f"Once more: {question}"]
    assert [reply.output_text for reply in replies] == [expanded(said(seen), seen)] * 3


def test_a_chained_request_of_nobodys_session_is_folded_only(
    upstream: Upstream, model: Model, conversation: Callable[..., Any]
) -> None:
    """Without a session such a request is folded only, and its reply is expanded all the same."""
    seen: dict[str, str] = {}

    def answer(body: dict[str, Any], symbols: dict[str, str]) -> Answer:
        seen.update(symbols)
        return Answer(said(seen))

    model.answer = answer
    question = story()
    rows = json.dumps([{"name": f"n{number}", "value": number} for number in range(20)], indent=2)
    replies = conversation(None, question, question, rows)

    assert upstream.requests[1]["input"] == question
    assert len(upstream.requests[2]["input"]) < 0.6 * len(rows)
    assert restore([{"role": "user", "content": upstream.requests[2]["input"]}])[0]["content"] == rows
    assert len(seen) > 0
    assert [reply.output_text for reply in replies] == [expanded(said(seen), seen)] * 3


def test_a_stored_response_is_fetched_in_plain_words(proxy: Proxy, model: Model) -> None:
    """A response that the provider has kept is expanded when the client fetches it later."""
    model.answer = lambda body, symbols: Answer(said(symbols))
    with proxy.openai() as client:
        reply = client.responses.create(model="gpt", input=story())
        again = client.responses.retrieve(reply.id)

    assert again.output_text == reply.output_text == model.plain(said(model.symbols))


@pytest.mark.parametrize("way", ["forget", "reset"])
def test_what_is_forgotten_is_not_remembered_for_responses(proxy: Proxy, model: Model, way: str) -> None:
    """No text of a session that was forgotten, or of a reset, is kept in memory to expand stored responses with."""
    model.answer = lambda body, symbols: Answer(said(symbols))
    sessions = [f"{way}-mine", f"{way}-other"]
    replies = {}
    for session in sessions:
        with proxy.openai(x_session_id=session) as client:
            replies[session] = client.responses.create(model="gpt", input=story())
    with proxy.http() as http:
        if way == "forget":
            http.delete(f"/v1/compression/sessions/{sessions[0]}").raise_for_status()
        else:
            http.post("/v1/compression/reset").raise_for_status()

    with proxy.openai() as client:
        again = [client.responses.retrieve(replies[session].id).output_text for session in sessions]
    before = [replies[session].output_text for session in sessions]
    assert "warehouse" in before[0]
    assert "warehouse" not in again[0]
    assert (again[1] == before[1]) == (way == "forget")


def test_a_chain_is_its_keys_own(proxy: Proxy, model: Model) -> None:
    """Another key that goes on from a response, or fetches it, gets its symbols as they are and no word of the text."""
    model.answer = lambda body, symbols: Answer("¤1 ¤2 ¤3")
    with proxy.openai(x_session_id="owned") as client:
        mine = client.responses.create(model="gpt", input=story())
        assert client.responses.retrieve(mine.id).output_text == mine.output_text == model.plain("¤1 ¤2 ¤3")
    assert "warehouse" in mine.output_text

    for headers in ({"x_session_id": "owned"}, {}):
        with proxy.openai("sk-two", **headers) as client:
            after = client.responses.create(model="gpt", input="And?", previous_response_id=mine.id)
            again = client.responses.retrieve(mine.id)
        assert (after.output_text, again.output_text) == ("¤1 ¤2 ¤3", "¤1 ¤2 ¤3")


def test_what_is_answered_later_or_held_elsewhere_defines_nothing(
    proxy: Proxy, upstream: Upstream, model: Model
) -> None:
    """A request in the background is left alone; one in a conversation of the provider's defines nothing."""
    model.answer = lambda body, symbols: Answer("Hello")
    question = story()
    with proxy.openai() as client:
        client.responses.create(model="gpt", input=question, background=True)
        client.responses.create(model="gpt", input=question, conversation="conv_1")

    assert [body["input"] for body in upstream.requests] == [question, question]
