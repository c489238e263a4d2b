"""The line between keys, and every way across it that we could think of."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins.upstream import Answer

if TYPE_CHECKING:
    import httpx

    from krunch_plugins.upstream import Upstream
    from tests.litellm.ops.conftest import Proxy

ALICE, BOB = "sk-user-alice", "sk-user-bob"
SECRET = "; ".join(
    f"the launch of project Bluebird {number} was moved to the harbour of Trieste" for number in range(9)
)
OTHER = "; ".join(f"the annual report {number} of the bakery was sent to the printer in Graz" for number in range(9))


def ask(proxy: Proxy, key: str, text: str, session: str | None = "shared", **body: Any) -> str:
    """What a key gets as its reply."""
    return proxy.text(key, session=session, messages=[{"role": "user", "content": text}], **body)


def session_of(proxy: Proxy, key: str, session: str = "shared", **query: str) -> httpx.Response:
    """The page of a session as a key sees it."""
    with proxy.client(key) as client:
        return client.get(f"/v1/compression/sessions/{session}", params=query)


def known(proxy: Proxy, key: str) -> bool:
    """Whether a key has a session of that name."""
    return session_of(proxy, key).status_code == 200


@pytest.fixture
def tenants(proxy: Proxy) -> dict[str, str]:
    """Both keys have asked something in a session of one name; the tenant of each."""
    for key, text in ((ALICE, SECRET), (BOB, OTHER)):
        for number in range(3):
            ask(proxy, key, f"{text} ({number})")
    for key in (ALICE, BOB):
        proxy.eventually(partial(known, proxy, key), True)
    return {key: session_of(proxy, key).json()["tenant"] for key in (ALICE, BOB)}


def test_two_keys_with_one_session_id_share_nothing(proxy: Proxy, tenants: dict[str, str]) -> None:
    """Each key sees its own session of that name; the tenants' names do not hold the keys."""
    assert tenants[ALICE] != tenants[BOB]
    assert all(re.fullmatch("key:[0-9a-f]{64}", tenant) for tenant in tenants.values())
    for _ in range(6):  # over all workers
        seen = session_of(proxy, BOB).text
        assert "Bluebird" not in seen
        assert tenants[ALICE] not in seen
        assert tenants[ALICE] not in str(proxy.stats(BOB))


def test_a_key_cannot_name_another_tenant(proxy: Proxy, tenants: dict[str, str]) -> None:
    """Asking for another tenant by name is refused, for reading and for forgetting; the master key may."""
    for query in ({"tenant": tenants[ALICE]}, {"tenant": "anonymous"}):
        assert session_of(proxy, BOB, **query).status_code == 403
        with proxy.client(BOB) as client:
            assert client.delete("/v1/compression/sessions/shared", params=query).status_code == 403
    assert session_of(proxy, "sk-0123456789abcdef-master").status_code == 409
    shown = session_of(proxy, "sk-0123456789abcdef-master", tenant=tenants[ALICE])
    assert shown.json()["tenant"] == tenants[ALICE]


def test_forgetting_ones_own_leaves_the_others(proxy: Proxy, tenants: dict[str, str]) -> None:
    """A key that forgets its session of that name forgets nothing of another key's."""
    with proxy.client(BOB) as client:
        assert client.delete("/v1/compression/sessions/shared").status_code == 200

    assert session_of(proxy, BOB).status_code == 404
    assert session_of(proxy, ALICE).json()["requests"] >= 3


