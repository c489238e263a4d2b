"""The plugin manager: built-ins and outside plugins, entry points, checks, the kill switch, and isolated calls."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING
from weakref import WeakSet

import pluggy

from krunch_plugins import hookspecs
from krunch_plugins.errors import PluginError, RequestRefused, StoreError
from krunch_plugins.isolation import call, check_reply, check_request, checked_hits, log_failure, remember
from krunch_plugins.report import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pluggy import HookImpl

    from krunch_plugins.exchange import Exchange, Reply
    from krunch_plugins.turns import EvictReason, SearchHit, SearchQuery, Turn

DISABLE_VARIABLE = "KRUNCH_DISABLE_PLUGINS"
"""Comma-separated names of outside plugins to keep out, or "all"; read when a `Krunch` is made."""

log = logging.getLogger("krunch")


@lru_cache(maxsize=8)
def _offered(path: tuple[str, ...]) -> list[EntryPoint]:  # noqa: ARG001 - the path is what the answer depends on
    """The entry points of our group, by name; remembered, because reading all installed metadata takes 15 ms."""
    return sorted(entry_points(group=hookspecs.NAME), key=lambda entry: entry.name)


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A registered plugin.

    Attributes:
        name: its name.
        hooks: the hooks it has, sorted.
        builtin: it is one of Krunch's own parts.
        distribution: the installed distribution whose entry point brought it, or None.
    """

    name: str
    hooks: tuple[str, ...]
    builtin: bool
    distribution: str | None


