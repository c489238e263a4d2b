"""Krunch in LiteLLM's proxy: every client served, in every protocol, without a change of theirs.

litellm_settings:
  callbacks: [krunch_litellm.proxy.krunch]
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from litellm.integrations.custom_logger import CustomLogger

from krunch_litellm import telemetry
from krunch_litellm.identity import identify
from krunch_litellm.proxied import InFlight, ProxiedCall
from krunch_litellm.wire.chat import ChatWire
from krunch_plugins import Krunch, RequestRefused, default_krunch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from litellm.proxy._types import UserAPIKeyAuth

    from krunch_litellm.wire import WireRequest

_PROTOCOLS = {"acompletion": ChatWire}
"""Who reads a request, by LiteLLM's name of the endpoint. What is not here passes through."""


class KrunchProxy(CustomLogger):
    """The callback: LiteLLM's proxy calls it before a request is sent and when a reply comes back.

    LiteLLM looks for its hooks in the class itself, not in what it inherits from; so they all stand here.

    Args:
        krunch: who serves the requests; default one per process, with settings from `KRUNCH_*` variables.
    """

    def __init__(self, krunch: Krunch | None = None) -> None:
        super().__init__()
        self._krunch = krunch
        self.in_flight = InFlight()

    @property
    def krunch(self) -> Krunch:
        """Who serves the requests."""
        if self._krunch is None:
            self._krunch = default_krunch()
        return self._krunch

    async def async_pre_call_hook(
        self,
        user_api_key_dict: UserAPIKeyAuth,
        cache: object,  # noqa: ARG002 - LiteLLM's signature
        data: dict[str, Any],
        call_type: str,
    ) -> dict[str, Any]:
        """Compress the request. Called before the proxy chooses a deployment."""
        protocol = _PROTOCOLS.get(call_type)
        if protocol is None or self.in_flight.get(data) is not None:
            return data
        try:
            request = protocol.read(data)
            return data if request is None else await self._prepare(data, call_type, request, user_api_key_dict)
        except RequestRefused:
            raise
        except Exception as error:  # noqa: BLE001 - ours, never the client's
            telemetry.failed("prepare", error)
            return data

    async def async_post_call_success_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: UserAPIKeyAuth,  # noqa: ARG002 - as above
        response: Any,  # noqa: ANN401 - any of LiteLLM's replies
    ) -> Any:  # noqa: ANN401 - as above
        """Expand a whole reply."""
        call = self.in_flight.get(data)
        if call is None or call.replied:
            return response
        call.replied = True
        usage = None
        try:
            usage = call.request.usage(response)
            response = await call.request.finish(call.exchange, response)
        except RequestRefused:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            telemetry.failed("expand", error, call)
        telemetry.ended(call, usage=usage, partial=False)
        return response

    async def async_post_call_streaming_iterator_hook(
        self,
        user_api_key_dict: UserAPIKeyAuth,  # noqa: ARG002 - as above
        response: AsyncIterator[Any],
        request_data: dict[str, Any],
    ) -> AsyncGenerator[Any, None]:
        """Expand a streamed reply, item by item."""
        call = self.in_flight.get(request_data)
        if call is None or call.replied:
            async for item in response:
                yield item
            return
        call.replied = True
        stream = call.request.stream(call.exchange)
        partial = True
        try:
            async for item in response:
                for out in stream.feed(item):
                    yield out
            partial = False
        except Exception:
            for out in await stream.end(partial=True):
                yield out
            raise
        else:
            for out in await stream.end(partial=False):
                yield out
        finally:
            telemetry.ended(call, usage=stream.usage, partial=partial)

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: UserAPIKeyAuth,  # noqa: ARG002 - as above
        response: object,  # noqa: ARG002 - as above
        request_headers: dict[str, str] | None = None,  # noqa: ARG002 - as above
        litellm_call_info: dict[str, Any] | None = None,  # noqa: ARG002 - as above
    ) -> dict[str, str]:
        """Say in the response's headers what Krunch did."""
        call = self.in_flight.get(data)
        return {} if call is None else _headers(call)

    async def _prepare(
        self,
        data: dict[str, Any],
        call_type: str,
        request: WireRequest,
        key: UserAPIKeyAuth,
    ) -> dict[str, Any]:
        telemetry.heed(self.krunch)
        identity, model = identify(data, key), str(data.get("model"))
        exchange = await self.krunch.aprepare(
            request.messages,
            model=model,
            session=identity.session,
            tenant=identity.tenant,
            tools=request.tools,
            json_reply=request.json_reply,
        )
        streamed = bool(data.get("stream"))
        call = ProxiedCall(exchange, identity, call_type, model, request, self.krunch, streamed)
        data = {**data, **request.arguments(exchange)}
        self.in_flight.add(data, call)
        telemetry.prepared(call)
        return data


def _headers(call: ProxiedCall) -> dict[str, str]:
    report = call.exchange.report
    return {
        "x-krunch-tokens-before": str(report.tokens_before),
        "x-krunch-tokens-after": str(report.tokens_after),
        "x-krunch-session": call.identity.header,
    }


krunch = KrunchProxy()
"""The instance that a proxy's config names."""

if "litellm.proxy.proxy_server" in sys.modules:  # the proxy is loading us; importing it takes seconds
    from krunch_litellm.routes import add_to_proxy

    add_to_proxy(lambda: krunch.krunch)