@pytest.mark.parametrize(
    "form",
    [
        "{tenant}",
        "{tenant}/shared",
        "{tenant}:shared",
        "{tenant}\x1fshared",
        "{tenant}\tshared",
        "('{tenant}', 'shared')",
    ],
)
def test_session_ids_made_like_tenants_cross_nothing(proxy: Proxy, tenants: dict[str, str], form: str) -> None:
    """A session id that looks like another key's tenant is just an id."""
    session = form.format(tenant=tenants[ALICE])
    body = {"messages": [{"role": "user", "content": OTHER}], "metadata": {"session_id": session}}
    with proxy.client(BOB) as client:
        client.post("/v1/chat/completions", json={"model": "gpt-4o", **body}).raise_for_status()
    told = proxy.stats(BOB)["krunch"]["sessions"]

    assert {one["tenant"] for one in told} == {tenants[BOB]}
    assert session_of(proxy, ALICE).json()["tenant"] == tenants[ALICE]


def test_metadata_cannot_claim_another_key(proxy: Proxy, tenants: dict[str, str]) -> None:
    """What a client says about keys in its request changes nothing: the proxy's own authentication counts."""
    alice = tenants[ALICE].removeprefix("key:")
    claims = dict.fromkeys(
        ("user_api_key", "user_api_key_hash", "user_api_key_user_id", "api_key", "tenant", "token"), alice
    )
    before = session_of(proxy, ALICE).json()["requests"]

    ask(proxy, BOB, OTHER, metadata={**claims, "session_id": "shared"}, litellm_metadata=claims, user=alice)

    proxy.stats()
    assert session_of(proxy, ALICE).json()["requests"] == before


def test_symbols_of_others_stay_what_they_are(proxy: Proxy, tenants: dict[str, str], answers: dict[str, Any]) -> None:
    """A reply with symbols that only another key's or session's requests define comes back as it was written."""
    answers["What do they mean?"] = lambda _: Answer("¤1 ¤2 ¤3 ¤4 ¤5")

    told = [
        ask(proxy, BOB, "What do they mean?", "fresh"),
        ask(proxy, BOB, "What do they mean?", "shared"),
        ask(proxy, ALICE, "What do they mean?", "another"),
        ask(proxy, BOB, "What do they mean?", None),
    ]

    assert told == ["¤1 ¤2 ¤3 ¤4 ¤5"] * 4


def test_the_cache_gives_nobody_the_reply_of_another(proxy: Proxy, model_server: Upstream) -> None:
    """LiteLLM's cache, in memory, answers the same request in the same session, and no other."""
    text = SECRET + " Who knows?"
    askers = [(ALICE, "one"), (BOB, "one"), (ALICE, "two"), (ALICE, None)]
    replies = {asker: {ask(proxy, asker[0], text, asker[1]) for _ in range(8)} for asker in askers}

    # Each worker has a cache of its own, in its memory: so one or two replies for eight requests.
    assert all(1 <= len(told) <= 2 for told in replies.values())
    told = [reply for one in replies.values() for reply in one]
    assert len(told) == len(set(told))
    assert all("Bluebird" in reply for reply in told)


@pytest.mark.parametrize("text", [SECRET + " Who may know?", "Who may know?"])
@pytest.mark.parametrize(
    "body",
    [
        {"cache_key": "k"},
        {"cache_key": "k", "cache": {"namespace": "n"}},
        {"cache": {"namespace": "n"}},
        {"metadata": {"redis_namespace": "n"}},
        {"litellm_params": {"preset_cache_key": "k"}},
    ],
    ids="-".join,
)
def test_nobody_asks_the_cache_for_the_reply_of_another(proxy: Proxy, text: str, body: dict[str, Any]) -> None:
    """Whatever a request tells LiteLLM's cache about its key, it gets replies to its own key's session only."""
    askers = [(ALICE, "one"), (BOB, "one"), (ALICE, "two"), (BOB, None), (ALICE, None)]
    told = [{ask(proxy, key, text, session, **body) for _ in range(3)} for key, session in askers]

    assert len(set().union(*told)) == sum(map(len, told))


def test_a_cache_key_still_counts_within_a_session(proxy: Proxy) -> None:
    """A client that names the cache's key itself gets hits in its session, as LiteLLM means it."""
    told = [ask(proxy, ALICE, f"Question {number}?", "keyed", cache_key="mine") for number in range(8)]

    assert len(set(told)) <= 2  # each worker has a cache of its own


