"""Settings: where they come from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from krunch_plugins import Krunch, Settings
from krunch_plugins.errors import SettingsError
from krunch_plugins.settings import EfficiencySettings, RecallSettings

WRONG: list[tuple[str, Any, str]] = [
    ("mode", 1, "one of 'on', 'observe', 'off'"),
    ("mode", "ON", "one of 'on', 'observe', 'off'"),
    ("mode", True, "one of 'on', 'observe', 'off'"),
    ("profile", None, "one of 'safe', 'balanced', 'dense'"),
    ("min_tokens", True, "a whole number from 0 to 1000000"),
    ("min_tokens", "16", "a whole number from 0 to 1000000"),
    ("min_tokens", 16.0, "a whole number from 0 to 1000000"),
    ("min_tokens", -1, "a whole number from 0 to 1000000"),
    ("min_tokens", 1_000_001, "a whole number from 0 to 1000000"),
    ("memo_bytes", -1, "a whole number from 0"),
    ("default_encoding", "No such!", "a string that matches ^[a-z0-9_]+$"),
    ("roles", "user", "a list of strings (in a variable: separated by commas)"),
    ("roles", 7, "a list of strings (in a variable: separated by commas)"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), WRONG)
def test_a_wrong_value_is_refused_with_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    """A wrong type or a value out of range names the key, the value, the whole range, and where it came from."""
    with pytest.raises(SettingsError) as caught:
        Settings(**{key: value})

    error = caught.value
    assert (error.key, error.value, error.allowed, error.source) == (key, value, allowed, "arguments")
    assert str(error) == f"setting {key!r} from arguments is {value!r}; allowed: {allowed}"


@pytest.mark.parametrize(
    ("inner", "value", "item", "allowed"),
    [
        ("voices", ["words", "nope"], "nope", "a list of some of 'words', 'vectors', 'topics'"),
        ("weights", {"words": -1.0}, -1.0, "a table of numbers from 0 by plugin"),
        ("depth", 0, 0, "a whole number from 1"),
    ],
)
def test_what_is_wrong_with_recall_is_said(inner: str, value: Any, item: Any, allowed: str) -> None:
    """A wrong setting of the search names both its keys, the value, and what is allowed."""
    with pytest.raises(SettingsError) as caught:
        Settings(recall={inner: value})

    assert (caught.value.key, caught.value.value) == (f"recall.{inner}", item)
    assert caught.value.allowed.startswith(allowed)


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan"), 2**53 + 1, "60", True])
def test_a_lifetime_is_from_nothing_to_a_century(seconds: Any) -> None:
    """A cache that forgets before it is filled would be rebased at each request; larger numbers would be rounded."""
    with pytest.raises(SettingsError, match="a table of seconds by model, from 0 to a century") as caught:
        Settings(cache_lifetimes={"*": seconds})

    assert caught.value.key == "cache_lifetimes"


@pytest.mark.parametrize("tokens", [-1, 1024.0, "1024", True])
def test_a_cache_minimum_is_a_whole_number_from_nothing(tokens: Any) -> None:
    """Providers count whole tokens, and a prefix cannot have fewer than none."""
    with pytest.raises(SettingsError, match="a table of whole numbers from 0 by model") as caught:
        Settings(cache_minimums={"*": tokens})

    assert caught.value.key == "cache_minimums"
    assert Settings(cache_minimums={"*": 0}).cache_minimums == {"*": 0}


def test_a_wrong_item_of_a_list_is_named() -> None:
    """Of a list, the error holds the item that is wrong."""
    with pytest.raises(SettingsError) as caught:
        Settings(roles=["user", 7])

    assert (caught.value.key, caught.value.value) == ("roles", 7)


@pytest.mark.parametrize("key", ["min_token", "Mode", "self", "model_config", ""])
def test_an_unknown_key_is_refused_with_the_known_ones(key: str) -> None:
    """A misspelt setting is an error that lists every setting there is."""
    with pytest.raises(SettingsError) as caught:
        Settings(**{key: 1})

    assert (caught.value.key, caught.value.value) == (key, 1)
    assert caught.value.allowed == "one of the settings " + ", ".join(sorted(Settings.model_fields))


def test_defaults_are_valid_and_documented() -> None:
    """Every setting has a default that is allowed, and says what it means."""
    assert Settings().mode == "on"
    assert Settings().profile == "balanced"
    assert all(field.description and not field.is_required() for field in Settings.model_fields.values())


def test_settings_cannot_be_changed() -> None:
    """Settings are frozen: a Krunch that was made with them keeps behaving as they say."""
    chosen = Settings(min_tokens=3)

    with pytest.raises(ValueError, match="frozen"):
        chosen.min_tokens = 4

    assert chosen.min_tokens == 3


def test_toml_and_json_files_say_the_same(tmp_path: Path) -> None:
    """A TOML and a JSON file with the same values give equal settings."""
    values = {"mode": "observe", "profile": "dense", "roles": ["user", "tool"], "min_tokens": 0}
    toml, as_json = tmp_path / "krunch.toml", tmp_path / "krunch.json"
    toml.write_text('mode = "observe"\nprofile = "dense"\nroles = ["user", "tool"]\nmin_tokens = 0\n', encoding="utf-8")
    as_json.write_text(json.dumps(values), encoding="utf-8")

    assert Settings.load(toml) == Settings.load(str(as_json)) == Settings(**values)


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("a.toml", 'mode = "loud"', "mode", "loud"),
        ("a.toml", "min_tokens = true", "min_tokens", True),
        ("a.json", '{"min_tokens": "16"}', "min_tokens", "16"),
        ("a.json", '{"self": 1}', "self", 1),
        ("a.toml", "[krunch]\nmode = 'on'", "krunch", {"mode": "on"}),
    ],
)
def test_what_is_wrong_in_a_file_is_blamed_on_the_file(
    tmp_path: Path, name: str, text: str, key: str, value: object
) -> None:
    """The error of a value from a file has the file's path as its source."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")

    with pytest.raises(SettingsError) as caught:
        Settings.load(path)

    assert (caught.value.key, caught.value.value, caught.value.source) == (key, value, str(path))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.toml", b"mode = "),
        ("a.json", b"{"),
        ("a.json", b"[1]"),
        ("a.json", b"\xff"),
        ("a.toml", b"\xff"),
        ("missing.toml", None),
    ],
)
def test_a_file_that_cannot_be_read_is_a_settings_error(tmp_path: Path, name: str, data: bytes | None) -> None:
    """A file that is missing, no UTF-8, no TOML or JSON, or no table says so, with its path."""
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)

    with pytest.raises(SettingsError) as caught:
        Settings.load(path)

    assert caught.value.source == str(path)
    assert "TOML or JSON" in caught.value.allowed or "table" in caught.value.allowed


