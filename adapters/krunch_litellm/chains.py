"""Responses that go on from an earlier one, whose messages the provider holds: `previous_response_id`.

What the provider holds was sent by us: compressed, with its legends. So a new message may use what those define, if we
know what they define, and must define nothing itself: two requests can go on from one response, and neither would know
of the other's definitions. With a history store and a session, what was sent is kept with each response, and the new
messages are encoded behind it. Else only their JSON is folded.

`instructions` are not carried over from one response to the next. So where a request can be gone on from (`store` is
not false) nothing may lean on them: they are sent as they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakSet

from krunch_litellm.wire.fields import get
from krunch_plugins import Exchange, Report
from krunch_plugins.errors import StoreError
from krunch_plugins.turns import characters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunch_litellm.identity import Identity
    from krunch_litellm.wire import WireRequest
    from krunch_plugins import Krunch
    from krunch_plugins.turns import Message

_REMEMBERED = 32_000_000
"""Characters of requests that a process remembers, to expand what comes after the responses to them."""
_LONGEST = 1000
"""Responses in a chain; one that is longer is treated as if it were not known."""


@dataclass(frozen=True, slots=True)
class _Link:
    """A response and the request that it answered, as the store keeps them.

    Attributes:
        previous: the response that the request went on from.
        messages: the request's own messages, as the client gave them.
        reply: the response as a chat message.
        tools: the tool definitions of the chain's first request: symbols were chosen so that these hold none of them.
        digest: of the messages as they were sent.
    """

    previous: str | None
    messages: list[Message]
    reply: Message
    tools: list[Any] | None
    digest: str


_Known = TypeVar("_Known", Exchange, _Link)
_Key = tuple[type[Exchange] | type[_Link], str | None, str]
"""What it is, whose it is, and the response's id."""


@dataclass(frozen=True, slots=True)
class _Remembered:
    """What is known of a response, whose session it is of, and how many characters it holds."""

    known: Exchange | _Link
    session: str | None
    size: int


