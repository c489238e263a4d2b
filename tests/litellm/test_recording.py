"""What goes through LiteLLM is recorded, once, whichever of the adapters sees it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any
from uuid import UUID

import krunch_litellm
import litellm
import pytest
from krunch_litellm import KrunchCallback

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from krunch_plugins.upstream import Upstream


def test_turns_are_recorded_once_with_callback_and_install_together(
    talk: Any, upstream: Upstream, messages: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A client that resends its history through all adapters at once leaves each turn once, uncompressed."""
    history = copy.deepcopy(messages)
    with Krunch(Settings(home=str(tmp_path), min_tokens=0)) as krunch:
        litellm.callbacks.append(KrunchCallback(krunch))
        krunch_litellm.install(krunch)
        for number in range(2):
            reply = talk(upstream, copy.deepcopy(history), metadata={"session_id": "user:42"})
            history.append({"role": "assistant", "content": talk.text(reply)})
            if number == 0:
                history.append({"role": "user", "content": "And what else?"})
        assert krunch.store is not None
        turns = [turn.message for turn in krunch.store.turns("user:42")]

    assert [turn["content"] for turn in turns] == [message.get("content") for message in history]
    assert [turn["role"] for turn in turns] == [message["role"] for message in history]


@pytest.mark.parametrize(
    ("given", "session"),
    [
        ({"metadata": {"session_id": "x" * 256}}, "x" * 256),
        ({"metadata": {"session_id": 42}}, "42"),
        ({"litellm_session_id": UUID(int=1)}, "00000000-0000-0000-0000-000000000001"),
        ({"metadata": {"session_id": "x" * 257}, "litellm_session_id": "s"}, "s"),
        ({"metadata": {"session_id": ""}}, None),
        ({"metadata": {"session_id": ["s"]}}, None),
        ({"litellm_session_id": "\ud800"}, None),
    ],
)
def test_the_sdk_takes_the_same_ids_as_the_proxy(
    given: Mapping[str, Any],
    session: str | None,
    upstream: Upstream,
    messages: list[dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Strings of 1 to 256 characters, numbers and UUIDs are sessions; what is none is passed over, and said."""
    with Krunch(Settings(home=str(tmp_path))) as krunch:
        krunch_litellm.completion(
            krunch=krunch, model="openai/gpt-4o", api_base=upstream.url, api_key="none", messages=messages, **given
        )
        assert krunch.store is not None
        found = list(krunch.store.sessions())

    assert found == ([] if session is None else [session])
    assert ("a session_id was ignored" in caplog.text) == (session is None or session == "s")
