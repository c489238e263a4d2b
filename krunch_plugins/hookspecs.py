"""The four hooks: signatures and what they promise, no logic.

A plugin is any object (class instance or module) with one or more functions of these names, marked `@hookimpl`.
A function may take any subset of a hook's arguments, by name. Register it with `Krunch(plugins=[...])`,
`krunch.register(plugin)`, or an entry point of the group `krunch_plugins`. A misspelt hook name or an argument that
the hook does not have raises `PluginError` at registration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunch_plugins.exchange import Exchange, Reply
    from krunch_plugins.turns import EvictReason, SearchHit, SearchQuery, Turn

NAME = "krunch_plugins"
"""Name of the hook markers, of the plugin manager and of the entry-point group."""

hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)
"""Marks a plugin's function as a hook: `@hookimpl`, `@hookimpl(tryfirst=True)`, `@hookimpl(trylast=True)`."""


@hookspec
def pre_request(exchange: Exchange) -> None:
    """Look at or change a request before it is sent.

    Called: once per request, by `Krunch.prepare`, before anything is compressed.
    May change: `exchange.messages` (items or the whole list) and `exchange.metadata`, in place; may call
        `exchange.substitute`. Everything else is for reading.
    Combines: each plugin sees what the ones before it left; return values are ignored.
    Raises: what the plugin changed is undone, the others run, `exchange.report.problems` names it. Raising
        `RequestRefused` instead stops the call, and the caller gets that error.
    Order: outside plugins in pluggy's order (last registered first, `tryfirst`/`trylast` respected), then Krunch's
        own: recall, then compression, always last, so that every other plugin sees plain text.
    Thread: the caller's; for `Krunch.aprepare` a worker thread when the request is large or any outside plugin has
        this hook, so the event loop is not blocked. May run in several threads at once for different exchanges.
    """


@hookspec
def post_response(exchange: Exchange, reply: Reply) -> None:
    """Look at or change a reply after it has come back.

    Called: once per choice of a reply, by `exchange.finish` and at the end of a stream. For a stream the reply is the
        assembled one (`reply.streamed`), and what was streamed already cannot be changed any more; a stream that was
        broken off has `reply.partial` set.
    May change: `reply.message`, in place or replaced, and `exchange.metadata`. Everything else is for reading.
    Combines: each plugin sees what the ones before it left; return values are ignored.
    Raises: what the plugin changed is undone, the others run, `exchange.report.problems` names it. Raising
        `RequestRefused` lets the caller have that error instead of the reply (not for a stream: its text has gone
        out, so there it counts as any other failure).
    Order: Krunch's compression first, always, so that every other plugin sees plain text; then outside plugins in
        pluggy's order; then Krunch's storage, which records what the caller gets.
    Thread: the caller's; for `exchange.afinish` as described for `pre_request`.
    """


@hookspec
def on_evict(session: str, turns: Sequence[Turn], reason: EvictReason, tenant: str | None) -> None:
    """Be told which turns are about to leave the hot tier of the history store.

    Called: before the turns leave. They are on disk already, if the store is on disk.
    May change: nothing. `turns` are in order; `reason` is one of "size", "ttl", "forget", "close".
    Combines: all plugins are told; return values are ignored.
    Raises: logged and counted in the store's statistics; the others are told, the eviction goes on, nothing is lost.
    Order: outside plugins in pluggy's order, then Krunch's own.
    Thread: the one whose call caused the eviction, or the store's background thread (for "ttl"). No lock of the store
        is held while it runs.
    """


@hookspec
def on_search(query: SearchQuery) -> Sequence[SearchHit]:  # type: ignore[empty-body]  # a spec has no body
    """Answer a search for old turns.

    Called: once per `Krunch.search`.
    May change: nothing. Return the best hits first, at most `query.k` of them, or an empty sequence. `query.k` may be
        more than the caller wants, so that there is something to fuse. Answer for `query.tenant` and nobody else;
        hits that the other filters rule out are dropped.
    Combines: the hits of all plugins are fused by reciprocal rank, weighted by `Settings.recall.weights`; the same
        turn found twice counts once, and `hit.found_by` tells who found it at which rank.
    Raises: logged, the plugin's answer counts as empty, the others are asked. So it is when it returns something
        that is no `SearchHit`.
    Order: does not matter; all answers are fused.
    Thread: the caller's, or a worker thread for `Krunch.asearch`.
    """
