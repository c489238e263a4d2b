"""The callback: what LiteLLM's own hooks can serve, which are asynchronous calls without streams, SDK and Router."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from litellm.integrations.custom_logger import CustomLogger

from krunch_litellm.calls import fail_open, serving
from krunch_litellm.others import OtherCalls
from krunch_litellm.replies import afinish, is_whole, refused
from krunch_litellm.requests import ChatRequest, SentMessages
from krunch_plugins import Krunch, RequestRefused, default_krunch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litellm.types.utils import CallTypes

log = logging.getLogger("krunch")


class RefusedForGood(RequestRefused, ImportError):  # noqa: N818 - a kind of RequestRefused
    """A refusal that LiteLLM does not retry.

    With `num_retries`, LiteLLM answers any error of a hook by sending the request past all hooks, that is: in plain
    text. ImportError is the one kind that it does not retry.
    """


class KrunchCallback(CustomLogger):
    """Compresses requests and expands replies of asynchronous calls: `litellm.callbacks = [...]`.

    These are `acompletion`, `aresponses` and `anthropic.messages.acreate`, also through a Router.

    LiteLLM has no hook that could change a sync call or a streamed reply: these pass through unchanged, and the first
    one logs a warning that says what to do. When LiteLLM itself retries a call (`num_retries`, without a Router), it
    goes past the hooks: the retry is sent uncompressed.

    Args:
        krunch: who serves the calls; default one per process, with settings from `KRUNCH_*` variables.
    """

    def __init__(self, krunch: Krunch | None = None) -> None:
        super().__init__()
        self.krunch = krunch or default_krunch()
        self._warned = False
        self._others = OtherCalls()

    async def async_pre_call_deployment_hook(
        self, kwargs: dict[str, Any], call_type: CallTypes | None
    ) -> dict[str, Any] | None:
        """Compress the request. Called by LiteLLM before each call to a deployment."""
        if call_type is None or serving.get() is not None:
            return None
        with fail_open("preparing a request"):
            try:
                if call_type.value != "acompletion":
                    return await self._others.aprepare(self.krunch, kwargs, call_type.value)
                return await self._prepare(kwargs)
            except RequestRefused as refusal:
                raise RefusedForGood(refusal.reason) from refusal
        return None

    async def _prepare(self, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Compress a chat completion; None to leave it as it is."""
        messages = kwargs.get("messages")
        if isinstance(messages, SentMessages) and messages.is_open:
            return None  # another callback, or the call that this one is nested in, has prepared it
        if kwargs.get("stream") or "messages" not in kwargs:  # positional arguments do not reach this hook
            self._warn()
            return None
        # A positional model does not reach this hook either, but LiteLLM's own log of the call has it.
        model = getattr(kwargs.get("litellm_logging_obj"), "model", None)
        request = ChatRequest.read({"model": model, **kwargs})
        if request is None or self._others.are_ours(request.messages):
            return None
        exchange = await self.krunch.aprepare(request.messages, **request.facts)
        sent = request.to_send(exchange, self)
        return request.replaced((), kwargs, sent, self.krunch, "plain")[1]

    async def async_post_call_success_deployment_hook(
        self,
        request_data: dict[str, Any],
        response: Any,  # noqa: ANN401 - any of LiteLLM's replies
        call_type: CallTypes | None,
    ) -> Any:  # noqa: ANN401 - the same, or None to leave it
        """Expand the reply. Called by LiteLLM after each successful call to a deployment."""
        if call_type is not None and call_type.value != "acompletion":
            with fail_open("expanding a reply"):
                return await self._others.afinish(request_data, call_type.value, response)
            return None
        sent = self._own(request_data)
        if sent is None or not sent.is_open or not is_whole(response):
            return None
        sent.call.expanded = True
        try:
            with fail_open("expanding a reply"):
                return await afinish(sent.call.exchange, response)
        except RequestRefused as refusal:
            # LiteLLM swallows what this hook raises and would hand the reply on; so its text is withheld instead.
            return refused(response, refusal.reason)
        return None

    async def async_post_call_failure_deployment_hook(
        self,
        request_data: Mapping[str, Any],
        exception: Exception,  # noqa: ARG002 - LiteLLM's signature
        call_type: CallTypes | None,  # noqa: ARG002 - as above
        fallback_depth: int | None = None,  # noqa: ARG002 - as above
    ) -> None:
        """Put the plain messages back: LiteLLM's own retries go past the hooks, so nobody would expand the reply."""
        sent = self._own(request_data)
        if sent is not None:
            with fail_open("putting a failed request back"):
                sent.send_plain()

    def log_pre_api_call(self, model: str, messages: Any, kwargs: dict[str, Any]) -> None:  # noqa: ANN401, ARG002 - LiteLLM's
        """Notice sync calls, for which LiteLLM calls no other hook."""
        internal = (kwargs.get("litellm_params") or {}).get("acompletion") is True
        if kwargs.get("call_type") == "completion" and not internal and serving.get() is None:
            self._warn()

    def _own(self, request_data: Mapping[str, Any]) -> SentMessages | None:
        """The messages of a request that this callback has prepared."""
        sent = request_data.get("messages")
        return sent if isinstance(sent, SentMessages) and sent.call.served_by is self else None

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "a call went through LiteLLM uncompressed: its callbacks can serve neither sync nor streamed calls, "
                "nor acompletion() with positional messages. Call krunch_litellm.install() once, before names are "
                "imported from litellm, or call krunch_litellm.completion() and acompletion(). (This is said once.)"
            )
