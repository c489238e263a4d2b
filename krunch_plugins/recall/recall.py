"""Recall: owns the voices and all that follows the store, for `Krunch`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from krunch_plugins.errors import StoreError
from krunch_plugins.recall.files import IndexFiles
from krunch_plugins.recall.plugin import VoicePlugin
from krunch_plugins.recall.search import QueryCache, fuse, passes
from krunch_plugins.recall.voices import UNREAD
from krunch_plugins.settings import WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from krunch_plugins.recall.voices import Voice
    from krunch_plugins.settings import RecallSettings, Settings
    from krunch_plugins.turns import Embedder, SearchHit, SearchQuery, Turn, TurnStore

    Ask = Callable[[SearchQuery], Mapping[str, Sequence[SearchHit]]]

_APART = 20
"""Turns between two hits of a session up to which both are read in one go."""


class Recall:
    """The voices over a store, their plugins, and the fusion of all answers. Thread-safe.

    Args:
        settings: the options.
        store: where the turns are; None: there are no voices, only outside plugins are asked.
        embedder: for the vectors; None: the built-in one.
    """

    def __init__(self, settings: Settings, store: TurnStore | None, embedder: Embedder | None = None) -> None:
        self._settings = settings.recall
        self._weights = {**WEIGHTS, **settings.recall.weights}
        self._store = store
        self._files = None if store is None else IndexFiles(store.directory)
        self._voices: dict[str, Voice] = {}
        self._leave: Callable[[], None] = lambda: None
        self._cache = QueryCache(self._settings.cached_queries)
        if store is not None and self._files is not None:
            self._voices = _voices(self._settings, store, self._files, embedder)
            self._leave = store.on_forget(self._forget)

    def plugins(self) -> dict[str, object]:
        """The built-in plugins by name."""
        return {name: VoicePlugin(voice) for name, voice in self._voices.items()}

    def search(self, query: SearchQuery, ask: Ask, *, cacheable: bool) -> list[SearchHit]:
        """The fused answer of all plugins.

        Args:
            query: what is asked.
            ask: asks all plugins.
            cacheable: the plugins' answers depend on nothing but the voices.
        """
        cacheable = cacheable and bool(self._voices)
        version = self._version(query.tenant) if cacheable else None
        if cacheable and (kept := self._cache.get(query, version)) is not None:
            return kept
        answers = ask(replace(query, k=max(query.k, self._settings.depth)))
        answers = {name: [hit for hit in hits if _passes(query, hit)] for name, hits in answers.items()}
        hits = self._read(fuse(answers, self._weights, self._settings.rank_constant, query.k), query.tenant)
        if cacheable and version == self._version(query.tenant):
            self._cache.put(query, version, hits)
        return hits

    def flush(self, timeout: float | None = None) -> bool:
        """Have everything searchable by all voices."""
        done = [voice.flush(timeout) for voice in self._voices.values()]  # each, even where an earlier one failed
        return all(done)

    def close(self) -> None:
        """Let go of everything. Safe to call twice."""
        self._leave()
        for voice in self._voices.values():
            voice.close()
        if self._files is not None:
            self._files.close()

    def _version(self, tenant: str | None) -> Hashable:
        try:
            return tuple(voice.version(tenant) for voice in self._voices.values())
        except Exception:  # noqa: BLE001 - the search says what is wrong with a voice, and the others answer
            return object()

    def _read(self, hits: list[SearchHit], tenant: str | None) -> list[SearchHit]:
        """Put the turns themselves into the hits that have none yet; those that are gone by now are left out."""
        wanted: dict[str, list[int]] = defaultdict(list)
        for hit in hits:
            if hit.turn.message is UNREAD:
                wanted[hit.session].append(hit.turn.number)
        turns = {(session, turn.number): turn for session in wanted for turn in self._turns(session, wanted, tenant)}
        whole = []
        for hit in hits:
            if hit.turn.message is not UNREAD:
                whole.append(hit)
            elif turn := turns.get((hit.session, hit.turn.number)):
                whole.append(replace(hit, turn=turn))
        return whole

    def _turns(self, session: str, wanted: Mapping[str, list[int]], tenant: str | None) -> Iterator[Turn]:
        """Turns of a session, those close to each other in one go: they lie in one frame, which is opened once."""
        assert self._store is not None
        runs: list[list[int]] = []
        for number in sorted(wanted[session]):
            if runs and number - runs[-1][-1] <= _APART:
                runs[-1].append(number)
            else:
                runs.append([number])
        for run in runs:
            yield from self._store.turns(session, run[0], run[-1] + 1, tenant=tenant)

    def _forget(self, session: str, tenant: str | None) -> int:
        self._cache.drop(tenant)
        if self._files is not None and not self._voices.keys() & {"vectors", "topics"}:
            from krunch_plugins.recall.vector_files import remove_models

            remove_models(self._files.folder(tenant))  # another process may have written them, with what is forgotten
        removed, errors = 0, []
        for voice in self._voices.values():  # each, even where an earlier one failed
            try:
                removed += voice.forget(session, tenant)
            except StoreError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return removed


def _passes(query: SearchQuery, hit: SearchHit) -> bool:
    return hit.turn.message is UNREAD or passes(query, hit.session, hit.turn)


def _voices(
    settings: RecallSettings, store: TurnStore, files: IndexFiles, embedder: Embedder | None
) -> dict[str, Voice]:
    """The voices that the settings ask for."""
    voices: dict[str, Voice] = {}
    if "words" in settings.voices:
        from krunch_plugins.recall.words import Words

        voices["words"] = Words(store, files, settings)
    if settings.voices & {"vectors", "topics"}:
        from krunch_plugins.recall.vector_search import Vectors

        vectors = Vectors(store, files, embedder, embed_seconds=settings.embed_seconds)
        if "vectors" in settings.voices:
            voices["vectors"] = vectors
        if "topics" in settings.voices:
            from krunch_plugins.recall.topic_search import Topics

            voices["topics"] = Topics(vectors, owner="vectors" not in settings.voices)
    return voices