def test_what_opts_out_is_cached_as_without_krunch(proxy: Proxy) -> None:
    """A request that opts out shares LiteLLM's cache with other keys that opt out, and with nobody who does not."""
    text = SECRET + " Who has opted out?"
    served = {ask(proxy, ALICE, text, "one") for _ in range(8)}
    off = {key: {ask(proxy, key, text, "one", metadata={"krunch": False}) for _ in range(8)} for key in (ALICE, BOB)}

    assert off[ALICE] & off[BOB]
    assert served.isdisjoint(off[ALICE] | off[BOB])


def counted(proxy: Proxy, key: str) -> int:
    """How many requests of a key were counted."""
    return int(proxy.stats(key)["krunch"]["totals"]["requests"])


def test_two_users_without_a_session_share_nothing(proxy: Proxy, answers: dict[str, Any]) -> None:
    """Two keys, no session, the same "hi", then the same long text: each gets its own, and no session is told of.

    Neither the other's reply from LiteLLM's cache, nor a symbol, nor a figure crosses the line.
    """
    ann, ben = "sk-user-ann-unnamed", "sk-user-ben-unnamed"
    hi = [{"role": "user", "content": "hi"}]
    greeted = {key: {proxy.text(key, messages=hi) for _ in range(4)} for key in (ann, ben)}
    assert greeted[ann].isdisjoint(greeted[ben])

    secret = [*hi, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": SECRET}]
    told = {proxy.text(ann, messages=secret) for _ in range(3)}
    assert all("Bluebird" in reply for reply in told)
    # Ben goes on from the same beginning. A model that writes Ann's symbols to him writes nothing but symbols.
    answers["And what did the others say?"] = lambda _: Answer("¤1 ¤2 ¤3")
    asked = [*hi, {"role": "assistant", "content": "Hello."}]
    asked.append({"role": "user", "content": "And what did the others say?"})
    assert {proxy.text(ben, messages=asked) for _ in range(4)} == {"¤1 ¤2 ¤3"}
    same = {proxy.text(ben, messages=secret) for _ in range(3)}
    assert same.isdisjoint(told)

    for key, requests in ((ann, 7), (ben, 11)):
        proxy.eventually(partial(counted, proxy, key), requests)
        shown = proxy.stats(key)["krunch"]["sessions"]
        assert {one["session"] for one in shown} <= {None}
        assert len({one["tenant"] for one in shown}) == 1
    tenants = [proxy.stats(key)["krunch"]["sessions"][0]["tenant"] for key in (ann, ben)]
    assert tenants[0] != tenants[1]


@pytest.mark.parametrize("streamed", [False, True])
def test_nothing_is_recorded_or_recalled_without_a_session(
    guarded: Proxy, model_server: Upstream, *, streamed: bool
) -> None:
    """With a store and a window, a request that names no session leaves nothing behind that another could be told."""
    guardrails = ["krunch-expand", "krunch-compress"]
    long = [{"role": "user", "content": f"{SECRET} ({number}, {streamed})"} for number in range(30)]
    guarded.text("sk-user-unnamed-one", messages=long, stream=streamed, guardrails=guardrails)
    guarded.text("sk-user-unnamed-two", messages=[{"role": "user", "content": "hi"}], stream=streamed,
                 guardrails=guardrails)  # fmt: skip
    question = [{"role": "user", "content": OTHER * 8}, {"role": "user", "content": "Where is project Bluebird?"}]
    for key in ("sk-user-unnamed-one", "sk-user-unnamed-two"):
        guarded.text(key, messages=question, stream=streamed, guardrails=guardrails)

        assert "Trieste" not in str(model_server.requests[-1])
        with guarded.client(key) as client:
            assert client.get("/v1/compression/sessions/hi").status_code == 404
