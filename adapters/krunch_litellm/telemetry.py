"""What the proxy's operator is told about each request. Figures and names only, never message text."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunch_litellm.proxied import ProxiedCall

log = logging.getLogger("krunch")

Stage = Literal["settings", "prepare", "send", "expand", "stream", "end", "headers"]
"""Where something of ours failed: reading the settings, preparing a request, writing it back, expanding a whole reply,
expanding a chunk, ending a stream, or naming the response headers."""


def prepared(call: ProxiedCall) -> None:
    """A request was prepared and is about to be sent; `call.exchange.report` has its figures."""


def ended(call: ProxiedCall, *, usage: Mapping[str, Any] | None, partial: bool) -> None:
    """A reply has gone out, whole or streamed.

    Args:
        call: the request it answers.
        usage: what the provider counted, in the words of the protocol; None if it did not say.
        partial: the stream was broken off, by the upstream or by the client.
    """


def failed(stage: Stage, error: BaseException, call: ProxiedCall | None = None) -> None:
    """Something of ours failed; what the client gets is what it would have got without Krunch.

    Args:
        stage: where.
        error: what was raised. Its text may quote a message, so only its class is told.
        call: the request, if it was prepared by then.
    """
    endpoint = "a request" if call is None else call.call_type
    log.warning("%s: stage %r failed with %s; LiteLLM's own goes on as it is", endpoint, stage, type(error).__name__)
