"""Embeddings beside the turns, in the store: pages of a session's state, so that they are forgotten with the session.

A page holds the embeddings of up to 128 neighbouring turns in float16 (docs/embeddings.md has what that costs: nothing
that can be seen), each with a digest of the text that it was made from. Those of several models lie side by side in it,
so that a process with another embedder costs nobody what was embedded. What is damaged or of another text counts as
missing and is embedded again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from krunch_plugins.errors import StoreError
from krunch_plugins.recall.embedders import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from krunch_plugins.turns import TurnStore

    _Entry = tuple[int, NDArray[np.float32]]
    """The digest of a text, and its vector."""

PAGE = 128
"""Turns of a page. The session's record names each of its pages, so there should not be many."""
MODELS = 3
"""Models whose embeddings a page holds at most. Beyond that, the one that was written least recently leaves it, the
built-in one first, which costs nothing to ask again."""
_DIGEST = 8


class _Part(msgspec.Struct, array_like=True):
    """What one model has of a page."""

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

    def read(self, tenant: str | None, session: str, numbers: range) -> dict[int, _Entry]:
        """Embeddings of turns of these numbers, with the digests of their texts; those that are not there are left out.

        Raises:
            StoreError: the store cannot be read. A damaged page counts as missing.
        """
        found: dict[int, _Entry] = {}
        for page in range(numbers.start // PAGE, -(-numbers.stop // PAGE)):
            kept = self._page(tenant, session, page)
            found |= {number: entry for number, entry in kept.items() if number in numbers}
        return found

    def write(
        self,
        tenant: str | None,
        session: str,
        key: str,
        embeddings: Mapping[int, _Entry],
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
            parts = _parts(self._store, session, page, tenant)
            mine = next((_entries(part) for part in parts if self._mine(part)), {})
            mine |= {number: entry for number, entry in embeddings.items() if number // PAGE == page}
            # One of this name and of another dimension is another model that goes by the same name; it leaves.
            others = _since([part for part in parts if part.model != self._model], first)
            if len(others) >= MODELS:
                others.remove(next((part for part in others if part.model.startswith(BUILT_IN)), others[0]))
            new = _part(self._model, {number: mine[number] for number in sorted(mine) if number >= first})
            self._put(tenant, session, key, page, [*others, *([] if new is None else [new])])

    def trim(self, tenant: str | None, session: str, key: str, before: int, first: int) -> None:
        """Drop embeddings of turns `first` to before `before`, whatever model they are of."""
        for page in range(first // PAGE, -(-before // PAGE)):
            parts = _parts(self._store, session, page, tenant)
            left = _since(parts, before)
            if left != parts:
                self._put(tenant, session, key, page, left)

    def _page(self, tenant: str | None, session: str, page: int) -> dict[int, _Entry]:
        """What this model has of a page."""
        parts = _parts(self._store, session, page, tenant)
        return next((_entries(part) for part in parts if self._mine(part)), {})

    def _mine(self, part: _Part) -> bool:
        return (part.model, part.dimension) == (self._model, self._asked())

    def _put(self, tenant: str | None, session: str, key: str, page: int, parts: list[_Part]) -> None:
        data = msgspec.msgpack.encode(parts) if parts else b""
        self._store.put_state_if(session, _name(page), data, key=key, tenant=tenant)


def models_of(store: TurnStore, session: str, number: int, tenant: str | None) -> set[str]:
    """Names of the models whose embeddings are kept for the turns of a session around this one."""
    return {part.model for part in _parts(store, session, number // PAGE, tenant)}


def _parts(store: TurnStore, session: str, page: int, tenant: str | None) -> list[_Part]:
    """What all models have of a page, the one that was written last at the end; what is damaged is left out."""
    try:
        data = store.get_state(session, _name(page), tenant=tenant)
        found = msgspec.msgpack.decode(data, type=list[_Part]) if data else []
    except (msgspec.DecodeError, StoreError):
        return []  # what is derived can be derived again
    return [part for part in found if _whole(part)]


def _whole(part: _Part) -> bool:
    count = len(part.numbers)
    return (len(part.digests), len(part.vectors)) == (_DIGEST * count, 2 * part.dimension * count)


def _entries(part: _Part) -> dict[int, _Entry]:
    digests = np.frombuffer(part.digests, dtype="<i8").tolist()
    vectors = np.frombuffer(part.vectors, dtype="<f2").reshape(len(digests), -1).astype(np.float32)
    return dict(zip(part.numbers, zip(digests, vectors, strict=True), strict=True))


def _part(model: str, kept: Mapping[int, _Entry]) -> _Part | None:
    if not kept:
        return None
    digests = np.array([found for found, _ in kept.values()], dtype="<i8")
    vectors = np.stack([vector for _, vector in kept.values()]).astype("<f2")
    return _Part(model, vectors.shape[1], list(kept), digests.tobytes(), vectors.tobytes())


def _since(parts: list[_Part], first: int) -> list[_Part]:
    """What is left of a page without the turns before `first`."""
    left = []
    for part in parts:
        kept: _Part | None = part
        if part.numbers and min(part.numbers) < first:
            kept = _part(part.model, {number: entry for number, entry in _entries(part).items() if number >= first})
        if kept is not None:
            left.append(kept)
    return left


def _name(page: int) -> str:
    return f"embeddings/{page}"
