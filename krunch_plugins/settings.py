"""Every option of Krunch, with its default, unit and meaning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from krunch_plugins.errors import SettingsError
from krunch_plugins.settings_sources import dotted, explain, from_text, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

Mode = Literal["on", "observe", "off"]
Profile = Literal["safe", "balanced", "dense"]
Rebase = Literal["never", "cold", "always"]
ContextMode = Literal["recent", "full", "smart"]
CacheFloor = Literal["nothing", "below", "everything"]

ENVIRONMENT_PREFIX = "KRUNCH_"
NOT_SETTINGS = frozenset({"KRUNCH_DISABLE_PLUGINS", "KRUNCH_CONFIG"})
"""Variables with our prefix that are no settings: read by the plugin manager and by the command line."""


class ModelPrice(BaseModel):
    """What a model costs, in US dollars for one million tokens. Part of `Settings.prices`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: float = Field(ge=0, description="Input tokens.")
    output: float = Field(ge=0, description="Output tokens.")
    cache_read: float | None = Field(default=None, ge=0, description="Input read from the cache; unset: as input.")
    cache_write: float | None = Field(default=None, ge=0, description="Input written to the cache; unset: as input.")


class EfficiencySettings(BaseModel):
    """When to stop buying new entries, and how much is remembered for the statistics. Part of `Settings`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(
        default=True, description="Whether the monitor may stop new entries. Off: they are always bought."
    )
    max_conversations: int = Field(
        default=1000, ge=1, description="Conversations that are remembered; the least recently used goes first."
    )
    cleanup_interval: float = Field(
        default=3600.0,
        gt=0,
        description="Seconds after which the statistics of a conversation without requests are dropped.",
    )
    min_net_efficiency: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="What new entries must save, less their definitions, as a share of the text they occur in.",
    )
    efficiency_trend_window: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Requests that the decision and the trend look back on; the first ones are free.",
    )
    long_conversation_threshold: int = Field(
        default=20, ge=0, description="Assistant turns from which on a conversation is long."
    )
    long_conversation_min_efficiency: float = Field(
        default=0.02, ge=0, le=1, description="What new entries must save in a long conversation."
    )
    force_compression: bool = Field(default=False, description="Buy new entries whatever they save.")


Lifetime = Annotated[float, Field(ge=0, le=100 * 366 * 86_400)]
Minimum = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
WEIGHTS: dict[str, Weight] = {"words": 1.0, "vectors": 0.05, "topics": 0.1}
"""What Krunch's own search plugins count in the fusion; see docs/recall.md for how they were chosen."""


