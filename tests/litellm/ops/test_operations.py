"""Statistics, reset, sessions and metrics of a proxy with two workers."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import httpx
import pytest
from krunch_litellm import legends, pages

from krunch_plugins import Krunch, Settings
from krunch_plugins.report import trend
from krunch_plugins.upstream import Answer
from tests.litellm.ops.conftest import definitions, story
from tests.litellm.proxy.conftest import ENDPOINTS, request

if TYPE_CHECKING:
    from pathlib import Path

    from krunch_plugins.upstream import Upstream
    from tests.litellm.ops.conftest import Proxy

STORY = "; ".join(
    f"Ada{n} says the connection to the database was refused by /srv/warehouse/writer.py" for n in range(12)
)
QUESTION = [{"role": "user", "content": STORY}]
NOISE = " ".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(8))
"""A text that does not get smaller."""


def counts(proxy: Proxy, key: str) -> tuple[int, int]:
    """Conversations and requests that a key sees."""
    stats = proxy.stats(key)["conversation_compression"]["stats"]
    return stats["active_conversations"], stats["total_turns_processed"]


def requests(proxy: Proxy, key: str, count: int, session: str | None = "s1") -> None:
    """Some requests, over all workers."""
    for number in range(count):
        asked = [*QUESTION, {"role": "assistant", "content": "Noted."}, {"role": "user", "content": f"And {number}?"}]
        assert proxy.chat(key, session=session, messages=asked).status_code == 200


def test_without_a_key_nothing_is_told(proxy: Proxy) -> None:
    """Each of the routes answers 401 without a key, and with one that nobody knows."""
    for key in (None, "sk-nobody"):
        with proxy.client(key) as client:
            answers = [
                client.get("/v1/compression/stats"),
                client.post("/v1/compression/reset"),
                client.get("/v1/compression/sessions/s1"),
                client.delete("/v1/compression/sessions/s1"),
            ]

            assert [answer.status_code for answer in answers] == [401] * 4


def test_statistics_are_those_of_all_workers(proxy: Proxy) -> None:
    """Whichever worker served a request and whichever is asked, the figures are the same, under the names promised."""
    key = "sk-user-stats"
    requests(proxy, key, 8)
    proxy.eventually(lambda: counts(proxy, key), (1, 8))
    proxy.eventually(lambda: proxy.stats(key)["krunch"]["totals"]["replies"], 8)

    answers = [proxy.stats(key) for _ in range(6)]

    told = answers[0]
    shown = told["conversation_compression"]["stats"]
    assert shown["avg_turns_per_conversation"] == 8
    assert shown["symbols_in_use"] == told["krunch"]["sessions"][0]["symbols"] > 0
    assert 1 < shown["memory_usage_kb"] < 100
    assert {str(answer["conversation_compression"]["stats"]) for answer in answers} == {
        str(told["conversation_compression"]["stats"])
    }
    assert set(told) == {"conversation_compression", "timestamp", "krunch"}
    assert set(told["conversation_compression"]) == {"enabled", "stats", "config"}
    assert set(told["conversation_compression"]["stats"]) == {
        "active_conversations",
        "total_turns_processed",
        "symbols_in_use",
        "avg_turns_per_conversation",
        "memory_usage_kb",
    }
    assert told["conversation_compression"]["enabled"] is True
    assert told["conversation_compression"]["config"]["max_conversations"] == 1000
    ours = told["krunch"]
    assert ours["workers"] == 2
    assert ours["totals"]["tokens_saved"] > 1000
    assert ours["totals"]["cost_saved"] > 0
    assert ours["totals"]["replies"] == ours["totals"]["requests"] == 8
    assert ours["models"]["gpt-4o"]["requests"] == 8
    series = ours["models"]["gpt-4o"]["series"]  # of one hour, or of two if one ends here
    assert [datetime.fromisoformat(one["hour"]).timestamp() % 3600 for one in series] == [0] * len(series)
    assert 0 <= time.time() - datetime.fromisoformat(series[-1]["hour"]).timestamp() < 2 * 3600
    assert {"series", *series[0]} == {"hour", *ours["models"]["gpt-4o"]}
    for name in ("requests", "replies", "tokens_before", "tokens_saved"):
        assert sum(one[name] for one in series) == ours["models"]["gpt-4o"][name] == ours["totals"][name] > 0
    everybody = proxy.stats()["krunch"]["models"]["gpt-4o"]["series"]
    assert sum(one["requests"] for one in everybody) >= 8
    assert [one["session"] for one in ours["sessions"]] == ["s1"]
    assert len(ours["sessions"][0]["series"]) == 8
    assert ours["reasons"]["compressed"] == 1
    assert ours["errors"] == []


@pytest.mark.parametrize(
    ("protocol", "model"), [("chat", "gpt-4o"), ("chat", "claude"), ("messages", "claude"), ("responses", "gpt-4o")]
)
def test_cache_hits_are_told_as_the_provider_reports_them(
    proxy: Proxy, answers: dict[str, Any], protocol: str, model: str
) -> None:
    """What the provider says it has read from its cache is in the statistics, whole and streamed."""
    key = f"sk-user-usage-{protocol}-{model}"
    answers["How many?"] = Answer("Many.", cached_tokens=2)
    for streamed in (False, True):
        told = {"stream_options": {"include_usage": True}} if streamed and protocol == "chat" else {}
        body = request(protocol, "How many?", model, stream=streamed, **told)
        with proxy.client(key, x_session_id=f"usage {streamed}") as client:
            client.post(ENDPOINTS[protocol], json=body).raise_for_status()
    proxy.eventually(lambda: proxy.stats(key)["krunch"]["totals"]["replies"], 2)

    assert proxy.stats(key)["krunch"]["totals"]["provider"] == {
        "input_tokens": 6,
        "cached_tokens": 4,
        "cache_hit_rate": 4 / 6,
        "written_tokens": 0,
        "output_tokens": 4,
    }


def test_a_key_resets_its_own_and_the_master_key_all(proxy: Proxy) -> None:
    """A reset reaches all workers, and of a key's only what is its own; what is sent stays the same."""
    mine, other = "sk-user-reset", "sk-user-other"
    requests(proxy, mine, 4)
    requests(proxy, other, 4)
    proxy.eventually(lambda: (counts(proxy, mine), counts(proxy, other)), ((1, 4), (1, 4)))

    with proxy.client(mine) as client:
        answer = client.post("/v1/compression/reset").raise_for_status().json()

    assert answer["message"] == "Conversation compression state reset successfully"
    assert set(answer) == {"message", "timestamp"}
    assert [counts(proxy, mine) for _ in range(4)] == [(0, 0)] * 4
    assert (proxy.stats(mine)["krunch"]["models"], set(proxy.stats(other)["krunch"]["models"])) == ({}, {"gpt-4o"})
    assert counts(proxy, other) == (1, 4)

    before = proxy.chat(other, session="s1", messages=QUESTION)
    with proxy.client() as client:
        client.post("/v1/compression/reset").raise_for_status()
    after = proxy.chat(other, session="s1", messages=QUESTION)

    assert before.headers["x-krunch-tokens-after"] == after.headers["x-krunch-tokens-after"]
    proxy.eventually(lambda: counts(proxy, other), (1, 1))


