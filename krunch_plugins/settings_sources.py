"""Settings from files and variables, and what is wrong with one in the words of whoever has to put it right."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from krunch_plugins.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pydantic.fields import FieldInfo

    Fields = Mapping[str, FieldInfo]


def read_table(path: Path) -> dict[str, Any]:
    """The top-level table of a settings file, TOML or JSON by its suffix.

    Raises:
        SettingsError: it cannot be read or parsed, or is no table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SettingsError("(file)", str(error), "a readable TOML or JSON file, UTF-8", str(path)) from error
    if not isinstance(values, dict):
        raise SettingsError("(file)", type(values).__name__, "one table (object) of settings", str(path))
    return values


def dotted(name: str, fields: Fields) -> str:
    """The key of a setting by its variable's name: `efficiency_enabled` is `efficiency.enabled`."""
    for group in _groups(fields):
        if name.startswith(f"{group}_"):
            return f"{group}.{name.removeprefix(f'{group}_')}"
    return name


def from_text(key: str, text: str, fields: Fields) -> Any:  # noqa: ANN401 - each field has its own type
    """A variable's text as the type that its setting has; the text itself where it is none, to be refused as it is."""
    among, name = _among(key, fields)
    field = among.get(name)
    if field is None or field.annotation is None:
        return text
    if not text.strip() and type(None) in get_args(field.annotation):
        return None  # an empty variable is how a shell unsets one for a command
    kind = get_origin(field.annotation)
    if kind is frozenset:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(field.annotation)
        return adapter.validate_json(text) if kind is dict else adapter.validate_strings(text.strip())
    except ValidationError:
        return text


def explain(error: ValidationError, fields: Fields, words: Mapping[Any, str]) -> SettingsError:
    """The first thing wrong.

    Args:
        error: what pydantic found.
        fields: of all settings.
        words: what each type is called.
    """
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location[:2]) if location[0] in _groups(fields) else location[0]
    among, name = _among(key, fields)
    field = among.get(name)
    if field is None:
        return SettingsError(key, first["input"], "one of the settings " + ", ".join(sorted(among)))
    return SettingsError(key, first["input"], _allowed(field, words))


def _groups(fields: Fields) -> dict[str, type[BaseModel]]:
    """The settings that hold others."""
    return {
        name: info.annotation
        for name, info in fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    }


def _among(key: str, fields: Fields) -> tuple[Fields, str]:
    """The settings among which a key is to be looked for, and its name there."""
    outer, _, inner = key.partition(".")
    group = _groups(fields).get(outer) if inner else None
    return (fields, key) if group is None else (group.model_fields, inner)


def _allowed(field: FieldInfo, words: Mapping[Any, str]) -> str:
    """What a setting can be, in words."""
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(map(repr, get_args(field.annotation)))
    if get_origin(field.annotation) is frozenset:
        choices = get_args(get_args(field.annotation)[0])
        if choices:
            return f"a list of some of {', '.join(map(repr, choices))} (in a variable: separated by commas)"
        return "a list of strings (in a variable: separated by commas)"
    limits = [word for fact in field.metadata for word in _limit(fact)]
    return " ".join([words.get(field.annotation, str(field.annotation)), *limits])


def _limit(fact: object) -> Iterator[str]:
    """One thing that a field's declaration says about its values, in words."""
    for name, word in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below"), ("pattern", "that matches")):
        limit = getattr(fact, name, None)
        if limit is not None:
            yield f"{word} {limit}"
