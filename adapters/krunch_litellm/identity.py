"""Whose request it is: the session that the client names, and the tenant that its key stands for.

A client names its session in any of these ways; the first that says something counts, as far as LiteLLM has left it: of
3 to 5 it puts one in the place of another, and a trace id in the place of 3.

1. the header `X-Session-ID`;
2. the header `x-litellm-session-id`;
3. `litellm_session_id` in the body, and what LiteLLM itself takes for it: an `x-<vendor>-session-id` header such as
   Claude Code's, Codex's session headers, `session.id` in W3C baggage;
4. `metadata.session_id`;
5. the session in Anthropic's `metadata.user_id`, as Claude Code writes it;
6. the `conversation` of OpenAI's Responses.

These are no sessions: `previous_response_id`, because the first request of a chain has none and two can go on from one
response; `prompt_cache_key`, `user` and `safety_identifier`, because many conversations share one; a trace id; and an
id that LiteLLM has made up (`missing_session_id: generate`), because it is another one each time.

Ids are the client's to choose, so they count within its key only: the tenant is the key.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import quote
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from litellm.proxy._types import UserAPIKeyAuth

MAX_SESSION = 256
"""Characters that a session's id may have."""
ANONYMOUS = "anonymous"
"""The tenant of callers without a key, on a proxy that asks for none."""

_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_GENERATED = "litellm_session_id_generated"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose request it is.

    Attributes:
        session: the conversation's id as the client gave it; None if it gave none that can be used.
        tenant: who owns the session: the caller's key, hashed.
        ignored: ids that cannot be used: empty, longer than `MAX_SESSION`, no strings, or no Unicode text.
        span: the OpenTelemetry span that LiteLLM has opened for the request, if it has.
    """

    session: str | None
    tenant: str
    ignored: int = 0
    span: Any = field(default=None, repr=False, compare=False)

    @property
    def header(self) -> str:
        """The session as a header can hold it: `%`, blanks at its ends and what is not ASCII are percent-encoded."""
        told = quote(self.session or "", safe=_PLAIN)
        begun = told.lstrip(" ")
        inner = begun.rstrip(" ")
        return "%20" * (len(told) - len(begun)) + inner + "%20" * (len(begun) - len(inner))


def identify(data: Mapping[str, Any], user_api_key_dict: UserAPIKeyAuth) -> Identity:
    """Read the session and the tenant of a request to the proxy.

    Args:
        data: the request's arguments, as LiteLLM's proxy hands them to hooks.
        user_api_key_dict: what the proxy knows about the caller's key.
    """
    session, ignored = first_session(_sessions(data))
    span = getattr(user_api_key_dict, "parent_otel_span", None)
    return Identity(session, tenant_of(user_api_key_dict), ignored, span)


def first_session(candidates: Iterable[object]) -> tuple[str | None, int]:
    """The first of what a request gives as its session that can be one, and how many different ones cannot.

    A number or a UUID is taken as its text.
    """
    ignored: list[object] = []
    for given in candidates:
        numbered = isinstance(given, (int, UUID)) and not isinstance(given, bool)
        session = str(given) if numbered else given
        if is_session(session):
            return session, len(ignored)
        if session not in ignored:  # LiteLLM copies what it finds in one place to others
            ignored.append(session)
    return None, len(ignored)


def is_session(given: object) -> TypeGuard[str]:
    """Whether something can be a session's id: a string of 1 to `MAX_SESSION` characters that UTF-8 can express."""
    if not isinstance(given, str) or not 0 < len(given) <= MAX_SESSION:
        return False
    try:
        given.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON lets through
        return False
    return True


def tenant_of(user_api_key_dict: UserAPIKeyAuth) -> str:
    """Who the caller is, as a tenant: its key; without one (a JWT) its user within team and organisation.

    A key is narrower than the user and the team that it belongs to: two keys of one user share nothing. No secret
    stands in it: LiteLLM hands keys over hashed (the master key as an alias), and what it does not is hashed here.
    """
    key = user_api_key_dict.api_key or getattr(user_api_key_dict, "token", None)
    if key:
        return f"key:{key if _DIGEST.fullmatch(key) else _digest(key)}"
    who = [getattr(user_api_key_dict, name, None) for name in ("org_id", "team_id", "user_id")]
    return f"user:{_digest(json.dumps(who))}" if any(who) else ANONYMOUS


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _sessions(data: Mapping[str, Any]) -> Iterator[object]:
    """What the request gives as its session, the first choice first."""
    headers = _table((_table(data.get("proxy_server_request"))).get("headers"))
    for name in ("x-session-id", "x-litellm-session-id"):
        if headers.get(name) is not None:
            yield _from_header(headers[name])
    metadata = [_table(data.get(name)) for name in ("metadata", "litellm_metadata")]
    made_up = any(one.get(_GENERATED) for one in metadata)
    trace = headers.get("x-litellm-trace-id")  # LiteLLM takes it for the session's id, too
    for given in (data.get("litellm_session_id"), *(one.get("session_id") for one in metadata)):
        if given is not None and not made_up and (trace is None or given != trace):
            # LiteLLM has copied a header's value here as it read it.
            yield _from_header(given) if given in headers.values() else given
    for one in metadata:
        session = _of_user_id(one.get("user_id"))
        if session is not None:
            yield session
    conversation = data.get("conversation")
    if conversation is not None:
        yield conversation.get("id") if isinstance(conversation, dict) else conversation


def _from_header(value: object) -> object:
    """A header's text: servers read it as Latin-1, and clients that send more than ASCII send UTF-8."""
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _of_user_id(user_id: object) -> str | None:
    """The session in Anthropic's `metadata.user_id`: `user_…_session_…`, or an object (also as JSON) that has one."""
    if isinstance(user_id, str) and user_id.startswith("{"):
        try:
            user_id = json.loads(user_id)
        except (ValueError, RecursionError):
            return None
    if isinstance(user_id, dict):
        session = user_id.get("session_id")
        return session if isinstance(session, str) else None
    if isinstance(user_id, str):
        _, marker, session = user_id.rpartition("_session_")
        return session if marker and session else None
    return None


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
