from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from krunch_plugins import Settings
from krunch_plugins.cli.settings_file import settings_toml
from krunch_plugins.errors import SettingsError
from krunch_plugins.settings import EfficiencySettings

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Krunch


@pytest.mark.smoke
def test_the_file_it_writes_loads_back_as_the_defaults(installed: Krunch, tmp_path: Path) -> None:
    """Nothing changes when somebody starts from the file that `krunch init` writes."""
    done = installed("init", "mine.toml")

    assert done.returncode == 0, done.stderr
    assert Settings.load(tmp_path / "mine.toml") == Settings()


def test_the_file_has_every_option_with_its_description() -> None:
    """No option is left out, and each one is explained above its line."""
    text = settings_toml()
    words = " ".join(text.replace("\n# ", " ").split())

    off = {line[2:-2] for line in text.splitlines() if line.startswith("# ") and line.endswith(" =")}
    found = tomllib.loads(text)
    assert set(found) | off == set(Settings.model_fields)
    assert set(found["efficiency"]) == set(EfficiencySettings.model_fields)
    for name, field in (*Settings.model_fields.items(), *EfficiencySettings.model_fields.items()):
        assert field.description
        assert " ".join(field.description.split()) in words, name


def test_the_file_says_what_is_allowed() -> None:
    """Choices and ranges stand in the file, so that nobody has to guess."""
    text = settings_toml().replace("\n# ", " ")

    assert 'One of "safe", "balanced", "dense".' in text
    assert "At least 0, at most 1,000,000." in text


def test_a_changed_line_is_taken(krunch: Krunch, tmp_path: Path) -> None:
    """The file is for editing: a changed value loads, and a wrong one is refused by name."""
    krunch("init")
    path = tmp_path / "krunch.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('profile = "balanced"', 'profile = "dense"'), encoding="utf-8")
    changed = Settings.load(path)
    path.write_text(text.replace("min_tokens = 16", "min_tokens = -1"), encoding="utf-8")

    assert changed == Settings(profile="dense")
    with pytest.raises(SettingsError, match="min_tokens"):
        Settings.load(path)


def test_an_existing_file_is_left_alone(krunch: Krunch, tmp_path: Path) -> None:
    """`krunch init` never overwrites somebody's settings."""
    (tmp_path / "krunch.toml").write_text("mode = 'off'\n", encoding="utf-8")

    done = krunch("init")

    assert done.returncode == 2
    assert "krunch.toml exists" in done.stderr
    assert (tmp_path / "krunch.toml").read_text(encoding="utf-8") == "mode = 'off'\n"


def test_a_folder_that_does_not_exist_is_an_error_in_one_line(krunch: Krunch) -> None:
    """What cannot be written is said without a traceback."""
    done = krunch("init", "nowhere/krunch.toml")

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere/krunch.toml cannot be written" in done.stderr
