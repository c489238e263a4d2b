"""SDK calls of the other protocols that LiteLLM's hooks can serve: `aresponses` and `anthropic.messages.acreate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from krunch_litellm.hosted import acts_elsewhere
from krunch_litellm.requests import cache_namespace, session_of, within
from krunch_litellm.wire.messages import MessagesWire
from krunch_litellm.wire.places import written
from krunch_litellm.wire.responses import ResponsesWire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from krunch_litellm.wire import WireRequest
    from krunch_plugins import Exchange, Krunch
    from krunch_plugins.turns import Message

_READERS: Mapping[str, Callable[[Mapping[str, Any]], WireRequest | None]] = {
    "anthropic_messages": MessagesWire.read,
    "aresponses": ResponsesWire.read,
}


class _Call(NamedTuple):
    call_type: str
    request: WireRequest
    exchange: Exchange


class OtherCalls:
    """The calls that a callback has prepared, each found again by the object that LiteLLM logs its request with."""

    def __init__(self) -> None:
        self._calls: WeakKeyDictionary[Any, _Call] = WeakKeyDictionary()

    async def aprepare(self, krunch: Krunch, arguments: dict[str, Any], call_type: str) -> dict[str, Any] | None:
        """Compress a request.

        Args:
            krunch: who serves it.
            arguments: the call's arguments.
            call_type: LiteLLM's name for the kind of call.

        Returns:
            The arguments to send; None to leave them as they are: no hook could expand the reply, the provider holds
            the conversation, tools are run where nothing could expand what they are called with, or it is a call that
            one of ours makes on its way through a bridge.

        Raises:
            RequestRefused: a plugin stopped it.
        """
        logged, reader = arguments.get("litellm_logging_obj"), _READERS.get(call_type)
        held = arguments.get("previous_response_id") or arguments.get("conversation")
        if logged is None or reader is None or held or arguments.get("stream") or acts_elsewhere(arguments):
            return None
        request = reader(arguments)
        if request is None or self.are_ours(request.messages):
            return None
        exchange = await krunch.aprepare(
            request.messages,
            model=str(arguments.get("model")),
            session=session_of(arguments),
            tools=request.tools,
            json_reply=request.json_reply,
        )
        changed = await written(request, exchange)
        namespace = cache_namespace(krunch, exchange, request.messages, arguments, "plain")
        if namespace is not None:
            changed.update(within(namespace, arguments))
        self._calls[logged] = _Call(call_type, request, exchange)
        return {**arguments, **changed}

    async def afinish(self, arguments: Mapping[str, Any], call_type: str, reply: Any) -> Any:  # noqa: ANN401 - the protocol's own
        """Expand a reply; None if it is no reply to a call that was prepared here.

        Raises:
            RequestRefused: a plugin keeps the reply from the caller.
        """
        logged = arguments.get("litellm_logging_obj")
        call = None if logged is None else self._calls.get(logged)
        if call is None or call.call_type != call_type:  # a bridge logs what it calls with the same object
            return None
        del self._calls[logged]
        return await call.request.finish(call.exchange, reply)

    def are_ours(self, messages: list[Message]) -> bool:
        """Whether a call says what one of ours is sending: then it is that one, in another protocol."""
        said = _texts(messages)
        return any(said == _texts(call.exchange.messages) for call in list(self._calls.values()))


def _texts(messages: list[Message]) -> list[str]:
    """All texts of messages, however they are put together."""
    contents = [message.get("content") for message in messages]
    parts = [[content] if isinstance(content, str) else content or [] for content in contents]
    texts = [part if isinstance(part, str) else part.get("text") for content in parts for part in content]
    return sorted(text for text in texts if isinstance(text, str) and text)
