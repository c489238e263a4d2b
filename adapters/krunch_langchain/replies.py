"""Whole replies: expanded, completed as LangChain completes them, and recorded as the caller gets them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from langchain_core.language_models._utils import _update_message_content_to_blocks
from langchain_core.language_models.chat_models import _gen_info_and_msg_metadata
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from krunch_langchain.messages import openai_form, reply_metadata, with_changes
from krunch_plugins import RequestRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.messages import BaseMessage
    from langchain_core.messages.ai import UsageMetadata

    from krunch_langchain.messages import Message
    from krunch_plugins import Exchange

log = logging.getLogger("krunch")


class WholeReply:
    """A reply that came in one piece. For the sync and the async face, which only differ in how they finish a choice.

    Args:
        exchange: the request.
        result: what the model gave. Not changed.
        run_id: LangChain's id of the run, which names messages that have no id.
        output_version: the wrapper's; "v1" turns content into standard blocks.
    """

    def __init__(self, exchange: Exchange, result: ChatResult, run_id: str | None, output_version: str | None) -> None:
        self._exchange, self._result, self._run_id, self._version = exchange, result, run_id, output_version
        self._messages: list[BaseMessage] = []

    def finish(self) -> ChatResult:
        """The result for the caller."""
        try:
            changed = [self._exchange.finish(form, **facts) for form, facts in self._choices()]
            return self._with(changed)
        except RequestRefused:
            raise
        except Exception as error:  # noqa: BLE001 - Krunch never turns a working call into a failing one
            return self._as_it_came(error)

    async def afinish(self) -> ChatResult:
        """`finish` for async callers."""
        try:
            changed = [await self._exchange.afinish(form, **facts) for form, facts in self._choices()]
            return self._with(changed)
        except RequestRefused:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return self._as_it_came(error)

    def _choices(self) -> list[tuple[Message, dict[str, Any]]]:
        """What `Exchange.finish` takes, for each choice."""
        self._messages = [self._complete(index) for index in range(len(self._result.generations))]
        note_usage(self._exchange, *self._messages)
        recorded = self._exchange.session is not None
        return [
            (openai_form(message), {"choice": index, "metadata": reply_metadata(message) if recorded else None})
            for index, message in enumerate(self._messages)
        ]

    def _with(self, changed: list[Message]) -> ChatResult:
        generations = [
            ChatGeneration(
                message=with_changes(message, openai_form(message), form), generation_info=generation.generation_info
            )
            for message, form, generation in zip(self._messages, changed, self._result.generations, strict=True)
        ]
        return ChatResult(generations=generations, llm_output=self._result.llm_output)

    def _as_it_came(self, error: Exception) -> ChatResult:
        log.warning("expanding a reply failed with %s; it is handed on as it came", type(error).__name__)
        return self._result

    def _complete(self, index: int) -> BaseMessage:
        """The message as LangChain will hand it on, so that what is recorded is what the caller gets.

        LangChain does all of this itself, behind us; doing it twice changes nothing.
        """
        generation = self._result.generations[index]
        message = generation.message
        if self._version == "v1":
            message = _update_message_content_to_blocks(message, "v1")
        told = _gen_info_and_msg_metadata(ChatGeneration(message=message, generation_info=generation.generation_info))
        if len(self._result.generations) == 1 and self._result.llm_output is not None:
            told = {**self._result.llm_output, **told}
        number = message.id
        if number is None and self._run_id is not None:
            number = f"{self._run_id}-{index}"
        return message.model_copy(update={"response_metadata": told, "id": number})


def note_usage(exchange: Exchange, *messages: BaseMessage) -> None:
    """Tell the statistics what the provider counted; it stands in each choice of a reply, and is told once."""
    for message in messages:
        if isinstance(message, AIMessage) and message.usage_metadata:
            exchange.note_usage(_usage(message.usage_metadata))
            return


def _usage(usage: UsageMetadata) -> Mapping[str, Any]:
    """LangChain's usage in OpenAI's words. Its input tokens hold those of the cache, as OpenAI's do."""
    details = usage.get("input_token_details") or {}
    return {
        "prompt_tokens": usage.get("input_tokens", 0),
        "completion_tokens": usage.get("output_tokens", 0),
        "total_tokens": usage.get("total_tokens", 0),
        "prompt_tokens_details": {"cached_tokens": details.get("cache_read") or 0},
        "cache_creation_input_tokens": details.get("cache_creation") or 0,
    }