@pytest.mark.parametrize("session", ["s1", "user:42", "Grüße/日本 語", "../../etc/passwd", "x" * 256, "a?b#c%d"])
def test_a_session_is_shown_and_forgotten(proxy: Proxy, session: str) -> None:
    """Any id will do: its turns, its trend and its legend are shown, and gone when it is forgotten, in all workers."""
    key = "sk-user-session"
    requests(proxy, key, 6, session)
    path = "/v1/compression/sessions/" + "".join(f"%{byte:02x}" for byte in session.encode())
    with proxy.client(key) as client:
        proxy.eventually(lambda: client.get(path).json().get("turns"), 6)
        shown = client.get(path).json()

        assert (shown["session"], shown["recorded"], shown["efficiency"]["trend"]) == (session, False, "stable")
        assert shown["efficiency"]["net_efficiency"] > 0.3
        assert shown["legend"] is None or any(meaning in STORY for meaning in shown["legend"].values())
        assert client.delete(path).status_code == 200
        assert [client.get(path).status_code, client.delete(path).status_code] == [404, 404]
    assert counts(proxy, key)[0] == 0


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([NOISE, STORY], "improving"),
        ([STORY, NOISE], "declining"),
        ([STORY, "Well?"], "stable"),
        ([NOISE, STORY, *["Well?"] * 9], "stable"),
    ],
    ids=["rising", "falling", "flat", "risen before"],
)
def test_the_trend_is_that_of_the_last_ten_requests(proxy: Proxy, texts: list[str], expected: str) -> None:
    """A session of which more and more is saved improves, another declines; what came before is forgotten."""
    key = f"sk-user-trend-{len(texts)}-{expected}"
    for count in range(1, len(texts) + 1):
        messages = [{"role": "user", "content": text} for text in texts[:count]]
        assert proxy.chat(key, session="trend", messages=messages).status_code == 200
    proxy.eventually(lambda: counts(proxy, key), (1, len(texts)))

    with proxy.client(key) as client:
        page = client.get("/v1/compression/sessions/trend").raise_for_status().json()
    assert page["efficiency"] == {"trend": expected, "net_efficiency": page["series"][-1]["net_efficiency"]}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([], "stable"),
        ([800], "stable"),
        ([800, 600], "improving"),
        ([600, 800], "declining"),
        ([700, 900, 100, 600], "improving"),
        ([600, 100, 900, 700], "declining"),
        ([700, 100, 900, 700], "stable"),
        ([700, 691], "stable"),
        ([691, 700], "stable"),
        ([700, 689], "improving"),
        ([689, 700], "declining"),
    ],
)
def test_a_trend_leads_from_the_first_request_to_the_last(after: list[int], expected: str) -> None:
    """What lies between does not count, nor does a change by less than a hundredth."""
    assert trend([pages.net({"tokens_before": 1000, "tokens_after": tokens}) for tokens in after]) == expected


