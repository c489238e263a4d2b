"""What LangChain builds around chat models, with the models inside replaced and the shape kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableParallel, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import (
    DynamicRunnable,
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)
from langchain_core.runnables.utils import (
    AnyConfigurableField,
    ConfigurableFieldSpec,
    Input,
    Output,
)

from krunch_langchain.configurable_models import is_configurable, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable

    Make = Callable[[BaseChatModel], Any]
    """Makes a wrapper of a chat model."""


def with_models(runnable: Any, make: Make) -> Any:  # noqa: ANN401 - whatever LangChain has around models
    """A copy of `runnable` in which `make` has replaced every chat model; the very same if there is none.

    Looked into: bindings (`bind`, `bind_tools`, `with_config`, `with_retry`), fallbacks, sequences and parallels
    (`with_structured_output`), configurable fields and alternatives, and models that a call's config makes.
    """
    if isinstance(runnable, BaseChatModel):
        return make(runnable)
    if is_configurable(runnable):
        return wrapped(runnable, lambda made: with_models(made, make))
    if isinstance(runnable, RunnableConfigurableFields) and isinstance(runnable.default, BaseChatModel):
        return KrunchConfigurable(default=make(runnable.default), fields=runnable.fields, config=runnable.config)
    inside = _inside(runnable)
    changed = {name: _replaced(value, make) for name, value in inside.items()}
    if all(changed[name] is value for name, value in inside.items()):
        return runnable
    return runnable.model_copy(update=changed)


def _inside(runnable: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
    """The fields of a runnable that hold other runnables."""
    if isinstance(runnable, RunnableBindingBase):
        names: tuple[str, ...] = ("bound",)
    elif isinstance(runnable, RunnableWithFallbacks):
        names = ("runnable", "fallbacks")
    elif isinstance(runnable, RunnableSequence):
        names = ("first", "middle", "last")
    elif isinstance(runnable, RunnableParallel):
        names = ("steps__",)
    elif isinstance(runnable, RunnableConfigurableAlternatives):
        names = ("default", "alternatives")
    elif isinstance(runnable, DynamicRunnable):
        names = ("default",)
    else:
        names = ()
    return {name: getattr(runnable, name) for name in names}


def _replaced(value: Any, make: Make) -> Any:  # noqa: ANN401 - a runnable, or several
    if isinstance(value, dict):
        changed = {key: with_models(one, make) for key, one in value.items()}
        return value if all(changed[key] is one for key, one in value.items()) else changed
    if isinstance(value, (list, tuple)):
        items = [with_models(one, make) for one in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return with_models(value, make)


class KrunchConfigurable(DynamicRunnable[Input, Output]):
    """A wrapped chat model with configurable fields: those of the model inside, and the wrapper's own.

    Attributes:
        default: the wrapper.
        fields: which fields can be configured, and by what names.
    """

    fields: dict[str, AnyConfigurableField]

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """No: the wrapper is not."""
        return False

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What can be configured."""
        return [spec for part in self._parts() for spec in part.config_specs]

    def configurable_fields(self, **kwargs: AnyConfigurableField) -> RunnableSerializable[Any, Any]:
        """The same with more fields."""
        return self.default.configurable_fields(**{**self.fields, **kwargs})

    def _prepare(self, config: RunnableConfig | None = None) -> tuple[Runnable[Any, Any], RunnableConfig]:
        model: Any = self.default
        inner, outer = self._parts()
        bound, config = inner.prepare(config)
        if bound is not model.bound:
            model = model.around(bound)
        return outer.model_copy(update={"default": model}).prepare(config)

    def _parts(self) -> tuple[DynamicRunnable[Any, Any], DynamicRunnable[Any, Any]]:
        """The fields of the model inside, and those of the wrapper."""
        wrapper: Any = self.default
        known = type(wrapper).model_fields
        own = {name: field for name, field in self.fields.items() if name in known and name not in _OF_BOUND}
        others = {name: field for name, field in self.fields.items() if name not in own}
        inner = wrapper.bound.configurable_fields(**others)  # raises for a field that it does not have
        return inner, RunnableConfigurableFields(default=wrapper, fields=own)


_OF_BOUND = frozenset({"disable_streaming", "output_version"})
"""Fields of both that change what the model inside does."""
