from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins.cli.demo import RecordedModel, run
from krunch_plugins.upstream import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunch_plugins.conversations import Conversation

    from .conftest import Krunch


@pytest.mark.smoke
def test_the_demo_plays_every_request_and_checks_it(krunch: Krunch, recorded: list[Conversation]) -> None:
    """`krunch demo` sends each request through LiteLLM, and every reply, with symbols or without, is exact."""
    requests = sum(len(one.requests()) for one in recorded)

    done = krunch("demo")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{requests} of {requests} replies came back exact" in done.stdout
    assert f"{requests} of {requests} requests are restored exactly" in done.stdout
    assert f"0 of {requests} requests changed something sent before" in done.stdout
    assert f"{requests} of {requests} requests are sent alike" in done.stdout
    assert all(one.id in done.stdout for one in recorded)
    assert len(re.findall(r"exact, (?:whole|streamed)", done.stdout)) == requests
    assert re.search(r"whole, [1-9]\d* symbol", done.stdout)
    assert re.search(r"streamed, [1-9]\d* symbol", done.stdout)


class OtherModel(RecordedModel):
    """A model that does not say what was recorded."""

    def answer(self, _body: Mapping[str, Any]) -> Answer:
        """The recorded reply with one more character."""
        recorded = super().answer(_body)
        return Answer((recorded.text or "") + "!", recorded.tool_calls)


def test_a_reply_that_is_not_exact_fails_the_demo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks of the demo can fail: a reply that differs by a character is counted and shown."""
    monkeypatch.setenv("COLUMNS", "200")  # room for the column that says so
    code = run(OtherModel())

    out = capsys.readouterr().out
    assert code == 1
    assert "FAIL  0 of" in out
    assert "WRONG" in out
