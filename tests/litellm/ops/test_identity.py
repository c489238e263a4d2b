"""Whose request it is: what counts as a session, and what tells tenants apart."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from krunch_litellm.identity import ANONYMOUS, MAX_SESSION, identify, tenant_of
from litellm.proxy._types import UserAPIKeyAuth

KEY = UserAPIKeyAuth(api_key="sk-user-1")
HASH = "0" * 64

patient = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a busy machine everything is slow."""


def session(**data: Any) -> str | None:
    """The session of a request."""
    headers = data.pop("headers", {})
    return identify({"proxy_server_request": {"headers": headers}, **data}, KEY).session


@patient
@given(st.text(min_size=1, max_size=MAX_SESSION))
def test_any_string_is_a_session(text: str) -> None:
    """Any text of up to 256 characters comes out as it went in: in the body, and as UTF-8 in a header."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    in_header = text.encode().decode("latin-1")

    assert session(litellm_session_id=text) == text
    assert session(metadata={"session_id": text}) == text
    assert session(headers={"x-session-id": in_header}) == text
    # What LiteLLM copies from the header into the body is the header's.
    assert session(headers={"x-litellm-session-id": in_header}, litellm_session_id=in_header) == text


@patient
@given(st.text(min_size=1, max_size=MAX_SESSION) | st.text(" \t\n%ä", min_size=1, max_size=9))
def test_any_session_can_be_told_in_a_header(text: str) -> None:
    """It is printable ASCII without blanks at its ends, which servers refuse, and says which session it was."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    told = identify({"litellm_session_id": text}, KEY).header

    assert unquote(told) == text
    assert re.fullmatch("[!-~](?:[ -~]*[!-~])?", told)


@pytest.mark.parametrize("bad", ["", "x" * (MAX_SESSION + 1), "\ud800", None, True, 1.5, ["a"], {"a": 1}])
def test_what_is_no_session_is_ignored_and_counted_once(bad: Any) -> None:
    """What cannot be an id is passed over, however often LiteLLM has copied it, and the next way counts."""
    data = {"litellm_session_id": bad, "metadata": {"session_id": bad}, "litellm_metadata": {"session_id": bad}}
    found = identify(data, KEY)
    other = identify({**data, "metadata": {"session_id": "s1"}}, KEY)

    count = 0 if bad is None else 1
    assert (found.session, found.ignored) == (None, count)
    assert (other.session, other.ignored) == ("s1", count)


def test_the_first_way_that_says_something_counts() -> None:
    """The ways to name a session have an order, and each of them works alone."""
    ways: list[dict[str, Any]] = [
        {"headers": {"x-session-id": "1"}},
        {"headers": {"x-litellm-session-id": "2"}},
        {"litellm_session_id": "3"},
        {"metadata": {"session_id": "4"}},
        {"metadata": {"user_id": "user_1f_account_2e_session_5"}},
        {"conversation": {"id": "6"}},
    ]
    for position, way in enumerate(ways):
        data: dict[str, Any] = {}
        for later in reversed(ways[position:]):
            for name, value in later.items():
                data[name] = {**data.get(name, {}), **value} if isinstance(value, dict) else value
        assert session(**data) == str(position + 1)
        assert session(**way) == str(position + 1)


@pytest.mark.parametrize(
    ("user_id", "expected"),
    [
        ("user_abc_account_def_session_0f1e", "0f1e"),
        (json.dumps({"device_id": "d", "session_id": "0f1e"}), "0f1e"),
        ({"session_id": "0f1e"}, "0f1e"),
        ("user_abc", None),
        ("{not json", None),
        ("_session_", None),
        (17, None),
    ],
)
def test_anthropics_user_id_may_hold_a_session(user_id: Any, expected: str | None) -> None:
    """Claude Code writes its session into `metadata.user_id`, in one form or another."""
    assert session(metadata={"user_id": user_id}) == expected


def test_numbers_are_ids_too() -> None:
    """A number in the body is taken as its digits."""
    assert session(metadata={"session_id": 42}) == "42"


@pytest.mark.parametrize(
    "data",
    [
        {"previous_response_id": "resp_1"},
        {"prompt_cache_key": "team"},
        {"user": "ann", "safety_identifier": "ann"},
        {"headers": {"x-litellm-trace-id": "trace-123"}, "litellm_session_id": "trace-123"},
        {
            "litellm_session_id": "made-up",
            "metadata": {"session_id": "made-up", "litellm_session_id_generated": True},
        },
    ],
)
def test_what_several_conversations_may_share_is_no_session(data: dict[str, Any]) -> None:
    """Chains of responses, cache keys, users, traces, and ids that LiteLLM makes up name no conversation."""
    assert session(**data) is None


def test_tenants_are_keys_and_hold_no_secret() -> None:
    """A tenant is a key and holds no secret; a caller without a key is its user within its team."""
    keys = [
        UserAPIKeyAuth(api_key=key, user_id="ann", team_id="ops") for key in ("sk-one", "sk-two", "plain secret", HASH)
    ]
    people = [UserAPIKeyAuth(user_id=user, team_id=team) for user in ("ann", "bo", None) for team in ("ops", "dev")]

    tenants = [tenant_of(one) for one in (*keys, *people)]
    assert len(set(tenants)) == len(tenants)
    assert tenants[3] == f"key:{HASH}"
    assert not any(secret in str(tenants) for secret in ("sk-", "plain secret", "ann"))
    assert tenant_of(UserAPIKeyAuth()) == ANONYMOUS


NAMES = st.sampled_from(["session_id", "user_id", "id", "headers", "x-session-id", "litellm_session_id_generated"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(NAMES, SCALARS, max_size=3)


@patient
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_whatever_clients_send_is_read(data: dict[str, Any]) -> None:
    """No shape of a request makes reading its session fail, and none changes the tenant."""
    for name in ("metadata", "litellm_metadata", "proxy_server_request", "conversation", "litellm_session_id"):
        assert identify({name: data, **data}, KEY).tenant == tenant_of(KEY)
