"""Embeddings by any of LangChain's `Embeddings`, for the search of old turns."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from langchain_core.embeddings import Embeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class LangChainEmbedder:
    """An embedder over LangChain's `Embeddings`: turns go to `embed_documents`, what is searched for to `embed_query`.

        Krunch(settings, embedder=LangChainEmbedder(OpenAIEmbeddings(model="text-embedding-3-small")))

    Krunch calls it in batches, in the background, and again later if it raises.

    Args:
        embeddings: LangChain's object.
        name: names the model for good, so that its vectors are never compared with another's. None: its class and its
            `model` or `model_name`.
        dimension: length of its vectors. None: its `dimensions`, or else what one call shows when it is asked for.
        batch_size: texts in one call.
        max_characters: longer texts lose their middle; the usual 8,000 tokens of a model are about as many.

    Attributes:
        name: as above, after "langchain/".
        batch_size: texts in one call.
        max_characters: longer texts lose their middle.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        *,
        name: str | None = None,
        dimension: int | None = None,
        batch_size: int = 64,
        max_characters: int = 24_000,
    ) -> None:
        if not isinstance(embeddings, Embeddings):
            raise TypeError(f"embeddings must be LangChain's Embeddings, not {type(embeddings).__name__}")
        self._embeddings = embeddings
        self._lock = threading.Lock()
        given = getattr(embeddings, "dimensions", None)
        self._dimension = dimension or (given if isinstance(given, int) else None)
        self.batch_size, self.max_characters = batch_size, max_characters
        self.name = f"langchain/{name or _name(embeddings)}"

    @property
    def dimension(self) -> int:
        """Length of the vectors.

        Raises:
            Exception: nothing but a call can tell, and that failed; give `dimension`.
        """
        with self._lock:
            if self._dimension is None:
                self._dimension = len(self._embeddings.embed_query("How long are the vectors?"))
            return self._dimension

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of turns, float32, shape (n, dimension)."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return np.array(self._embeddings.embed_documents(list(texts)), dtype=np.float32)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """The vector of what is searched for, shape (dimension,)."""
        return np.array(self._embeddings.embed_query(text), dtype=np.float32)


def _name(embeddings: Embeddings) -> str:
    """The class of an `Embeddings`, and its model if it says one."""
    named = (getattr(embeddings, attribute, None) for attribute in ("model", "model_name"))
    model = next((one for one in named if isinstance(one, str) and one), "")
    options = getattr(embeddings, "dimensions", None)
    parts = [type(embeddings).__name__, model, str(options) if isinstance(options, int) else ""]
    return "/".join(part for part in parts if part)
