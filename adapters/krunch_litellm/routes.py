"""`/v1/compression/...` on LiteLLM's proxy: statistics, reset, sessions. With the proxy's own authentication.

A key sees and resets what is its own; the master key and other admins, all of it. LiteLLM lets keys that are no admin's
call only routes that it knows; ours are added to those that check for themselves who may see what. A key whose
`allowed_routes` leave them out is refused by LiteLLM, as it should be.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.routing import APIRoute
from litellm.proxy._types import LiteLLMRoutes, LitellmUserRoles, ProxyException, UserAPIKeyAuth
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from starlette.convertors import Convertor, register_url_convertor

from krunch_litellm import legends, pages, telemetry
from krunch_litellm.figures import SERIES, Reset
from krunch_litellm.identity import is_session, tenant_of
from krunch_plugins import KrunchError, load_tokenizer
from krunch_plugins.report import trend

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from krunch_litellm.configuration import Configuration
    from krunch_plugins import Krunch

log = logging.getLogger("krunch")

PREFIX = "/v1/compression"
ROUTES = (f"{PREFIX}/stats", f"{PREFIX}/reset", f"{PREFIX}/sessions/*")

_SESSIONS, _SERIES = 100, 20
"""Sessions that the statistics list, the last used first, and requests of each; one session's own page has more."""
_CONVERSATION_KB, _REQUEST_KB = 2.0, 0.4


class _Guarded(APIRoute):
    """A route that says 401 where LiteLLM, without a database, says 400 or 500 to a missing or unknown key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What serves a request."""
        serve = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await serve(request)
            except (ProxyException, ModuleNotFoundError) as error:  # only the authentication raises them here
                # To tell what is wrong with a key it looks into its database's client, which may not be installed.
                no_client = getattr(error, "name", None) == "prisma"
                if no_client or str(getattr(error, "code", "")) in {"400", "500"}:
                    raise HTTPException(401, "no key, or one that this proxy does not know") from error
                raise

        return guarded


class _AnyText(Convertor[str]):
    """The rest of a path, whatever it is; Starlette's own `path` ends at a newline, also in front of the last one."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _AnyText())

Caller = Annotated[UserAPIKeyAuth, Depends(user_api_key_auth)]


def add_to_proxy(serving: Callable[[], Configuration]) -> None:
    """Add the routes to LiteLLM's proxy in this process, and load what its first request would wait for.

    Once; a second call does nothing.

    Args:
        serving: returns who serves which request.
    """
    from litellm.proxy.proxy_server import app

    if any(getattr(route, "path", None) == ROUTES[0] for route in app.routes):
        return
    app.include_router(_router(serving))
    managed = LiteLLMRoutes.self_managed_routes.value
    managed.extend(route for route in ROUTES if route not in managed)
    threading.Thread(target=warm_up, name="krunch-warm-up", daemon=True).start()


def warm_up() -> None:
    """Do what takes long while the proxy starts, not while its clients wait. No plugin is shown a request for it.

    The tokenizer is loaded. And the garbage collector is told to pass over what is there by now: that are 700,000
    objects of LiteLLM's, which never become garbage, and to look through them stops all requests for a third of a
    second each time.
    """
    with contextlib.suppress(KrunchError):  # the first request says so
        load_tokenizer("gpt-4o")
    gc.collect()
    gc.freeze()


def _router(serving: Callable[[], Configuration]) -> APIRouter:
    router = APIRouter(prefix=PREFIX, tags=["compression"], route_class=_Guarded)

    @router.get("/stats")
    async def stats(caller: Caller) -> dict[str, Any]:
        """What was compressed, by all workers: the caller's own, or with the master key everybody's."""
        return await asyncio.to_thread(_stats, serving().main, _whose(caller))

    @router.post("/reset")
    async def reset(caller: Caller) -> dict[str, Any]:
        """Forget statistics and what was sent before, in all workers. What is sent does not change."""
        await asyncio.to_thread(_reset, serving().main, _whose(caller))
        return {"message": "Conversation compression state reset successfully", "timestamp": _now()}

    @router.get("/sessions/{session:any}")
    async def session(session: str, caller: Caller, tenant: str | None = None) -> dict[str, Any]:
        """One session: its figures, its trend, what its symbols stand for. `tenant` is for admins only."""
        return await asyncio.to_thread(_session, serving(), session, _owner(caller, tenant))

    @router.delete("/sessions/{session:any}")
    async def forget(session: str, caller: Caller, tenant: str | None = None) -> dict[str, Any]:
        """Forget a session: history, statistics, what was sent before, in all workers."""
        return await asyncio.to_thread(_forget, serving().main, session, _owner(caller, tenant))

    return router


def _whose(caller: UserAPIKeyAuth) -> str | None:
    """The tenant that a caller may see; None for all of them."""
    return None if caller.user_role == LitellmUserRoles.PROXY_ADMIN else tenant_of(caller)


def _owner(caller: UserAPIKeyAuth, asked: str | None) -> str | None:
    """Whose session is meant: the caller's own, or for admins the one that they ask for, or None: to be found out."""
    own = _whose(caller)
    if own is not None and asked not in {None, own}:
        raise HTTPException(403, "only an admin may name a tenant; a key has its own sessions")
    return asked if own is None else own


