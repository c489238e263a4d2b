"""Calling an embedder: in batches, with what a model may do wrong kept apart from an embedder that is down."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

import numpy as np

from krunch_plugins.errors import WrongDimension
from krunch_plugins.recall.embedders import HashingEmbedder
from krunch_plugins.recall.embedding_pages import rounded
from krunch_plugins.recall.locks import begin_after_fork
from krunch_plugins.recall.vectors import unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from krunch_plugins.turns import Embedder

    Vector = NDArray[np.float32]
    _Asked = tuple[str | None, str]
    """Who asks, and what."""

log = logging.getLogger("krunch")

BATCH_TEXTS = 64
"""Texts in one call, if the embedder does not say another `batch_size`."""
BATCH_CHARACTERS = 200_000
"""Characters in one call, unless one text alone has more."""
_PROBE = "Is this embedder there?"
_NOT_NOW = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS,
)
_RETRY, _RETRY_MOST = 1.0, 60.0
_QUERIES = 256
EMBED_SECONDS = 2.0
"""Seconds that a search waits for the embedding of its query, unless told otherwise; see `RecallSettings`."""
_AT_ONCE = 8
"""Queries that are embedded at the same time. Where so many wait for an embedder that hangs, others do not wait."""


def batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    """The texts in order, in lists of at most `size`, and of no more characters than an embedder likes."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) >= size or characters + len(text) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def embed(embedder: Embedder, texts: Sequence[str]) -> list[Vector | None]:
    """Vectors of one batch, as an index keeps them; None for a text that this embedder cannot do.

    A batch that fails is halved until the text is found that it fails for. If nothing at all goes through, it is the
    embedder that is down, and not the texts.

    Raises:
        WrongDimension: the embedder does not give what it says.
        Exception: whatever the embedder raises when it is down.
    """
    try:
        return _checked(embedder, texts)
    except WrongDimension:
        raise
    except Exception as error:  # a service's client raises what it likes
        if _busy(error):
            raise
        if len(texts) == 1:
            return _alone(embedder, texts)
    middle = len(texts) // 2
    return [*embed(embedder, texts[:middle]), *embed(embedder, texts[middle:])]


def _alone(embedder: Embedder, texts: Sequence[str]) -> list[Vector | None]:
    """A text that has failed by itself: again, after one that cannot be the reason."""
    _checked(embedder, [_PROBE])  # raises if it is down
    try:
        return _checked(embedder, texts)
    except Exception as error:  # as above
        if _busy(error):
            raise
        return [None]


def _busy(error: Exception) -> bool:
    """Whether a service says that it is not the texts: too many requests, or a failure of its own."""
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and (status in _NOT_NOW or status >= HTTPStatus.INTERNAL_SERVER_ERROR)


def _checked(embedder: Embedder, texts: Sequence[str]) -> list[Vector | None]:
    found = np.asarray(embedder.embed(_cut(embedder, texts)), dtype=np.float32)
    if found.ndim != 2 or len(found) != len(texts):  # noqa: PLR2004 - rows of vectors
        raise ValueError(f"embedder {embedder.name!r} gave the shape {found.shape} for {len(texts)} texts")
    return _as_kept(embedder, found)


