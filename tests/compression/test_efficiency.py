from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import poor, prose, rich

from krunch_plugins import Krunch, Settings, restore
from krunch_plugins.compression.efficiency import Evidence, Monitor
from krunch_plugins.errors import SettingsError
from krunch_plugins.report import trend
from krunch_plugins.settings import EfficiencySettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from krunch_plugins import Exchange, MessageReport
    from krunch_plugins.turns import Message

MODEL = "gpt-4o"


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def conversation(texts: Iterable[str]) -> list[Message]:
    """User messages with short replies between them."""
    messages: list[Message] = []
    for text in texts:
        messages += [user(text), {"role": "assistant", "content": "Noted."}]
    return messages[:-1]


def prepare(messages: list[Message], **efficiency: Any) -> Exchange:
    """One request through a Krunch of its own."""
    with Krunch(Settings(efficiency=efficiency)) as krunch:
        return krunch.prepare(messages, model=MODEL, session="s")


def users(exchange: Exchange) -> list[MessageReport]:
    """Reports of the users' messages."""
    return [report for report in exchange.report.messages if report.role == "user"]


def test_the_defaults_are_those_that_are_documented() -> None:
    """Nobody's conversations change because a default did."""
    assert Settings().efficiency.model_dump() == {
        "enabled": True,
        "max_conversations": 1000,
        "cleanup_interval": 3600.0,
        "min_net_efficiency": 0.05,
        "efficiency_trend_window": 3,
        "long_conversation_threshold": 20,
        "long_conversation_min_efficiency": 0.02,
        "force_compression": False,
    }


def test_settings_come_from_variables_and_name_themselves_in_errors() -> None:
    """A setting of the monitor can be set from outside, and a wrong one is named with what is allowed."""
    chosen = Settings.from_environment({"KRUNCH_EFFICIENCY_MIN_NET_EFFICIENCY": "0.2"})
    assert chosen.efficiency.min_net_efficiency == 0.2

    with pytest.raises(SettingsError) as error:
        Settings.from_environment({"KRUNCH_EFFICIENCY_MIN_NET_EFFICIENCY": "2"})
    assert error.value.key == "efficiency.min_net_efficiency"
    assert error.value.source == "KRUNCH_EFFICIENCY_MIN_NET_EFFICIENCY"
    with pytest.raises(SettingsError, match="min_net_efficiency"):
        Settings(efficiency={"min_efficiency": 0.1})


def test_new_entries_stop_when_they_pay_too_little() -> None:
    """After the first window, texts whose entries save less than the threshold get none; before it they do."""
    reports = users(prepare(conversation(poor(seed) for seed in range(8))))

    assert [bool(report.entries_added) for report in reports] == [True] * 3 + [False] * 5
    assert [report.reason for report in reports[3:]] == ["paused"] * 5
    assert all(report.tokens_after == report.tokens_before for report in reports[3:])


def test_a_pause_ends_with_the_first_text_in_which_entries_pay() -> None:
    """What would have been bought is counted, so a listing after much prose is compressed at once."""
    reports = users(prepare(conversation([*(poor(seed) for seed in range(6)), rich(1), rich(2)])))

    assert reports[5].reason == "paused"
    assert reports[6].entries_added
    assert reports[6].tokens_after < reports[6].tokens_before / 2
    assert reports[7].tokens_after < reports[7].tokens_before / 2


def test_known_entries_are_applied_during_a_pause() -> None:
    """A pause is about buying: what was bought before keeps saving."""
    listing = rich(1)
    messages = conversation([listing, *(poor(seed) for seed in range(6)), f"{poor(7)}\nAgain: {listing[:300]}"])

    report = users(prepare(messages))[-1]

    assert not report.entries_added
    assert report.symbols_used
    assert report.tokens_after < report.tokens_before


def test_folded_json_is_no_new_entry() -> None:
    """Folding defines shapes and goes on during a pause."""
    rows = "[" + ", ".join(f'{{"name": "{prose(n, 1)}", "size": {n}}}' for n in range(40)) + "]"
    reports = users(prepare(conversation([*(poor(seed) for seed in range(6)), rows]), min_net_efficiency=1.0))

    assert reports[5].reason == "paused"
    assert reports[6].tokens_after < reports[6].tokens_before * 0.8


def test_a_long_conversation_has_a_threshold_of_its_own() -> None:
    """From so many assistant turns on, the other threshold counts."""
    messages = conversation(poor(seed) for seed in range(8))

    short = users(prepare(messages, long_conversation_threshold=6, long_conversation_min_efficiency=0.0))

    assert [bool(report.entries_added) for report in short] == [True] * 3 + [False] * 3 + [True] * 2


