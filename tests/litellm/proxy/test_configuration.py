"""Whose settings serve a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from krunch_litellm.configuration import Configuration
from litellm.proxy._types import UserAPIKeyAuth

from krunch_plugins import hookimpl
from krunch_plugins.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from krunch_plugins import Krunch, Turn

TABLE: dict[str, Any] = {
    "profile": "safe",
    "min_tokens": 5,
    "efficiency": {"min_net_efficiency": 0.1},
    "models": {"small": {"mode": False}, "openai/gpt-4o": {"min_tokens": 6, "profile": "dense"}},
    "teams": {"research": {"min_tokens": 7}, "team-1": {"min_tokens": 8}},
    "keys": {"nightly": {"efficiency": {"force_compression": True}}},
}
NOBODY = UserAPIKeyAuth()


def serving(configuration: Configuration, models: list[str], key: UserAPIKeyAuth) -> Krunch:
    """Who serves a request."""
    return configuration.krunch_of(configuration.scope_of(models, key))


@pytest.fixture
def configuration() -> Iterator[Configuration]:
    """One that says something of everything."""
    made = Configuration(TABLE)
    yield made
    made.close()


def test_the_narrower_goes_over_the_wider(configuration: Configuration) -> None:
    """A key's settings go over its team's, these over the model's, these over the rest; tables are merged."""
    key = UserAPIKeyAuth(key_alias="nightly", team_alias="research", team_id="team-1")
    plain = serving(configuration, ["other"], NOBODY)
    model = serving(configuration, ["ours", "openai/gpt-4o"], NOBODY).settings
    all_of_them = serving(configuration, ["ours", "openai/gpt-4o"], key).settings

    assert plain is configuration.main
    assert (plain.settings.profile, plain.settings.min_tokens) == ("safe", 5)
    assert (model.profile, model.min_tokens) == ("dense", 6)
    assert (all_of_them.profile, all_of_them.min_tokens) == ("dense", 8)
    assert (all_of_them.efficiency.force_compression, all_of_them.efficiency.min_net_efficiency) == (True, 0.1)


def test_a_bare_off_is_a_mode(configuration: Configuration) -> None:
    """YAML reads `mode: off` as a truth value; the mode is meant."""
    assert serving(configuration, ["small"], NOBODY).settings.mode == "off"


def test_equal_settings_are_served_by_one(configuration: Configuration) -> None:
    """Requests with the same settings share one Krunch, and all of them are known."""
    first = serving(configuration, ["small"], NOBODY)

    assert serving(configuration, ["small"], NOBODY) is first
    assert configuration.krunches() == [configuration.main, first]


def test_variables_go_over_the_config_and_the_store_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`KRUNCH_*` goes over what the config says of everything; what it says of a model goes over that."""
    monkeypatch.setenv("KRUNCH_MIN_TOKENS", "9")
    monkeypatch.setenv("KRUNCH_HOME", str(tmp_path / "home"))
    configuration = Configuration(TABLE)
    other = serving(configuration, ["openai/gpt-4o"], NOBODY)
    stores = [configuration.main.store, other.store]
    figures = [configuration.main.settings.min_tokens, other.settings.min_tokens]
    configuration.close()

    assert stores[0] is stores[1] is not None
    assert figures == [9, 6]


def test_plugins_hear_of_each_eviction_once(tmp_path: Path) -> None:
    """However many tables of settings there are: what they serve is one Krunch but for what they change."""
    heard: list[int] = []

    class Ears:
        @hookimpl
        def on_evict(self, turns: Sequence[Turn]) -> None:
            heard.extend(turn.number for turn in turns)

    configuration = Configuration({**TABLE, "home": str(tmp_path)})
    configuration.main.register(Ears())
    for name in ("small", "openai/gpt-4o", "other"):
        krunch = serving(configuration, [name], NOBODY)
        exchange = krunch.prepare([{"role": "user", "content": name}], model="gpt-4o", session="s")
        exchange.finish({"role": "assistant", "content": "Noted."})
    configuration.close()

    assert sorted(heard) == list(range(len(heard)))
    assert heard


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"profil": "safe"}, "'profil' from litellm_settings.krunch is 'safe'; allowed: one of the settings"),
        ({"min_tokens": -1}, "'min_tokens' from litellm_settings.krunch is -1; allowed: a whole number from 0"),
        ({"teams": {"a": {"mode": "half"}}}, "'mode' from litellm_settings.krunch.teams.a is 'half'"),
        ({"keys": ["a"]}, "'keys' from litellm_settings.krunch is ['a']; allowed: a table of tables"),
        (
            {"models": {"a": {"home": "/x"}}},
            "'home' from litellm_settings.krunch.models.a is '/x'; allowed: set for the",
        ),
        ({"models": {"a": {"recall": {"depth": 9}}}}, "'recall' from litellm_settings.krunch.models.a is"),
    ],
)
def test_what_is_not_allowed_is_refused_at_once(table: dict[str, Any], says: str) -> None:
    """The error names the setting, where it stands and what is allowed."""
    with pytest.raises(SettingsError) as refused:
        Configuration(table)

    assert says in str(refused.value)
