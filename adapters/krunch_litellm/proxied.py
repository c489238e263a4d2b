"""One request on its way through LiteLLM's proxy, and where hooks find it again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunch_litellm.identity import Identity
    from krunch_litellm.wire import WireRequest
    from krunch_plugins import Exchange, Krunch


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
        started: when it was prepared, by `time.monotonic()`.
        replied: its reply, or the stream of it, is in our hands.
    """

    exchange: Exchange
    identity: Identity
    call_type: str
    model: str
    request: WireRequest
    krunch: Krunch
    streamed: bool
    started: float = field(default_factory=time.monotonic)
    replied: bool = False


class InFlight:
    """The prepared calls, each found again by the object that LiteLLM logs its request with.

    That object lives exactly as long as its request, so a client that goes away leaves nothing behind. (Rejected: a key
    among the request's arguments, which would go upstream; `litellm_call_id`, which a client can choose.)
    """

    def __init__(self) -> None:
        self._calls: WeakKeyDictionary[Any, ProxiedCall] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, data: Mapping[str, Any], call: ProxiedCall) -> None:
        """Keep a call for the hooks that come later."""
        self._calls[data["litellm_logging_obj"]] = call

    def get(self, data: Mapping[str, Any]) -> ProxiedCall | None:
        """The call that a request's arguments belong to; None if it was not prepared."""
        logged = data.get("litellm_logging_obj")
        return None if logged is None else self._calls.get(logged)
