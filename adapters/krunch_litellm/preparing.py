"""A request to the proxy on its way in: who serves it, whether it may be changed, and what is sent instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import litellm

from krunch_litellm import telemetry
from krunch_litellm.calls import serving
from krunch_litellm.chains import Chain
from krunch_litellm.configuration import deployed
from krunch_litellm.hosted import REASON, acts_elsewhere
from krunch_litellm.identity import identify
from krunch_litellm.proxied import ProxiedCall
from krunch_litellm.requests import Call, SentMessages, cache_namespace, own_namespace, within
from krunch_litellm.wire.chat import ChatWire
from krunch_litellm.wire.messages import MessagesWire
from krunch_litellm.wire.places import written
from krunch_litellm.wire.responses import ResponsesWire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from litellm.proxy._types import UserAPIKeyAuth

    from krunch_litellm.chains import Chains
    from krunch_litellm.configuration import Configuration
    from krunch_litellm.wire import WireRequest
    from krunch_plugins import Exchange, Krunch

_READERS: Mapping[str, Callable[[Mapping[str, Any]], WireRequest | None]] = {
    "acompletion": ChatWire.read,
    "anthropic_messages": MessagesWire.read,
    "aresponses": ResponsesWire.read,
}
"""Who reads a request, by LiteLLM's name of the endpoint. What is not here passes through."""

_OFF = frozenset({"off", "false", "no", "0"})


class NestedMessages(SentMessages):
    """What a request of the proxy's sends: whatever LiteLLM calls on the way to the provider is a part of it."""

    def says(self, messages: Sequence[Mapping[str, Any]]) -> bool:  # noqa: ARG002 - as the class it is built on
        """Always: a bridge to another protocol changes the messages, but they are still this request's."""
        return True


def reading(call_type: str) -> Callable[[Mapping[str, Any]], WireRequest | None] | None:
    """What reads the requests of an endpoint; None if they pass through."""
    return _READERS.get(str(getattr(call_type, "value", call_type)))


def opted_out(data: dict[str, Any]) -> bool:
    """Whether a request says `x-krunch: off` or `metadata.krunch = false`.

    What it says in its metadata is taken out: providers would be sent it.
    """
    headers = (data.get("proxy_server_request") or {}).get("headers") or {}
    said = [headers.get("x-krunch")]
    for name in ("metadata", "litellm_metadata"):
        metadata = data.get(name)
        if isinstance(metadata, dict) and "krunch" in metadata:
            said.append(metadata.pop("krunch"))
    return any(value is False or (isinstance(value, str) and value.strip().lower() in _OFF) for value in said)


class Preparer:
    """Compresses the requests of a proxy.

    Args:
        configuration: who serves which request.
        chains: what is remembered of responses that a request may go on from.
    """

    def __init__(self, configuration: Configuration, chains: Chains) -> None:
        self._configuration, self._chains = configuration, chains

    async def prepare(
        self, data: dict[str, Any], call_type: str, request: WireRequest, key: UserAPIKeyAuth
    ) -> tuple[ProxiedCall, dict[str, Any]]:
        """Compress a request.

        Args:
            data: its arguments; not changed.
            call_type: LiteLLM's name of the endpoint.
            request: the same as its protocol reads it.
            key: what the proxy knows about the caller's key.

        Returns:
            The call, and the arguments that change.

        Raises:
            RequestRefused: a plugin stopped it.
        """
        model = str(data.get("model"))
        # Several at once are separated by commas; the first one's tokenizer counts.
        names = [name for one in model.split(",") for name in deployed(one.strip(), key.team_id)]
        scope = self._configuration.scope_of(names, key)
        krunch = self._configuration.krunch_of(scope)
        hosted = krunch.settings.mode == "on" and acts_elsewhere(data)
        if hosted:
            krunch = self._configuration.without_compression(krunch)
        await telemetry.aheed(krunch)
        identity = identify(data, key)
        facts: dict[str, Any] = {
            "model": names[1],
            "session": identity.session,
            "tenant": identity.tenant,
            "tools": request.tools,
            "json_reply": request.json_reply,
        }
        chain: Chain | None = None
        if isinstance(request, ResponsesWire):
            chain = Chain(self._chains, krunch, data, identity)
            exchange = await chain.aprepare(request, facts)
        else:
            exchange = await krunch.aprepare(request.messages, **facts)
        changed = {} if exchange.messages == request.messages else await written(request, exchange)
        sent = NestedMessages(changed.get("messages") or exchange.messages, Call(exchange, self))
        if "messages" in changed and isinstance(request, ChatWire):
            changed["messages"] = sent
        namespace = _namespace(krunch, exchange, request, data)
        if namespace is not None:
            changed.update(within(namespace, data))
        serving.set(sent)
        streamed = bool(data.get("stream"))
        call = ProxiedCall(exchange, identity, call_type, model, request, krunch, streamed, scope, chain)
        call.reason = REASON if hosted else ""
        return call, changed


def _namespace(krunch: Krunch, exchange: Exchange, request: WireRequest, data: Mapping[str, Any]) -> str | None:
    """The namespace of a request in the proxy's response cache: its session's own; without a session its key's own.

    Also of one that goes out as it came, or keys would get each other's replies to short requests. Where Krunch is not
    on, requests without a session are cached as if it were not there.
    """
    if litellm.cache is None and not data.get("caching"):
        return None
    if exchange.session is None and exchange.report.mode != "on":
        return cache_namespace(krunch, exchange, request.messages, data, "wire")
    return own_namespace(exchange, data, "wire")
