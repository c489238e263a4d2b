"""Agents: a middleware that compresses what goes to the model and records what is said, and leaves the state alone."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import BaseMessage, ToolMessage, convert_to_messages
from langgraph.types import Command

from krunch_langchain.messages import LazyMetadata, openai_form
from krunch_langchain.model import krunchify
from krunch_langchain.requests import owner_of
from krunch_plugins import Krunch, default_krunch
from krunch_plugins.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from langchain.agents.middleware import AgentState, ModelRequest, ModelResponse
    from langchain.tools.tool_node import ToolCallRequest
    from langchain_core.language_models import BaseChatModel
    from langgraph.runtime import Runtime

    from krunch_langchain.requests import Owner

log = logging.getLogger("krunch")

_MODELS = 16
"""Wrapped models that are kept for the next call; agents that choose among more make them anew."""

_PAIR = 2


@dataclass(frozen=True, slots=True)
class KrunchToolResults:
    """What `KrunchMiddleware` does with large results of tools.

    Such a result goes into the store, whole and with its artifact, as soon as the tool returns it: whatever trims,
    clears or sums up the state afterwards, the store has it. The request has it compressed, without loss, as always.

    Attributes:
        min_characters: how long a result must be to count as large.
    """

    min_characters: int = 2000


class KrunchMiddleware(AgentMiddleware):  # without its parameters, whose number has changed
    """Compresses the requests of an agent and records its conversation. The last of the list, so that it is innermost.

    - The model of each request is replaced by a `KrunchChatModel` around it. The state keeps plain messages, and so
      does whatever the agent streams.
    - The conversation is recorded under the thread's id (LangGraph's `thread_id`), each turn once: the input when the
      agent begins, each request and reply, and what came after the last of them when it ends. Without an id, or without
      a store, nothing is recorded. If recording fails, the agent goes on; the store counts it.
    - A subagent that runs in a tool has a session of its own: the thread's id and the tool call's namespace.
    - Where `krunch` recalls old turns (it has a store and `Settings.context_window`), they go into the request, before
      the last message of the user, never into the state.

    Args:
        krunch: who compresses; default: one per process, with settings from `KRUNCH_*` variables.
        session: the conversation's id, where the call's config names none.
        tenant: who owns the session.
        tool_results: what to do with large results of tools beside compressing them; None: nothing.
    """

    def __new__(cls, *_: Any, tool_results: KrunchToolResults | None = None, **__: Any) -> KrunchMiddleware:  # noqa: ANN401, PYI034 - as __init__ takes them
        """A middleware that wraps tool calls only if it has to: an agent looks at the class, and checks less then."""
        kind = _WithToolResults if tool_results is not None and cls is KrunchMiddleware else cls
        return super().__new__(kind)

    def __init__(
        self,
        krunch: Krunch | None = None,
        *,
        session: str | None = None,
        tenant: str | None = None,
        tool_results: KrunchToolResults | None = None,
    ) -> None:
        super().__init__()
        self._krunch, self._session, self._tenant = krunch, session, tenant
        self._tool_results = tool_results or KrunchToolResults()
        self._wrapped: dict[int, tuple[Any, Any]] = {}

    @property
    def name(self) -> str:
        """What the nodes of the agent's graph are called by."""
        return "KrunchMiddleware" if type(self) is _WithToolResults else type(self).__name__

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Call the model through Krunch."""
        try:
            return handler(request.override(model=self._around(request.model)))
        except BaseException:  # what was asked was asked, also where the call is interrupted
            self._record(_asked(request), self._owner())
            raise

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Call the model through Krunch."""
        try:
            return await handler(request.override(model=self._around(request.model)))
        except Exception:  # whatever the model raised: what was asked is recorded
            await asyncio.to_thread(self._record, _asked(request), self._owner())
            raise
        except BaseException:  # cancelled, or closed: awaiting more would keep whoever waits for the end of it
            self._record(_asked(request), self._owner())
            raise

    def before_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002 - LangChain's signature
        """Record what the user says, if the conversation has begun: its first turns come with the system prompt."""
        self._record(state["messages"], self._owner(), begun=True)
        return None

    async def abefore_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002 - as above
        """`before_agent`, off the event loop."""
        await asyncio.to_thread(self._record, state["messages"], self._owner(), begun=True)
        return None

    def after_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002 - as above
        """Record what no request to the model had in it: the last results of tools, say."""
        self._record(state["messages"], self._owner())
        return None

    async def aafter_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002 - as above
        """`after_agent`, off the event loop."""
        await asyncio.to_thread(self._record, state["messages"], self._owner())
        return None

    @property
    def _serving(self) -> Krunch:
        return self._krunch or default_krunch()

    def _owner(self, *, in_tool: bool = False) -> Owner:
        return owner_of(None, self._session, self._tenant, in_tool=in_tool)

    def _around(self, model: BaseChatModel) -> Any:  # noqa: ANN401 - a model, or what LangChain makes of one
        """The model with Krunch around it; the same one for the same model."""
        known = self._wrapped.get(id(model))
        if known is None or known[0] is not model:
            if len(self._wrapped) >= _MODELS:
                self._wrapped.clear()
            wrapped: Any = model
            try:
                wrapped = krunchify(model, self._krunch, session=self._session, tenant=self._tenant)
            except TypeError as error:  # an agent takes more kinds of models than can be wrapped; it goes on
                log.warning("an agent's requests are not compressed: %s", error)
            known = self._wrapped[id(model)] = (model, wrapped)
        return known[1]

    def _record(self, messages: Sequence[BaseMessage], owner: Owner, *, begun: bool = False) -> None:
        """Put what is new into the store; only of a conversation that it has turns of, with `begun`."""
        krunch = self._serving
        if owner.session is None or krunch.store is None:
            return
        try:
            if begun and not krunch.recent(owner.session, 1, tenant=owner.tenant):
                return
            forms = [openai_form(message) for message in messages]
            facts: dict[str, Any] = {"session": owner.session, "tenant": owner.tenant}
            krunch.record(forms, turn_metadata=LazyMetadata(messages), **facts)
        except Exception as error:  # noqa: BLE001 - recording never fails the agent
            if isinstance(error, (StoreError, OSError)):
                krunch.store.note_failure()
            log.warning("an agent's turns were not recorded: %s", type(error).__name__)


