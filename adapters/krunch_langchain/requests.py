"""A chat model's call: whose it is, what Krunch wants to know about it, and the messages that are sent."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.runnables.config import ensure_config

from krunch_langchain.messages import LazyMetadata, from_openai, openai_form, with_changes
from krunch_plugins import RequestRefused, restore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig

    from krunch_langchain.messages import Message
    from krunch_plugins import Exchange, Krunch

log = logging.getLogger("krunch")

OWNER = "krunch_owner"
"""The keyword argument that carries an `Owner` from a model's public methods to those that make the call."""

_MODEL_NAMES = ("model_name", "model", "model_id", "deployment_name", "model_path")
_SESSION_NAMES = ("session_id", "conversation_id")
_OF_ONE_SESSION = frozenset({"recall"})
"""Krunch's own plugins that put into a request what only its session holds."""
_TOOL_NODE = "tools:"
"""How the namespace of what runs inside an agent's tool begins, in LangGraph."""


class Owner(NamedTuple):
    """Whose a call is.

    Attributes:
        session: the conversation's id, or None.
        tenant: who owns the session, or None.
    """

    session: str | None
    tenant: str | None


class Call(NamedTuple):
    """A call that Krunch serves.

    Attributes:
        exchange: its request and reply.
        messages: what to send.
    """

    exchange: Exchange
    messages: list[BaseMessage]


def owner_of(config: RunnableConfig | None, session: str | None, tenant: str | None, *, in_tool: bool = False) -> Owner:
    """Whose a call with this config is.

    The session is, in this order: `session_id` or `conversation_id` in the config's `configurable` or `metadata`; the
    argument; LangGraph's `thread_id`. Inside an agent's tool, the thread's id alone would mix what a subagent says, or
    a model that the tool asks, with the agent's own conversation: it gets the tool call's namespace, too.

    Args:
        config: the call's config, or None; what runs around the call is asked, too.
        session: the argument that the model was wrapped with.
        tenant: likewise. It is only read from `configurable` where the argument is None.
        in_tool: the one who asks runs in a tool's node, on behalf of the agent.
    """
    config = ensure_config(config)
    configurable = config.get("configurable") or {}
    places: list[Mapping[str, Any]] = [configurable, config.get("metadata") or {}]
    own = tenant if tenant is not None else configurable.get("tenant")
    names = [place[name] for place in places for name in _SESSION_NAMES if place.get(name) is not None]
    if not names and session is None:
        names = [place["thread_id"] for place in places if place.get("thread_id") is not None]
        names = [_of_thread(name, configurable, in_tool=in_tool) for name in names]
    found = names[0] if names else session
    return Owner(None if found is None else str(found), None if own is None else str(own))


def prepared(
    krunch: Krunch, model: BaseChatModel, messages: Sequence[BaseMessage], owner: Owner, options: Mapping[str, Any]
) -> Call | None:
    """The call, compressed; None if that failed: then it goes out as it came.

    Args:
        krunch: who serves it.
        model: the model that is called in the end.
        messages: the request's messages.
        owner: whose it is.
        options: what else the model is called with.

    Raises:
        RequestRefused: a plugin stopped the call.
    """
    try:
        forms = [openai_form(message) for message in messages]
        exchange = krunch.prepare(forms, **_facts(model, messages, owner, options))
        return Call(exchange, to_send(messages, forms, exchange.messages))
    except RequestRefused:
        raise
    except Exception as error:  # noqa: BLE001 - Krunch never turns a working call into a failing one
        log.warning("preparing a request failed with %s; it goes out as it came", type(error).__name__)
        return None


async def aprepared(
    krunch: Krunch, model: BaseChatModel, messages: Sequence[BaseMessage], owner: Owner, options: Mapping[str, Any]
) -> Call | None:
    """`prepared` for async callers."""
    try:
        forms = [openai_form(message) for message in messages]
        exchange = await krunch.aprepare(forms, **_facts(model, messages, owner, options))
        return Call(exchange, to_send(messages, forms, exchange.messages))
    except RequestRefused:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("preparing a request failed with %s; it goes out as it came", type(error).__name__)
        return None


