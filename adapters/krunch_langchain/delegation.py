"""A chat model that says of itself what the model inside says: names, parameters, tokens, tracing, streaming."""

# ruff: noqa: ANN401, SLF001 - LangChain's signatures; the model inside is asked for what LangChain asks this one for
from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from pydantic import ConfigDict, Field, model_validator

from krunch_langchain.requests import OWNER

if TYPE_CHECKING:
    import builtins
    from collections.abc import Mapping, Sequence

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatGeneration, Generation

INHERITED = ("cache", "callbacks", "custom_get_token_ids", "disable_streaming", "metadata", "name", "output_version",
             "profile", "rate_limiter", "tags", "verbose")  # fmt: skip
"""What LangChain reads from the outer model: taken from the model inside where it is not given."""


class DelegatingChatModel(BaseChatModel):
    """A chat model around another one. What this one does not have, `bound` is asked for."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    bound: BaseChatModel = Field(repr=False)
    """The model inside."""

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        bound = values.get("bound") if isinstance(values, dict) else None
        if not isinstance(bound, BaseChatModel):
            return values  # pydantic says what is wrong
        taken = {name: getattr(bound, name) for name in INHERITED if name not in values and hasattr(bound, name)}
        if taken.get("metadata") is not None:
            taken["metadata"] = dict(taken["metadata"])  # LangChain notes its versions in it
        return {**taken, **values}

    def __getattr__(self, name: str) -> Any:
        bound = self.__dict__.get("bound")
        if bound is None or name.startswith("_"):
            return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides its own from type checkers
        return getattr(bound, name)

    def __deepcopy__(self, memo: builtins.dict[int, Any] | None = None) -> DelegatingChatModel:
        return self.model_copy(update={"bound": copy.deepcopy(self.bound, memo)})

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(_REFUSED.format(kind=type(self).__name__, how="pickled"))

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """No: it holds a Krunch, which belongs to its process."""
        return False

    def to_json(self) -> Any:
        """Refused: what would be loaded from it would not compress.

        Raises:
            TypeError: always; it says what to do instead.
        """
        raise TypeError(_REFUSED.format(kind=type(self).__name__, how="serialized"))

    @property
    def _serialized(self) -> builtins.dict[str, Any]:
        return self.bound._serialized

    @property
    def _llm_type(self) -> str:
        return self.bound._llm_type

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return self.bound._identifying_params

    def asdict(self) -> builtins.dict[str, Any]:
        """The parameters of the model inside."""
        return self.bound.asdict()

    def dict(self, **kwargs: Any) -> builtins.dict[str, Any]:
        """The parameters of the model inside."""
        return self.bound.dict(**kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """As the model inside counts."""
        return self.bound.get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """As the model inside counts."""
        return self.bound.get_num_tokens(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """As the model inside counts: the messages as they are given, not as they are sent."""
        if tools is None:
            return self.bound.get_num_tokens_from_messages(messages)
        return self.bound.get_num_tokens_from_messages(messages, tools=tools)

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> builtins.dict[str, Any]:
        return self.bound._get_invocation_params(stop=stop, **_own(kwargs))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.bound._get_ls_params(stop=stop, **_own(kwargs))

    def _get_ls_params_with_defaults(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.bound._get_ls_params_with_defaults(stop=stop, **_own(kwargs))

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        return self.bound._get_llm_string(stop=stop, **_own(kwargs))

    def _combine_llm_outputs(self, llm_outputs: list[builtins.dict[str, Any] | None]) -> builtins.dict[str, Any]:
        return self.bound._combine_llm_outputs(llm_outputs)

    def _convert_cached_generations(self, cache_val: list[Generation]) -> list[ChatGeneration]:
        return self.bound._convert_cached_generations(cache_val)

    def _should_stream(
        self,
        *,
        async_api: bool,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> bool:
        if self._must_not_stream(kwargs):
            return False
        return self.bound._should_stream(async_api=async_api, run_manager=run_manager, **_own(kwargs))

    def _should_use_protocol_streaming(
        self,
        *,
        async_api: bool,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> bool:
        kind = type(self.bound)
        streams = kind._stream is not BaseChatModel._stream
        if async_api:
            streams = streams or kind._astream is not BaseChatModel._astream
        if not streams or self._must_not_stream(kwargs):  # chunks are what is expanded, so there must be chunks
            return False
        return self.bound._should_use_protocol_streaming(async_api=async_api, run_manager=run_manager, **_own(kwargs))

    def _must_not_stream(self, kwargs: Mapping[str, Any]) -> bool:
        off = self.disable_streaming
        return off is True or (off == "tool_calling" and bool(kwargs.get("tools")))


_REFUSED = (
    "a {kind} cannot be {how}: what is loaded from it would not compress. Store the model inside (`.bound`) and call "
    "krunchify() on it after loading"
)


def _own(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the model inside knows."""
    return {name: value for name, value in kwargs.items() if name != OWNER}
