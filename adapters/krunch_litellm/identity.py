"""Whose request it is: the session that the client names, and the tenant that its key stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litellm.proxy._types import UserAPIKeyAuth


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose request it is.

    Attributes:
        session: the conversation's id as the client gave it; None if it gave none.
        tenant: who owns the session: the caller's key, hashed; None if the proxy has no keys.
    """

    session: str | None
    tenant: str | None


def identify(data: Mapping[str, Any], user_api_key_dict: UserAPIKeyAuth) -> Identity:
    """Read the session and the tenant of a request to the proxy.

    Args:
        data: the request's arguments, as LiteLLM's proxy hands them to hooks.
        user_api_key_dict: what the proxy knows about the caller's key.
    """
    headers = (data.get("proxy_server_request") or {}).get("headers") or {}
    session = headers.get("x-session-id") or data.get("litellm_session_id")
    for holder in ("metadata", "litellm_metadata"):
        metadata = data.get(holder)
        if session is None and isinstance(metadata, dict):
            session = metadata.get("session_id")
    return Identity(None if session is None else str(session), user_api_key_dict.api_key)
