"""Embeddings by any model that LiteLLM knows, for the search of old turns."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import litellm
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class LiteLLMEmbedder:
    """An embedder over `litellm.embedding()`.

        Krunch(settings, embedder=LiteLLMEmbedder("text-embedding-3-small"))

    Krunch calls it in batches, in the background, and again later if it raises.

    Args:
        model: the model's name, as LiteLLM has it.
        dimension: length of its vectors. None: what `dimensions` among the options or LiteLLM's list of models says, or
            else what one call shows when it is first asked for.
        batch_size: texts in one call.
        max_characters: longer texts lose their middle; the usual 8,000 tokens of a model are about as many.
        options: passed to each call: `api_base`, `api_key`, `dimensions`, `timeout`, `num_retries`, …

    Attributes:
        name: "litellm/" and the model, with the `dimensions` that were asked for.
        batch_size: texts in one call.
        max_characters: longer texts lose their middle.
    """

    def __init__(
        self,
        model: str,
        *,
        dimension: int | None = None,
        batch_size: int = 64,
        max_characters: int = 24_000,
        **options: Any,  # noqa: ANN401 - whatever litellm.embedding() takes
    ) -> None:
        self._model, self._options = model, options
        self._dimension = dimension or options.get("dimensions")
        self._lock = threading.Lock()
        self.batch_size, self.max_characters = batch_size, max_characters
        self.name = f"litellm/{model}" + (f"/{options['dimensions']}" if options.get("dimensions") else "")

    @property
    def dimension(self) -> int:
        """Length of the vectors.

        Raises:
            Exception: nothing but a call can tell, and that failed; give `dimension`.
        """
        with self._lock:
            if self._dimension is None:
                self._dimension = _listed(self._model) or self.embed(["How long are the vectors?"]).shape[1]
            return int(self._dimension)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts, float32, shape (n, dimension)."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        reply = litellm.embedding(model=self._model, input=list(texts), **self._options)
        found = sorted((dict(item) for item in reply.data), key=lambda item: item["index"])
        return np.array([item["embedding"] for item in found], dtype=np.float32)


def _listed(model: str) -> int | None:
    """What LiteLLM's list of models says about the length of its vectors."""
    try:
        found = litellm.get_model_info(model).get("output_vector_size")
    except Exception:  # noqa: BLE001 - it raises a bare Exception for models that it does not know
        return None
    return int(found) if found else None
