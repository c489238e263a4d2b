"""What the symbols of a session stand for: held within bounds, and worked out from its history."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from krunch_litellm import legends
from krunch_litellm.configuration import Configuration

from krunch_plugins import Krunch, Settings

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_symbols_that_are_held_for_owners_are_bounded_by_their_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few the sessions are, the symbols of the oldest go when the requests that define them get too large."""
    monkeypatch.setattr(legends, "TOKENS", 2_000)
    text = "; ".join(f"step {number} writes /srv/warehouse/inventory/reservations.py" for number in range(60))
    with Krunch(Settings()) as krunch:
        exchange = krunch.prepare([{"role": "user", "content": text}], model="gpt-4o")
        assert exchange.symbols
        assert 700 < exchange.report.tokens_before < 1_000
        try:
            for number in range(5):
                legends.keep("t", f"s{number}", exchange, most=1_000)
            legends.keep("t", "s3", exchange, most=1_000)
            held = [number for number in range(5) if legends.get("t", f"s{number}")]
            memory = legends.memory_kb("t")
        finally:
            legends.forget("t", None)

    assert held == [3, 4]
    assert memory > 0
    assert legends.memory_kb("t") == 0


def test_a_legend_is_worked_out_by_the_settings_that_the_config_still_has(tmp_path: Path) -> None:
    """Where the config of now says something else of who was served, or nothing, what symbols meant is not known."""
    text = "; ".join(f"step {number} writes /srv/warehouse/inventory/reservations.py" for number in range(60))
    key, scope = b"key", (("models", "small"), ("keys", "nightly"))
    table = {"models": {"small": {"profile": "dense"}}, "keys": {"nightly": {"min_tokens": 9}}}
    with closing(Configuration({**table, "home": str(tmp_path)})) as served:
        exchange = served.krunch_of(scope).prepare(
            [{"role": "user", "content": text}], model="gpt-4o", session="s", tenant="t"
        )
        exchange.finish({"role": "assistant", "content": "Noted."})
        row = {"tenant": "t", "session": "s", "deployment": "gpt-4o", "scope": legends.scope(key, scope)}
        row["legend"] = legends.digest(key, exchange.symbols)
        told = [legends.told(served, key, row), legends.told(served, b"another", row)]
    for changed in ({**table, "models": {"small": {"profile": "safe"}}}, {"models": table["models"]}):
        with closing(Configuration({**changed, "home": str(tmp_path)})) as now:
            told.append(legends.told(now, key, row))

    assert exchange.symbols
    assert told == [dict(exchange.symbols), None, None, None]
    assert b"nightly" not in row["scope"]
