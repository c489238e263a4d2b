"""Embedders: texts in, vectors out. The built-in one needs no model, no download and no GPU.

`HashingEmbedder` is the default. `SentenceTransformerEmbedder` runs a model on this machine; the adapters have
`LiteLLMEmbedder` and `LangChainEmbedder`. Anything with a `name`, a `dimension` and `embed(texts)` is one.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections import Counter
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from krunch_plugins.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

BUILT_IN = "krunch-hashing-"
"""What the names of the built-in embedder begin with, whatever its version and dimension."""
BUCKETS = 1 << 16
"""Buckets of the table of document frequencies; features share them by hash."""
IDF_SCALE = 24.0
"""The table holds `round(idf * IDF_SCALE)` in one byte; its highest idf is about 8.5."""

_GRAMS = (3, 4, 5)
_GRAM_WEIGHT = 0.5
_SPREAD = 4
"""How many places of the vector each feature adds to, with a sign for each: halves the noise of collisions."""
_LONGEST_WORD = 40
_MOST_CHARACTERS = 200_000
_CACHED_WORDS = 16_384

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)
"""Scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


class HashingEmbedder:
    """Feature hashing of words and character n-grams with idf. Deterministic; the same vector on every machine.

    A text's vector is the sum of its words' vectors, each times 1 + log(count), scaled to length 1. A word's vector is
    that of the word and, at half the weight, of its character n-grams of 3 to 5 letters (so that other forms of a word
    and misspelt ones are near), each times its idf. Scripts without spaces go in by pairs of characters.

    The idf comes from a table that ships with Krunch, counted over general conversations, and not from what is stored:
    an idf that learns from the store would change the vectors of all turns with each new turn. Measured
    (docs/embeddings.md), the fixed table is no worse than one of the very conversations that are searched.

    Args:
        dimension: length of the vectors. 448 float32 are 1,792 bytes a turn in memory; an index of many turns keeps
            them in less, and stays below 2 KB with its links and tables.
    """

    def __init__(self, dimension: int = 448) -> None:
        if dimension < 1:
            raise ValueError(f"dimension is {dimension}; allowed: 1 or more")
        self.dimension = dimension
        self.name = f"{BUILT_IN}1-{dimension}"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts, float32, of length 1; one without any word is all zeros.

        Of a text longer than 200,000 characters, the first 100,000 and the last count.
        """
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            counts = Counter(words(text))
            if not counts:
                continue
            features = [_features(word) for word in counts]
            weights = [values * (1.0 + math.log(n)) for (_, values), n in zip(features, counts.values(), strict=True)]
            places = np.concatenate([found for found, _ in features]) % self.dimension
            vectors[row] = np.bincount(places, np.concatenate(weights), self.dimension)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        np.divide(vectors, lengths, out=vectors, where=lengths > 0)
        return vectors


class SentenceTransformerEmbedder:
    """A model of the sentence-transformers library, on this machine. It is loaded at the first use.

    `Krunch` uses it in the background, so a model that takes long to load delays no request.

    Args:
        model: the model's name or folder.
        device: "cpu", "cuda", …; None: the library chooses.
        batch_size: texts that go through the model at once.

    Raises:
        MissingExtra: at the first use, if sentence-transformers is not installed. `Krunch` logs it and goes on
            without vectors; call `embed([])` yourself to know it at once.
    """

    def __init__(
        self, model: str = "sentence-transformers/all-MiniLM-L6-v2", *, device: str | None = None, batch_size: int = 32
    ) -> None:
        self.name = f"sentence-transformers/{model.removeprefix('sentence-transformers/')}"
        self._model_name, self._device, self._batch_size = model, device, batch_size
        self._lock = threading.Lock()
        self._loaded: Any = None

    @property
    def dimension(self) -> int:
        """Length of the vectors; loads the model."""
        return int(self._model().get_sentence_embedding_dimension())

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts, float32."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        found = self._model().encode(
            list(texts), batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(found, dtype=np.float32)

    def _model(self) -> Any:  # noqa: ANN401 - the library need not be installed
        with self._lock:
            if self._loaded is None:
                try:
                    from sentence_transformers import SentenceTransformer
                except ModuleNotFoundError as error:
                    if error.name != "sentence_transformers":
                        raise
                    raise MissingExtra("sentence-transformers", "SentenceTransformerEmbedder") from error
                self._loaded = SentenceTransformer(self._model_name, device=self._device)
            return self._loaded


def words(text: str) -> Iterator[str]:
    """The words of a text in lower case; of scripts without spaces, pairs of characters."""
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]} {text[-half:]}"
    for word in _WORD.findall(text.lower()):
        if word.isascii():
            yield word[:_LONGEST_WORD]
            continue
        start = 0
        for run in _UNSPACED.finditer(word):
            if run.start() > start:
                yield word[start : run.start()][:_LONGEST_WORD]
            found = run.group()
            yield from (found[at : at + 2] for at in range(max(1, len(found) - 1)))
            start = run.end()
        if start < len(word):
            yield word[start:][:_LONGEST_WORD]


def idf(word: str) -> float:
    """How rare a word is in general: log of all texts over those with it, from about 0 to 8.5."""
    return float(_idf()[_bucket(_hash("w" + word))])


def buckets(word: str) -> list[int]:
    """The buckets of a word and its n-grams in the table of document frequencies."""
    return [_bucket(_hash(feature)) for feature, _ in _spellings(word)]


def _spellings(word: str) -> Iterator[tuple[str, float]]:
    """A word's features with their weights: itself, and its n-grams with its ends marked."""
    yield "w" + word, 1.0
    if len(word) > 2:  # noqa: PLR2004 - shorter ones have no n-gram but themselves
        marked = f"<{word}>"
        for size in _GRAMS:
            for start in range(len(marked) - size + 1):
                yield "n" + marked[start : start + size], _GRAM_WEIGHT


@lru_cache(maxsize=_CACHED_WORDS)
def _features(word: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Where a word adds to a vector, before it is taken modulo the dimension, and how much."""
    table = _idf()
    hashes, weights = [], []
    for feature, weight in _spellings(word):
        found = _hash(feature)
        hashes.append(found[: 2 * _SPREAD])
        weights.append(weight * float(table[_bucket(found)]))
    drawn = np.frombuffer(b"".join(hashes), dtype="<u2").astype(np.int64)
    signs = np.where(drawn & 1, 1.0, -1.0)
    values = (np.repeat(weights, _SPREAD) * signs).astype(np.float32)
    return drawn >> 1, values


def _hash(feature: str) -> bytes:
    return hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=2 * _SPREAD + 4).digest()


def _bucket(found: bytes) -> int:
    return int.from_bytes(found[-4:], "little") % BUCKETS


@lru_cache(maxsize=1)
def _idf() -> NDArray[np.float32]:
    """The table of idf by bucket that ships with Krunch; `bench/idf_table.py` makes it."""
    packed = (resources.files("krunch_plugins") / "data" / "idf.zst").read_bytes()
    levels = np.frombuffer(zstandard.decompress(packed, max_output_size=BUCKETS), dtype=np.uint8)
    return levels.astype(np.float32) / np.float32(IDF_SCALE)
