"""What adapters give the store beside whole exchanges: turns that reach no model, and streamed replies of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from krunch_plugins import ConversationStore, Krunch, Settings, hookimpl
from krunch_plugins.errors import StoreClosed

Open = Callable[..., ConversationStore]
USER = {"role": "user", "content": "hello"}
REPLY = {"role": "assistant", "content": "good morning"}


def chunk(text: str) -> dict[str, Any]:
    """A chunk of a stream."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def test_turns_are_recorded_without_a_request(open_store: Open) -> None:
    """`record` stores what is new of a conversation, once, with its metadata; exchanges go on from there."""
    store = open_store()
    with Krunch(store=store) as krunch:
        krunch.record([USER], session="s", turn_metadata=[{"from": "ada"}])
        krunch.record([USER], session="s", turn_metadata=[{"from": "nobody"}])
        krunch.prepare([USER], model="gpt-4o", session="s").finish(REPLY)
        krunch.record([USER, REPLY, {"role": "tool", "tool_call_id": "1", "content": "last"}], session="s")
        krunch.record([USER], session="s", tenant="red")
        statistics = krunch.stats().total_turns_processed

    turns = store.turns("s")
    assert [turn.message["content"] for turn in turns] == ["hello", "good morning", "last"]
    assert [turn.metadata.get("from") for turn in turns] == ["ada", None, None]
    assert [turn.message for turn in store.turns("s", tenant="red")] == [USER]
    assert statistics == 1


def test_without_a_store_nothing_is_recorded() -> None:
    """`record` does nothing where there is no store."""
    with Krunch(Settings()) as krunch:
        krunch.record([USER], session="s")

        assert krunch.recent("s") == []


def test_a_store_that_fails_is_told(open_store: Open) -> None:
    """A direct call to record raises what the store raises; what is no message is refused."""
    store = open_store()
    with Krunch(store=store) as krunch:
        with pytest.raises(TypeError, match="messages must be a sequence of dicts"):
            krunch.record("hello", session="s")  # type: ignore[arg-type]
        store.close()
        with pytest.raises(StoreClosed):
            krunch.record([USER], session="s")


@pytest.mark.parametrize("partial", [False, True])
def test_a_stream_may_be_put_together_by_the_adapter(partial: bool, open_store: Open) -> None:  # noqa: FBT001 - a parameter
    """Hooks and the store see the message that the adapter gives at the end of a stream, not what the chunks say."""
    store = open_store()
    seen: list[Any] = []

    class Watcher:
        @hookimpl
        def post_response(self, reply: Any) -> None:
            seen.append((reply.message, reply.streamed, reply.partial, reply.expanded))

    with Krunch(store=store, plugins=[Watcher()]) as krunch:
        stream = krunch.prepare([USER], model="gpt-4o", session="s").stream()
        stream.feed(chunk("good "))
        stream.feed(chunk("morning"))
        whole = {"role": "assistant", "content": [{"type": "text", "text": "good morning"}]}
        stream.flush(message=whole, metadata={"from": "adapter"}, partial=partial)
        stream.flush(message=whole)
    turn = store.turns("s")[-1]

    assert seen == [(whole, True, partial, True)]
    assert turn.message == whole
    assert turn.metadata["from"] == "adapter"
    assert turn.metadata.get("partial", False) is partial
