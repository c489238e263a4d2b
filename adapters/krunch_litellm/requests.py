"""LiteLLM's call arguments: what Krunch reads from them, and what it puts in their place."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self

import litellm
from pydantic import BaseModel

from krunch_litellm.hosted import acts_elsewhere
from krunch_litellm.identity import MAX_SESSION, first_session
from krunch_plugins import restore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from krunch_plugins import Exchange, Krunch


log = logging.getLogger("krunch")


@dataclass(slots=True, eq=False)
class Call:
    """A call that Krunch serves.

    Attributes:
        exchange: its request and reply.
        served_by: who expands the reply: the code around the call, or one callback object.
        expanded: the reply is expanded, or its stream is in the hands that expand it.
    """

    exchange: Exchange
    served_by: object
    expanded: bool = False


class SentMessages(list[Any]):
    """The messages that are sent, with the call they belong to.

    The type is the mark by which a request that was prepared already is known again: in nested calls, other threads,
    and deep copies. Where LiteLLM copies the messages into a list of its own, `says` tells. (Rejected: a marker among
    the arguments, which would go upstream or into other people's logs.)

    Attributes:
        call: the call, shared by all copies.
        put_back: the list was turned into an ordinary one by `send_plain`.
    """

    def __init__(self, messages: Iterable[Any], call: Call) -> None:
        super().__init__(messages)
        self.call, self.put_back = call, False

    def send_plain(self) -> None:
        """Put back what compression changed, in place: whoever holds this list sends it uncompressed from now on."""
        self[:] = restore(self.call.exchange.messages)
        self.put_back = True

    @property
    def is_open(self) -> bool:
        """Whether a call with these messages is on its way, prepared, and its reply not yet expanded."""
        return not self.put_back and not self.call.expanded

    def says(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether `messages` have the same contents."""
        mine = [message.get("content") for message in self.call.exchange.messages]
        return mine == [message.get("content") for message in messages]

    def __copy__(self) -> Self:
        return self._with(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._with(copy.deepcopy(list(self), memo))

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return list, (list(self),)  # a call belongs to its process

    def _with(self, messages: Iterable[Any]) -> Self:
        twin = type(self)(messages, self.call)
        twin.put_back = self.put_back
        return twin


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What Krunch wants to know about a call.

    Attributes:
        given: the messages as the caller gave them, dicts or objects such as `litellm.Message`.
        messages: the same as dicts, each made as LiteLLM itself would make it.
        model: the model's name.
        session: the conversation's id, from `metadata["session_id"]` or `litellm_session_id`.
        tools: tool definitions, old-style `functions` among them.
        json_reply: the reply's text was asked to be one JSON document.
    """

    given: Sequence[Any]
    messages: list[dict[str, Any]]
    model: str
    session: str | None
    tools: list[dict[str, Any]] | None
    json_reply: bool

    @classmethod
    def read(cls, arguments: Mapping[str, Any], inside: SentMessages | None = None) -> Self | None:
        """The request in a call's named arguments.

        Args:
            arguments: the arguments, by name.
            inside: what the call sends that this one is made in, if it is made in one.

        Returns:
            None if there is nothing to do: the messages are prepared already, it is the sync leg of LiteLLM's own
            async call, these are no arguments that Krunch understands, or tools are run where nothing could expand
            what they are called with.
        """
        given, model = arguments.get("messages"), arguments.get("model")
        if arguments.get("acompletion") is True or (isinstance(given, SentMessages) and given.is_open):
            return None
        if not isinstance(model, str) or not isinstance(given, (list, tuple)) or not given or acts_elsewhere(arguments):
            return None
        messages = [as_dict(message) for message in given]
        if not all(isinstance(message, dict) for message in messages):
            return None
        if inside is not None and inside.says(messages):
            return None
        tools = [*(arguments.get("tools") or ()), *(arguments.get("functions") or ())]
        return cls(
            given=given,
            messages=messages,
            model=model,
            session=session_of(arguments),
            tools=[as_dict(tool) for tool in tools] or None,
            json_reply=is_json(arguments.get("response_format")),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What `Krunch.prepare` takes beside the messages."""
        return {
            "model": self.model,
            "session": self.session,
            "tools": self.tools,
            "json_reply": self.json_reply,
        }

    def to_send(self, exchange: Exchange, served_by: object) -> SentMessages:
        """The list to send; messages that did not change are the caller's own objects."""
        sent = exchange.messages
        if len(sent) == len(self.given):
            sent = [
                given if now == before else now
                for given, before, now in zip(self.given, self.messages, sent, strict=True)
            ]
        return SentMessages(sent, Call(exchange, served_by))

    def replaced(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sent: SentMessages,
        krunch: Krunch,
        form: Literal["wire", "plain"],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments with the messages to send and, if one is needed, a namespace for LiteLLM's cache.

        Args:
            args: the positional arguments as they came.
            kwargs: the named arguments as they came; not changed.
            sent: what to send.
            krunch: who prepared it.
            form: what the cache will hold: replies as the model wrote them, or expanded ones.
        """
        namespace = cache_namespace(krunch, sent.call.exchange, self.messages, kwargs, form)
        if namespace is not None:
            kwargs = {**kwargs, **within(namespace, kwargs)}
        if len(args) > 1:
            return (args[0], sent, *args[2:]), kwargs
        return args, {**kwargs, "messages": sent}


def cache_namespace(
    krunch: Krunch,
    exchange: Exchange,
    given: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
    form: Literal["wire", "plain"],
) -> str | None:
    """The namespace that a request's entries need in `litellm.cache`, or None if they need none.

    What is sent can be the same for two conversations while what it stands for is not (a plugin's tokens; any symbol in
    a cache that looks for similar prompts), and what outside plugins make of a reply may be meant for one session
    alone. A request that went out as it came is cached as if Krunch were not there.

    Args:
        krunch: who prepared it.
        exchange: the prepared request.
        given: its messages before.
        arguments: the call's arguments.
        form: what the cache will hold: replies as the model wrote them, or expanded ones.
    """
    if litellm.cache is None and not arguments.get("caching"):
        return None
    touched = exchange.messages != given or exchange.symbols or exchange.substitutions
    if not touched and all(plugin.builtin for plugin in krunch.plugins()):
        return None
    return own_namespace(exchange, arguments, form)


def own_namespace(exchange: Exchange, arguments: Mapping[str, Any], form: Literal["wire", "plain"]) -> str:
    """A namespace in `litellm.cache` for what this session sends, within the one that the caller asked for."""
    facts = [form, exchange.tenant, exchange.session, dict(exchange.symbols), exchange.substitutions]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    metadata = arguments.get("metadata")
    outer = (
        (arguments.get("cache") or {}).get("namespace")
        or (metadata.get("redis_namespace") if isinstance(metadata, dict) else None)
        or getattr(litellm.cache, "namespace", None)
    )
    return f"{outer}:krunch:{digest}" if outer else f"krunch:{digest}"


def within(namespace: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a call says instead, so that LiteLLM's cache keeps its reply in a namespace.

    LiteLLM takes a `cache_key` for the whole key, without a namespace: so it is one within the namespace from here on.
    A key that LiteLLM would take from `litellm_params` is its own note of what it has made out, so none is let in.

    Args:
        namespace: of `own_namespace`.
        arguments: the call's arguments; not changed.
    """
    out: dict[str, Any] = {"cache": {**(arguments.get("cache") or {}), "namespace": namespace}}
    if arguments.get("cache_key") is not None:
        out["cache_key"] = f"{namespace}:{arguments['cache_key']}"
    noted = arguments.get("litellm_params")
    if isinstance(noted, dict) and noted.get("preset_cache_key") is not None:
        out["litellm_params"] = {name: value for name, value in noted.items() if name != "preset_cache_key"}
    return out


def named(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call by name, positional ones too."""
    if not args:
        return kwargs
    return {**dict(zip(_parameters(function), args, strict=False)), **kwargs}


def as_dict(value: Any) -> Any:  # noqa: ANN401 - whatever the caller put into its list
    """A dict of a pydantic object, as LiteLLM makes it of messages; everything else as it is."""
    return value.model_dump(exclude_none=True) if isinstance(value, BaseModel) else value


@lru_cache(maxsize=16)
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    names = tuple(inspect.signature(function).parameters)
    # Somebody's replacement may hide the signature; model and messages come first in all of them.
    return names if names[:2] == ("model", "messages") else ("model", "messages")


def session_of(arguments: Mapping[str, Any]) -> str | None:
    """The conversation's id in a call's arguments, or None.

    What cannot be an id is passed over, with a warning: to be served without a session is not what its caller expects.
    """
    metadata = arguments.get("metadata")
    given = (metadata.get("session_id") if isinstance(metadata, dict) else None, arguments.get("litellm_session_id"))
    session, ignored = first_session(one for one in given if one is not None)
    if ignored:
        log.warning("a session_id was ignored: one is a string of 1 to %d characters, or a number", MAX_SESSION)
    return session


def is_json(response_format: object) -> bool:
    """Whether a request's `response_format` asks for one JSON document."""
    if isinstance(response_format, dict):
        return response_format.get("type") in {"json_object", "json_schema"}
    return isinstance(response_format, type)  # a pydantic class, which LiteLLM turns into a JSON schema