def to_send(messages: Sequence[BaseMessage], forms: Sequence[Message], sent: Sequence[Message]) -> list[BaseMessage]:
    """LangChain's messages of what is sent: the caller's own, changed where Krunch or a plugin changed them.

    Args:
        messages: the caller's messages.
        forms: their OpenAI forms.
        sent: what became of these; plugins may have put messages in or taken some out.
    """
    if len(sent) == len(forms) and all(map(_same_place, forms, sent)):
        return [with_changes(*one, only_blocks=True) for one in zip(messages, forms, sent, strict=True)]
    out: list[BaseMessage] = []
    start = 0
    for now, plain in zip(sent, restore(sent), strict=True):
        rest = range(start, len(forms))
        place = next((index for index in rest if forms[index] == plain or _same_call(forms[index], plain)), None)
        if place is None:
            out.append(from_openai(now))
        else:
            out.append(with_changes(messages[place], forms[place], now, only_blocks=True))
            start = place + 1
    return out


def cache_salt(krunch: Krunch, owner: Owner) -> str:
    """What a key in LangChain's cache needs beside the messages as the caller gives them; "" for most.

    Replies are cached expanded, so what is cached without Krunch is right with it, and the other way round. But what
    plugins add to a request, or make of its reply, may be meant for one session alone.
    """
    if owner.session is None and owner.tenant is None:
        return ""
    if all(plugin.builtin and plugin.name not in _OF_ONE_SESSION for plugin in krunch.plugins()):
        return ""
    facts = json.dumps(owner).encode("utf-8", "surrogatepass")
    return f"---krunch:{hashlib.sha256(facts).hexdigest()[:32]}"


def model_name(model: BaseChatModel, options: Mapping[str, Any]) -> str:
    """The name by which the tokenizer and the prices of a model are found."""
    asked = options.get("model") or options.get("model_name")
    if isinstance(asked, str):
        return asked
    for name in _MODEL_NAMES:
        value = getattr(model, name, None)
        if isinstance(value, str) and value:
            return value.removeprefix("models/")
    told = model._get_ls_params(**options).get("ls_model_name")  # noqa: SLF001 - where models say their name to tracers
    return told or model._llm_type  # noqa: SLF001 - the last resort


def _facts(
    model: BaseChatModel, messages: Sequence[BaseMessage], owner: Owner, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What `Krunch.prepare` takes beside the messages."""
    tools = [*(options.get("tools") or ()), *(options.get("functions") or ())]
    return {
        "model": model_name(model, options),
        "session": owner.session,
        "tenant": owner.tenant,
        "tools": [tool if isinstance(tool, dict) else {"tool": str(tool)} for tool in tools] or None,
        "json_reply": _is_json(options) or _is_json(getattr(model, "model_kwargs", None) or {}),
        "turn_metadata": LazyMetadata(messages) if owner.session is not None else None,
    }


def _is_json(options: Mapping[str, Any]) -> bool:
    """Whether the reply was asked to be one JSON document, in the words of OpenAI, Ollama, Google or Anthropic."""
    wanted = options.get("response_format") or options.get("output_format") or options.get("text_format")
    if isinstance(wanted, dict):
        return wanted.get("type") in {"json_object", "json_schema"}
    if isinstance(wanted, type) or options.get("response_mime_type") == "application/json":
        return True
    return options.get("format") == "json" or isinstance(options.get("format"), dict)


def _of_thread(thread: object, configurable: Mapping[str, Any], *, in_tool: bool) -> str:
    namespace = str(configurable.get("checkpoint_ns") or "").split("|")
    namespace = namespace[:-1] if in_tool else namespace
    inside = [place for place, part in enumerate(namespace) if part.startswith(_TOOL_NODE)]
    return "|".join([str(thread), *namespace[: inside[-1] + 1]]) if inside else str(thread)


def _same_call(one: Message, other: Message) -> bool:
    """Whether both are the same tool calls, or the result of the same; a plugin may have changed what they say."""
    if one.get("role") != other.get("role"):
        return False
    numbers = [[message.get("tool_call_id"), *_call_ids(message)] for message in (one, other)]
    return numbers[0] == numbers[1] and any(numbers[0])


def _call_ids(message: Message) -> list[Any]:
    return [call.get("id") for call in message.get("tool_calls") or () if isinstance(call, dict)]


def _same_place(before: Message, after: Message) -> bool:
    return before.get("role") == after.get("role") and before.get("tool_call_id") == after.get("tool_call_id")
