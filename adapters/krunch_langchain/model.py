"""The chat-model wrapper: smaller requests, exact replies; whatever works with the model inside works with it."""

# ruff: noqa: A002, ANN401, SLF001 - LangChain's signatures; the model inside does what LangChain asks this one to do
from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from langchain_core.utils.utils import LC_ID_PREFIX
from pydantic import Field

from krunch_langchain.bindings import KrunchConfigurable, with_models
from krunch_langchain.delegation import INHERITED, DelegatingChatModel
from krunch_langchain.replies import WholeReply
from krunch_langchain.requests import OWNER, Owner, aprepared, cache_salt, owner_of, prepared
from krunch_langchain.streams import StreamedReply
from krunch_plugins import Krunch, default_krunch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import BaseChatModel, LanguageModelInput
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
    from langchain_core.runnables.utils import AnyConfigurableField
    from langchain_core.tools import BaseTool

RunnableT = TypeVar("RunnableT")


class KrunchChatModel(DelegatingChatModel):
    """A chat model that compresses what goes to the model inside and expands what comes back.

    Messages are compressed and replies expanded right at the model's own door, so callbacks, caches, traces, retries,
    events and whatever else LangChain has around a model see plain messages only. `krunchify` makes one.

    Attributes:
        bound: the model inside.
        krunch: who compresses; None: the one of the process, with settings from `KRUNCH_*` variables.
        session: the conversation's id, where the call's config names none.
        tenant: who owns the session.
    """

    krunch: Krunch | None = Field(default=None, exclude=True, repr=False)
    session: str | None = None
    tenant: str | None = None

    def around(self, model: BaseChatModel) -> Self:
        """This wrapper around another model."""
        own = {name: getattr(self, name) for name in ("krunch", "session", "tenant")}
        given = {name: getattr(self, name) for name in INHERITED if getattr(self, name) != getattr(self.bound, name)}
        return type(self).model_validate({"bound": model, **own, **given})

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Tools, bound as the model inside binds them."""
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        bound: Runnable[LanguageModelInput, AIMessage] = self._around_all(self.bound.bind_tools(tools, **kwargs))
        return bound

    def with_structured_output(
        self, schema: Any = None, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """Structured output as the model inside makes it."""
        inner = self.bound.with_structured_output(schema, include_raw=include_raw, **kwargs)
        chain: Runnable[LanguageModelInput, Any] = self._around_all(inner)
        return chain

    def configurable_fields(self, **kwargs: AnyConfigurableField) -> RunnableSerializable[Any, Any]:
        """Fields of the model inside, or of the wrapper, that a call's config can set.

        Raises:
            ValueError: neither has a field of that name.
        """
        configurable = KrunchConfigurable(default=self, fields=kwargs)
        _ = configurable.config_specs
        return configurable

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As every chat model's."""
        return super().invoke(input, config, stop=stop, **self._owned(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As every chat model's."""
        return await super().ainvoke(input, config, stop=stop, **self._owned(config, kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """As every chat model's."""
        return super().stream(input, config, stop=stop, **self._owned(config, kwargs))

    def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """As every chat model's."""
        return super().astream(input, config, stop=stop, **self._owned(config, kwargs))

    def stream_events(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As every chat model's."""
        if kwargs.get("version") == "v3":
            kwargs = self._owned(config, kwargs)
        return super().stream_events(input, config, **kwargs)

    def astream_events(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As every chat model's."""
        if kwargs.get("version") == "v3":
            kwargs = self._owned(config, kwargs)
        return super().astream_events(input, config, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        owner, options = self._split(kwargs, run_manager)
        call = prepared(self._serving, self.bound, messages, owner, options)
        # Without the run manager: a model that streams inside would tell it the text that nobody has expanded yet.
        if call is None:
            return self.bound._generate(messages, stop=stop, **options)
        result = self.bound._generate(call.messages, stop=stop, **options)
        return WholeReply(call.exchange, result, _run_id(run_manager), self.output_version).finish()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        owner, options = self._split(kwargs, run_manager)
        call = await aprepared(self._serving, self.bound, messages, owner, options)
        if call is None:
            return await self.bound._agenerate(messages, stop=stop, **options)
        result = await self.bound._agenerate(call.messages, stop=stop, **options)
        return await WholeReply(call.exchange, result, _run_id(run_manager), self.output_version).afinish()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        owner, options = self._split(kwargs, run_manager)
        call = prepared(self._serving, self.bound, messages, owner, options)
        if call is None:
            yield from _told(self.bound._stream(messages, stop=stop, **options), run_manager)
            return
        reply = StreamedReply(call.exchange, _run_id(run_manager))
        try:
            yield from _told(reply.expanded(self.bound._stream(call.messages, stop=stop, **options)), run_manager)
        finally:
            reply.finish()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        owner, options = self._split(kwargs, run_manager)
        call = await aprepared(self._serving, self.bound, messages, owner, options)
        if call is None:
            async for chunk in self.bound._astream(messages, stop=stop, **options):
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
            return
        reply = StreamedReply(call.exchange, _run_id(run_manager))
        try:
            async with aclosing(reply.aexpanded(self.bound._astream(call.messages, stop=stop, **options))) as chunks:
                async for chunk in chunks:
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        except Exception:  # whatever the provider's client raised: what came is recorded
            await reply.afinish()
            raise
        except BaseException:  # cancelled, or closed: nobody waits for the rest, and awaiting more is not allowed
            reply.finish()
            raise
        else:
            await reply.afinish()

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        owner = kwargs.get(OWNER) or owner_of(None, self.session, self.tenant)
        return super()._get_llm_string(stop=stop, **kwargs) + cache_salt(self._serving, owner)

    @property
    def _serving(self) -> Krunch:
        return self.krunch or default_krunch()

    def _around_all(self, runnable: Any) -> Any:
        """A runnable of the model inside, as one of this wrapper."""
        return with_models(runnable, lambda model: self if model is self.bound else self.around(model))

    def _owned(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call with the one that says whose it is."""
        return {OWNER: owner_of(config, self.session, self.tenant), **kwargs}

    def _split(
        self, kwargs: dict[str, Any], run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None
    ) -> tuple[Owner, dict[str, Any]]:
        """Whose a call is, and what the model inside is called with."""
        options = dict(kwargs)
        owner = options.pop(OWNER, None)
        if owner is None:  # `generate` and `agenerate` take no config
            told: RunnableConfig | None = {"metadata": run_manager.metadata} if run_manager else None
            owner = owner_of(told, self.session, self.tenant)
        return owner, options


@overload
def krunchify(
    model: BaseChatModel, krunch: Krunch | None = None, *, session: str | None = None, tenant: str | None = None
) -> KrunchChatModel: ...


@overload
def krunchify(
    model: RunnableT, krunch: Krunch | None = None, *, session: str | None = None, tenant: str | None = None
) -> RunnableT: ...


def krunchify(
    model: Any, krunch: Krunch | None = None, *, session: str | None = None, tenant: str | None = None
) -> Any:
    """A chat model with smaller requests and exact replies; everything that works with `model` works with it.

    Args:
        model: a chat model, or what LangChain makes of one: with tools bound, with retries or fallbacks, with
            structured output, with configurable fields, or one that a call's config chooses (`init_chat_model`). Its
            form is kept, the models inside are wrapped.
        krunch: who compresses; default: one per process, with settings from `KRUNCH_*` variables.
        session: the conversation's id, where the call's config names none: `session_id`, `conversation_id`, or
            LangGraph's `thread_id`. Without any, nothing is recorded.
        tenant: who owns the session.

    Returns:
        A `KrunchChatModel`, or a copy of `model` with every chat model in it wrapped. A model that is wrapped already
        takes the arguments that are given.

    Raises:
        TypeError: there is no chat model in `model`.
    """
    own = {"krunch": krunch, "session": session, "tenant": tenant}
    given = {name: value for name, value in own.items() if value is not None}
    found = False

    def wrap(inner: BaseChatModel) -> KrunchChatModel:
        nonlocal found
        found = True
        if isinstance(inner, KrunchChatModel):
            return inner.model_copy(update=given) if given else inner
        return KrunchChatModel(bound=inner, krunch=krunch, session=session, tenant=tenant)

    wrapped = with_models(model, wrap)
    if not found and wrapped is model:  # what a call's config makes is found when it is made
        raise TypeError(
            f"krunchify() takes a chat model, or bindings, fallbacks, sequences or configurable fields of one; "
            f"found none in {type(model).__name__}"
        )
    return wrapped


def _told(
    chunks: Iterator[ChatGenerationChunk], run_manager: CallbackManagerForLLMRun | None
) -> Iterator[ChatGenerationChunk]:
    """The chunks, of which callbacks are told; the model inside is not asked to, for not every one can."""
    for chunk in chunks:
        if run_manager:
            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk


def _run_id(run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None) -> str | None:
    return f"{LC_ID_PREFIX}-{run_manager.run_id}" if run_manager else None