def _stats(krunch: Krunch, tenant: str | None) -> dict[str, Any]:
    shared = telemetry.workers(krunch)
    telemetry.heed(krunch)
    shared.flush()
    summary = shared.figures.summary(tenant, series=_SESSIONS)
    conversations = summary.conversations
    requests = sum(one["requests"] for one in conversations)
    memory_kb = summary.memory_kb if tenant is None else _statistics_kb(conversations)
    settings = krunch.settings
    return {
        "conversation_compression": {
            "enabled": settings.mode == "on",
            "stats": {
                "active_conversations": len(conversations),
                "total_turns_processed": summary.requests,
                "symbols_in_use": sum(one["symbols"] for one in conversations),
                "avg_turns_per_conversation": requests / max(len(conversations), 1),
                "memory_usage_kb": round(memory_kb, 1),
            },
            "config": settings.efficiency.model_dump(),
        },
        "timestamp": _now(),
        "krunch": {
            "mode": settings.mode,
            "workers": summary.workers,
            "totals": pages.totals(summary.models),
            "models": pages.by_model(summary),
            "sessions": [
                pages.conversation(one, summary.series[one["name"]][-_SERIES:]) for one in conversations[:_SESSIONS]
            ],
            "reasons": pages.reasons(conversations),
            "errors": pages.errors(summary),
        },
    }


def _statistics_kb(conversations: Sequence[Mapping[str, Any]]) -> float:
    """KiB of a key's statistics, estimated from what all workers share; what was sent before is held for all keys."""
    requests = sum(min(int(one["requests"]), SERIES) for one in conversations)
    return _CONVERSATION_KB * len(conversations) + _REQUEST_KB * requests


def _reset(krunch: Krunch, tenant: str | None) -> None:
    telemetry.workers(krunch).reset(tenant)
    telemetry.forget(Reset(tenant, None))


def _session(configuration: Configuration, session: str, tenant: str | None) -> dict[str, Any]:
    krunch = configuration.main
    owner = _find(krunch, session, tenant)
    shared = telemetry.workers(krunch)
    counted = shared.figures.sessions(owner, session)
    stored = None if krunch.store is None else krunch.store.info(session, owner)
    figures, series = counted[0] if counted else ({}, [])
    window = krunch.settings.efficiency.efficiency_trend_window
    return {
        "session": session,
        "tenant": owner,
        "turns": stored.turns if stored else figures.get("requests", 0),
        "recorded": stored is not None,
        "efficiency": {
            "trend": trend([pages.net(one) for one in series[-window:]]),
            "net_efficiency": pages.net(series[-1]) if series else 0.0,
        },
        "legend": _legend(configuration, session, owner, figures or None),
        **(pages.conversation(figures, series) if counted else {}),
        "timestamp": _now(),
    }


def _forget(krunch: Krunch, session: str, tenant: str | None) -> dict[str, Any]:
    owner = _find(krunch, session, tenant)
    try:
        history = telemetry.forget_everywhere(krunch, owner, session)
    except KrunchError as error:
        log.warning("a session could not be forgotten: %s", type(error).__name__)
        raise HTTPException(503, f"the history could not be removed ({type(error).__name__}); ask again") from error
    return {"message": "Session forgotten", "session": session, "history_removed": history, "timestamp": _now()}


def _find(krunch: Krunch, session: str, tenant: str | None) -> str:
    """The tenant of a session that is known.

    Raises:
        HTTPException: 404, there is none; 409, several tenants have one of that name and none was named.
    """
    if not is_session(session):
        raise HTTPException(404, "no such session")
    shared = telemetry.workers(krunch)
    telemetry.heed(krunch)
    shared.flush()
    owners = {str(row["tenant"]) for row, _ in shared.figures.sessions(tenant, session)}
    if krunch.store is not None:
        asked = [tenant] if tenant is not None else [one for one in krunch.store.tenants() if one is not None]
        owners |= {one for one in asked if krunch.store.info(session, one) is not None}
    if not owners:
        raise HTTPException(404, "no such session")
    if len(owners) > 1:
        raise HTTPException(
            409, {"message": "several tenants have it; name one with ?tenant=", "tenants": sorted(owners)}
        )
    return owners.pop()


def _legend(
    configuration: Configuration, session: str, tenant: str, row: Mapping[str, Any] | None
) -> dict[str, str] | None:
    """What the session's symbols stand for; None if the worker that is asked cannot know."""
    if row is None:  # nothing was counted of late: there is none, or what this worker has sent
        known = legends.get(tenant, session)
    else:
        known = legends.told(configuration, telemetry.workers(configuration.main).figures.key, row)
    return None if known is None else dict(known)


def _now() -> str:
    return datetime.now(tz=UTC).isoformat()
