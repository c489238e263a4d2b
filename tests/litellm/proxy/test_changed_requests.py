"""Plugins may take messages out and put others in: what each protocol makes of that."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from krunch_litellm.proxy import KrunchProxy
from krunch_litellm.wire.messages import MessagesWire
from krunch_litellm.wire.places import sources
from krunch_litellm.wire.responses import ResponsesWire
from litellm.proxy._types import UserAPIKeyAuth

from krunch_plugins import Krunch, Settings, hookimpl, restore
from tests.litellm.proxy.conftest import flat, story, texts

if TYPE_CHECKING:
    from krunch_plugins import Exchange

SIGNED = {"type": "thinking", "thinking": "Hm.", "signature": "EqQB=="}
CALL = {"id": "t9", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
CONTEXT = {"role": "system", "content": "Earlier it was said: hello."}
NEW: list[dict[str, Any]] = [
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "t9", "content": "There."},
]


class Trimmer:
    """Drops the second and third message, puts context in their place, and a call with its result at the end."""

    name = "trimmer"

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        exchange.messages[1:3] = [dict(CONTEXT)]
        exchange.messages += [dict(message) for message in NEW]


class Rewriter:
    """Makes one string of each text."""

    name = "rewriter"

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        for message in exchange.messages:
            if isinstance(message["content"], list):
                message["content"] = " / ".join(part.get("text", "?") for part in message["content"])


def arguments(request: Any, plugin: object) -> dict[str, Any]:
    """What is sent instead of a request."""
    with Krunch(Settings(min_tokens=0), plugins=[plugin]) as krunch:
        exchange = krunch.prepare(request.messages, model="gpt-4o")
        sent: dict[str, Any] = request.arguments(exchange)
    return sent


def test_messages_keep_what_is_kept() -> None:
    """Anthropic: blocks of messages that stay are as they were, new ones get blocks of their own, results first."""
    long = story()
    mark = {"cache_control": {"type": "ephemeral"}}
    request = MessagesWire.read(
        {
            "system": [{"type": "text", "text": "Be careful.", **mark}],
            "messages": [
                {"role": "user", "content": "Old."},
                {"role": "assistant", "content": "Old, too."},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": long},
                        {"type": "text", "text": long, **mark},
                    ],
                },
                {"role": "assistant", "content": [SIGNED, {"type": "text", "text": long}]},
            ],
        }
    )
    sent = arguments(request, Trimmer())

    assert sent["system"] == [
        {"type": "text", "text": "Be careful.", **mark},
        {"type": "text", "text": CONTEXT["content"]},
    ]
    first, second, third, fourth = sent["messages"]
    assert [block["type"] for block in first["content"]] == ["tool_result", "text"]
    assert first["content"][1]["cache_control"] == mark["cache_control"]
    assert second["content"][0] == SIGNED
    assert third["content"] == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "t9", "name": "look", "input": {"at": "x"}},
    ]
    assert fourth == {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9", "content": "There."}]}
    assert texts(restore(flat(sent))).count(long) == 3


def test_responses_keep_what_is_kept() -> None:
    """OpenAI's responses: items that stay are as they were, with what belongs to them; new messages become items."""
    long = story()
    items: list[dict[str, Any]] = [
        {"role": "user", "content": long},
        {"role": "user", "content": "Old."},
        {"role": "assistant", "content": "Old, too."},
        {"type": "function_call_output", "call_id": "c0", "output": "Out."},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA=="},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": long},
    ]
    sent = arguments(ResponsesWire.read({"input": items, "store": False}), Trimmer())["input"]

    assert [item.get("type") for item in sent] == [
        None,
        "message",
        "function_call_output",
        "reasoning",
        "function_call",
        "function_call_output",
        "message",
        "function_call",
        "function_call_output",
    ]
    assert sent[1] == {
        "type": "message",
        "role": "system",
        "content": [{"type": "input_text", "text": CONTEXT["content"]}],
    }
    assert sent[3:5] == items[4:6]
    assert sent[6]["content"] == [{"type": "output_text", "text": "Let me see."}]
    assert [sent[7]["call_id"], sent[8]["output"]] == ["t9", "There."]
    assert len(sent[5]["output"]) < 0.5 * len(long)


def test_parts_that_a_plugin_has_put_together() -> None:
    """Where a plugin has made one text of several parts, it stands where the first one stood; the rest stays."""
    blocks = [SIGNED, {"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    request = MessagesWire.read({"messages": [{"role": "assistant", "content": [*blocks, call]}]})
    (message,) = arguments(request, Rewriter())["messages"]
    parts: list[dict[str, Any]] = [{"type": "output_text", "text": text, "annotations": []} for text in ("one", "two")]
    items = [{"role": "assistant", "type": "message", "content": parts}, {"type": "item_reference", "id": "r"}]
    sent = arguments(ResponsesWire.read({"input": items, "store": False}), Rewriter())["input"]

    assert message["content"] == [SIGNED, {"type": "text", "text": "one / two"}, call]
    assert sent == [
        {"role": "assistant", "type": "message", "content": [{"type": "output_text", "text": "one / two"}]},
        {"type": "item_reference", "id": "r"},
    ]


@pytest.mark.parametrize("protocol", ["anthropic_messages", "aresponses"])
async def test_comparing_messages_keeps_no_other_request_waiting(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Where messages were taken out, what is left of the request is put together off the event loop."""
    wire: Any = {"anthropic_messages": MessagesWire, "aresponses": ResponsesWire}[protocol]
    put_together, where = wire.arguments, []

    def arguments(self: Any, exchange: Exchange) -> Any:
        where.append(threading.current_thread() is threading.main_thread())
        return put_together(self, exchange)

    monkeypatch.setattr(wire, "arguments", arguments)
    messages = [{"role": ("user", "assistant")[number % 2], "content": f"Turn {number}."} for number in range(9)]
    data = {"model": "m", "messages": messages, "input": messages, "litellm_logging_obj": Trimmer()}
    with Krunch(Settings(), plugins=[Trimmer()]) as krunch:
        sent = await KrunchProxy(krunch).async_pre_call_hook(UserAPIKeyAuth(api_key="sk-x"), None, data, protocol)

    assert where == [False]
    assert sent is not data


class Cutter:
    """Drops messages, puts others in their place, and notes which are which."""

    name = "cutter"

    def __init__(self, kept: list[int | None]) -> None:
        self.kept = kept

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        given = exchange.messages[:]
        exchange.messages[:] = [
            {"role": "user", "content": "New."} if number is None else given[number] for number in self.kept
        ]


@pytest.mark.parametrize(
    "kept",
    [
        [0, None, 5, 6, 7],
        [None, 6, 7],
        [0, 1],
        [0, 2, None, None, 5, 7],
        [*range(8), None],
        [None, *range(8)],
        [3],
        [None],
        [0, 1, 2, 3, 4, None, None, None, 5, 6, 7],
    ],
)
def test_messages_are_known_wherever_they_stand(kept: list[int | None]) -> None:
    """Each message that is sent is known as the one that it was, in front of, between and behind new ones."""
    messages = [{"role": "user", "content": f"Turn {number}."} for number in range(8)]
    with Krunch(Settings(), plugins=[Cutter(kept)]) as krunch:
        assert sources(krunch.prepare(messages, model="gpt-4o")) == kept