class Plugins:
    """All plugins of one `Krunch`, and the calls to their hooks, each isolated from the others' failures.

    Args:
        builtins: Krunch's own parts by name, registered first. Among them, a later one that is `trylast` runs later.
        shared: whose outside plugins these have, too, now and later; registering one here registers it there.

    Raises:
        PluginError: an outside plugin of `shared` has the name of one of `builtins`.
    """

    def __init__(self, builtins: Mapping[str, object], shared: Plugins | None = None) -> None:
        self._manager = pluggy.PluginManager(hookspecs.NAME)
        self._manager.add_hookspecs(hookspecs)
        self._changing = threading.Lock()
        self._shared, self._followers = shared, WeakSet[Plugins]()
        self._builtin: frozenset[str] = frozenset()
        self._distributions: dict[str, str] = {}
        disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name.strip()}
        self._all_disabled = "all" in disabled
        self._disabled = disabled
        for name, plugin in builtins.items():
            self._register(plugin, name)
        self._builtin = frozenset(builtins)
        if shared is not None:
            with shared._changing:  # noqa: SLF001 - one of its own kind; none may come while we look
                self._distributions = shared._distributions  # noqa: SLF001 - as above
                for info in shared.infos():
                    if not info.builtin:
                        self._register(shared._manager.get_plugin(info.name), info.name)  # noqa: SLF001 - as above
                shared._followers.add(self)  # noqa: SLF001 - as above

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """Register an outside plugin.

        Args:
            plugin: an object or module with functions marked `@hookimpl`; a class is called, without arguments.
            name: its name; default the plugin's `name` attribute, else its module's or class's name.

        Returns:
            The name it is registered under, or None if `KRUNCH_DISABLE_PLUGINS` keeps it out.

        Raises:
            PluginError: unknown hook name; an argument that the hook does not have, or that nothing would fill; a
                hook that is a coroutine, a generator or a wrapper; no hook at all; a name that is taken; an object
                that is registered already; a class that cannot be called without arguments.
        """
        if self._shared is not None:
            return self._shared.register(plugin, name)
        name_of_class = None
        if inspect.isclass(plugin):
            name_of_class = name or _name_of(plugin)
            if self._kept_out(name_of_class):
                return None
            try:
                plugin = plugin()
            except Exception as error:  # somebody else's code
                why = f"its class could not be called without arguments ({type(error).__name__}); register an instance"
                raise PluginError(name_of_class, why) from error
        name = name or _name_of(plugin)
        if name != name_of_class and self._kept_out(name):
            return None
        self._register(plugin, name)
        return name

    def unregister(self, plugin: object) -> None:
        """Take an outside plugin out again.

        Args:
            plugin: the object, or its name.

        Raises:
            PluginError: it is not registered, or is one of Krunch's own parts.
        """
        if self._shared is not None:
            self._shared.unregister(plugin)
            return
        with self._changing:
            name = plugin if isinstance(plugin, str) else self._manager.get_name(plugin)
            if name is None or not self._manager.has_plugin(name):
                raise PluginError(name or _name_of(plugin), "is not registered; see Krunch.plugins() for what is")
            if name in self._builtin:
                raise PluginError(name, 'is one of Krunch\'s own parts; Settings(mode="off") turns compression off')
            for each in (self, *self._followers):
                each._manager.unregister(name=name)  # noqa: SLF001 - ones of its own kind
            self._distributions.pop(name, None)

    def load_entry_points(self) -> None:
        """Register what installed distributions offer; a broken one is reported by its distribution and skipped."""
        for entry in _offered(tuple(sys.path)):
            distribution = entry.dist.name if entry.dist else "(unknown)"
            if self._kept_out(entry.name):  # before its code is even imported
                continue
            try:
                self.register(entry.load(), entry.name)
            except Exception as error:  # noqa: BLE001 - an outside module may raise anything; the host must start
                log.warning("plugin %r of distribution %r is broken and was skipped: %s: %s",
                            entry.name, distribution, type(error).__name__, error)  # fmt: skip
                continue
            self._distributions[entry.name] = distribution

    def infos(self) -> tuple[PluginInfo, ...]:
        """What is registered, in the order of registration."""
        return tuple(
            PluginInfo(
                name=name,
                hooks=tuple(sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ())),
                builtin=name in self._builtin,
                distribution=self._distributions.get(name),
            )
            for name, plugin in self._manager.list_name_plugin()
            if plugin is not None
        )

    def has_outside(self, hook: str) -> bool:
        """Whether any outside plugin has this hook."""
        return any(impl.plugin_name not in self._builtin for impl in self._implementations(hook))

    def pre_request(self, exchange: Exchange) -> None:
        """Run `pre_request`, outside plugins first, compression last; what a failing one changed is undone.

        Raises:
            RequestRefused: a plugin stopped the call.
        """
        for implementation in self._in_order("pre_request"):
            undo = remember(exchange, self._may_change(implementation, "messages", "metadata", "substitutions"))
            try:
                call(implementation, {"exchange": exchange})
                check_request(exchange)
            except RequestRefused:
                raise
            except Exception as error:  # noqa: BLE001 - isolation is the point: one plugin must not fail a call
                undo()
                self.note(exchange, implementation.plugin_name, "pre_request", error)

    def post_response(self, exchange: Exchange, reply: Reply, *, refusable: bool = True) -> None:
        """Run `post_response`, compression first, storage last; what a failing one changed is undone.

        Args:
            exchange: the request that the reply belongs to.
            reply: one choice.
            refusable: let `RequestRefused` through; a stream that has gone out can no longer be refused.

        Raises:
            RequestRefused: a plugin will not let the caller have the reply.
        """
        for implementation in self._in_order("post_response"):
            undo_exchange = remember(exchange, self._may_change(implementation, "metadata"))
            undo_reply = remember(reply, self._may_change(implementation, "message"))
            try:
                call(implementation, {"exchange": exchange, "reply": reply})
                check_reply(reply)
            except Exception as error:  # isolation: one plugin must not fail a call
                if refusable and isinstance(error, RequestRefused):
                    raise
                undo_exchange()
                undo_reply()
                self.note(exchange, implementation.plugin_name, "post_response", error)

    def on_evict(self, session: str, turns: Sequence[Turn], reason: EvictReason, tenant: str | None) -> int:
        """Tell all plugins; returns how many of them raised."""
        arguments = {"session": session, "turns": turns, "reason": reason, "tenant": tenant}
        failed = 0
        for implementation in self._in_order("on_evict"):
            try:
                call(implementation, arguments)
            except Exception as error:  # noqa: BLE001 - a listener must not stop an eviction
                failed += 1
                log_failure(implementation.plugin_name, "on_evict", error, "the eviction goes on")
        return failed

    def on_search(self, query: SearchQuery) -> dict[str, Sequence[SearchHit]]:
        """Each plugin's hits by its name, at most `query.k` each; those that raised or answered no hits stay out."""
        answers: dict[str, Sequence[SearchHit]] = {}
        for implementation in self._in_order("on_search"):
            try:
                found = call(implementation, {"query": query})
                answers[implementation.plugin_name] = checked_hits(found, query)
            except Exception as error:  # noqa: BLE001 - one finder must not blind the others
                log_failure(implementation.plugin_name, "on_search", error, "its answer counts as empty")
        return answers

    def search_or_fail(self, query: SearchQuery) -> dict[str, Sequence[SearchHit]]:
        """`on_search`, for those who must tell that nothing was found from that all of them failed.

        Raises:
            StoreError: there are plugins that search, and none of them could.
        """
        answers = self.on_search(query)
        if not answers and self._implementations("on_search"):
            raise StoreError("no search plugin could answer; the krunch logger says why")
        return answers

    def note(self, exchange: Exchange, plugin: str, hook: str, error: Exception) -> None:
        """Enter a failure in the exchange's report and the log."""
        exchange.report.problems.append(Problem(plugin, hook, type(error).__name__))
        log_failure(plugin, hook, error, "what it changed was undone")

    def _kept_out(self, name: str) -> bool:
        if self._all_disabled or name in self._disabled:
            log.info("plugin %r is kept out by %s", name, DISABLE_VARIABLE)
            return True
        return False

    def _register(self, plugin: object, name: str) -> None:
        with self._changing:
            # pluggy refuses both too, but what it would leave behind then cannot be told from the first registration.
            if self._manager.has_plugin(name):
                raise PluginError(name, "the name is taken; register it under another: register(plugin, name=...)")
            if self._manager.is_registered(plugin):
                raise PluginError(name, f"is registered already, as {self._manager.get_name(plugin)!r}")
            try:
                self._manager.register(plugin, name)
                self._check(plugin)
                for follower in self._followers:
                    follower._register(plugin, name)  # noqa: SLF001 - one of its own kind
            except BaseException as error:  # an interrupt too leaves nothing half registered
                for each in (self, *self._followers):
                    manager = each._manager  # noqa: SLF001 - as above
                    if manager.get_plugin(name) is plugin:
                        manager.unregister(name=name)
                if isinstance(error, pluggy.PluginValidationError):
                    raise PluginError(name, _why(error)) from error
                raise

    def _check(self, plugin: object) -> None:
        """What pluggy itself does not refuse. Raises PluginValidationError."""
        self._manager.check_pending()
        callers = self._manager.get_hookcallers(plugin) or []
        if not callers:
            raise pluggy.PluginValidationError(plugin, "has no function marked @hookimpl")
        for caller in callers:
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin:
                    wrong = _what_is_wrong(caller.name, implementation)
                    if wrong:
                        raise pluggy.PluginValidationError(plugin, f"{caller.name} {wrong}")

    def _may_change(self, implementation: HookImpl, *names: str) -> Sequence[str]:
        """What a hook may change in place. Krunch's own parts put new objects in the place of old ones instead."""
        return () if implementation.plugin_name in self._builtin else names

    def _implementations(self, hook: str) -> list[HookImpl]:
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return caller.get_hookimpls()

    def _in_order(self, hook: str) -> Iterable[HookImpl]:
        """Implementations as they are called: outside plugins in pluggy's order, ours at the end they are pinned to."""

        def pin(implementation: HookImpl) -> int:
            if implementation.plugin_name not in self._builtin:
                return 1
            return 0 if implementation.tryfirst else 2

        as_pluggy_calls_them = self._implementations(hook)[::-1]
        return sorted(as_pluggy_calls_them, key=pin)


