"""Requests that are too long, through LiteLLM: what leaves them, and what the upstream gets instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import krunch_litellm

from krunch_plugins import Krunch, Settings, is_recalled, restore

if TYPE_CHECKING:
    from pathlib import Path

    from krunch_plugins.upstream import Upstream


def test_a_long_request_is_sent_short_and_with_what_matters(talk: Any, upstream: Upstream, tmp_path: Path) -> None:
    """The upstream gets the instructions, the end, and a quote before the question; the store has everything."""
    history: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    history += [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    history += [{"role": "user", "content": "My ferry ticket has the number QX-7781."}]
    history += [{"role": "assistant", "content": "Noted."}]
    for number in range(16):
        words = " ".join(f"item{number}x{index}" for index in range(12))
        history += [{"role": "user", "content": f"Sort: {words}"}, {"role": "assistant", "content": f"Sorted: {words}"}]
    history += [{"role": "user", "content": "Which number has my ferry ticket?"}]
    with Krunch(Settings(home=str(tmp_path), context_window=600)) as krunch:
        krunch_litellm.install(krunch)
        reply = talk(upstream, history, metadata={"session_id": "user:42"})
        assert krunch.store is not None
        turns = [turn.message["content"] for turn in krunch.store.turns("user:42")]

    sent = restore(upstream.requests[-1]["messages"])
    assert len(sent) < len(history)
    assert sent[0] == history[0]
    assert sent[-1] == history[-1]
    assert is_recalled(sent[-2])
    assert "QX-7781" in sent[-2]["content"]
    assert turns == [*(message["content"] for message in history), talk.text(reply)]
