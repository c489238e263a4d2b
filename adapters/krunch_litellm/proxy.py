"""Krunch in LiteLLM's proxy: every client served, in every protocol, without a change of theirs.

    litellm_settings:
      callbacks: [krunch_litellm.proxy.krunch]

What the proxy may be told besides stands in `configuration.py`; what clients may say and what they are told, in
`docs/proxy.md`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import litellm
from litellm.integrations.custom_logger import CustomLogger

from krunch_litellm import telemetry
from krunch_litellm.chains import Chains, own_id
from krunch_litellm.configuration import Configuration
from krunch_litellm.identity import tenant_of
from krunch_litellm.preparing import Preparer, opted_out, reading
from krunch_litellm.proxied import InFlight, headers, refusal
from krunch_litellm.wire.responses import fetched
from krunch_plugins import Krunch, RequestRefused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from litellm.proxy._types import UserAPIKeyAuth

    from krunch_litellm.proxied import ProxiedCall
    from krunch_litellm.wire import WireStream


class KrunchProxy(CustomLogger):
    """The callback: LiteLLM's proxy calls it before a request is sent and when a reply comes back.

    LiteLLM looks for its hooks in the class itself, not in what it inherits from; so they all stand here. What goes
    wrong in one of them is counted, and the client gets what it would have got without Krunch.

    Args:
        krunch: who serves the requests; default those that the proxy's config asks for.

    Attributes:
        configuration: whose settings serve which request.
        in_flight: the requests that were prepared and whose replies are not here yet; of all instances, so that where
            there are several a request that one has prepared is left alone by the others.

    Raises:
        SettingsError: the config or a `KRUNCH_*` variable holds something that is not allowed.
        StoreUnavailable: `home` cannot be used.
    """

    in_flight = InFlight()

    def __init__(self, krunch: Krunch | None = None) -> None:
        super().__init__()
        self.configuration = Configuration(krunch=krunch)
        self._chains = Chains()
        self._endings: set[asyncio.Future[Any]] = set()
        self._preparer = Preparer(self.configuration, self._chains)
        self._unserved: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    @property
    def krunch(self) -> Krunch:
        """Who serves what no model, team or key has settings of its own for; its store is everybody's."""
        return self.configuration.main

    async def async_pre_call_hook(
        self,
        user_api_key_dict: UserAPIKeyAuth,
        cache: object,  # noqa: ARG002 - LiteLLM's signature
        data: dict[str, Any],
        call_type: str,
    ) -> dict[str, Any]:
        """Compress the request. Called before the proxy chooses a deployment."""
        try:
            reader = reading(call_type)
            if reader is None or self.in_flight.get(data) is not None:
                return data
            if opted_out(data):
                self._leave(data, "opted_out")
                return data
            request = reader(data)
            if request is None:
                return data
            call, changed = await self._preparer.prepare(data, call_type, request, user_api_key_dict)
            self.in_flight.add(data, call)  # from here on somebody expands the reply, so only now it may be changed
            asyncio.get_running_loop().call_soon(telemetry.prepared, call)  # counted while the upstream is waited for
            data = {**data, **changed}
        except RequestRefused as error:
            raise refusal(error) from error
        except Exception as error:  # noqa: BLE001 - ours, never the client's
            self._failed("prepare", error, data)
        return data

    async def async_post_call_success_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: UserAPIKeyAuth,
        response: Any,  # noqa: ANN401 - any of LiteLLM's replies
    ) -> Any:  # noqa: ANN401 - as above
        """Expand a whole reply."""
        call = self.in_flight.get(data)
        if call is None:
            return self._fetched(data, user_api_key_dict, response)
        if call.replied:
            return response
        call.replied = True
        usage: Mapping[str, Any] | None = None
        try:
            usage = call.request.usage(response)
            response = await call.request.finish(call.exchange, response)
            await call.answered(response, usage)
        except RequestRefused as error:
            raise refusal(error) from error
        except Exception as error:  # noqa: BLE001 - as above
            self._failed("expand", error, data)
        finally:
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
        stream = None if call is None or call.replied else self._stream(call)
        if call is None or stream is None:
            async for item in response:
                yield item
            return
        over = False
        try:
            async for item in response:
                for out in self._feed(call, stream, item):
                    yield out
            over = True
            for out in await asyncio.shield(self._end(call, stream, partial=False)):
                yield out
        except Exception:  # whatever LiteLLM or the provider raised
            if not over:  # the upstream broke the stream off: what is held back goes out before the error
                over = True
                for out in await asyncio.shield(self._end(call, stream, partial=True)):
                    yield out
            raise
        finally:
            if not over:  # the client went away: we are cancelled, and could await nothing any more
                self._end(call, stream, partial=True)

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,  # noqa: ARG002 - as above
        user_api_key_dict: UserAPIKeyAuth,  # noqa: ARG002 - as above
        traceback_str: str | None = None,  # noqa: ARG002 - as above
    ) -> None:
        """Note that there will be no reply."""
        call = self.in_flight.failed(request_data)
        if call is not None and not call.replied:
            call.replied = True
            telemetry.ended(call, usage=None, partial=True)

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: UserAPIKeyAuth,  # noqa: ARG002 - as above
        response: object,  # noqa: ARG002 - as above
        request_headers: dict[str, str] | None = None,  # noqa: ARG002 - as above
        litellm_call_info: dict[str, Any] | None = None,  # noqa: ARG002 - as above
    ) -> dict[str, str]:
        """Say in the response's headers what Krunch did."""
        call = self.in_flight.failed(data)  # LiteLLM asks for them also where there is no reply
        try:
            logged = data.get("litellm_logging_obj")
            reason = None if logged is None else self._unserved.get(logged)
            told = headers(call) if call is not None else {"x-krunch-reason": reason} if reason else {}
        except Exception as error:  # noqa: BLE001 - as above
            telemetry.failed("headers", error, call)
            return {}
        else:
            return told

    def _fetched(self, data: Mapping[str, Any], key: UserAPIKeyAuth, response: Any) -> Any:  # noqa: ANN401 - as above
        """A response that the provider has stored, expanded if this process remembers its symbols."""
        given = data.get("response_id")
        try:
            known = self._chains.reader(tenant_of(key), own_id(given)) if isinstance(given, str) else None
            return response if known is None else fetched(response, known)
        except Exception as error:  # noqa: BLE001 - as above
            telemetry.failed("expand", error)
            return response

    def _stream(self, call: ProxiedCall) -> WireStream | None:
        call.replied = True
        try:
            return call.request.stream(call.exchange)
        except Exception as error:  # noqa: BLE001 - as above
            telemetry.failed("stream", error, call)
            telemetry.ended(call, usage=None, partial=False)
            return None

    def _feed(self, call: ProxiedCall, stream: WireStream, item: Any) -> list[Any]:  # noqa: ANN401 - as above
        try:
            return stream.feed(item)
        except Exception as error:  # noqa: BLE001 - as above
            telemetry.failed("stream", error, call)
            return [item]

    def _end(self, call: ProxiedCall, stream: WireStream, *, partial: bool) -> asyncio.Future[list[Any]]:
        """End a stream, in a task of its own: when the client goes away the one that serves it is cancelled."""
        ending = asyncio.ensure_future(self._rest(call, stream, partial=partial))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        return ending

    async def _rest(self, call: ProxiedCall, stream: WireStream, *, partial: bool) -> list[Any]:
        try:
            rest = await stream.end(partial=partial)
            if not partial:
                await call.answered(stream.reply, stream.usage)
        except Exception as error:  # noqa: BLE001 - as above
            telemetry.failed("end", error, call)
            return []
        else:
            return rest
        finally:
            telemetry.ended(call, usage=stream.usage, partial=partial)

    def _failed(self, stage: telemetry.Stage, error: Exception, data: Mapping[str, Any]) -> None:
        call = self.in_flight.get(data)
        telemetry.failed(stage, error, call)
        if call is not None:
            call.reason = "error"
        else:
            self._leave(data, "error")

    def _leave(self, data: Mapping[str, Any], reason: str) -> None:
        """Note why a request goes out as it came."""
        logged = data.get("litellm_logging_obj")
        if logged is not None:
            self._unserved[logged] = reason


krunch = KrunchProxy()
"""The instance that a proxy's config names."""


def serving() -> Configuration:
    """Who serves which request: as the first instance says that LiteLLM was given, which may be the operator's own."""
    given = (one for one in litellm.callbacks if isinstance(one, KrunchProxy))
    return next(given, krunch).configuration


if "litellm.proxy.proxy_server" in sys.modules:  # the proxy is loading us; importing it takes seconds
    from krunch_litellm.routes import add_to_proxy

    add_to_proxy(serving)
