"""Index files of vectors: caches that save the time of a rebuild from the store.

A tenant's folder has one snapshot for each model (which vectors belong to which turns, and up to where the store was
followed) and, if the vectors are many, the graph and they themselves in two files beside it. The snapshot holds the
checksum of these. Written: graph and vectors first, under a name that nothing refers to yet, then the snapshot that
names it. Anything that does not fit is treated as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from krunch_plugins.errors import KrunchError
from krunch_plugins.recall.catalogue import Catalogue
from krunch_plugins.recall.vectors import AdaptiveIndex
from krunch_plugins.snapshots import State, delete, load, save

if TYPE_CHECKING:
    import threading

log = logging.getLogger("krunch")

_VERSION = 2
_PREFIX = "vectors-"
_MOST_BYTES = 1 << 33
_SUFFIXES = (".hnsw", ".half")
"""Of a graph's file, and of the one with its vectors."""


class Saved(NamedTuple):
    """What a tenant's files hold.

    Attributes:
        cursor: up to where the store was followed.
        catalogue: whose vectors they are.
        vectors: the vectors.
    """

    cursor: str
    catalogue: Catalogue
    vectors: AdaptiveIndex


def remove_models(folder: Path, *, but: str = "", keep: int = 0) -> None:
    """Remove the files of all models in a tenant's folder.

    Args:
        folder: the tenant's folder.
        but: the beginning of the names of the one whose files stay.
        keep: the models, of the others, that were written last and stay.
    """
    found: dict[str, list[tuple[float, Path]]] = {}
    for path in folder.glob(f"{_PREFIX}*"):
        stem = path.name.split(".")[0]
        if stem != but:
            with contextlib.suppress(OSError):
                found.setdefault(stem, []).append((path.stat().st_mtime, path))
    oldest = sorted(found, key=lambda stem: max(found[stem]))
    for stem in oldest[: max(0, len(oldest) - keep)]:
        for _, path in found[stem]:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


class VectorFiles:
    """The files of one model in one tenant's folder.

    Args:
        folder: the tenant's folder.
        model: name of the model.
        dimension: length of its vectors.
    """

    def __init__(self, folder: Path, model: str, dimension: int) -> None:
        self._folder, self._model, self._dimension = folder, model, dimension
        self._stem = _PREFIX + hashlib.blake2b(model.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        self._path = folder / f"{self._stem}.krunch"

    def read(self, exact_up_to: int, stopping: threading.Event) -> Saved | None:
        """What was saved, as `AdaptiveIndex` takes it; None if it is missing, damaged, or of other vectors."""
        if not self._path.exists():
            return None
        try:
            state = load(self._path, max_bytes=_MOST_BYTES)
            return self._restored(state, AdaptiveIndex(self._dimension, exact_up_to, stopping))
        except (
            KrunchError,
            OSError,
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
            RuntimeError,
        ) as error:
            log.warning("an index file is built anew, because it cannot be used: %s", type(error).__name__)
            return None

    def write(self, cursor: str, catalogue: State, vectors: AdaptiveIndex) -> None:
        """Save it all, over what was there.

        Args:
            cursor: up to where the store was followed.
            catalogue: `Catalogue.state()`.
            vectors: they must not change meanwhile.

        Raises:
            OSError, SnapshotError: it could not be written; what was there stays.
        """
        graph = vectors.graph
        state: dict[str, Any] = {
            "version": _VERSION,
            "model": self._model,
            "dimension": self._dimension,
            "cursor": cursor,
            "catalogue": catalogue,
        }
        name = ""
        if graph is None:
            ids, found = vectors.get(np.sort(vectors.ids()))
            state |= {"ids": ids, "vectors": found.astype(np.float16)}
        else:
            name = f"{self._stem}.{secrets.token_hex(4)}.hnsw"
            try:
                noted = graph.save(self._folder / name)
            except BaseException:  # an interrupt too leaves no file that nothing names
                self._remove_graph(name)
                raise
            state["graph"] = {"name": name, **asdict(noted)}
        try:
            save(state, self._path, max_bytes=_MOST_BYTES)
        except BaseException:  # as above
            if name:
                self._remove_graph(name)
            raise
        self._remove_graphs(but=name)

    def remove(self) -> bool:
        """Remove this model's files; whether there were any."""
        there = self._path.exists()
        self._remove_graphs()
        delete(self._path)
        return there

    def remove_others(self, keep: int = 0) -> None:
        """Remove what other models have left in the folder, except the `keep` that were written last."""
        remove_models(self._folder, but=self._stem, keep=keep)

    def _restored(self, state: Any, vectors: AdaptiveIndex) -> Saved | None:  # noqa: ANN401 - what the file holds
        if (state["version"], state["model"], state["dimension"]) != (_VERSION, self._model, self._dimension):
            return None
        if "graph" in state:
            try:
                from krunch_plugins.recall.hnsw import GraphFile, HnswIndex
            except ImportError:
                return None  # written where hnswlib was installed
            name, noted = state["graph"].pop("name"), GraphFile(**state["graph"])
            graph = HnswIndex.load(self._folder / name, noted, self._dimension)
            if graph is None:
                return None
            vectors.adopt(graph)
        else:
            vectors.add(state["ids"], state["vectors"].astype(np.float32))
        return Saved(state["cursor"], Catalogue.of(state["catalogue"]), vectors)

    def _remove_graphs(self, but: str = "") -> None:
        """Remove graphs and the vectors beside them, except those of this name."""
        kept = Path(but).stem
        for suffix in _SUFFIXES:
            for path in self._folder.glob(f"{self._stem}.*{suffix}"):
                if path.stem != kept:
                    path.unlink(missing_ok=True)

    def _remove_graph(self, name: str) -> None:
        for suffix in _SUFFIXES:
            (self._folder / name).with_suffix(suffix).unlink(missing_ok=True)
