"""`KrunchByteStore`: LangChain's key-value store, for caches of embeddings, documents' stores and the like."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from langchain_core.stores import BaseStore

from krunch_langchain.item_log import Change, ItemLog
from krunch_langchain.shared import place_of, shared_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from krunch_plugins import ConversationStore

_KIND = "bytes"


class KrunchByteStore(BaseStore[str, bytes]):
    """Bytes by key, on disk when a call returns. Thread-safe; any number of processes may share one.

    All keys and values of one name are held in RAM as well. A value is replaced or removed for good when the log that
    they are kept in is written anew, which happens by itself.

    Where damage has taken records of the log, every call raises `RecordsLost`, until `accept_loss` says how to go on: a
    key that was removed must not come back unsaid.

    Args:
        name: which of a tenant's byte stores, any text; begun if it is new.
        store: where to keep it; default `shared_store()`.
        tenant: who owns it; what belongs to one tenant is invisible to every other.
    """

    def __init__(self, name: str = "", *, store: ConversationStore | None = None, tenant: str | None = None) -> None:
        self._log = ItemLog(store or shared_store(), name, place_of(_KIND, tenant))

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of the keys, in their order; None for a key that is not there."""
        items = self._log.items()
        return [items[key].fresh() if key in items else None for key in keys]

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Set values, all or none.

        Raises:
            TypeError: a value is not bytes.
        """
        for _, value in key_value_pairs:
            if not isinstance(value, bytes):
                raise TypeError(f"KrunchByteStore keeps bytes, not {type(value).__name__}; encode it first")
        self._log.apply([Change(key, value) for key, value in key_value_pairs])

    def mdelete(self, keys: Sequence[str]) -> None:
        """Remove keys; those that are not there are removed already."""
        self._log.apply([Change(key) for key in keys])

    def accept_loss(self, *, keep: bool) -> int:
        """Go on after records were lost to damage.

        Args:
            keep: keep what the lost records may have removed or replaced, as it was before them; else remove it.

        Returns:
            How many keys that are.
        """
        return self._log.accept_loss(keep=keep)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """All keys that begin with `prefix`, in the order in which they were first set."""
        yield from [key for key in self._log.items() if key.startswith(prefix or "")]

    async def amget(self, keys: Sequence[str]) -> list[bytes | None]:
        """`mget`, in a worker thread."""
        return await asyncio.to_thread(self.mget, keys)

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """`mset`, in a worker thread."""
        await asyncio.to_thread(self.mset, key_value_pairs)

    async def amdelete(self, keys: Sequence[str]) -> None:
        """`mdelete`, in a worker thread."""
        await asyncio.to_thread(self.mdelete, keys)

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        """`yield_keys`, in a worker thread."""
        for key in await asyncio.to_thread(lambda: list(self.yield_keys(prefix=prefix))):
            yield key
