"""Models that a call's config chooses (`init_chat_model` with `configurable_fields`): wrapped when they are made."""

# ruff: noqa: ANN401 - LangChain's signatures, and the one method of its class by which it makes a model
from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.runnables import RunnableConfig

    Wrap = Callable[[Any], Any]
    """Wraps the models in what LangChain has made."""

_HOMES = ("langchain.chat_models.base", "langchain_classic.chat_models.base")
_OURS = frozenset({"session_id", "conversation_id", "thread_id", "tenant"})
"""What a call's config says of whose it is. Where any field can be configured, the bare model takes it for its own."""


def is_configurable(runnable: object) -> bool:
    """Whether it is such a model; no package is imported to find out."""
    kinds = [getattr(sys.modules.get(home), "_ConfigurableModel", None) for home in _HOMES]
    return isinstance(runnable, tuple(kind for kind in kinds if kind is not None))


def wrapped(model: Any, wrap: Wrap) -> Any:
    """A copy whose models `wrap` wraps, each when a call makes it; also with tools, structured output or a config."""
    kind: type = type(model)
    if not issubclass(kind, _Wrapped):
        kind = _KINDS.setdefault(kind, type(kind.__name__, (_Wrapped, kind), {}))
    copied: Any = object.__new__(kind)
    copied.__dict__.update(model.__dict__)
    before = model.__dict__.get("_krunch_wrap")
    copied.__dict__["_krunch_wrap"] = wrap if before is None else lambda made: wrap(before(made))
    return copied


class _Wrapped:
    """What is another than in LangChain's class. All of its public methods call `_model`, or make a new one of it."""

    def _model(self, config: RunnableConfig | None = None) -> Any:
        made: Any = super()._model(config)  # type: ignore[misc]  # LangChain's class comes behind this one
        return self.__dict__["_krunch_wrap"](made)

    def _model_params(self, config: RunnableConfig | None) -> dict[str, Any]:
        found: dict[str, Any] = super()._model_params(config)  # type: ignore[misc]  # as above
        own: Any = self.__dict__
        if own.get("_configurable_fields") == "any" and not own.get("_config_prefix"):
            return {name: value for name, value in found.items() if name not in _OURS}
        return found

    def bind_tools(self, *args: Any, **kwargs: Any) -> Any:
        return self._again(super().bind_tools(*args, **kwargs))  # type: ignore[misc]  # as above

    def with_structured_output(self, *args: Any, **kwargs: Any) -> Any:
        return self._again(super().with_structured_output(*args, **kwargs))  # type: ignore[misc]  # as above

    def with_config(self, *args: Any, **kwargs: Any) -> Any:
        return self._again(super().with_config(*args, **kwargs))  # type: ignore[misc]  # as above

    def _again(self, made: Any) -> Any:
        return wrapped(made, self.__dict__["_krunch_wrap"])


_KINDS: dict[type, type] = {}
"""The class of a wrapped model, by LangChain's."""