@pytest.mark.parametrize("option", [{"force_compression": True}, {"enabled": False}])
def test_it_can_be_told_to_go_on(option: dict[str, bool]) -> None:
    """Forced, or without the monitor, entries are bought whatever they save."""
    reports = users(prepare(conversation(poor(seed) for seed in range(8)), **option))

    assert all(report.entries_added for report in reports)


def test_the_decision_is_the_conversations_alone() -> None:
    """Sent turn by turn, all at once, or by another Krunch in the middle: the same bytes, and they can be restored."""
    messages = conversation([*(poor(seed) for seed in range(5)), rich(1), *(poor(seed) for seed in range(9, 13))])
    at_once = prepare(messages)

    with Krunch(Settings()) as first, Krunch(Settings()) as second:
        for stop in range(1, len(messages) + 1, 2):
            krunch = first if stop % 4 == 1 else second
            sent = krunch.prepare(messages[:stop], model=MODEL, session="s").messages
            assert sent == at_once.messages[:stop]

    assert restore(at_once.messages) == messages
    assert any(report.reason == "paused" for report in at_once.report.messages)


def test_the_series_tells_what_each_request_saved() -> None:
    """One entry for each request, with the ratios of the whole request, its symbols, the trend and the status."""
    messages = conversation([prose(1, 80), rich(1), rich(2), *(poor(seed) for seed in range(5))])
    with Krunch(Settings()) as krunch:
        stops = range(1, len(messages) + 1, 2)
        reports = [krunch.prepare(messages[:stop], model=MODEL, session="s").report for stop in stops]
        stats = krunch.stats(session="s")

    assert stats is not None
    series = stats.requests
    assert [one.request for one in series] == list(range(1, 9))
    for one, report in zip(series, reports, strict=True):
        assert one.tokens_before == report.tokens_before
        assert one.net_efficiency == pytest.approx(report.net_ratio)
        assert one.compression_ratio == pytest.approx(report.compression_ratio)
        assert one.overhead_ratio == pytest.approx(report.overhead_ratio)
        assert one.symbols_used == sum(message.symbols_used for message in report.messages)
        assert one.symbols_available == sum(message.entries_added for message in report.messages)
    assert sum(one.symbols_added for one in series) == series[-1].symbols_available
    assert [one.trend for one in series[:3]] == ["stable", "improving", "improving"]
    assert series[-1].trend == "declining"
    assert [one.status for one in series[:3]] == ["starting"] * 3
    assert series[3].status == "active"
    assert series[-1].status == "paused"


def test_the_series_does_not_depend_on_who_sent_the_requests() -> None:
    """A process that sees a conversation for the first time knows its whole series."""
    messages = conversation([rich(1), rich(2), poor(1), poor(2), poor(3)])
    with Krunch(Settings()) as one, Krunch(Settings()) as other:
        for stop in range(1, len(messages) + 1, 2):
            one.prepare(messages[:stop], model=MODEL, session="s")
        other.prepare(messages, model=MODEL, session="s")

        known, fresh = one.stats(session="s"), other.stats(session="s")

    assert known is not None
    assert fresh is not None
    assert known.requests == fresh.requests


@pytest.mark.parametrize(
    ("efficiencies", "expected"),
    [
        ([], "stable"),
        ([0.3], "stable"),
        ([0.3, 0.1, 0.309], "stable"),
        ([0.3, 0.35], "improving"),
        ([0.3, 0.2], "declining"),
    ],
)
def test_a_trend_is_the_change_over_the_window(efficiencies: list[float], expected: str) -> None:
    """A point more or less is stable; how it went in between does not matter."""
    assert trend(efficiencies) == expected


evidence = st.builds(
    lambda tokens, share: Evidence(int(tokens * share), tokens), st.integers(1, 5_000), st.floats(0, 1)
)


@settings(max_examples=200)
@given(st.lists(st.lists(evidence, max_size=4), min_size=1, max_size=12), st.integers(1, 5), st.floats(0, 1))
def test_the_window_is_the_sum_of_its_requests(requests: list[list[Evidence]], window: int, threshold: float) -> None:
    """The monitor, which only keeps sums, decides as one that keeps everything."""
    chosen = EfficiencySettings(
        efficiency_trend_window=window, min_net_efficiency=threshold, long_conversation_threshold=1_000
    )
    monitor = Monitor()
    for number, texts in enumerate(requests):
        if number:
            monitor = monitor.next_request(0, chosen)
        for one in texts:
            monitor = monitor.after(one)

    recent = [one for texts in requests[-window - 1 :] for one in texts]
    saved, tokens = sum(one.saved for one in recent), sum(one.tokens for one in recent)

    assert monitor.efficiency() == (pytest.approx(saved / tokens) if tokens else None)
    if len(requests) > window and tokens:
        assert monitor.status(chosen) == ("active" if saved / tokens >= threshold else "paused")
    elif len(requests) <= window:
        assert monitor.status(chosen) == "starting"