def _what_is_wrong(hook: str, implementation: HookImpl) -> str:
    """Why a hook could not be called as its author means it, with what would be right; "" if it could."""
    function = implementation.function
    if implementation.hookwrapper or implementation.wrapper:
        # We call each plugin by itself to isolate it; a wrapper would need the calls it wraps.
        return "is a hook wrapper, which cannot be isolated; use a plain @hookimpl"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return "is a coroutine; hooks are plain functions (async callers run them in a thread)"
    if inspect.isgeneratorfunction(function):
        return "is a generator, whose body would never run; return instead of yielding"
    offered = inspect.signature(getattr(hookspecs, hook)).parameters
    for parameter in inspect.signature(function).parameters.values():
        # pluggy passes hook arguments by position, and only to parameters without a default.
        filled = parameter.name in (*implementation.argnames, "self", "cls")
        if not filled and (parameter.default is parameter.empty or parameter.name in offered):
            return f"has the parameter '{parameter}', which nothing would fill; take the hook's arguments by plain name"
    return ""


def _name_of(plugin: object) -> str:
    name = getattr(plugin, "name", None)
    if isinstance(name, str) and name:
        return name
    return getattr(plugin, "__name__", None) or type(plugin).__name__


def _why(error: Exception) -> str:
    """The reason in one line, with what would be right."""
    specs = ", ".join(_signatures())
    return f"{' '.join(str(error).split())}; the hooks are {specs}"


def _signatures() -> Iterator[str]:
    for name, function in vars(hookspecs).items():
        if hasattr(function, f"{hookspecs.NAME}_spec"):
            yield f"{name}({', '.join(inspect.signature(function).parameters)})"
