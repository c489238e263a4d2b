"""`KrunchMemory`: what of a conversation goes into the next prompt, within a budget of tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import ensure_config
from langchain_core.runnables.utils import ConfigurableFieldSpec

from krunch_langchain.history import KrunchChatMessageHistory
from krunch_langchain.history_turns import Claims, belongs, came_back, message_of, order_of
from krunch_langchain.messages import from_openai
from krunch_langchain.shared import krunch_and_store

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from krunch_plugins import ConversationStore, Krunch, Turn
    from krunch_plugins.turns import Message

Mode = Literal["recent", "full", "smart"]

_SESSION_FIELDS = ("session_id", "thread_id")
_HEAD, _SPARE = 64, 64
"""Turns at a session's beginning and end that a context's messages are looked for among, beside as many as it has."""


class KrunchMemory(Runnable[Any, list[BaseMessage]]):
    """A conversation's memory for a prompt with a placeholder: loads what matters, and saves what was said.

    As a runnable it takes the chain's input and gives the messages for the placeholder:

        chain = RunnablePassthrough.assign(history=KrunchMemory("ann")) | prompt | model

    Args:
        session_id: the conversation; None: `session_id` or `thread_id` names it, in the config of the call or of what
            runs around it.
        mode: "recent", the last messages that fit; "full", all there are; "smart", the last ones, and what of the older
            ones matters for the question, quoted in one message.
        budget: tokens that "recent" and "smart" may take.
        input_key: where in an input that is a dict the question stands; None: "input", "question" or the only text.
        krunch: who makes contexts; default: one for each store in a process.
        store: where the conversation is; default `krunch`'s, else `shared_store()`.
        tenant: who owns the session.

    Raises:
        ValueError: `krunch` has another store.
    """

    def __init__(  # noqa: PLR0913 - each is a choice of its own, given by name
        self,
        session_id: str | None = None,
        *,
        mode: Mode = "smart",
        budget: int = 2000,
        input_key: str | None = None,
        krunch: Krunch | None = None,
        store: ConversationStore | None = None,
        tenant: str | None = None,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}; a memory is 'recent', 'full' or 'smart'")
        self.session_id, self.mode, self.budget, self.input_key, self.tenant = (
            session_id, mode, budget, input_key, tenant
        )  # fmt: skip
        self.krunch, self.store = krunch_and_store(krunch, store)

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What a call's config must say: the session, unless it was given."""
        if self.session_id is not None:
            return []
        return [ConfigurableFieldSpec(id=_SESSION_FIELDS[0], annotation=str, name="Session ID", is_shared=True)]

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> list[BaseMessage]:  # noqa: A002, ANN401, ARG002 - LangChain's signature
        """The messages for a chain's input: a text, messages, or a dict with one of them."""
        session = self._session(config)
        return self._call_with_config(lambda given: self.load(self._question(given), session=session), input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> list[BaseMessage]:  # noqa: A002, ANN401, ARG002 - LangChain's signature
        """`invoke`, in a worker thread."""
        session = self._session(config)

        async def load(given: Any) -> list[BaseMessage]:  # noqa: ANN401 - any input
            return await self.aload(self._question(given), session=session)

        return await self._acall_with_config(load, input, config)

    def load(self, query: str | None = None, *, session: str | None = None) -> list[BaseMessage]:
        """The messages that go into the next prompt.

        Args:
            query: what is asked next; None: what the user said last. Only "smart" looks at it.
            session: another conversation than the memory's own.

        Raises:
            StoreError: the store could not be read.
            ValueError: there is no session.
        """
        name = self._named(session)
        if self.mode == "full":
            return KrunchChatMessageHistory(name, store=self.store, tenant=self.tenant).messages
        context = self.krunch.context(name, self.mode, query=query, budget=self.budget, tenant=self.tenant)
        return self._originals(name, context)

    async def aload(self, query: str | None = None, *, session: str | None = None) -> list[BaseMessage]:
        """`load`, in a worker thread."""
        return await asyncio.to_thread(self.load, query, session=session)

    def save(self, inputs: Any, outputs: Any, *, session: str | None = None) -> None:  # noqa: ANN401 - what chains take and give
        """Append what was asked and answered: texts, messages, lists of them, or dicts with one of these.

        What a wrapped model recorded of it already is not stored again.

        Raises:
            NotStorable: something in it cannot be stored; nothing was.
            StoreError: it could not be stored.
        """
        history = KrunchChatMessageHistory(self._named(session), store=self.store, tenant=self.tenant)
        asked = _messages(self._picked(inputs), HumanMessage)
        history.add_messages([*asked, *_messages(self._picked(outputs, ("output", "answer")), AIMessage)])

    async def asave(self, inputs: Any, outputs: Any, *, session: str | None = None) -> None:  # noqa: ANN401 - as `save`
        """`save`, in a worker thread."""
        await asyncio.to_thread(self.save, inputs, outputs, session=session)

    def clear(self, *, session: str | None = None) -> None:
        """Remove the whole session and every trace of it on disk."""
        self.store.forget(self._named(session), tenant=self.tenant)

    async def aclear(self, *, session: str | None = None) -> None:
        """`clear`, in a worker thread."""
        await asyncio.to_thread(self.clear, session=session)

    def _originals(self, session: str, context: Sequence[Message]) -> list[BaseMessage]:
        """LangChain's messages of a context: the originals of turns that are in it whole, others as they are said.

        A prompt that a chain brought along, or what a template made of a question, is left out: it will come again.
        """
        info = self.store.info(session, self.tenant)
        if info is None:
            return [from_openai(message) for message in context]
        start = max(info.first, info.stop - 2 * len(context) - _SPARE)
        head = range(info.first, min(info.first + _HEAD, start))
        turns = self.store.turns(session, start, info.stop, tenant=self.tenant)
        turns = [*self.store.turns(session, head.start, head.stop, tenant=self.tenant), *turns]
        claims = Claims.read(self.store, session, self.tenant, range(start, info.stop))
        if head:
            claims.merge(Claims.read(self.store, session, self.tenant, head))
        found: list[tuple[Turn | None, BaseMessage]] = []
        at, in_use, again = len(turns), claims.in_use(turns), came_back(turns, claims)
        for message in reversed(context):
            place = next((index for index in reversed(range(at)) if turns[index].message == message), None)
            if place is None:
                found.append((None, from_openai(message)))
                continue
            at = place
            turn = turns[place]
            if turn.number not in again and belongs(turn, claims, in_use=in_use):
                found.append((turn, message_of(turn, claims)))
        return _in_order(found[::-1])

    def _session(self, config: RunnableConfig | None) -> str | None:
        """The conversation that a chain means."""
        if self.session_id is not None:
            return self.session_id
        names = ensure_config(config).get("configurable") or {}
        return next((str(names[field]) for field in _SESSION_FIELDS if names.get(field)), None)

    def _named(self, session: str | None) -> str:
        name = self.session_id if session is None else session
        if name is None:
            raise ValueError(
                "KrunchMemory knows no session: give it a session_id, or call it with "
                'config={"configurable": {"session_id": "..."}}'
            )
        return name

    def _picked(self, value: Any, keys: Sequence[str] = ("input", "question")) -> Any:  # noqa: ANN401 - any input
        """What an input or output means, if it is a dict."""
        if not isinstance(value, Mapping):
            return value
        if self.input_key in value:
            return value[self.input_key]
        named = [value[key] for key in keys if key in value]
        said = named or [each for each in value.values() if isinstance(each, (str, BaseMessage))]
        if named or len(said) == 1:
            return said[0]
        raise ValueError(f"which of {sorted(value)} is what was said? Give KrunchMemory an input_key, or pass it alone")

    def _question(self, value: Any) -> str | None:  # noqa: ANN401 - any input
        """The text of what is asked."""
        if self.mode != "smart":
            return None
        picked = self._picked(value)
        asked = [message for message in _messages(picked, HumanMessage) if message.type == "human"]
        return str(asked[-1].text) if asked else None


def _in_order(found: Sequence[tuple[Turn | None, BaseMessage]]) -> list[BaseMessage]:
    """The messages, those that are turns in the history's order; what is none stays behind what it stood behind."""
    places: list[tuple[int, int, int]] = []
    for turn, _ in found:
        before = places[-1] if places else (-1, 0, 0)
        places.append(before if turn is None else order_of(turn))
    return [found[index][1] for index in sorted(range(len(found)), key=places.__getitem__)]


def _messages(value: Any, kind: type[HumanMessage | AIMessage]) -> list[BaseMessage]:  # noqa: ANN401 - what chains give
    """Messages of a text, a message, a list of messages, or a prompt."""
    if isinstance(value, str):
        return [kind(value)]
    if isinstance(value, BaseMessage):
        return [value]
    said = value.to_messages() if hasattr(value, "to_messages") else value
    if isinstance(said, Sequence) and all(isinstance(each, BaseMessage) for each in said):
        return list(said)
    raise TypeError(f"{type(value).__name__} is neither text nor messages")