def _cut(embedder: Embedder, texts: Sequence[str]) -> list[str]:
    """The texts, those that are longer than the embedder takes without their middle."""
    most = getattr(embedder, "max_characters", None)
    if most is None:
        return list(texts)
    half = max(1, most // 2)
    return [text if len(text) <= most else f"{text[:half]}\n{text[-half:]}" for text in texts]


def _as_kept(embedder: Embedder, found: Vector) -> list[Vector | None]:
    """Vectors of length 1 in the precision that they are stored in; None for those with NaN or infinite values."""
    if found.shape[1] != embedder.dimension:
        raise WrongDimension(embedder.dimension, found.shape[1], f"embedder {embedder.name!r}")
    finite = np.asarray(np.isfinite(found).all(axis=1))
    vectors = rounded(unit(np.where(finite[:, None], found, np.float32(0))))
    return [vector if good else None for vector, good in zip(vectors, finite.tolist(), strict=True)]


@dataclass(slots=True, eq=False)
class _Coming:
    """A turn that is being embedded; whether somebody searches for its text meanwhile."""

    done: threading.Event = field(default_factory=threading.Event)
    wanted: bool = False


class QueryVectors:
    """Vectors of what is searched for: the last ones are kept, and an embedder that is down is let be for a while.

    One that is slow keeps nobody waiting: it is called in a thread, and what comes too late is there for the next
    search. Thread-safe.

    Args:
        embedder: what embeds them.
        seconds: how long `vector` waits.
        clock: seconds that only go forward.

    Attributes:
        alike: queries are embedded as turns are, by a model that costs more than to look whether one has been.
        without: how often no vector was to be had, or not in time.
    """

    def __init__(
        self, embedder: Embedder, seconds: float = EMBED_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._embedder, self._seconds, self._clock = embedder, seconds, clock
        self.alike = not (hasattr(embedder, "embed_query") or isinstance(embedder, HashingEmbedder))
        self.without = 0
        self._late = False
        self.begin()
        begin_after_fork(self)
        self._kept: OrderedDict[_Asked, Vector] = OrderedDict()
        self._failures = 0
        self._not_before = 0.0

    def begin(self) -> None:
        """Have no call under way; see `begin_after_fork`."""
        self._lock = threading.Lock()
        self._running: dict[_Asked, threading.Event] = {}
        self._coming: dict[_Asked, _Coming] = {}

    def vector(self, text: str, tenant: str | None = None) -> Vector | None:
        """The vector of a tenant's query; None if it cannot be had just now."""
        asked = tenant, text
        if isinstance(self._embedder, HashingEmbedder):  # takes less time than a thread
            kept = self._known(asked)
            if kept is None:
                self._fetch(asked)
        elif (kept := self._known(asked)) is None and (done := self._as_turn(asked) or self._begin(asked)) is not None:
            self._await(done)
        if kept is None and (kept := self._known(asked)) is None:
            with self._lock:
                self.without += 1
        return kept

    def of_turn(self, text: str, tenant: str | None) -> Vector | None:
        """The vector of a turn that says what the tenant searched for of late; None if it did not, or not `alike`."""
        return self._known((tenant, text)) if self.alike else None

    @contextmanager
    def coming(self, texts: Sequence[str], tenant: str | None) -> Iterator[Callable[[Sequence[Vector | None]], None]]:
        """While a tenant's turns are embedded: who searches for the text of one waits for that; takes what came."""
        coming = {(tenant, text): _Coming() for text in texts} if self.alike else {}

        def came(found: Sequence[Vector | None]) -> None:
            with self._lock:
                for asked, vector in zip(coming, found, strict=False):
                    if coming[asked].wanted and vector is not None:
                        self._keep(asked, vector)

        with self._lock:
            self._coming |= coming
        try:
            yield came
        finally:
            with self._lock:
                for asked, one in coming.items():
                    self._coming.pop(asked, None)
                    one.done.set()

    def drop(self, tenant: str | None) -> None:
        """Let go of what a tenant searched for: it may be what somebody said, and is to be forgotten."""
        with self._lock:
            for asked in [asked for asked in self._kept if asked[0] == tenant]:
                del self._kept[asked]

    def _known(self, asked: _Asked) -> Vector | None:
        with self._lock:
            kept = self._kept.get(asked)
            if kept is not None:
                self._kept.move_to_end(asked)
            return kept

    def _as_turn(self, asked: _Asked) -> threading.Event | None:
        """What is set when the turn that says this has been embedded; None if that is not under way."""
        with self._lock:
            coming = self._coming.get(asked)
            if coming is None:
                return None
            coming.wanted = True
            return coming.done

    def _begin(self, asked: _Asked) -> threading.Event | None:
        """Have a query embedded; what is set when that is over. None if it is not worth a try just now."""
        with self._lock:
            done = self._running.get(asked)
            if done is not None:
                return done
            if self._clock() < self._not_before or len(self._running) >= _AT_ONCE:
                return None
            done = self._running[asked] = threading.Event()
        threading.Thread(target=self._run, args=(asked, done), name="krunch-query", daemon=True).start()
        return done

    def _run(self, asked: _Asked, done: threading.Event) -> None:
        try:
            self._fetch(asked)
        finally:
            with self._lock:
                self._running.pop(asked, None)
            done.set()

    def _await(self, done: threading.Event) -> None:
        if done.wait(self._seconds):
            self._late = False
        elif not self._late:  # said once, until it is in time again
            self._late = True
            log.warning(
                "embedder %r took over %g s for a query (recall.embed_seconds): searches do without vectors meanwhile",
                self._embedder.name, self._seconds,
            )  # fmt: skip

    def _fetch(self, asked: _Asked) -> None:
        """Embed a query and keep its vector."""
        try:
            found = self._embed(asked[1])
        except Exception as error:  # noqa: BLE001 - an outside service may raise anything, and the other voices answer
            with self._lock:
                self._failures += 1
                delay = min(_RETRY * 2 ** (self._failures - 1), _RETRY_MOST)
                self._not_before = self._clock() + delay
            log.warning(
                "embedder %r cannot embed a query (%s): searches do without vectors for %g s",
                self._embedder.name, type(error).__name__, delay,
            )  # fmt: skip
            return
        with self._lock:
            self._failures = 0
            if found is not None:
                self._keep(asked, found)

    def _keep(self, asked: _Asked, found: Vector) -> None:
        """Remember a vector. The lock is held."""
        self._kept[asked] = found
        if len(self._kept) > _QUERIES:
            self._kept.popitem(last=False)

    def _embed(self, text: str) -> Vector | None:
        """By the embedder's `embed_query`, if it has one: some models embed questions in another way than documents."""
        special = getattr(self._embedder, "embed_query", None)
        if special is None:
            return _checked(self._embedder, [text])[0]
        (cut,) = _cut(self._embedder, [text])
        return _as_kept(self._embedder, np.asarray(special(cut), dtype=np.float32).reshape(1, -1))[0]
