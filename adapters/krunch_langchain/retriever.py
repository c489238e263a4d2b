"""`KrunchRetriever`: old turns of conversations as LangChain's documents."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from krunch_langchain.messages import from_turn
from krunch_langchain.shared import krunch_and_store
from krunch_plugins import ConversationStore, Krunch  # noqa: TC001 - pydantic reads the annotations

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.messages import BaseMessage

    from krunch_plugins import SearchHit

_FILTERS = ("session", "k", "after", "before", "roles", "turn_metadata")


class KrunchRetriever(BaseRetriever):
    """Finds old turns by words and by meaning, in one conversation or in all of a tenant's.

    Each document's text is what the turn says. Its metadata: `session`, `turn` (its number), `role`, `time` (ISO 8601,
    UTC), `score` (higher is better) and `found_by` (which search found it at which rank). A call may narrow or widen
    it: `retriever.invoke("the refund", k=3, session="ann")`; the tenant is fixed.

    Attributes:
        krunch: who searches; default: one for each store in a process.
        store: where the conversations are; default `krunch`'s, else `shared_store()`.
        tenant: whose conversations.
        session: only this one; None: all of the tenant's.
        k: how many documents at most, at least 1.
        after: only turns stored at or after this time: a datetime, or seconds since the epoch.
        before: only turns stored before this time.
        roles: only messages of these roles: "user", "assistant", "tool", "system".
        turn_metadata: only turns whose metadata holds all of these. (`metadata` is what LangChain tells tracers.)
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    krunch: Krunch | None = Field(default=None, exclude=True, repr=False)
    store: ConversationStore | None = Field(default=None, exclude=True, repr=False)
    tenant: str | None = None
    session: str | None = None
    k: int = Field(default=10, ge=1)
    after: float | None = None
    before: float | None = None
    roles: frozenset[str] | None = None
    turn_metadata: dict[str, Any] | None = None
    _krunch: Krunch = PrivateAttr()

    @field_validator("after", "before", mode="before")
    @classmethod
    def _seconds(cls, value: object) -> object:
        return value.timestamp() if isinstance(value, datetime) else value

    @field_validator("roles", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    def model_post_init(self, context: Any) -> None:  # noqa: ANN401 - pydantic's signature
        """Find out who searches."""
        super().model_post_init(context)
        self._krunch, _ = krunch_and_store(self.krunch, self.store)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain's signature
        **kwargs: Any,  # noqa: ANN401 - the filters
    ) -> list[Document]:
        return [_document(hit) for hit in self._krunch.search(query, tenant=self.tenant, **self._narrowed(kwargs))]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002 - as above
        **kwargs: Any,  # noqa: ANN401 - as above
    ) -> list[Document]:
        narrowed = self._narrowed(kwargs)
        hits = await self._krunch.asearch(query, tenant=self.tenant, **narrowed)
        return await asyncio.to_thread(lambda: [_document(hit) for hit in hits])

    def _narrowed(self, given: dict[str, Any]) -> dict[str, Any]:
        """The filters of one call."""
        unknown = sorted(set(given) - set(_FILTERS))
        if unknown:
            raise TypeError(f"KrunchRetriever takes {', '.join(_FILTERS)} with a call, not {', '.join(unknown)}")
        filters = {name: given.get(name, getattr(self, name)) for name in _FILTERS}
        for name in ("after", "before"):
            filters[name] = self._seconds(filters[name])
        wanted = filters.pop("turn_metadata")
        return {**filters, "metadata": wanted}


def _document(hit: SearchHit) -> Document:
    turn = hit.turn
    return Document(
        page_content=_text(from_turn(turn)),
        id=json.dumps([hit.session, turn.number], ensure_ascii=False),
        metadata={
            "session": hit.session,
            "turn": turn.number,
            "role": turn.message.get("role", ""),
            "time": datetime.fromtimestamp(turn.timestamp, UTC).isoformat(),
            "score": hit.score,
            "found_by": dict(hit.found_by),
        },
    )


def _text(message: BaseMessage) -> str:
    """What a message says; of one that only calls tools, the calls."""
    calls = [f"{call['name']}({json.dumps(call['args'], ensure_ascii=False)})" for call in _calls(message)]
    return "\n".join(part for part in (str(message.text), *calls) if part)


def _calls(message: BaseMessage) -> list[Any]:
    return getattr(message, "tool_calls", [])
