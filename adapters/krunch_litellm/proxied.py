"""One request on its way through LiteLLM's proxy, where hooks find it again, and what its client is told of it."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fastapi import HTTPException

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunch_litellm.chains import Chain
    from krunch_litellm.configuration import Scope
    from krunch_litellm.identity import Identity
    from krunch_litellm.wire import WireRequest
    from krunch_plugins import Exchange, Krunch, RequestRefused


@dataclass(slots=True, eq=False)
class ProxiedCall:
    """A request that Krunch has prepared for LiteLLM's proxy.

    Attributes:
        exchange: its request and reply; `exchange.report` has the figures.
        identity: whose it is.
        call_type: LiteLLM's name of the endpoint: "acompletion", "anthropic_messages" or "aresponses".
        model: the model's name as the client asked for it.
        request: what it looks like on the wire, and how its reply is read.
        krunch: who prepared it.
        streamed: the client asked for a stream.
        scope: what the config says of whom that served it.
        chain: what it goes on from, and what may go on from it; None in protocols that have no such thing.
        started: when it was prepared, by `time.monotonic()`.
        counted: when it was counted, seconds since the epoch; 0.0 until then.
        replied: its reply, or the stream of it, is in our hands.
        reason: what the client is told instead of the report's reason; "" to tell that.
    """

    exchange: Exchange
    identity: Identity
    call_type: str
    model: str
    request: WireRequest
    krunch: Krunch
    streamed: bool
    scope: Scope = ()
    chain: Chain | None = None
    started: float = field(default_factory=time.monotonic)
    counted: float = 0.0
    replied: bool = False
    reason: str = ""

    async def answered(self, reply: Any, usage: Mapping[str, Any] | None) -> None:  # noqa: ANN401 - the protocol's own
        """The reply is whole, and expanded.

        Args:
            reply: the reply; None if the protocol's stream does not repeat it.
            usage: what the provider counted; None if it did not say.
        """
        hidden = getattr(reply, "_hidden_params", None) or {}  # what comes from LiteLLM's cache costs nothing
        if usage is not None and not hidden.get("cache_hit"):
            self.exchange.note_usage(usage)
        if self.chain is not None and reply is not None:
            await self.chain.note(reply, self.request.as_message(reply), self.exchange)


class InFlight:
    """The prepared calls, each found again by the object that LiteLLM logs its request with.

    That object lives exactly as long as its request, so a client that goes away leaves nothing behind. Therefore a call
    must not hold it, nor the request's arguments, in which it is. (Rejected: a key among the request's arguments, which
    would go upstream; `litellm_call_id`, which a client can choose.)
    """

    def __init__(self) -> None:
        self._calls: WeakKeyDictionary[Any, ProxiedCall] = WeakKeyDictionary()
        self._current: ContextVar[ProxiedCall | None] = ContextVar("krunch_litellm_proxied", default=None)

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, data: Mapping[str, Any], call: ProxiedCall) -> None:
        """Keep a call for the hooks that come later."""
        self._calls[data["litellm_logging_obj"]] = call
        self._current.set(call)

    def get(self, data: Mapping[str, Any]) -> ProxiedCall | None:
        """The call that a request's arguments belong to; None if it was not prepared."""
        logged = data.get("litellm_logging_obj")
        return None if logged is None else self._calls.get(logged)

    def failed(self, data: Mapping[str, Any]) -> ProxiedCall | None:
        """`get` for one that may have failed: LiteLLM has taken the object out by then, but runs in the same task."""
        return self.get(data) or (None if "litellm_logging_obj" in data else self._current.get())


def headers(call: ProxiedCall) -> dict[str, str]:
    """What the client is told of a request, in the headers of its response."""
    report = call.exchange.report
    told = {
        "x-krunch-tokens-before": str(report.tokens_before),
        "x-krunch-tokens-after": str(report.tokens_after),
        "x-krunch-reason": call.reason or _reason(call.exchange),
    }
    session = call.identity.header
    return {**told, "x-krunch-session": session} if session else told


def refusal(error: RequestRefused) -> HTTPException:
    """What a client gets when a plugin stops its request, or keeps a reply from it."""
    return HTTPException(status_code=400, detail={"error": f"refused by a Krunch plugin: {error.reason}"})


def _reason(exchange: Exchange) -> str:
    """One reason for the whole request: compressed if anything was, else what became of its longest message."""
    reports = exchange.report.messages
    if exchange.report.mode == "observe":
        return "observe"
    if any(message.reason in {"compressed", "rebased"} for message in reports):
        return "compressed"
    return max(reports, key=lambda message: message.tokens_before).reason if reports else "error"