class _WithToolResults(KrunchMiddleware):
    """The middleware of an agent whose large tool results are recorded at once."""

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Record the result, if it is large."""
        result = handler(request)
        self._record_large(request, result)
        return result

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        """`wrap_tool_call`, recording off the event loop."""
        result = await handler(request)
        await asyncio.to_thread(self._record_large, request, result)
        return result

    def _record_large(self, request: ToolCallRequest, result: ToolMessage | Command[Any]) -> None:
        """Record what is large of a result; a tool may return anything, and it goes on whatever that is."""
        try:
            large = self._large(result)
            known = _messages(request.state) if large else []
        except Exception as error:  # noqa: BLE001 - it is for the graph to say what it cannot use
            log.warning("a tool's result was not recorded: %s", type(error).__name__)
            return
        if large:
            self._record([*known, *large], self._owner(in_tool=True))

    def _large(self, result: ToolMessage | Command[Any]) -> list[BaseMessage]:
        messages = _updated(result.update) if isinstance(result, Command) else [result]
        return [
            message
            for message in messages
            if isinstance(message, ToolMessage) and len(message.text) >= self._tool_results.min_characters
        ]


def _asked(request: ModelRequest[Any]) -> list[BaseMessage]:
    """What a request asks, the system prompt first: recorded when it fails, it is not recorded again by a retry."""
    prompt = request.system_message
    return list(request.messages) if prompt is None else [prompt, *request.messages]


def _updated(update: Any) -> list[BaseMessage]:  # noqa: ANN401 - a command's update, in any of its forms
    """The messages in a command's update: a dict, pairs of key and value, an object with fields, or none of these."""
    if isinstance(update, (list, tuple)) and all(
        isinstance(pair, tuple) and len(pair) == _PAIR and isinstance(pair[0], str) for pair in update
    ):
        return [message for key, value in update if key == "messages" for message in _messages(value)]
    return _messages(update)


def _messages(state: Any) -> list[BaseMessage]:  # noqa: ANN401 - a state or an update of one, in any of its forms
    """The messages of an agent's state, or of an update."""
    found: Any = state.get("messages") if isinstance(state, dict) else getattr(state, "messages", state)
    if isinstance(found, (str, BaseMessage)):
        found = [found]
    return convert_to_messages(list(found)) if isinstance(found, (list, tuple)) else []
