"""The protocols of the proxy's clients: each turns its requests and replies into chat messages and back.

One module per protocol. What they offer is the same, so that the proxy knows none of them by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_plugins import Exchange
    from krunch_plugins.turns import Message


class WireRequest(Protocol):
    """A request in one of the protocols.

    Attributes:
        messages: its messages in OpenAI's chat format, the one form that Krunch's core knows.
        tools: its tool definitions; counted and scanned, never changed.
        json_reply: the reply's text was asked to be one JSON document.
    """

    messages: list[Message]
    tools: Sequence[Mapping[str, Any]] | None
    json_reply: bool

    def arguments(self, exchange: Exchange) -> dict[str, Any]:
        """The request's arguments that change when the exchange's messages are sent, by name."""

    async def finish(self, exchange: Exchange, reply: Any) -> Any:  # noqa: ANN401 - the protocol's own
        """The reply for the client: a copy where anything changed."""

    def as_message(self, reply: Any) -> Message | None:  # noqa: ANN401 - the protocol's own
        """An expanded reply as a chat message, in protocols where a request can go on from a reply; else None."""

    def stream(self, exchange: Exchange) -> WireStream:
        """What expands one streamed reply."""

    def usage(self, reply: Any) -> Mapping[str, Any] | None:  # noqa: ANN401 - the protocol's own
        """What the provider counted, from a whole reply."""


class WireStream(Protocol):
    """Expands one streamed reply, item by item as LiteLLM yields them.

    Attributes:
        usage: what the provider counted, as far as the stream has told it.
        reply: the whole reply, expanded, in protocols whose streams repeat it at the end; else None.
    """

    reply: Any

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """See above."""

    def feed(self, item: Any) -> list[Any]:  # noqa: ANN401 - the protocol's own
        """Take one item; give back what is to be handed on. `item` is not changed.

        If expanding fails, what was held back goes out before the item; it and all later ones pass as they came.
        """

    async def end(self, *, partial: bool) -> list[Any]:
        """The stream is at its end: what was held back; the hooks run."""