class Chains:
    """What this process remembers of responses, by tenant and id; the least recently used goes first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[_Key, _Remembered] = OrderedDict()
        self._size = 0
        _all.add(self)

    def reader(self, tenant: str | None, response_id: str) -> Exchange | None:
        """An exchange that expands what the model says in or after a response; None if it is not remembered."""
        found = self._get(Exchange, tenant, response_id)
        return None if found is None else found[0]

    def remember(self, tenant: str | None, response_id: str, exchange: Exchange) -> None:
        """Keep what expands a response."""
        symbols = dict(exchange.symbols)
        if not symbols and not exchange.substitutions:
            return  # nothing that could need expansion
        # What expands a reply may hold on to the whole request.
        size = sum(map(characters, exchange.messages)) + sum(map(len, symbols.values()))
        bare = replace(exchange, messages=[], original=[], tools=None, session=None, report=Report(), conversation=None,
                       metadata={}, turn_metadata=None, no_definitions=frozenset(), symbols=symbols)  # fmt: skip
        self._put((Exchange, tenant, response_id), _Remembered(bare, exchange.session, size))

    def link(self, tenant: str | None, session: str, response_id: str) -> _Link | None:
        """What the store keeps of a response in a session; None if it is not remembered."""
        found = self._get(_Link, tenant, response_id)
        return found[0] if found is not None and found[1] == session else None

    def remember_link(self, tenant: str | None, session: str, response_id: str, link: _Link) -> None:
        """Keep what the store has of a response, so that it need not be read again."""
        size = sum(map(characters, link.messages)) + characters(link.reply)
        self._put((_Link, tenant, response_id), _Remembered(link, session, size))

    def forget(self, tenant: str | None, session: str | None) -> None:
        """Forget the responses of a session, of a tenant (no session), or all of them (neither)."""
        with self._lock:
            for key, one in tuple(self._held.items()):
                if tenant in {None, key[1]} and session in {None, one.session}:
                    self._drop(key)

    def size(self, tenant: str | None = None) -> int:
        """Characters that are held, of all tenants or of one."""
        if tenant is None:
            return self._size
        with self._lock:
            return sum(one.size for (_, owner, _), one in self._held.items() if owner == tenant)

    def _get(self, kind: type[_Known], tenant: str | None, response_id: str) -> tuple[_Known, str | None] | None:
        with self._lock:
            found = self._held.get((kind, tenant, response_id))
            if found is None:
                return None
            self._held.move_to_end((kind, tenant, response_id))
        return cast("_Known", found.known), found.session

    def _put(self, key: _Key, one: _Remembered) -> None:
        with self._lock:
            self._drop(key)
            self._held[key] = one
            self._size += one.size
            while self._size > _REMEMBERED:
                self._drop(next(iter(self._held)))

    def _drop(self, key: _Key) -> None:
        """Forget one, if it is there; the lock is held."""
        dropped = self._held.pop(key, None)
        self._size -= 0 if dropped is None else dropped.size


_all: WeakSet[Chains] = WeakSet()
"""All there are, so that none is left out when something is to be forgotten."""


def forget(tenant: str | None, session: str | None) -> None:
    """`Chains.forget`, of all there are."""
    for chains in tuple(_all):
        chains.forget(tenant, session)


def memory_kb(tenant: str | None = None) -> float:
    """KiB that all there are hold, at a byte for each character, of all tenants or of one."""
    return sum(chains.size(tenant) for chains in tuple(_all)) / 1024


class Chain:
    """One request to /v1/responses, and what it goes on from.

    Args:
        chains: what this process remembers.
        krunch: who prepares the request.
        data: its arguments.
        identity: whose it is.
    """

    def __init__(self, chains: Chains, krunch: Krunch, data: Mapping[str, Any], identity: Identity) -> None:
        self._chains, self._krunch, self._identity = chains, krunch, identity
        given = data.get("previous_response_id")
        self._previous = own_id(given) if isinstance(given, str) and given else None
        self._held = self._previous is not None or data.get("conversation") is not None
        self._kept = data.get("store") is not False
        self._tools: list[Any] | None = None
        self._tail: list[Message] = []
        self._sent: list[Message] = []
        self._known = True
        """What comes before the request is known: nothing, or what the store has."""
        self._oldest = 0

    async def aprepare(self, request: WireRequest, facts: dict[str, Any]) -> Exchange:
        """Prepare the request; what is to be sent of the exchange's messages are the last `len(request.messages)`.

        Args:
            request: the request.
            facts: what `Krunch.prepare` takes beside the messages.

        Raises:
            RequestRefused: a plugin stopped it.
        """
        self._tail, self._tools = request.messages, facts["tools"] and list(facts["tools"])
        if self._kept and self._krunch.store is not None and self._identity.session is not None:
            self._oldest = await asyncio.to_thread(self._oldest_turn)
        if not self._held:
            exchange = await self._krunch.aprepare(request.messages, **facts)
            self._sent = exchange.messages
            return exchange
        links = await asyncio.to_thread(self._links)
        behind = None if links is None else await self._behind(links, facts)
        return await self._alone(request, facts) if behind is None else behind

    async def note(self, reply: Any, message: Message | None, exchange: Exchange) -> None:  # noqa: ANN401 - LiteLLM's own
        """Keep what a request that goes on from this response has to know.

        Args:
            reply: the response.
            message: the same as a chat message, as the client got it.
            exchange: the request that it answers.
        """
        given = get(reply, "id")
        if not self._kept or not isinstance(given, str) or message is None:
            return
        response_id = own_id(given)
        self._chains.remember(self._identity.tenant, response_id, exchange)
        if self._known and self._krunch.store is not None and self._identity.session is not None:
            link = _Link(self._previous, self._tail, message, self._tools, _digest(self._sent))
            await asyncio.to_thread(self._put, response_id, link)

    async def _behind(self, links: Sequence[_Link], facts: dict[str, Any]) -> Exchange | None:
        """The request's messages encoded behind those that the provider has; None if it has others than we would send.

        That is so if the settings or the model have changed since.
        """
        before: list[Message] = []
        nothing: set[int] = set()
        stretches: list[tuple[int, int, str]] = []
        for number, link in enumerate(links):
            stretches.append((len(before), len(before) + len(link.messages), link.digest))
            if number:
                nothing.update(range(len(before), len(before) + len(link.messages)))
            before += link.messages
            nothing.add(len(before))
            before.append(link.reply)
        nothing.update(range(len(before), len(before) + len(self._tail)))
        self._tools = links[0].tools
        exchange = await self._krunch.aprepare(
            [*before, *self._tail], **{**facts, "tools": self._tools}, no_definitions=frozenset(nothing)
        )
        if len(exchange.messages) != len(before) + len(self._tail):
            return None
        if any(_digest(exchange.messages[start:stop]) != digest for start, stop, digest in stretches):
            return None
        self._sent = exchange.messages[len(before) :]
        return exchange

    async def _alone(self, request: WireRequest, facts: dict[str, Any]) -> Exchange:
        """The request's messages with nothing before them that is known; their JSON is folded."""
        self._known = False
        nothing = frozenset(range(len(request.messages)))
        exchange = await self._krunch.aprepare(request.messages, **facts, no_definitions=nothing)
        reader = self._chains.reader(self._identity.tenant, self._previous) if self._previous else None
        if reader is not None:  # the model may still use what it was told before
            exchange.meanings, exchange.symbols = reader.meanings, reader.symbols
            exchange.substitutions = {**reader.substitutions, **exchange.substitutions}
        return exchange

    def _links(self) -> list[_Link] | None:
        """The chain that the request goes on from, first response first; None if not all of it is known.

        The last response is always looked for in the store: what was forgotten there must not be known any more. What
        was before it is read once by each process.
        """
        store, session, tenant = self._krunch.store, self._identity.session, self._identity.tenant
        if store is None or session is None:
            return None
        out: list[_Link] = []
        following = self._previous
        while following is not None:
            link = self._chains.link(tenant, session, following) if out else None
            if link is None and len(out) < _LONGEST:
                data = store.get_state(session, _name(following), tenant=tenant)
                link = None if data is None else _Link(**json.loads(data))
                if link is not None:
                    self._chains.remember_link(tenant, session, following, link)
            if link is None or len(out) == _LONGEST:
                return None
            out.append(link)
            following = link.previous
        return out[::-1] or None

    def _oldest_turn(self) -> int:
        """The lowest number that any of the request's messages can have in the store, where they come or have come.

        What is kept of the exchange goes with that turn. A request that goes on from another brings only new messages;
        one that does not may bring some that are there.
        """
        store, session = self._krunch.store, self._identity.session
        if store is None or session is None:
            return 0
        try:
            info = store.info(session, self._identity.tenant)
        except StoreError:
            return 0  # the request goes on without; it is recorded, or not, later
        return 0 if info is None else max(info.stop - (0 if self._held else len(self._tail)), 0)

    def _put(self, response_id: str, link: _Link) -> None:
        store, session = self._krunch.store, self._identity.session
        if store is not None and session is not None:
            data = json.dumps({name: getattr(link, name) for name in link.__slots__}).encode()
            store.put_state(session, _name(response_id), data, tenant=self._identity.tenant, turn=self._oldest)


def own_id(response_id: str) -> str:
    """The id of a response as the proxy itself knows it: clients get it encrypted, each time in another way."""
    try:
        from litellm.proxy.hooks.responses_id_security import ResponsesIDSecurity

        return str(ResponsesIDSecurity()._decrypt_response_id(response_id)[0])  # noqa: SLF001 - there is no other way
    except Exception:  # noqa: BLE001 - not one of the proxy's, or another version of LiteLLM
        return response_id


def _name(response_id: str) -> str:
    return f"krunch_litellm.response {response_id}"


def _digest(messages: Sequence[Message]) -> str:
    texts = [message.get("content") for message in messages]
    return hashlib.sha256(json.dumps(texts, sort_keys=True, default=str).encode()).hexdigest()