def test_variables_go_over_the_file(tmp_path: Path) -> None:
    """What a variable says wins over the file that KRUNCH_CONFIG names; the rest is the file's."""
    path = tmp_path / "krunch.toml"
    path.write_text('mode = "observe"\nmin_tokens = 5\n', encoding="utf-8")
    variables = {
        "KRUNCH_CONFIG": str(path),
        "KRUNCH_MIN_TOKENS": " 40 ",
        "KRUNCH_ROLES": "user, tool,",
        "KRUNCH_DISABLE_PLUGINS": "all",
        "HOME": "/nowhere",
    }

    chosen = Settings.from_environment(variables)

    assert chosen == Settings(mode="observe", min_tokens=40, roles=frozenset({"user", "tool"}))


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("KRUNCH_MODE", "loud", "mode", "loud"),
        ("KRUNCH_MIN_TOKENS", "many", "min_tokens", "many"),
        ("KRUNCH_MIN_TOKENS", "-4", "min_tokens", -4),
        ("KRUNCH_MIN_TOKENS", "true", "min_tokens", "true"),
        ("KRUNCH_MIN_TOKENS", "", "min_tokens", ""),
        ("KRUNCH_MIN_TOKEN", "4", "min_token", "4"),
    ],
)
def test_what_is_wrong_in_a_variable_is_blamed_on_it(variable: str, text: str, key: str, value: object) -> None:
    """The error of a value from the environment has the variable as its source, unknown variables included."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: text})

    assert (caught.value.key, caught.value.value, caught.value.source) == (key, value, variable)


def test_krunch_without_settings_takes_them_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Krunch()` reads the variables; `Krunch(settings)` does not."""
    monkeypatch.setenv("KRUNCH_MODE", "off")

    with Krunch() as from_environment, Krunch(Settings()) as from_arguments:
        assert from_environment.settings.mode == "off"
        assert from_arguments.settings.mode == "on"


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@example("cache_lifetimes", {"": 2**53 + 1})
@given(st.sampled_from([*sorted(Settings.model_fields), "bogus"]), junk)
def test_nothing_but_a_settings_error_ever_comes_out(key: str, value: Any) -> None:
    """Whatever is given, the result is settings that hold it, or a SettingsError that names the key."""
    refused = None
    try:
        chosen = Settings(**{key: value})
    except SettingsError as error:
        refused = error

    if refused is not None:
        assert refused.key.partition(".")[0] == key
    elif key == "efficiency" and isinstance(value, dict):
        assert chosen.efficiency == EfficiencySettings(**value)
    elif key == "recall" and isinstance(value, dict):
        assert chosen.recall == RecallSettings(**value)
    elif key == "roles":
        assert chosen.roles == frozenset(value)
    elif key == "home" and isinstance(value, str):
        assert chosen.home == (Path(value) if value else None)
    else:
        assert (getattr(chosen, key), type(getattr(chosen, key))) == (value, type(value))


@pytest.mark.parametrize("name", [".", "", "x.y", "weights."])
def test_a_setting_of_a_group_that_is_none_may_be_called_anything(name: str) -> None:
    """Also with dots in it, as keys of a file may be: the error names the group."""
    with pytest.raises(SettingsError) as caught:
        Settings(recall={name: None})

    assert caught.value.key.partition(".")[0] == "recall"


def test_a_home_that_is_no_path() -> None:
    """What `home` can be is said in words, not as a type of Python."""
    with pytest.raises(SettingsError) as raised:
        Settings(home=3)

    assert raised.value.allowed == "a path"


def test_equal_settings_have_one_hash() -> None:
    """In whatever order their roles were named."""
    orders = ["user", "assistant", "tool", "system"], ["system", "tool", "assistant", "user"]

    assert len({Settings(roles=frozenset(order)) for order in orders}) == 1