class RecallSettings(BaseModel):
    """How old turns are found again. Part of `Settings`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voices: frozenset[Literal["words", "vectors", "topics"]] = Field(
        default=frozenset({"words", "vectors"}),
        description="What searches the history: words (BM25), vectors (embeddings), topics (warm places of the torus).",
    )
    weights: dict[str, Weight] = Field(
        default=WEIGHTS,
        description="What a search plugin counts in the fusion, by its name; outside ones that are not named count 1.",
    )
    window_weight: float = Field(
        default=2.0,
        ge=0,
        description="What the words around a turn count beside its own: two turns before, one after. 0: nothing.",
    )
    rank_constant: float = Field(
        default=60.0, gt=0, description="Of the reciprocal-rank fusion: the higher, the less first ranks stand out."
    )
    depth: int = Field(
        default=50, ge=1, description="Hits that each search plugin is asked for at least, before they are fused."
    )
    wait_seconds: float = Field(
        default=30.0,
        ge=0,
        description="Seconds that a search waits while the index of words is built; then it uses what is there.",
    )
    embed_seconds: float = Field(
        default=2.0,
        ge=0,
        description="Seconds that a search waits for the embedding of its query; then it does without vectors.",
    )
    cached_queries: int = Field(
        default=1024, ge=0, description="Answers that are remembered until something is appended. 0: none."
    )


class Settings(BaseModel):
    """All options, frozen. From keyword arguments, `Settings.load(file)`, or `Settings.from_environment()`.

    Raises:
        SettingsError: an unknown key, a wrong type, or a value out of range; names all three and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    mode: Mode = Field(
        "on",
        description='"on" compresses; "observe" reports what would be saved and changes nothing; "off" does neither.',
    )
    profile: Profile = Field(
        "balanced",
        description=(
            '"balanced" cuts at word boundaries, never inside a number, date, path segment or identifier; "safe" keeps '
            'whole values too; "dense" cuts anywhere and takes all it can get.'
        ),
    )
    roles: frozenset[str] = Field(
        frozenset({"system", "developer", "user", "assistant", "tool", "function"}),
        strict=False,  # a list will do: TOML and JSON have no sets
        description="Roles whose text is compressed; messages of other roles are sent as they are.",
    )
    min_tokens: int = Field(
        16, ge=0, le=1_000_000, description="Tokens. Shorter messages are not looked into for new phrases."
    )
    default_encoding: str = Field(
        "o200k_base",
        pattern="^[a-z0-9_]+$",
        description="tiktoken encoding for models whose tokenizer is not public; their figures are estimates.",
    )
    memo_bytes: int = Field(
        64_000_000,
        ge=0,
        description="Bytes of memory for what was sent before, over all conversations. 0: encode everything anew.",
    )
    large_request: int = Field(
        20_000,
        ge=0,
        description="Characters. Async calls with more message text than this are prepared in a worker thread.",
    )
    prices: dict[str, ModelPrice] = Field(
        {},
        description=(
            "Prices by model, in US dollars for one million tokens, before those that litellm or Krunch know: "
            "{ my-model = { input = 3.0, output = 15.0, cache_read = 0.3, cache_write = 3.75 } }."
        ),
    )
    rebase: Rebase = Field(
        "never",
        description=(
            'When the whole history is encoded at once: smaller, but not what was sent before. "never"; "cold", '
            "when the provider's cache has been lost anyway, which needs a memo store that all workers share; "
            '"always", for providers that cache nothing.'
        ),
    )
    cache_floor: CacheFloor = Field(
        "nothing",
        description=(
            "What is left plain until a conversation is long enough for the provider to cache it: "
            '"nothing"; "below", what would keep it from being cached, if that is worth it; or "everything".'
        ),
    )
    cache_minimums: dict[str, Minimum] = Field(
        {},
        description='Tokens that a prefix must have to be cached, by model ("*" for anything); 0 for no minimum.',
    )
    cache_lifetimes: dict[str, Lifetime] = Field(
        {},
        description='Seconds until the provider forgets a prefix that nobody asks for, by model ("*" for anything).',
    )
    efficiency: EfficiencySettings = Field(
        EfficiencySettings(),
        description="When to stop buying new entries, and how much is remembered for the statistics.",
    )

    recall: RecallSettings = Field(RecallSettings(), description="How old turns are found again.")

    context_window: int | None = Field(
        None,
        ge=1,
        description=(
            "Tokens of message text that a request may have; when it has more, old messages leave it in large steps, "
            "and what matters of them is recalled. Needs a store, and sessions. Unset: nothing leaves."
        ),
    )
    context_recall: float = Field(
        0.125,
        ge=0,
        le=0.5,
        description=(
            "Share of the window that is for recalled turns, all together, up to 0.5, but at least 400 tokens, or a "
            "third of a small window; 0: none are recalled."
        ),
    )
    context_sessions: Literal["this", "all"] = Field(
        "this",
        description=(
            'Whose turns may be recalled: those of "this" session, or those of "all" sessions of the tenant. Sessions '
            "without a tenant are one tenant's."
        ),
    )
    context_pinned: int = Field(
        1,
        ge=0,
        description=(
            "First messages of a conversation that never leave it, beside those of the system, as far as they take no "
            "more than half of the window."
        ),
    )

    home: Path | None = Field(
        None,
        strict=False,  # a string will do
        description="Directory of the history store. Unset: nothing is written to disk.",
    )
    durability: Literal["process", "power"] = Field(
        "process",
        description='What a recorded turn survives: "process" the death of the process, "power" also a power cut.',
    )
    hot_bytes: int = Field(
        64_000_000, ge=0, description="Bytes of memory for the newest turns, over all sessions; an estimate."
    )
    hot_turns: int = Field(20, ge=0, description="Newest turns of one session that are held in memory.")
    hot_ttl: int = Field(
        1800, gt=0, description="Seconds after which a session that nobody used leaves memory; it stays on disk."
    )
    retention_days: int | None = Field(
        None, gt=0, description="Days. Turns older than this are removed from the store; unset: kept for ever."
    )
    retention_turns: int | None = Field(
        None, ge=1, description="Of each session at most so many turns are kept, the newest; unset: all."
    )
    tenant_quota_bytes: int | None = Field(
        None, ge=1, description="Bytes on disk that the sessions of one tenant may take; unset: no limit."
    )

    @field_validator("home", mode="before")
    @classmethod
    def _no_empty_home(cls, value: object) -> object:
        """An empty path would be the current directory, which nobody means who leaves it empty."""
        return None if value == "" else value

    def __init__(self, /, **values: Any) -> None:  # noqa: ANN401 - each field has its own type, checked by pydantic
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explain(error, type(self).model_fields, _WORDS) from None

    def __hash__(self) -> int:
        # The tables among the settings are dicts, which have no hash; settings that differ there only are rare.
        return hash((self.mode, self.profile, self.roles, self.min_tokens, self.memo_bytes, self.home))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Settings from a TOML or JSON file (by its suffix).

        Raises:
            SettingsError: the file cannot be read or parsed, or holds something that is not allowed.
        """
        return cls._from({}, Path(path))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, path: str | Path | None = None) -> Self:
        """Settings from `KRUNCH_*` variables, over a file if one is given.

        A variable is the upper-case name of a setting with the prefix `KRUNCH_`; lists are comma-separated, tables are
        JSON. A setting within another has both names: `KRUNCH_EFFICIENCY_ENABLED`.

        Args:
            environment: the variables; default `os.environ`.
            path: a TOML or JSON file for what the variables do not say; default the one that `KRUNCH_CONFIG` names.

        Raises:
            SettingsError: a variable that is no setting, or a value that is not allowed.
        """
        variables = os.environ if environment is None else environment
        path = path or variables.get("KRUNCH_CONFIG")
        chosen: dict[str, tuple[Any, str]] = {}
        for variable, value in variables.items():
            if variable.startswith(ENVIRONMENT_PREFIX) and variable not in NOT_SETTINGS:
                key = dotted(variable.removeprefix(ENVIRONMENT_PREFIX).lower(), cls.model_fields)
                chosen[key] = (from_text(key, value, cls.model_fields), variable)
        return cls._from(chosen, Path(path) if path else None)

    @classmethod
    def _from(cls, chosen: Mapping[str, tuple[Any, str]], path: Path | None) -> Self:
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        if path is not None:
            values = read_table(path)
            sources = dict.fromkeys(values, str(path))
        for key, (value, source) in chosen.items():
            sources[key] = source
            outer, _, inner = key.partition(".")
            if not inner:
                values[key] = value
            elif isinstance(table := values.get(outer, {}), dict):
                values[outer] = {**table, inner: value}
        try:
            return cls(**values)
        except SettingsError as error:
            source = sources.get(error.key) or sources.get(error.key.partition(".")[0], error.source)
            raise SettingsError(error.key, error.value, error.allowed, source) from None


_WORDS: dict[Any, str] = {
    int: "a whole number",
    int | None: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path | None: "a path",
    EfficiencySettings: "a table of settings",
    RecallSettings: "a table of settings",
    dict[str, Minimum]: "a table of whole numbers from 0 by model (in a variable: as JSON)",
    dict[str, Lifetime]: "a table of seconds by model, from 0 to a century (in a variable: as JSON)",
    dict[str, Weight]: "a table of numbers from 0 by plugin (in a variable: as JSON)",
    dict[str, ModelPrice]: "a table of prices by model, each with input, output, cache_read and cache_write from 0 "
    "(in a variable: as JSON)",
}
"""What an error calls the types of settings."""
