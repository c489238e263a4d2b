"""Embeddings beside the turns, in the store: pages of a session's state, so that they are forgotten with the session.

A page holds the embeddings of up to 128 neighbouring turns, of one model, in float16 (docs/embeddings.md has what that
costs: nothing that can be seen), each with a digest of the text that it was made from. What is damaged, of another
model or of another text counts as missing and is embedded again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from krunch_plugins.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from krunch_plugins.turns import TurnStore

PAGE = 128
"""Turns of a page. The session's record names each of its pages, so there should not be many."""
_DIGEST = 8


class _Page(msgspec.Struct, array_like=True):
    model: str
    dimension: int
    numbers: list[int]
    digests: bytes
    vectors: bytes


def digest(text: str) -> int:
    """A number that tells texts apart: 63 bits of BLAKE2b."""
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()
    return int.from_bytes(found, "little") >> 1


def rounded(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors as they come back from a page. An index takes these, so that it is the same after a rebuild."""
    return vectors.astype(np.float16).astype(np.float32)


class EmbeddingPages:
    """Reads and writes the pages.

    Args:
        store: where the sessions are.
        model: name of the model.
        dimension: tells the length of its vectors; None: not known yet, so no page can be read.
    """

    def __init__(self, store: TurnStore, model: str, dimension: Callable[[], int | None]) -> None:
        self._store, self._model, self._asked = store, model, dimension

    def read(self, tenant: str | None, session: str, numbers: range) -> dict[int, tuple[int, NDArray[np.float32]]]:
        """Embeddings of turns of these numbers, with the digests of their texts; those that are not there are left out.

        Raises:
            StoreError: the store cannot be read. A damaged page counts as missing.
        """
        found: dict[int, tuple[int, NDArray[np.float32]]] = {}
        for page in range(numbers.start // PAGE, -(-numbers.stop // PAGE)):
            kept = self._page(tenant, session, page)
            found |= {number: entry for number, entry in kept.items() if number in numbers}
        return found

    def write(
        self,
        tenant: str | None,
        session: str,
        key: str,
        embeddings: Mapping[int, tuple[int, NDArray[np.float32]]],
        first: int = 0,
    ) -> None:
        """Keep embeddings by the number of their turn, beside those there are. A session that is gone stays gone.

        Args:
            tenant: whose session.
            session: its id.
            key: its key, as events tell it.
            embeddings: digests of the texts and their vectors.
            first: turns before this are gone, and leave their page.

        Raises:
            StoreError: they could not be written (no room, over the quota).
        """
        for page in sorted({number // PAGE for number in embeddings}):
            kept = self._page(tenant, session, page)
            kept |= {number: entry for number, entry in embeddings.items() if number // PAGE == page}
            self._put(tenant, session, key, page, {number: kept[number] for number in sorted(kept) if number >= first})

    def trim(self, tenant: str | None, session: str, key: str, before: int, first: int) -> None:
        """Drop embeddings of turns `first` to before `before`."""
        for page in range(first // PAGE, -(-before // PAGE)):
            kept = self._page(tenant, session, page)
            left = {number: entry for number, entry in kept.items() if number >= before}
            if len(left) < len(kept):
                self._put(tenant, session, key, page, left)

    def _page(self, tenant: str | None, session: str, page: int) -> dict[int, tuple[int, NDArray[np.float32]]]:
        try:
            data = self._store.get_state(session, _name(page), tenant=tenant)
            found = msgspec.msgpack.decode(data, type=_Page) if data else None
        except (msgspec.DecodeError, StoreError):
            return {}  # what is derived can be derived again
        if found is None or (found.model, found.dimension) != (self._model, self._asked()):
            return {}
        count = len(found.numbers)
        if (len(found.digests), len(found.vectors)) != (_DIGEST * count, 2 * found.dimension * count):
            return {}
        digests = np.frombuffer(found.digests, dtype="<i8").tolist()
        vectors = np.frombuffer(found.vectors, dtype="<f2").reshape(count, -1).astype(np.float32)
        return dict(zip(found.numbers, zip(digests, vectors, strict=True), strict=True))

    def _put(
        self,
        tenant: str | None,
        session: str,
        key: str,
        page: int,
        kept: Mapping[int, tuple[int, NDArray[np.float32]]],
    ) -> None:
        data = b""
        if kept:
            digests = np.array([found for found, _ in kept.values()], dtype="<i8")
            vectors = np.stack([vector for _, vector in kept.values()]).astype("<f2")
            data = msgspec.msgpack.encode(
                _Page(self._model, vectors.shape[1], list(kept), digests.tobytes(), vectors.tobytes())
            )
        self._store.put_state_if(session, _name(page), data, key=key, tenant=tenant)


def _name(page: int) -> str:
    return f"embeddings/{page}"
