"""Krunch as a guardrail of LiteLLM's proxy, for operators who want to say where among theirs it stands.

    guardrails:
      - guardrail_name: krunch-expand        # first after the call: those below see replies in plain words
        litellm_params: {guardrail: krunch_litellm.guardrail.KrunchGuardrail, mode: post_call, default_on: true}
      - guardrail_name: pii
        litellm_params: {guardrail: presidio, mode: [pre_call, post_call], default_on: true}
      - guardrail_name: krunch-compress      # last before the call: those above see requests in plain words
        litellm_params: {guardrail: krunch_litellm.guardrail.KrunchGuardrail, mode: pre_call, default_on: true}

LiteLLM runs guardrails in the order of this list, before the call and after it. So it takes two entries for Krunch to
be nearest to the model both ways; one with both modes is nearest one way only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import litellm
from litellm.integrations.custom_guardrail import CustomGuardrail
from litellm.types.guardrails import GuardrailEventHooks

from krunch_litellm import proxy, telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from litellm.proxy._types import UserAPIKeyAuth


class NobodyExpandsError(Exception):
    """A request was not compressed, because no guardrail of Krunch's would run on its reply."""


class KrunchGuardrail(CustomGuardrail):
    """Compresses requests (mode `pre_call`) and expands replies (`post_call`). All entries share one state.

    It never blocks anything. A request is only compressed if its reply will be expanded: if clients or keys can leave
    the entry for replies out, requests that do are sent as they came.

    Args:
        **options: as LiteLLM hands them to every guardrail.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - LiteLLM's, from its config
        hooks = [GuardrailEventHooks.pre_call, GuardrailEventHooks.post_call]
        super().__init__(**{"supported_event_hooks": hooks, **options})

    async def async_pre_call_hook(
        self,
        user_api_key_dict: UserAPIKeyAuth,
        cache: Any,  # noqa: ANN401 - LiteLLM's signature
        data: dict[str, Any],
        call_type: Any,  # noqa: ANN401 - as above
    ) -> Any:  # noqa: ANN401 - as above
        """Compress the request."""
        if not _somebody_expands(data):
            telemetry.failed("prepare", NobodyExpandsError())
            return data
        return await proxy.krunch.async_pre_call_hook(user_api_key_dict, cache, data, call_type)

    async def async_post_call_success_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: UserAPIKeyAuth,
        response: Any,  # noqa: ANN401 - as above
    ) -> Any:  # noqa: ANN401 - as above
        """Expand a whole reply."""
        return await proxy.krunch.async_post_call_success_hook(data, user_api_key_dict, response)

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: UserAPIKeyAuth, response: AsyncIterator[Any], request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Expand a streamed reply."""
        items = proxy.krunch.async_post_call_streaming_iterator_hook(user_api_key_dict, response, request_data)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: UserAPIKeyAuth,
        traceback_str: str | None = None,
    ) -> None:
        """Note that there will be no reply."""
        await proxy.krunch.async_post_call_failure_hook(
            request_data, original_exception, user_api_key_dict, traceback_str
        )

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: UserAPIKeyAuth,
        response: Any,  # noqa: ANN401 - as above
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, Any] | None = None,
    ) -> dict[str, str]:
        """Say in the response's headers what Krunch did."""
        return await proxy.krunch.async_post_call_response_headers_hook(
            data, user_api_key_dict, response, request_headers, litellm_call_info
        )


def _somebody_expands(data: dict[str, Any]) -> bool:
    """Whether the reply to a request will pass through Krunch."""
    return any(
        isinstance(one, proxy.KrunchProxy)
        or (
            isinstance(one, KrunchGuardrail)
            and one.should_run_guardrail(data=data, event_type=GuardrailEventHooks.post_call) is True
        )
        for one in litellm.callbacks
    )
