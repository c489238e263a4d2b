"""The proxy's settings: those of the whole proxy, and what its config changes for a model, a team or a key.

    litellm_settings:
      callbacks: [krunch_litellm.proxy.krunch]
      krunch:
        profile: balanced               # any of Krunch's settings
        models: {small: {mode: "off"}}  # by the name that clients ask for, or by the deployment's own
        teams: {research: {profile: dense}}         # by id or alias
        keys: {nightly: {efficiency: {force_compression: true}}}    # by alias or hash

What is said of a key goes over what is said of its team, that over what is said of the model, and that over the rest.
`KRUNCH_*` variables go over what the config says of the whole proxy.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from krunch_plugins import Krunch, Settings
from krunch_plugins.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from litellm.proxy._types import UserAPIKeyAuth

Scope = tuple[tuple[str, str], ...]
"""Whom a config says something of, and where it says it: `(("models", "small"), ("keys", "nightly"))`."""

_SOURCE = "litellm_settings.krunch"
_SCOPES = ("models", "teams", "keys")
_SHARED = frozenset({"home", "durability", "hot_bytes", "hot_turns", "hot_ttl", "retention_days", "retention_turns",
                     "tenant_quota_bytes", "recall"})  # fmt: skip
"""Settings of the history store and of search, which all models, teams and keys share."""


class Configuration:
    """Which settings, and so which `Krunch`, serve a request. Thread-safe.

    All of them share one history store, one search over it and one set of plugins. Each is made when it is first
    needed; that its settings are allowed is checked at once.

    Args:
        given: the table of settings, as `litellm_settings.krunch` holds it; None takes it from the proxy that is
            starting in this process, if one is.
        krunch: serves everything, whatever the table says.

    Raises:
        SettingsError: something in the table, or a `KRUNCH_*` variable, is not allowed.
        StoreUnavailable: `home` cannot be used.
    """

    def __init__(self, given: Mapping[str, Any] | None = None, krunch: Krunch | None = None) -> None:
        table = dict(_of_proxy() if given is None else given)
        self._scopes = {scope: _scope(scope, table.pop(scope, None)) for scope in _SCOPES}
        environment = Settings.from_environment()
        chosen = {name: getattr(environment, name) for name in environment.model_fields_set}
        self._general = _merged(_spelled(table), chosen)
        settings = _settings(self._general, _SOURCE)
        for scope, members in self._scopes.items():
            for name, values in members.items():
                _settings(_merged(self._general, values), f"{_SOURCE}.{scope}.{name}")
        self._lock = threading.Lock()
        self._fixed = krunch is not None
        self._main = krunch or Krunch(settings)
        self._krunches: dict[Settings, Krunch] = {settings: self._main}
        self._chosen: dict[Scope, Krunch] = {}
        """Who serves what the table says something of, by where it says it."""

    @property
    def main(self) -> Krunch:
        """The one that serves what no model, team or key has settings of its own for; its store is everybody's."""
        return self._main

    @property
    def scopes(self) -> Iterator[tuple[str, str]]:
        """Whom the table says something of: `("models", "small")`, `("keys", "nightly")`."""
        return ((scope, name) for scope, members in self._scopes.items() for name in members)

    def krunches(self) -> list[Krunch]:
        """All that have served a request in this process."""
        with self._lock:
            return list(self._krunches.values())

    def scope_of(self, models: Iterable[str], key: UserAPIKeyAuth) -> Scope:
        """Whom the table says something of that a request concerns, the widest first.

        Args:
            models: the names that its model goes by.
            key: what the proxy knows about the caller's key.
        """
        if self._fixed:
            return ()
        names = (
            ("models", models),
            ("teams", (key.team_alias, key.team_id)),
            ("keys", (key.key_alias, key.api_key)),
        )
        return tuple(
            (scope, name) for scope, them in names for name in them if name is not None and name in self._scopes[scope]
        )

    def krunch_of(self, scope: Scope) -> Krunch:
        """Who serves the requests of a scope, which is one of `scope_of`."""
        if not scope:
            return self._main
        with self._lock:
            known = self._chosen.get(scope)
            if known is None:
                known = self._chosen[scope] = self._serving(self.settings_of(scope))
            return known

    def settings_of(self, scope: Scope) -> Settings:
        """The settings that serve the requests of a scope."""
        if not scope:
            return self._main.settings
        return _settings(_merged(self._general, *(self._scopes[kind][name] for kind, name in scope)), _SOURCE)

    def without_compression(self, krunch: Krunch) -> Krunch:
        """One like `krunch` that sends requests as they come; they are counted and recorded all the same."""
        if krunch.settings.mode != "on":
            return krunch
        with self._lock:
            return self._serving(krunch.settings.model_copy(update={"mode": "off"}))

    def _serving(self, settings: Settings) -> Krunch:
        """Who serves requests with these settings; the lock is held."""
        if settings not in self._krunches:
            self._krunches[settings] = self._main.with_settings(settings)
        return self._krunches[settings]

    def close(self) -> None:
        """Close all of them, and the store."""
        for krunch in reversed(self.krunches()):
            krunch.close()


def deployed(model: str, team: str | None) -> tuple[str, str]:
    """The names of a model: the one that clients ask for, and that of the (first) deployment behind it."""
    proxy = sys.modules.get("litellm.proxy.proxy_server")
    router = getattr(proxy, "llm_router", None)
    for deployment in (router.get_model_list(model_name=model, team_id=team) or ()) if router is not None else ():
        parameters, info = deployment.get("litellm_params") or {}, deployment.get("model_info") or {}
        behind = info.get("base_model") or parameters.get("base_model") or parameters.get("model")
        if isinstance(behind, str) and "*" not in behind:
            return model, behind
    return model, model


def _of_proxy() -> Mapping[str, Any]:
    """What the config of the proxy in this process says; it is read before callbacks are imported."""
    proxy = sys.modules.get("litellm.proxy.proxy_server")
    config = getattr(getattr(proxy, "proxy_config", None), "config", None) or {}
    table = (config.get("litellm_settings") or {}).get("krunch") or {}
    if not isinstance(table, dict):
        raise SettingsError("krunch", table, "a table of settings", "litellm_settings")
    return table


def _scope(scope: str, members: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - whatever YAML holds
    """What is said of each model, team or key."""
    if members is None:
        return {}
    if not isinstance(members, dict) or not all(isinstance(values, dict) for values in members.values()):
        raise SettingsError(scope, members, "a table of tables of settings, by name", _SOURCE)
    for name, values in members.items():
        for key in _SHARED.intersection(values):
            raise SettingsError(key, values[key], "set for the whole proxy only", f"{_SOURCE}.{scope}.{name}")
    return {str(name): _spelled(values) for name, values in members.items()}


def _spelled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are spelled: YAML reads a bare `on` or `off` as a truth value."""
    mode = values.get("mode")
    return {**values, "mode": "on" if mode else "off"} if isinstance(mode, bool) else dict(values)


def _merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over settings, the last first; of a table within, only what is said again changes."""
    out: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            new = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
            before = out.get(name)
            out[name] = {**before, **new} if isinstance(before, dict) and isinstance(new, dict) else new
    return out


def _settings(values: Mapping[str, Any], source: str) -> Settings:
    try:
        return Settings(**values)
    except SettingsError as error:
        raise SettingsError(error.key, error.value, error.allowed, source) from None
