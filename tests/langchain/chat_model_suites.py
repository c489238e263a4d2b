"""LangChain's own suites on a bare ChatOpenAI and on the wrapper around one; `test_conformance.py` runs them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from krunch_langchain import KrunchChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from played_model import SETTINGS, Padding, PlayedModel

from krunch_plugins import Krunch
from krunch_plugins.upstream import Upstream

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

os.environ["OPENAI_API_KEY"] = "none"
BARE = Upstream(PlayedModel())
SERVED = Upstream(PlayedModel(compressed=True))
KRUNCH = Krunch(SETTINGS, plugins=[Padding()])


class WrappedOpenAI(KrunchChatModel):
    """The wrapper around a ChatOpenAI that takes all arguments."""

    def __init__(self, **kwargs: Any) -> None:
        if "bound" not in kwargs:
            kwargs = {"bound": ChatOpenAI(**{"base_url": SERVED.url, "model": "gpt-4o", **kwargs}), "krunch": KRUNCH}
        super().__init__(**kwargs)


class _Bare:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gpt-4o", "base_url": BARE.url, "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "gpt-4o-mini"


class _Wrapped(_Bare):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return WrappedOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gpt-4o", "base_url": SERVED.url, "stream_usage": True}


class TestBareUnits(_Bare, ChatModelUnitTests):
    """What ChatOpenAI passes and skips without a server."""


class TestWrappedUnits(_Wrapped, ChatModelUnitTests):
    """What the wrapper does."""


class TestBareIntegration(_Bare, ChatModelIntegrationTests):
    """What ChatOpenAI passes and skips with a server."""


class TestWrappedIntegration(_Wrapped, ChatModelIntegrationTests):
    """What the wrapper does."""


@pytest.fixture(scope="module", autouse=True)
def _servers() -> Any:
    yield
    print("saved", sum(before - after for before, after in SERVED.answer.saved))  # type: ignore[attr-defined]  # noqa: T201
    BARE.close()
    SERVED.close()