def test_a_legend_is_that_of_the_last_request_or_none(proxy: Proxy, model_server: Upstream) -> None:
    """A worker that has served a session before another one did does not tell what was meant then."""
    key = "sk-user-legend"
    asked: list[dict[str, Any]] = []
    told: list[dict[str, str] | None] = []
    for name in ("Ada", "Bo", "Cy"):
        for _ in range(4):  # each worker has served some
            asked = [*asked[-3:], {"role": "user", "content": f"{len(asked)}: {story(name)}"}]
            assert proxy.chat(key, session="legend", messages=asked).status_code == 200
    last = definitions(model_server.requests[-1])
    proxy.eventually(lambda: counts(proxy, key), (1, 12))

    def show() -> bool:
        with proxy.client(key) as client:
            told.append(client.get("/v1/compression/sessions/legend").raise_for_status().json()["legend"])
        return len(told) >= 12 and last in told

    proxy.eventually(show, expected=True)
    assert [legend for legend in told if legend not in (last, None)] == []


def test_a_session_is_told_from_another_by_each_of_its_characters(proxy: Proxy) -> None:
    """Newlines and blanks at the ends count, in the path too: no other session is shown, or forgotten in its place."""
    key, ids = "sk-user-blank", ["n", "n\n", "\nn", " n ", "n\nm"]
    paths = {session: f"/v1/compression/sessions/{quote(session, safe='')}" for session in ids}
    for session in ids:
        answer = proxy.chat(key, messages=QUESTION, metadata={"session_id": session})
        assert (answer.status_code, unquote(answer.headers["x-krunch-session"])) == (200, session)
    proxy.eventually(lambda: counts(proxy, key), (len(ids), len(ids)))
    with proxy.client(key) as client:
        assert [client.get(paths[session]).json().get("session") for session in ids] == ids
        for place, session in enumerate(ids):
            assert client.delete(paths[session]).json()["session"] == session
            left = [client.get(paths[other]).status_code for other in ids]
            assert left == [404 if at <= place else 200 for at in range(len(ids))]


def test_ids_that_cannot_be_sessions_are_ignored_and_counted(proxy: Proxy) -> None:
    """A longer id than 256 characters names no session, harms nothing, and is counted."""
    key = "sk-user-long"
    answer = proxy.chat(key, session="x" * 257, messages=QUESTION)

    assert answer.status_code == 200
    assert answer.headers.get("x-krunch-session", "") == ""
    proxy.eventually(
        lambda: proxy.stats(key)["krunch"]["errors"], [{"place": "session", "error": "ignored", "count": 1}]
    )
    assert proxy.stats(key)["krunch"]["sessions"][0]["session"] is None


