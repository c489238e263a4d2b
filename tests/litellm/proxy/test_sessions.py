"""The ways in which a client names its session, as they come over HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.litellm.proxy.conftest import ENDPOINTS, request, story

if TYPE_CHECKING:
    from tests.litellm.proxy.conftest import Model, Proxy

ANY = "user:42"
"""An id that LiteLLM by itself takes for none: what names it is read by us."""
PLAIN = "0f1e2d3c-aaaa-bbbb-cccc-1234567890ab"
"""An id as LiteLLM wants it in the headers of its clients."""
CODEX = {"user-agent": "codex_cli_rs/0.50.0 (Linux; x86_64)"}

WAYS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "x-session-id": (ANY, {"x-session-id": ANY}, {}),
    "x-litellm-session-id": (ANY, {"x-litellm-session-id": ANY}, {}),
    "litellm_session_id": (ANY, {}, {"litellm_session_id": ANY}),
    "claude code": (PLAIN, {"x-claude-code-session-id": PLAIN}, {}),
    "codex": (PLAIN, {**CODEX, "session-id": PLAIN}, {}),
    "codex, older": (PLAIN, {**CODEX, "session_id": PLAIN}, {}),
    "baggage": (ANY, {"baggage": f"user.id=1,session.id={ANY}"}, {}),
    "metadata.session_id": (ANY, {}, {"metadata": {"session_id": ANY}}),
    "metadata.user_id": (ANY, {}, {"metadata": {"user_id": f"user_1f_account_2e_session_{ANY}"}}),
    "metadata.user_id, JSON": (ANY, {}, {"metadata": {"user_id": json.dumps({"session_id": ANY})}}),
    "conversation": (ANY, {}, {"conversation": ANY}),
    "conversation.id": (ANY, {}, {"conversation": {"id": ANY}}),
}
"""The session, and the headers and fields of the body that name it."""


@pytest.mark.parametrize(
    ("protocol", "way"),
    [(protocol, way) for way in WAYS for protocol in ENDPOINTS if protocol == "responses" or "conversation" not in way],
)
def test_every_way_to_name_a_session_is_heard(proxy: Proxy, model: Model, protocol: str, way: str) -> None:
    """The session that the response's headers tell is the one that the client has named."""
    session, headers, more = WAYS[way]
    body = request(protocol, story(), "claude" if protocol == "messages" else "gpt", **more)
    with proxy.http() as client:
        answer = client.post(ENDPOINTS[protocol], json=body, headers=headers).raise_for_status()

    assert answer.headers.get("x-krunch-session") == session