def test_metrics_are_among_litellms(proxy: Proxy) -> None:
    """Counters and histograms of all workers stand in LiteLLM's /metrics, without any text of messages."""
    key = "sk-user-metrics"
    requests(proxy, key, 4)
    with proxy.client() as client:
        metrics = client.get("/metrics/").text

    counted = re.findall(
        r'^krunch_requests_total\{endpoint="acompletion",model="gpt-4o"\} (\S+)', metrics, re.MULTILINE
    )
    assert len(counted) == 1
    assert float(counted[0]) >= 4
    assert "krunch_prepare_seconds_bucket{" in metrics
    assert 'krunch_messages_total{reason="compressed"}' in metrics
    assert "litellm_" in metrics
    assert "warehouse" not in metrics


def test_no_message_text_is_in_what_workers_share(proxy: Proxy) -> None:
    """The directory that the workers share is private, and holds figures and ids, no text."""
    requests(proxy, "sk-user-private", 2)
    proxy.stats()
    (shared,) = proxy.log.parent.glob("krunch-proxy-*")

    assert shared.stat().st_mode & 0o077 == 0
    files = [path for path in shared.iterdir() if path.is_file()]
    assert files
    assert all(b"warehouse" not in path.read_bytes() for path in files)
    assert all(b"sk-user" not in path.read_bytes() for path in files)
    assert "warehouse" not in proxy.log.read_text(encoding="utf-8")


def test_a_worker_that_is_killed_takes_no_figures_with_it(proxy: Proxy) -> None:
    """When a worker dies, clients are served by the others, and what it has counted stays."""
    key = "sk-user-killed"
    requests(proxy, key, 6)
    proxy.eventually(lambda: counts(proxy, key), (1, 6))
    killed = proxy.children()[0]

    os.kill(killed, signal.SIGKILL)

    served = 0
    for _ in range(10):
        try:
            served += proxy.chat(key, session="s1", messages=QUESTION).status_code == 200
        except httpx.TransportError:  # the connection was the dead worker's
            continue
    assert served >= 5
    proxy.eventually(lambda: counts(proxy, key), (1, 6 + served))
    assert proxy.process.poll() is None


def test_plugins_see_no_request_that_nobody_made(tmp_path: Path) -> None:
    """What is loaded while a proxy starts, and a legend that is worked out, show installed plugins no request."""
    info = tmp_path / "krunch_witness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: krunch-witness\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[krunch_plugins]\nwitness = witness\n", encoding="utf-8")
    (tmp_path / "witness.py").write_text(
        "from krunch_plugins import hookimpl\n\n@hookimpl\ndef pre_request(exchange):\n    print('seen')\n",
        encoding="utf-8",
    )
    ask = "from krunch_plugins import Krunch; Krunch().prepare([{'role': 'user', 'content': 'Hi'}], model='gpt-4o')"
    warm = "from krunch_litellm.routes import warm_up; warm_up()"
    with Krunch(Settings(home=tmp_path / "home")) as krunch:
        exchange = krunch.prepare(QUESTION, model="gpt-4o", session="s", tenant="t")
        exchange.finish({"role": "assistant", "content": "Noted."})
    row = {"tenant": "t", "session": "s", "deployment": "gpt-4o", "scope": b""}
    row["legend"] = legends.digest(b"key", exchange.symbols)
    show = (
        "from krunch_litellm import legends; from krunch_litellm.configuration import Configuration; "
        f"print(legends.told(Configuration({{'home': {str(tmp_path / 'home')!r}}}), b'key', {row!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment.pop("KRUNCH_DISABLE_PLUGINS", None)

    seen = [
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        for program in (ask, warm, show)
    ]

    assert exchange.symbols
    assert ["seen" in one.stdout for one in seen] == [True, False, False]
    assert seen[-1].stdout.strip() == str(dict(exchange.symbols))


def test_the_garbage_collector_passes_over_what_was_loaded_at_the_start() -> None:
    """A proxy that has started stops no request to look for garbage among LiteLLM's own modules."""
    program = (
        "import gc, litellm; from krunch_litellm.routes import warm_up; many = len(gc.get_objects()); warm_up(); "
        "print(many > 100_000, len(gc.get_objects()) < many / 10)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["True", "True"]
